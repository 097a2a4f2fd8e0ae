"""What is searched: the source, how many of its last stages train, and the learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna

from sft_mlflow.errors import OptionsError
from sft_mlflow.sources import architectures

# Attribute of a trial that is the linear probe of a source: fixed, so that nothing is sampled.
PROBE = "probe"
# Where on the logarithmic range of learning rates the first trials stand: of the rates tried on
# digits and CIFAR-10 those near 1e-3 were best (docs/performance.md), and TPE goes on from there.
OPENING = 2 / 3


@dataclass(frozen=True)
class Plan:
    """One point of the space. The probe has no use for a learning rate, nor for views."""

    source: str
    depth: int
    lr: float | None
    views: int | None


@dataclass(frozen=True)
class Space:
    """ladders: for each source the depths to search; probes: sources whose probe is a trial.

    views: numbers of views of the training images to search.
    """

    ladders: Mapping[str, tuple[int, ...]]
    probes: tuple[str, ...]
    lr_min: float
    lr_max: float
    views: tuple[int, ...]

    @property
    def points(self) -> float:
        """Number of different trials that there are: infinite where the learning rate varies."""
        rungs = sum(map(len, self.ladders.values()))
        varies = rungs > 0 and self.lr_min < self.lr_max
        return math.inf if varies else len(self.probes) + rungs * len(self.views)

    def suggest(self, trial: optuna.Trial) -> Plan:
        """The plan of a trial; each probe comes once, as an enqueued trial."""
        probed = trial.user_attrs.get(PROBE)
        if probed is not None:
            return Plan(probed, 0, None, None)
        sources = [source for source, ladder in self.ladders.items() if ladder]
        source = sources[0]
        if len(sources) > 1:
            source = trial.suggest_categorical("source", sources)
        depth = trial.suggest_categorical(self._depth_name(source), self.ladders[source])
        lr = trial.suggest_float("lr", self.lr_min, self.lr_max, log=True)
        views = self.views[0]
        if len(self.views) > 1:
            views = trial.suggest_categorical("views", self.views)
        return Plan(source, depth, lr, views)

    def first(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Parameters and attributes of the trials to begin with.

        Every probe, then every depth once at two thirds of the learning rates' range, deepest
        first: so even a short study has seen the range of what it can choose.
        """
        plans: list[tuple[dict[str, Any], dict[str, Any]]] = [
            ({}, {PROBE: source}) for source in self.probes
        ]
        opening = self.lr_min * (self.lr_max / self.lr_min) ** OPENING
        several = sum(bool(ladder) for ladder in self.ladders.values()) > 1
        for source, ladder in self.ladders.items():
            for depth in sorted(ladder, reverse=True):
                chosen: dict[str, Any] = {self._depth_name(source): depth, "lr": opening}
                if several:
                    chosen["source"] = source
                # With nothing else to vary, every point comes once; else the sampler draws them.
                each = [{"views": v} for v in self.views] if self.points < math.inf else [{}]
                plans += [({**chosen, **one}, {}) for one in each]
        return plans

    def _depth_name(self, source: str) -> str:
        # Sources differ in their numbers of stages, and Optuna wants one set of choices a name.
        return "depth" if len(self.ladders) == 1 else f"depth of {source}"


def ladder(wanted: Sequence[str], stages: Sequence[str]) -> tuple[int, ...]:
    """Depths in rising order for a source with these stages.

    wanted: numbers, names of stages or of modules that hold them (`layer4`), `full`, or `auto`:
    the head alone, a quarter, half and all of the stages.
    Raises OptionsError for what this source does not have.
    """
    full = len(stages)
    found: set[int] = set()
    for word in wanted:
        if word == "auto":
            found |= {0, max(1, round(full / 4)), max(1, round(full / 2)), full}
        elif word == "full":
            found.add(full)
        elif word.isdecimal():
            if int(word) > full:
                raise OptionsError(
                    f"--depths {word}: this source has {full} stages ({stages[0]} to "
                    f"{stages[-1]}), so 0 to {full}."
                )
            found.add(int(word))
        else:
            inside = [i for i, name in enumerate(stages) if f"{name}.".startswith(f"{word}.")]
            if not inside:
                raise OptionsError(f"--depths: {architectures.unknown(word, [*stages], 'stage')}")
            found.add(full - inside[0])
    return tuple(sorted(found))
