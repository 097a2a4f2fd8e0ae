"""The gate: may the challenger take the champion's place? A pure decision from their answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import binomtest

from sft_mlflow.data.manifest import Sample
from sft_mlflow.data.truth import classes_in
from sft_mlflow.tasks.base import Evidence, Frame, Judging
from sft_mlflow.tasks.bootstrap import resampled
from sft_mlflow.tasks.naive import TOLERANCE, compared

# The usual level; at it, one challenger in twenty that is just as good is refused by chance.
SIGNIFICANCE = 0.05
# On fewer images the average precision or IoU of a class hangs on one of them.
FEW_IMAGES = 5
# Of the paired bootstrap: enough to tell 0.05.
RESAMPLES = 200


@dataclass(frozen=True, slots=True)
class Gate:
    """What is demanded of a challenger.

    metric: of `minimum` and `min_improvement`, "auto" for the task's first; minimum: least figure
    on the test images, None for more than a model that knows nothing would get; min_improvement:
    least gain over the champion, negative to allow a loss; max_p_value: largest p of the paired
    test that the gain is chance, 1 to demand none; max_class_drop: most that any class may lose of
    its recall, its average precision or its IoU. A challenger that the paired test finds worse
    (p < 0.05) is refused whatever these say.
    """

    metric: str = "auto"
    minimum: float | None = None
    min_improvement: float = 0.0
    max_p_value: float = 1.0
    max_class_drop: float = 0.1


@dataclass(frozen=True, eq=False, slots=True)
class Contestant:
    """What a model says of the test images, as its task keeps it, and what that is about."""

    frame: Frame
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class Figures:
    """One model's figures by name over `images` test images."""

    images: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ClassChange:
    """What one class is found with by both models.

    count: its images, objects or pixels; images: that show it; lost: of its images the challenger
    gets so many fewer right, None where an image is not right or wrong.
    """

    name: str
    count: int
    images: int
    champion: float
    challenger: float
    lost: int | None

    @property
    def drop(self) -> float:
        """What the class would lose; negative for a gain."""
        return self.champion - self.challenger


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both models on the images whose class both know.

    only_champion, only_challenger: images that one alone gets right, None where an image is not
    right or wrong; p_better, p_worse: one-sided tests of the challenger being no better, or no
    worse, than the champion: McNemar's exact one, or a paired bootstrap of the gate's metric over
    images; measured: what classes are compared by; counted: what their counts are of.
    """

    champion: Figures
    challenger: Figures
    only_champion: int | None
    only_challenger: int | None
    p_better: float
    p_worse: float
    measured: str
    counted: str
    classes: tuple[ClassChange, ...]


@dataclass(frozen=True, slots=True)
class Condition:
    """One demand of the gate: `message` says what was found and what was asked, in figures."""

    name: str
    passed: bool
    message: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says by that metric.

    comparison: None without a champion, or where no class is shared.
    """

    metric: str
    challenger: Figures
    comparison: Comparison | None
    conditions: tuple[Condition, ...]

    @property
    def passed(self) -> bool:
        """Whether every condition is met."""
        return all(condition.passed for condition in self.conditions)

    @property
    def failed(self) -> tuple[Condition, ...]:
        """The conditions that are not met."""
        return tuple(condition for condition in self.conditions if not condition.passed)


def judge(
    gate: Gate,
    judging: Judging,
    samples: Sequence[Sample],
    challenger: Contestant,
    champion: Contestant | None,
) -> Verdict:
    """The verdict on the challenger, from both models' answers to the same images.

    samples: at least one, whose classes the challenger knows. Without a champion only the minimum
    counts. Classes are matched by name: the comparison is over the images whose classes both
    models know, and a challenger that does not know all of the champion's classes is refused.
    """
    metric = judging.metrics[0] if gate.metric == "auto" else gate.metric
    own = _figures(judging, samples, challenger)
    conditions = [_minimum(gate, metric, judging, own, samples, challenger.frame)]
    if champion is None:
        return Verdict(metric, own, None, tuple(conditions))
    conditions.append(_keeps_classes(challenger.frame.classes, champion.frame.classes))
    known = frozenset(champion.frame.classes)
    shared = np.flatnonzero([classes_in(sample.truth) <= known for sample in samples])
    if not len(shared):
        message = "no test image is of a class that the champion knows, so they cannot be compared"
        conditions.append(Condition("comparison", False, message))
        return Verdict(metric, own, None, tuple(conditions))
    comparison = compare(
        judging,
        metric,
        [samples[row] for row in shared.tolist()],
        *(replace(c, evidence=judging.subset(c.evidence, shared)) for c in (challenger, champion)),
    )
    conditions += _relative(gate, metric, comparison)
    return Verdict(metric, own, comparison, tuple(conditions))


def compare(
    judging: Judging,
    metric: str,
    samples: Sequence[Sample],
    challenger: Contestant,
    champion: Contestant,
) -> Comparison:
    """Both models on the same images, whose classes both know."""
    right, was_right = (
        judging.right(one.evidence, samples, one.frame) for one in (challenger, champion)
    )
    lost = won = None
    if right is not None and was_right is not None:
        lost, won = int((was_right & ~right).sum()), int((right & ~was_right).sum())
        p_better, p_worse = _chance(won, lost), _chance(lost, won)
    else:
        p_better, p_worse = _bootstrap(judging, metric, samples, challenger, champion)
    after, before = (
        judging.by_class(one.evidence, samples, one.frame) for one in (challenger, champion)
    )
    shown = Counter(name for sample in samples for name in classes_in(sample.truth))
    return Comparison(
        champion=_figures(judging, samples, champion),
        challenger=_figures(judging, samples, challenger),
        only_champion=lost,
        only_challenger=won,
        p_better=p_better,
        p_worse=p_worse,
        measured=judging.measured[0],
        counted=judging.measured[1],
        classes=tuple(
            ClassChange(
                name=name,
                count=count,
                images=shown[name],
                champion=value,
                challenger=after[name][1],
                # Of a class the recall is the share of its images that are right.
                lost=None if right is None else round(count * (value - after[name][1])),
            )
            for name, (count, value) in before.items()
            if name in after
        ),
    )


def _bootstrap(
    judging: Judging,
    metric: str,
    samples: Sequence[Sample],
    challenger: Contestant,
    champion: Contestant,
) -> tuple[float, float]:
    """Chances of a challenger that is no better, and of one that is no worse.

    Both models are judged on the same images, drawn with replacement. Efron & Tibshirani 1993,
    chapter 16.
    """
    after, before = (
        judging.drawn(one.evidence, samples, one.frame, resampled(len(samples), RESAMPLES, seed=0))
        for one in (challenger, champion)
    )
    gains = [new[metric] - old[metric] for new, old in zip(after, before, strict=True)]
    # The sample itself is one of those that could have been drawn.
    no_better = (1 + sum(gain <= TOLERANCE for gain in gains)) / (1 + RESAMPLES)
    no_worse = (1 + sum(gain >= -TOLERANCE for gain in gains)) / (1 + RESAMPLES)
    return no_better, no_worse


def _figures(judging: Judging, samples: Sequence[Sample], one: Contestant) -> Figures:
    found = judging.evaluate(one.evidence, samples, one.frame)
    return Figures(len(samples), {k: v for k, v in found.items() if k != "loss"})


def _chance(heads: int, tails: int) -> float:
    """Probability of at least so many heads of a fair coin: McNemar's exact test, one-sided."""
    return float(binomtest(heads, heads + tails, alternative="greater").pvalue) if heads else 1.0


def _minimum(
    gate: Gate,
    metric: str,
    judging: Judging,
    figures: Figures,
    samples: Sequence[Sample],
    frame: Frame,
) -> Condition:
    found = figures.values[metric]
    if gate.minimum is not None:
        message = f"{metric} {found:.4f}, at least {gate.minimum:.4f} asked"
        return Condition("minimum", found >= gate.minimum - TOLERANCE, message)
    beside = compared(judging, metric, found, samples, frame)
    message = f"{metric} {found:.4f}, more than {beside.naive:.4f} asked, which {beside.who} gets"
    return Condition("minimum", beside.knows, message)


def _keeps_classes(challenger: Sequence[str], champion: Sequence[str]) -> Condition:
    lost = [name for name in champion if name not in challenger]
    new = [name for name in challenger if name not in champion]
    message = "knows every class of the champion"
    if lost:
        message = f"does not know the champion's {_some(lost)}"
    if new:
        message += f", and {_some(new)} besides"
    return Condition("classes", not lost, message)


def _relative(gate: Gate, metric: str, comparison: Comparison) -> list[Condition]:
    before, after = comparison.champion.values[metric], comparison.challenger.values[metric]
    gain = after - before
    conditions = [
        Condition(
            "improvement",
            gain >= gate.min_improvement - TOLERANCE,
            f"{metric} {after:.4f} against {before:.4f}: {gain:+.4f}, at least "
            f"{gate.min_improvement:+.4f} asked",
        ),
        Condition(
            "not worse",
            comparison.p_worse >= SIGNIFICANCE,
            f"{_evidence_of(comparison)}: p {comparison.p_worse:.3g} that it is no worse, at "
            f"least {SIGNIFICANCE} asked",
        ),
    ]
    if gate.max_p_value < 1:
        conditions.append(
            Condition(
                "better",
                comparison.p_better <= gate.max_p_value,
                f"p {comparison.p_better:.3g} that it is no better, at most "
                f"{gate.max_p_value} asked",
            )
        )
    return [*conditions, _no_class_drops(gate, comparison)]


def _evidence_of(comparison: Comparison) -> str:
    if comparison.only_champion is None:
        return "by drawing the images again and again"
    return (
        f"{comparison.only_champion} images that the champion alone gets right against "
        f"{comparison.only_challenger} that the challenger alone does"
    )


def _no_class_drops(gate: Gate, comparison: Comparison) -> Condition:
    # In a small class one image is a large share: a single one never decides.
    dropped = [
        change
        for change in comparison.classes
        if change.drop > gate.max_class_drop + TOLERANCE
        and (change.lost > 1 if change.lost is not None else change.images >= FEW_IMAGES)
    ]
    if not comparison.classes:
        return Condition("class drop", True, "no class was to be found by either")
    worst = max(comparison.classes, key=lambda change: change.drop)
    shown = sorted(dropped, key=lambda change: -change.drop)[:5] or [worst]
    parts = [
        f"{c.name!r} {c.champion:.3f} -> {c.challenger:.3f} ({c.count} {comparison.counted})"
        for c in shown
    ]
    more = f" and {len(dropped) - len(shown)} more" if len(dropped) > len(shown) else ""
    what = f"{comparison.measured} of" if dropped else f"largest change of {comparison.measured}:"
    message = f"{what} {', '.join(parts)}{more}; a loss of {gate.max_class_drop:.3f} is allowed"
    return Condition("class drop", not dropped, message)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more classes" if len(names) > 5 else ""
    return f"{', '.join(map(repr, names[:5]))}{more}"
