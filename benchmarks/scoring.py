"""Images a second of `sft-mlflow score`, beside what the machine allows and MLflow's plain predict.

All on the same files with the same model, turn by turn in one process; the median of the turns:
`decode` makes pixels of all files and throws them away; `forward` runs the network on pixels that
are there already; `together` is what both allow on the same cores, 1 / (1/decode + 1/forward);
`predict` hands the files' bytes to `mlflow.pyfunc.load_model(...).predict`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import time
from collections.abc import Callable
from itertools import islice

from benchmarks import machine
from sft_mlflow import runtime


def main() -> None:
    options = parse()
    os.environ |= machine.threads(options.threads)
    runtime.tune()
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    os.environ |= machine.product(options.work)
    os.chdir(options.work)
    rates = measure(options)
    both = 1 / (1 / rates["decode"] + 1 / rates["forward"])
    print("| road | images/s | of what both allow |\n|---|---|---|")
    for name, rate in {**rates, "together": both}.items():
        print(f"| {name} | {rate:.1f} | {rate / both:.2f} |")
    print(f"\nscore over predict: {rates['score'] / rates['predict']:.2f}")
    machine.write_report(
        options.output, "benchmarks.scoring", options.threads, {**rates, "together": both}
    )


def measure(options: argparse.Namespace) -> dict[str, float]:
    import mlflow
    import numpy as np
    import pandas as pd

    from sft_mlflow.commands import finetune, score
    from sft_mlflow.data.pixels import PixelSpec, stream
    from sft_mlflow.options import FinetuneOptions, ScoreOptions, parse
    from sft_mlflow.tasks.predictor import Predictor
    from sft_mlflow.tracking import connection, fetch

    given = {"depths": "0", "trials": "1", "model_name": "scored"}
    finetune(parse(FinetuneOptions, {**given, "image_size": str(options.image_size)}))
    uri = "models:/scored/1"
    found = fetch.fetch(connection.connect(), uri, into=options.work / "model")
    predictor = Predictor.load(found.folder)
    plain = mlflow.pyfunc.load_model(uri)
    files = sorted(path for path in options.images.rglob("*.jpg"))[: options.most]
    table = options.work / "images.csv"
    pd.DataFrame({"path": map(str, files)}).to_csv(table, index=False)
    spec = PixelSpec(options.image_size, predictor.config.preprocessing.interpolation)
    pixels = np.concatenate([b.pixels for b in stream(files, spec, 64, threads=options.threads)])

    def decode() -> None:
        for _ in stream(files, spec, 64, threads=options.threads):
            pass

    def forward() -> None:
        predictor.answers(pixels, [(options.image_size,) * 2] * len(pixels))

    def scored() -> None:
        score(
            parse(
                ScoreOptions,
                {
                    "model": uri,
                    "input": str(table),
                    "output": str(options.work / "scores.parquet"),
                    "overwrite": "yes",
                },
            )
        )

    def predict() -> None:
        # As many at once as fit into memory; the frame of bytes is what its signature asks for.
        rows = iter(files)
        while some := list(islice(rows, 256)):
            plain.predict(pd.DataFrame({"image": [path.read_bytes() for path in some]}))

    roads: dict[str, Callable[[], None]] = {
        "decode": decode,
        "forward": forward,
        "score": scored,
        "predict": predict,
    }
    seconds: dict[str, list[float]] = {name: [] for name in roads}
    for _ in range(options.turns):
        for name, road in roads.items():
            begun = time.perf_counter()
            road()
            seconds[name].append(time.perf_counter() - begun)
    return {name: len(files) / statistics.median(taken) for name, taken in seconds.items()}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scoring", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--images", type=machine.absolute, required=True, help="folder of *.jpg, at any depth")
    add("--work", type=machine.absolute, required=True, help="for all that is written; emptied")
    add("--output", type=machine.absolute, required=True, help="JSON file")
    add("--most", type=int, default=2000, help="images (default: %(default)s)")
    add("--image-size", type=int, default=128, help="of the model (default: %(default)s)")
    add("--turns", type=int, default=5)
    add("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    return parser.parse_args()


if __name__ == "__main__":
    main()
