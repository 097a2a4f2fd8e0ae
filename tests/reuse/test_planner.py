"""The choice of where to start, on prices that are easy to reckon with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from sft_mlflow.reuse import planner
from sft_mlflow.reuse.planner import Choice, Need, Prices

# Two stages of a millisecond each; a row of pixels has 100 bytes, of the cuts 1,000 and 10.
PRICES = Prices(
    decode=1e-3,
    change=0.0,
    normalise=1e-4,
    stages=(1e-3, 1e-3),
    nbytes=(100, 1000, 10),
    read=1e-8,
    write=1e-8,
)
NEED = Need(point=2, images=100, passes=10, views=(0,))
FRESH = replace(NEED, views=range(1, 11))
ROOM = 10**9


def choose(need: Need, prices: Prices, absent: Callable[[int], int], room: int) -> Choice:
    return planner.choose(need, prices, absent, room, range(need.point + 1))


def test_what_is_read_often_is_kept_where_training_begins() -> None:
    assert choose(NEED, PRICES, lambda point: 100, ROOM).start == 2


def test_what_is_read_once_is_kept_for_the_next_trial() -> None:
    assert choose(replace(NEED, passes=1), PRICES, lambda point: 100, ROOM).start == 2


def test_what_is_dearer_to_keep_than_to_compute_twice_is_not_kept() -> None:
    dear = replace(PRICES, write=3e-4)
    assert choose(replace(NEED, passes=1), dear, lambda point: 100, ROOM).start == 0
    assert choose(replace(NEED, passes=9), dear, lambda point: 100, ROOM).start == 2


def test_what_is_there_already_is_read_even_once() -> None:
    there = {0: 100, 1: 100, 2: 0}
    assert choose(replace(NEED, passes=1), PRICES, there.__getitem__, ROOM).start == 2


def test_a_new_change_at_every_pass_is_kept_for_the_next_trial() -> None:
    first = choose(FRESH, PRICES, lambda point: 1000 if point else 100, ROOM)
    then = choose(FRESH, PRICES, lambda point: 0, ROOM)
    assert first.start == then.start == 2
    assert then.seconds < first.seconds / 100


def test_what_is_lacking_is_made_from_the_last_point_where_all_is_there() -> None:
    absent = {0: 0, 1: 0, 2: 100}
    # A row of the point between is dear to read, though not as dear as to compute it.
    prices = replace(PRICES, nbytes=(100, 10_000, 10))
    found = choose(NEED, prices, absent.__getitem__, ROOM)
    assert (found.start, found.below) == (2, 1)
    assert found.seconds == pytest.approx(100 * (1e-4 + 1e-3 + 1e-7) + 1000 * 1e-7)


def test_at_the_full_depth_pixels_are_read_and_normalised() -> None:
    whole = choose(replace(NEED, point=0), PRICES, lambda point: 0, ROOM)
    assert whole.seconds == pytest.approx(1000 * (100 * 1e-8 + 1e-4))


def test_a_cut_before_the_trained_part_is_kept_where_the_last_one_is_dear_to_read() -> None:
    dear = replace(PRICES, nbytes=(100, 10, 10**7), stages=(1e-3, 1e-6))
    assert choose(NEED, dear, lambda point: 100, 10**12).start == 1


def test_without_room_nothing_is_kept() -> None:
    assert choose(NEED, PRICES, lambda point: 100, 0).start == 0


def test_with_room_for_some_rows_some_are_kept() -> None:
    full = choose(NEED, PRICES, lambda point: 100, ROOM)
    half = choose(NEED, PRICES, lambda point: 100, 500)
    none = choose(NEED, PRICES, lambda point: 100, 0)
    assert half.start == 2
    assert full.seconds < half.seconds < none.seconds
    # Pixels have what rows leave: all or nothing beside them.
    assert (full.keeps_pixels, half.keeps_pixels, none.keeps_pixels) == (True, False, True)


def test_rows_that_fit_are_kept_though_their_pixels_do_not() -> None:
    found = choose(NEED, PRICES, lambda point: 100, 100 * 10 + 50 * 100)
    assert (found.start, found.keeps_pixels) == (2, False)
    # Each is decoded once, and no more.
    assert found.seconds == pytest.approx(100 * (1e-3 + 2e-3 + 10e-8) + 1000 * 10e-8)


def test_what_is_made_from_a_point_below_needs_no_pixels() -> None:
    absent = {0: 100, 1: 0, 2: 100}
    prices = replace(PRICES, nbytes=(100, 10_000, 10))
    found = choose(NEED, prices, absent.__getitem__, 100 * 10)
    assert (found.start, found.below) == (2, 1)
    assert found.seconds == pytest.approx(100 * (1e-4 + 1e-3 + 1e-7) + 1000 * 1e-7)


def test_the_prediction_is_the_sum_of_what_is_done() -> None:
    found = choose(NEED, PRICES, lambda point: 100, ROOM)
    decode, pixels, forward, write = 100 * 1e-3, 100 * 1e-6, 100 * 2e-3, 100 * 10e-8
    reads = 1000 * 10e-8
    assert found == Choice(2, 0, found.seconds)
    assert abs(found.seconds - (decode + pixels + forward + write + reads)) < 1e-9


def test_what_is_never_read_costs_nothing() -> None:
    never = replace(NEED, passes=0)
    assert choose(never, PRICES, lambda point: 0, ROOM) == Choice(0, 0, 0.0)
