"""Wall time and peak memory of a whole study as images and trials become more.

Images are distinct: shifted and re-encoded copies of those given. Each row is one
`sft-mlflow finetune` in a process of its own, with an empty store.
"""

from __future__ import annotations

import argparse
import io
import os
import shlex
import shutil
import subprocess
import sys
import time
from itertools import count, islice
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import machine


def main() -> None:
    options = parse()
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    environment = os.environ | machine.threads(options.threads)
    rows = [(images, 1) for images in options.images_in_all]
    rows += [(min(options.images_in_all), trials) for trials in options.trials]
    lines = []
    print("| images | trials | seconds | peak MB | MB above the first |\n|---|---|---|---|---|")
    for images, trials in rows:
        folder = options.work / f"images-{images}"
        if not folder.exists():
            copies(options.images, folder, images)
        seconds, peak = run(folder, trials, options.work / f"{images}-{trials}", environment)
        lines.append({"images": images, "trials": trials, "seconds": seconds, "peak_mb": peak})
        above = peak - lines[0]["peak_mb"]
        print(f"| {images} | {trials} | {seconds:.0f} | {peak:.0f} | {above:.0f} |", flush=True)
    machine.write_report(options.output, "benchmarks.growth", options.threads, {"lines": lines})


def copies(source: Path, folder: Path, wanted: int) -> None:
    """`folder`/CLASS/*.jpg: each image of the source, then all of them shifted, and so on."""
    classes = sorted(path for path in source.iterdir() if path.is_dir())
    # In turn from each class, so that the first thousand are of all of them.
    turns = zip(*(sorted(path.glob("*.jpg")) for path in classes), strict=False)
    files = [path for turn in turns for path in turn]
    for path in classes:
        (folder / path.name).mkdir(parents=True)
    shifts = ((turn, path) for turn in count() for path in files)
    for number, (turn, path) in enumerate(islice(shifts, wanted)):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        moved = np.roll(pixels, (turn % 7, turn // 7), axis=(0, 1))
        encoded = io.BytesIO()
        Image.fromarray(moved).save(encoded, "jpeg", quality=90)
        (folder / path.parent.name / f"{number:06d}.jpg").write_bytes(encoded.getvalue())


def run(images: Path, trials: int, work: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Seconds, and megabytes of the largest resident set."""
    work.mkdir()
    command = [
        machine.PRODUCT,
        "finetune",
        f"--data={images}",
        "--image-size=32",
        "--epochs=1",
        "--depths=1",
        "--augment=none",
        f"--trials={trials}",
        "--study=growth",
    ]
    environment = environment | machine.product(work)
    begun = time.perf_counter()
    with (work / "printed.txt").open("w") as printed:
        child = subprocess.Popen(
            command, cwd=work, env=environment, stdout=printed, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"{shlex.join(command)} failed; see {work / 'printed.txt'}")
    return time.perf_counter() - begun, usage.ru_maxrss / 1024


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="growth", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--images", type=machine.absolute, required=True, help="images as CLASS/*.jpg")
    add("--work", type=machine.absolute, required=True, help="for all that is written; emptied")
    add("--output", type=machine.absolute, required=True, help="JSON file")
    add("--images-in-all", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    add("--trials", type=int, nargs="+", default=[10, 100], help="of the fewest images")
    add("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    return parser.parse_args()


if __name__ == "__main__":
    main()
