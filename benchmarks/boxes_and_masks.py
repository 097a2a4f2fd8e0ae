"""What one command makes of images with boxes or masks in a given time, and what a plain loop does.

`ours` is `sft-mlflow finetune` with a budget. `plain` trains the same network from the same weights
on the same images with the same changes of them, in one run that fills the time: all of it at once,
a new head, the body at a tenth of the head's learning rate, BatchNorm at the source's statistics,
AdamW, one cycle. Both are judged by the same metrics on the same test side, which none has seen.

`reuse` is one study of fixed trials, with what frozen stages make of an image kept, and computed
again.
"""

from __future__ import annotations

import time

BEGUN = time.perf_counter()  # Before the heavy imports: they are part of an arm's time.

import argparse  # noqa: E402
import copy  # noqa: E402
import os  # noqa: E402
import subprocess  # noqa: E402
from functools import partial  # noqa: E402

from benchmarks import machine  # noqa: E402

MODULE = "benchmarks.boxes_and_masks"
DEPTHS = (2, 4, 8)
# The rest is for the test at the end, and epochs that take longer than the first.
SHARE_OF_TRAINING = 0.95


def main() -> None:
    options = parse()
    os.environ.update(machine.product(options.work))
    figures, note = {"ours": ours, "plain": plain, "reuse": reuse}[options.arm](options)
    seconds = time.perf_counter() - BEGUN
    print(f"{options.arm}: {figures} in {seconds:.0f} s; {note}")
    result = {"arm": options.arm, "figures": figures, "seconds": seconds, "note": note}
    machine.write_report(options.output, MODULE, options.threads, {"lines": [result]})


def ours(options: argparse.Namespace) -> tuple[dict[str, float], str]:
    from sft_mlflow import runtime

    # Memory is kept as the command line keeps it.
    runtime.tune()

    from sft_mlflow.commands import finetune
    from sft_mlflow.options import FinetuneOptions

    done = finetune(
        FinetuneOptions(
            data=options.data,
            task=options.task,
            ignore_index=options.ignore_index,
            budget_minutes=options.minutes,
            epochs=options.epochs,
            augment="natural",
            batch_size=(options.batch_size,),
            seed=options.seed,
        )
    )
    best, test = done.report.best_trial, done.report.test
    assert best is not None
    assert test is not None
    note = f"depth {best.depth}, lr {best.lr}, {len(done.report.trials)} trials"
    return {name: found.value for name, found in test.figures.items()}, note


def plain(options: argparse.Namespace) -> tuple[dict[str, float], str]:
    import numpy as np
    import torch

    from sft_mlflow.data.loading import load_manifest
    from sft_mlflow.data.pixels import pixels_of
    from sft_mlflow.data.truth import ignored_values
    from sft_mlflow.options import EMBEDDED_SOURCE
    from sft_mlflow.sources.network import normalise
    from sft_mlflow.sources.uri import resolve
    from sft_mlflow.tasks import TASKS
    from sft_mlflow.tasks.base import Frame, LossSettings
    from sft_mlflow.training.augmentation import augment, moved

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    manifest = load_manifest(
        options.data,
        task=options.task,
        cache=options.work / "data",
        seed=options.seed,
        ignored=ignored_values(options.ignore_index),
    ).manifest
    task, source = TASKS[options.task], resolve(EMBEDDED_SOURCE)
    preprocessing = task.building.preprocessing(source, manifest.samples, None)
    frame = Frame(manifest.classes, preprocessing.pixels, manifest.mask_values)
    network = task.building.network(source, len(manifest.classes))
    network.model.to(memory_format=torch.channels_last)
    weights = task.learning.class_weights(manifest)
    settings = LossSettings(0.0, None if weights is None else torch.tensor(weights))
    # Decoded once; the changes are made anew in every epoch.
    pixels = {
        sample.digest: torch.from_numpy(pixels_of(sample.path, frame.pixels))
        for sample in manifest.samples
    }

    def values(samples: list, epoch: int | None) -> torch.Tensor:
        batch = torch.stack([pixels[sample.digest] for sample in samples])
        if epoch is not None:
            names = [sample.digest for sample in samples]
            batch = augment(batch, "natural", (options.seed, epoch), names)
        return normalise(batch, preprocessing.mean, preprocessing.std)

    def judged(side: str) -> dict[str, float]:
        network.model.eval()
        samples = manifest.side(side)
        parts, together = [], frame.pixels.together
        with torch.inference_mode():
            for start in range(0, len(samples), together):
                some = samples[start : start + together]
                sizes = [(sample.width, sample.height) for sample in some]
                outputs = network.model(values(some, None))
                answers = task.answering.answers(network.head, outputs, sizes, frame)
                parts.append(task.judging.evidence(answers, some, frame, start))
        return task.judging.evaluate(np.concatenate(parts), samples, frame)

    train = manifest.side("train")
    body = [p for n, p in network.model.named_parameters() if not n.startswith(network.head_path)]
    groups = [
        {"params": body, "lr": options.lr / 10},
        {"params": list(network.head.parameters()), "lr": options.lr},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.02)
    peaks = [group["lr"] for group in groups]
    steps = len(train) // options.batch_size
    metric = task.judging.metrics[0]
    best: tuple[float, dict[str, torch.Tensor]] = (-1.0, {})
    schedule = None
    epochs, epoch = options.epochs, 0
    end = SHARE_OF_TRAINING * options.minutes * 60
    while epoch < epochs:
        begun = time.perf_counter()
        network.freeze(network.full_depth)
        order = torch.randperm(len(train)).tolist()
        for step in range(steps):
            some = [train[row] for row in order[step * options.batch_size :][: options.batch_size]]
            change = partial(moved, policy="natural", key=(options.seed, epoch))
            targets = task.learning.targets(
                some, frame, lambda truth, name, change=change: change(truth, name=name)
            )
            with torch.autocast("cpu", torch.bfloat16):
                outputs = network.model(values(some, epoch))
            loss = task.learning.loss(network.head, outputs, targets, settings)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.model.parameters(), 1.0)
            optimizer.step()
            if schedule is not None:
                schedule.step()
        found = judged("valid")[metric]
        if found > best[0]:
            best = found, copy.deepcopy(network.model.state_dict())
        epoch += 1
        print(f"epoch {epoch}: loss {loss.item():.3f}, {metric} {found:.4f}", flush=True)
        if schedule is None:
            # The first epoch tells how many fill the time; the cycle is over the others.
            left = end - (time.perf_counter() - BEGUN)
            epochs = 1 + max(1, int(left / (time.perf_counter() - begun)))
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, peaks, total_steps=(epochs - 1) * steps, pct_start=0.1
            )
    network.model.load_state_dict(best[1])
    return judged("test"), f"{epochs} epochs, {metric} {best[0]:.4f} on validation"


def reuse(options: argparse.Namespace) -> tuple[dict[str, float], str]:
    seconds = {}
    for kept in ("yes", "no"):
        work = options.work / f"reuse-{kept}"
        work.mkdir(parents=True)
        command = [
            machine.PRODUCT,
            "finetune",
            f"--data={options.data}",
            f"--task={options.task}",
            f"--depths={','.join(map(str, DEPTHS))}",
            f"--lr={options.lr}",
            f"--trials={len(DEPTHS)}",
            f"--epochs={options.epochs}",
            f"--batch-size={options.batch_size}",
            "--augment=natural",
            # Else each measures which is faster, and they may differ.
            "--precision=bfloat16",
            "--prune=no",
            f"--seed={options.seed}",
            f"--reuse={kept}",
        ]
        if options.ignore_index is not None:
            command.append(f"--ignore-index={options.ignore_index}")
        environment = os.environ | machine.threads(options.threads) | machine.product(work)
        begun = time.perf_counter()
        with (work / "printed.txt").open("w") as printed:
            subprocess.run(
                command, env=environment, stdout=printed, stderr=printed, check=True, cwd=work
            )
        seconds[kept] = time.perf_counter() - begun
    return seconds, f"{seconds['no'] / seconds['yes']:.2f} times as fast with reuse"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="boxes_and_masks", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", required=True, help="as for `sft-mlflow finetune`")
    add("--task", choices=("detection", "segmentation"), required=True)
    add("--arm", choices=("ours", "plain", "reuse"), required=True)
    add("--work", type=machine.absolute, required=True, help="folder for all that is written")
    add("--output", type=machine.absolute, required=True, help="JSON file")
    add("--minutes", type=float, default=60)
    add("--epochs", type=int, default=20, help="of a trial of `ours` and `reuse`")
    add("--batch-size", type=int, default=8)
    add(
        "--lr",
        type=float,
        default=1e-3,
        help="of the head in `plain`, and of every trial of `reuse`",
    )
    add("--ignore-index", type=int)
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    return parser.parse_args()


if __name__ == "__main__":
    main()
