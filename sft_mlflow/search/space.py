"""What is searched: the source, how many of its last stages train, the learning rate, and more."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    """One point of the space.

    lr: None for the probe, which has no use for it; others: further fields of the recipe, of which
    it has none either.
    """

    source: str
    depth: int
    lr: float | None
    others: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Space:
    """ladders: for each source the depths to search; probes: sources whose probe is a trial.

    rates: the learning rates to try; empty for any from lr_min to lr_max. others: further fields of
    the recipe, and their values to try.
    """

    ladders: Mapping[str, tuple[int, ...]]
    probes: tuple[str, ...]
    lr_min: float
    lr_max: float
    rates: tuple[float, ...] = ()
    others: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def points(self) -> float:
        """Number of different trials that there are: infinite where any learning rate will do."""
        rungs = sum(map(len, self.ladders.values()))
        if rungs and not self.rates:
            return math.inf
        each = len(self.rates) * math.prod(map(len, self.others.values()))
        return len(self.probes) + rungs * each

    def suggest(self, trial: optuna.Trial) -> Plan:
        """The plan of a trial; each probe comes once, as an enqueued trial."""
        probed = trial.user_attrs.get(PROBE)
        if probed is not None:
            return Plan(probed, 0, None)
        sources = [source for source, ladder in self.ladders.items() if ladder]
        source = sources[0]
        if len(sources) > 1:
            source = trial.suggest_categorical("source", sources)
        depth = trial.suggest_categorical(self._depth_name(source), self.ladders[source])
        if self.rates:
            lr = trial.suggest_categorical("lr", self.rates)
        else:
            lr = trial.suggest_float("lr", self.lr_min, self.lr_max, log=True)
        others = {
            name: trial.suggest_categorical(name, values) for name, values in self.others.items()
        }
        return Plan(source, depth, lr, others)

    def first(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Parameters and attributes of the trials to begin with.

        Every probe, then every depth once, deepest first, at two thirds of the learning rates'
        range: so even a short study has seen the range of what it can choose. Where all that can be
        tried is a finite number of combinations, each comes once, in an order drawn at random.
        """
        plans: list[tuple[dict[str, Any], dict[str, Any]]] = [
            ({}, {PROBE: source}) for source in self.probes
        ]
        several = sum(bool(ladder) for ladder in self.ladders.values()) > 1
        for settings in self._settings():
            for source, ladder in self.ladders.items():
                for depth in sorted(ladder, reverse=True):
                    chosen = {self._depth_name(source): depth, **settings}
                    plans.append(({**chosen, "source": source} if several else chosen, {}))
        return plans

    def _settings(self) -> list[dict[str, Any]]:
        """Values of all but source and depth, each of which every depth begins with."""
        if not self.rates:
            # The sampler draws the others.
            return [{"lr": self.lr_min * (self.lr_max / self.lr_min) ** OPENING}]
        names = ("lr", *self.others)
        combinations = list(itertools.product(self.rates, *self.others.values()))
        # A study that ends before all were tried has seen something of everything.
        random.Random(0).shuffle(combinations)
        return [dict(zip(names, values, strict=True)) for values in combinations]

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
