"""How the report says things, the same on the page and in the terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from sft_mlflow.report.tables import StudyReport, TrialRow, best_probe
from sft_mlflow.tasks.figures import Interval

# By this a page is known as a report.
SIGN = "Fine-tuning study ·"
_SPOKEN = {
    "macro_f1": "macro F1",
    "ece": "ECE",
    "map": "mAP",
    "map_50": "mAP at 0.50",
    "map_75": "mAP at 0.75",
    "map_small": "mAP of small objects",
    "map_medium": "mAP of medium objects",
    "map_large": "mAP of large objects",
    "miou": "mean IoU",
}


def figure(value: float | None) -> str:
    """A metric with four digits, or a dash."""
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"


def metric(name: str) -> str:
    """A metric's name as it is spoken: `macro_f1` is `macro F1`; any side's prefix is dropped."""
    plain = name.rpartition("/")[2]
    return _SPOKEN.get(plain, plain.replace("_", " "))


def compact(count: int) -> str:
    """A count in at most five characters: `842`, `12k`, `3.4M`."""
    for size, word in ((10**6, "M"), (10**4, "k")):
        if count >= size:
            short = count / (10**6 if word == "M" else 10**3)
            return f"{short:.1f}{word}" if short < 10 else f"{short:.0f}{word}"
    return str(count)


def interval(found: Interval) -> str:
    """A figure with its interval, as `0.9861 (95 % interval 0.9750 to 0.9944)`."""
    return f"{found.value:.4f} (95 % interval {found.low:.4f} to {found.high:.4f})"


def learning_rate(rate: float | None) -> str:
    """A rate with two significant digits, as `3.1e-4`, or a dash."""
    return "-" if rate is None else f"{rate:.1e}".replace("e-0", "e-").replace("e+00", "")


def duration(seconds: float) -> str:
    """Seconds as people say them: `8.4 s`, `2 min 31 s`, `1 h 05 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def trained_part(trial: TrialRow) -> str:
    """Which part of the network the trial trained."""
    if trial.depth == 0:
        return "only the head" + (" (a probe)" if trial.lr is None else "")
    if trial.depth == trial.full_depth:
        return f"the whole network ({trial.full_depth} stages)"
    last = "last stage" if trial.depth == 1 else f"last {trial.depth} stages"
    return f"the {last} of {trial.full_depth} and the head"


def recipe(trial: TrialRow) -> str:
    """What the trial trained and how fast."""
    rate = "" if trial.lr is None else f", learning rate {learning_rate(trial.lr)}"
    return f"{trained_part(trial)}{rate}"


def tally(trials: Sequence[TrialRow]) -> str:
    """How many trials ended how: `12 trials: 9 finished, 2 pruned, 1 failed`."""
    states = Counter[str](trial.state for trial in trials)
    spoken = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}
    parts = [f"{states[state]} {word}" for state, word in spoken.items() if states[state]]
    noun = "trial" if len(trials) == 1 else "trials"
    return f"{len(trials)} {noun}" + (f": {', '.join(parts)}" if parts else "")


def gain_over_probe(report: StudyReport) -> str | None:
    """What the best trial gained over the probe of its source, or that the head alone is best."""
    best = report.best_trial
    if best is None or best.value is None:
        return None
    if best.depth == 0:
        others = any(trial.depth and trial.state == "COMPLETE" for trial in report.trials)
        return "no less than any deeper trial reached" if others else None
    probe = best_probe(report.trials, best.source)
    if probe is None or probe.value is None:
        return None
    return f"{best.value - probe.value:+.4f} over the probe ({probe.value:.4f})"


def failures(trials: Sequence[TrialRow]) -> list[str]:
    """Each reason for which trials failed, the most frequent first, with its count."""
    reasons = Counter(_one_line(t.reason) or "no reason given" for t in trials if t.state == "FAIL")
    return [f"{count} x {reason}" for reason, count in reasons.most_common()]


def shortened(text: str, most: int) -> str:
    """The text, cut in the middle to at most `most` characters."""
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return f"{text[: most - 1 - tail]}…{text[len(text) - tail :]}"


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())
