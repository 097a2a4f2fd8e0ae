"""Would a choice of depth by its price find better trials than plain TPE, at equal cost?

Replays tables of real runs that `benchmarks/recipes.py` recorded (recipes "depth=D lr=R"): a trial
of any learning rate has the accuracy between its neighbours in the table, with noise as large as
seeds differ, and costs what runs of its depth cost. `tpe` is what the product does: the probe
aside, every depth once, then TPE. `priced` takes the depth whose expected improvement a second is
largest, and leaves the learning rate there to TPE. What counts is the accuracy without noise of the
trial that looks best, after the cost of 4, 8 and 16 average trials; mean over seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import statistics
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna

from sft_mlflow.options import FinetuneOptions, parse
from sft_mlflow.search.space import OPENING

BUDGETS = (4, 8, 16)
STARTUP_TRIALS = 5


@dataclass(frozen=True)
class Table:
    """Of each depth: logarithms of learning rates in rising order, accuracies, seconds a trial."""

    rates: Mapping[int, list[float]]
    accuracies: Mapping[int, list[float]]
    seconds: Mapping[int, float]
    noise: float

    @classmethod
    def read(cls, path: Path) -> Table:
        found: dict[int, list[tuple[float, list[float], list[float]]]] = defaultdict(list)
        for line in json.loads(path.read_text())["lines"]:
            fields = dict(field.split("=") for field in line["recipe"].split())
            found[int(fields["depth"])].append(
                (math.log(float(fields["lr"])), line["accuracy"], line["seconds"])
            )
        spreads = [
            statistics.stdev(accuracy)
            for rows in found.values()
            for _, accuracy, _ in rows
            if len(accuracy) > 1
        ]
        rows = {depth: sorted(of_depth) for depth, of_depth in found.items()}
        return cls(
            {depth: [row[0] for row in of_depth] for depth, of_depth in rows.items()},
            {d: [statistics.mean(row[1]) for row in of_depth] for d, of_depth in rows.items()},
            {
                d: statistics.median(s for r in of_depth for s in r[2])
                for d, of_depth in rows.items()
            },
            statistics.mean(spreads) if spreads else 0.0,
        )

    def accuracy(self, depth: int, rate: float) -> float:
        return float(np.interp(math.log(rate), self.rates[depth], self.accuracies[depth]))


Choose = Callable[[optuna.Study, Table], int | None]


def by_tpe(study: optuna.Study, table: Table) -> None:
    return None


def by_price(study: optuna.Study, table: Table) -> int | None:
    """The depth with the largest expected improvement a second, once each was tried."""
    values: dict[int, list[float]] = defaultdict(list)
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)):
        values[trial.params["depth"]].append(trial.value)
    if len(values) < len(table.seconds) or sum(map(len, values.values())) < STARTUP_TRIALS:
        return None
    best = max(map(max, values.values()))
    spread = statistics.pstdev(v for of_depth in values.values() for v in of_depth) or 1e-6

    def improvement(depth: int) -> float:
        # A normal around the best of the depth's, wide where little was tried.
        deviation = spread / math.sqrt(len(values[depth]))
        z = (max(values[depth]) - best) / deviation
        density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        return deviation * (density + z * 0.5 * (1 + math.erf(z / math.sqrt(2))))

    return max(table.seconds, key=lambda depth: improvement(depth) / table.seconds[depth])


def replay(table: Table, choose: Choose, seed: int) -> list[float]:
    """Accuracy without noise of what looks best, at each budget."""
    noise = np.random.default_rng(seed)
    defaults = parse(FinetuneOptions, {})
    low, high = defaults.lr_min, defaults.lr_max
    tpe = optuna.samplers.TPESampler(
        seed=seed, multivariate=True, group=True, n_startup_trials=STARTUP_TRIALS
    )
    study = optuna.create_study(direction="maximize", sampler=tpe)
    opening = low * (high / low) ** OPENING
    for depth in sorted(table.seconds, reverse=True):
        study.enqueue_trial({"depth": depth, "lr": opening})
    average = statistics.mean(table.seconds.values())
    spent, trials = 0.0, []
    while spent < max(BUDGETS) * average:
        fixed = choose(study, table)
        study.sampler = (
            tpe if fixed is None else optuna.samplers.PartialFixedSampler({"depth": fixed}, tpe)
        )
        trial = study.ask()
        depth = trial.suggest_categorical("depth", sorted(table.seconds))
        true = table.accuracy(depth, trial.suggest_float("lr", low, high, log=True))
        seen = true + noise.normal(0, table.noise)
        study.tell(trial, seen)
        spent += table.seconds[depth]
        trials.append((seen, true, spent))
    return [max(t for t in trials if t[2] <= budget * average)[1] for budget in BUDGETS]


def main() -> None:
    parser = argparse.ArgumentParser(prog="sampler_replay", description=__doc__.splitlines()[0])
    parser.add_argument("tables", type=Path, nargs="+", help="JSON files of benchmarks/recipes.py")
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    print("| table | sampler | " + " | ".join(f"{b} trials" for b in BUDGETS) + " |")
    print("|---" * (2 + len(BUDGETS)) + "|")
    lines = []
    for path in options.tables:
        table = Table.read(path)
        found = {}
        for name, choose in (("tpe", by_tpe), ("priced", by_price)):
            found[name] = np.array([replay(table, choose, seed) for seed in range(options.seeds)])
            means = found[name].mean(0)
            print(f"| {path.stem} | {name} | " + " | ".join(f"{m:.4f}" for m in means) + " |")
            lines.append({"table": path.stem, "sampler": name, "accuracy": means.tolist()})
        difference = found["priced"] - found["tpe"]
        error = difference.std(0, ddof=1) / math.sqrt(options.seeds)
        text = " | ".join(
            f"{m:+.4f} ± {e:.4f}" for m, e in zip(difference.mean(0), error, strict=True)
        )
        print(f"| {path.stem} | difference | {text} |")
        lines.append(
            {
                "table": path.stem,
                "difference": difference.mean(0).tolist(),
                "error": error.tolist(),
            }
        )
    command = shlex.join(["python", "-m", "benchmarks.sampler_replay", *sys.argv[1:]])
    options.output.write_text(json.dumps({"command": command, "lines": lines}, indent=2) + "\n")


if __name__ == "__main__":
    main()
