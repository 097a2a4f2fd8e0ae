from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from sft_mlflow.data.ordered import ordered_map


def test_results_come_in_the_order_of_the_items() -> None:
    assert list(ordered_map(str, range(100), threads=4, ahead=8)) == [str(n) for n in range(100)]


def test_it_never_takes_more_items_than_it_may_hold() -> None:
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    results = ordered_map(abs, endless(), threads=2, ahead=5)
    for given in range(1, 50):
        next(results)
        assert taken <= given + 5
    results.close()


def test_an_exception_comes_in_its_place() -> None:
    results = ordered_map(lambda n: 6 // n, [3, 2, 0, 1], threads=2, ahead=4)
    assert [next(results), next(results)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_no_thread_outlives_a_closed_iterator() -> None:
    before = threading.active_count()
    results = ordered_map(str, range(100), threads=4, ahead=8)
    next(results)
    results.close()
    assert threading.active_count() == before
