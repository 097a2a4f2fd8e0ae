from __future__ import annotations

import itertools

import optuna
import pytest

from sft_mlflow.errors import OptionsError
from sft_mlflow.search.space import Plan, Space, ladder

STAGES = (
    "stem",
    "layer1.0",
    "layer1.1",
    "layer2.0",
    "layer2.1",
    "layer3.0",
    "layer3.1",
    "layer4.0",
)


def suggested(space: Space, trials: int) -> list[Plan]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for params, attributes in space.first():
        study.enqueue_trial(params, user_attrs=attributes)
    return [space.suggest(study.ask()) for _ in range(trials)]


def test_auto_is_a_ladder_from_the_head_to_the_full_network() -> None:
    assert ladder(["auto"], STAGES) == (0, 2, 4, 8)


def test_depths_may_be_numbers_names_and_the_full_network() -> None:
    assert ladder(["0", "3", "full"], STAGES) == (0, 3, 8)
    assert ladder(["layer4.0"], STAGES) == (1,)
    # A module that holds several stages stands for the first of them.
    assert ladder(["layer3"], STAGES) == (3,)


def test_a_depth_beyond_the_network_is_refused_with_its_range() -> None:
    with pytest.raises(OptionsError, match="8 stages"):
        ladder(["9"], STAGES)


def test_an_unknown_stage_suggests_the_nearest() -> None:
    with pytest.raises(OptionsError, match=r"layer4\.0"):
        ladder(["layer4.9"], STAGES)


def test_the_probe_comes_once_and_first_and_then_every_depth_deepest_first() -> None:
    space = Space({"a": (2, 4, 8)}, ("a",), lr_min=1e-4, lr_max=1e-1)
    plans = suggested(space, 40)
    assert plans[0] == Plan("a", 0, None)
    assert [plan.depth for plan in plans[1:4]] == [8, 4, 2]
    assert all(plan.lr == pytest.approx(1e-2) for plan in plans[1:4])
    assert all(plan.depth > 0 for plan in plans[1:])
    assert all(plan.lr is not None and 1e-4 <= plan.lr <= 1e-1 for plan in plans[1:])


def test_without_a_probe_depth_zero_is_searched_with_a_learning_rate() -> None:
    space = Space({"a": (0, 8)}, (), lr_min=1e-3, lr_max=1e-3, rates=(1e-3,))
    assert {plan.depth for plan in suggested(space, 20)} == {0, 8}
    assert {plan.lr for plan in suggested(space, 20)} == {1e-3}


def test_several_sources_are_searched_each_with_its_own_depths() -> None:
    space = Space({"a": (2, 8), "b": (5, 17)}, ("a", "b"), lr_min=1e-4, lr_max=1e-2)
    plans = suggested(space, 60)
    assert [plan for plan in plans if plan.lr is None] == [
        Plan("a", 0, None),
        Plan("b", 0, None),
    ]
    searched = {(plan.source, plan.depth) for plan in plans[2:]}
    assert searched == {("a", 2), ("a", 8), ("b", 5), ("b", 17)}


def test_a_space_without_a_learning_rate_to_vary_is_exhausted_by_its_depths() -> None:
    assert Space({"a": ()}, ("a",), 1e-4, 1e-2).points == 1
    fixed = Space({"a": (2, 8), "b": (5,)}, ("a", "b"), 1e-3, 1e-3, (1e-3,))
    assert fixed.points == len(fixed.first()) == 5
    assert Space({"a": (2,)}, ("a",), 1e-4, 1e-2).points == float("inf")


def test_every_combination_of_a_finite_space_comes_once() -> None:
    others = {"views": (1, 4), "batch_size": (16, 32)}
    space = Space({"a": (2, 8)}, ("a",), 1e-4, 1e-2, (1e-4, 1e-3, 1e-2), others)
    assert space.points == len(space.first()) == 1 + 2 * 3 * 2 * 2
    plans = suggested(space, 25)
    assert plans[0] == Plan("a", 0, None)
    # Both depths come before any other combination, so that a short study has seen them.
    assert [plan.depth for plan in plans[1:5]] == [8, 2, 8, 2]
    assert {(p.depth, p.lr, p.others["views"], p.others["batch_size"]) for p in plans[1:]} == set(
        itertools.product((2, 8), (1e-4, 1e-3, 1e-2), (1, 4), (16, 32))
    )


def test_what_else_is_searched_varies_with_any_learning_rate() -> None:
    space = Space({"a": (8,)}, (), 1e-4, 1e-2, others={"batch_size": (16, 32)})
    assert space.points == float("inf")
    assert {p.others["batch_size"] for p in suggested(space, 20)} == {16, 32}
