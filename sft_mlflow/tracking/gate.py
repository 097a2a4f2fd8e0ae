"""The gate: may the challenger take the champion's place? A pure decision from their answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from sft_mlflow.tasks.classification import metrics

Metric = Literal["accuracy", "macro_f1"]

# The usual level; at it, one challenger in twenty that is just as good is refused by chance.
SIGNIFICANCE = 0.05
# Figures are ratios of counts: two that differ by less than this are the same.
_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Gate:
    """What is demanded of a challenger.

    metric: of `minimum` and `min_improvement`; minimum: least figure on the test images, None for
    "more than always answering their most frequent class would get"; min_improvement: least gain
    over the champion, negative to allow a loss; max_p_value: largest p of the paired test that the
    gain is chance, 1 to demand none; max_class_drop: most recall that any class may lose. A
    challenger that the paired test finds worse (p < 0.05) is refused whatever these say.
    """

    metric: Metric = "accuracy"
    minimum: float | None = None
    min_improvement: float = 0.0
    max_p_value: float = 1.0
    max_class_drop: float = 0.1


@dataclass(frozen=True, eq=False, slots=True)
class Answers:
    """What a model says of the test images. probabilities: (images, classes) float64."""

    classes: tuple[str, ...]
    probabilities: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Figures:
    """One model's figures over `images` test images."""

    images: int
    accuracy: float
    macro_f1: float
    ece: float


@dataclass(frozen=True, slots=True)
class ClassChange:
    """Recall of one class by both models; lost: images won back are subtracted."""

    name: str
    images: int
    champion: float
    challenger: float
    lost: int

    @property
    def drop(self) -> float:
        """Recall that the class would lose; negative for a gain."""
        return self.champion - self.challenger


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both models on the images whose class both know.

    only_champion, only_challenger: images that one alone gets right; p_better, p_worse: one-sided
    exact McNemar tests of the challenger being no better, or no worse, than the champion.
    """

    champion: Figures
    challenger: Figures
    only_champion: int
    only_challenger: int
    p_better: float
    p_worse: float
    classes: tuple[ClassChange, ...]


@dataclass(frozen=True, slots=True)
class Condition:
    """One demand of the gate: `message` says what was found and what was asked, in figures."""

    name: str
    passed: bool
    message: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says. comparison: None without a champion, or where no class is shared."""

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
    gate: Gate, labels: Sequence[str], challenger: Answers, champion: Answers | None
) -> Verdict:
    """The verdict on the challenger, from both models' answers to the same images.

    labels: the true class of each image, all among the challenger's; at least one image. Without
    a champion only the minimum counts. Classes are matched by name: the comparison is over the
    images of classes that both models know, and a challenger that does not know all of the
    champion's classes is refused.
    """
    truth = np.asarray(labels)
    own = _figures(challenger, truth)
    conditions = [_minimum(gate, own, truth)]
    if champion is None:
        return Verdict(own, None, tuple(conditions))
    conditions.append(_keeps_classes(challenger, champion))
    shared = np.isin(truth, champion.classes)
    if not shared.any():
        message = "no test image is of a class that the champion knows, so they cannot be compared"
        conditions.append(Condition("comparison", False, message))
        return Verdict(own, None, tuple(conditions))
    comparison = compare(
        truth[shared],
        Answers(challenger.classes, challenger.probabilities[shared]),
        Answers(champion.classes, champion.probabilities[shared]),
    )
    conditions += _relative(gate, comparison)
    return Verdict(own, comparison, tuple(conditions))


def compare(truth: NDArray[np.str_], challenger: Answers, champion: Answers) -> Comparison:
    """Both models on the same images, whose true classes both know."""
    right, was_right = _right(challenger, truth), _right(champion, truth)
    lost, won = int((was_right & ~right).sum()), int((right & ~was_right).sum())
    return Comparison(
        champion=_figures(champion, truth),
        challenger=_figures(challenger, truth),
        only_champion=lost,
        only_challenger=won,
        p_better=_chance(won, lost),
        p_worse=_chance(lost, won),
        classes=tuple(
            ClassChange(
                name=str(name),
                images=int(of_class.sum()),
                champion=float(was_right[of_class].mean()),
                challenger=float(right[of_class].mean()),
                lost=int(was_right[of_class].sum()) - int(right[of_class].sum()),
            )
            for name in np.unique(truth)
            for of_class in (truth == name,)
        ),
    )


def _figures(answers: Answers, truth: NDArray[np.str_]) -> Figures:
    index = {name: number for number, name in enumerate(answers.classes)}
    targets = np.array([index[name] for name in truth.tolist()], np.int64)
    return Figures(len(truth), **metrics.summary(answers.probabilities, targets))


def _right(answers: Answers, truth: NDArray[np.str_]) -> NDArray[np.bool_]:
    predicted = np.asarray(answers.classes)[answers.probabilities.argmax(axis=1)]
    right: NDArray[np.bool_] = predicted == truth
    return right


def _chance(heads: int, tails: int) -> float:
    """Probability of at least so many heads of a fair coin: McNemar's exact test, one-sided."""
    return float(binomtest(heads, heads + tails, alternative="greater").pvalue) if heads else 1.0


def _figure(figures: Figures, metric: Metric) -> float:
    return figures.accuracy if metric == "accuracy" else figures.macro_f1


def _minimum(gate: Gate, figures: Figures, truth: NDArray[np.str_]) -> Condition:
    found = _figure(figures, gate.metric)
    if gate.minimum is not None:
        message = f"{gate.metric} {found:.4f}, at least {gate.minimum:.4f} asked"
        return Condition("minimum", found >= gate.minimum - _TOLERANCE, message)
    counts = Counter(truth.tolist())
    share = max(counts.values()) / len(truth)
    # F1 of the one class that is ever answered, averaged with the zeros of the others.
    naive = share if gate.metric == "accuracy" else 2 * share / (1 + share) / len(counts)
    message = (
        f"{gate.metric} {found:.4f}, more than {naive:.4f} asked, which always answering "
        f"{counts.most_common(1)[0][0]!r} gets"
    )
    return Condition("minimum", found > naive + _TOLERANCE, message)


def _keeps_classes(challenger: Answers, champion: Answers) -> Condition:
    lost = [name for name in champion.classes if name not in challenger.classes]
    new = [name for name in challenger.classes if name not in champion.classes]
    message = "knows every class of the champion"
    if lost:
        message = f"does not know the champion's {_some(lost)}"
    if new:
        message += f", and {_some(new)} besides"
    return Condition("classes", not lost, message)


def _relative(gate: Gate, comparison: Comparison) -> list[Condition]:
    before = _figure(comparison.champion, gate.metric)
    after = _figure(comparison.challenger, gate.metric)
    gain = after - before
    conditions = [
        Condition(
            "improvement",
            gain >= gate.min_improvement - _TOLERANCE,
            f"{gate.metric} {after:.4f} against {before:.4f}: {gain:+.4f}, at least "
            f"{gate.min_improvement:+.4f} asked",
        ),
        Condition(
            "not worse",
            comparison.p_worse >= SIGNIFICANCE,
            f"{comparison.only_champion} images that the champion alone gets right against "
            f"{comparison.only_challenger} that the challenger alone does: "
            f"p {comparison.p_worse:.3g} that it is no worse, at least {SIGNIFICANCE} asked",
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


def _no_class_drops(gate: Gate, comparison: Comparison) -> Condition:
    # In a small class one image is a large share: a single one never decides.
    dropped = [
        change
        for change in comparison.classes
        if change.drop > gate.max_class_drop + _TOLERANCE and change.lost > 1
    ]
    worst = max(comparison.classes, key=lambda change: change.drop)
    shown = sorted(dropped, key=lambda change: -change.drop)[:5] or [worst]
    parts = [
        f"{c.name!r} {c.champion:.3f} -> {c.challenger:.3f} ({c.images} images)" for c in shown
    ]
    more = f" and {len(dropped) - len(shown)} more" if len(dropped) > len(shown) else ""
    what = "recall of" if dropped else "largest change of recall:"
    message = f"{what} {', '.join(parts)}{more}; a loss of {gate.max_class_drop:.3f} is allowed"
    return Condition("class drop", not dropped, message)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more classes" if len(names) > 5 else ""
    return f"{', '.join(map(repr, names[:5]))}{more}"
