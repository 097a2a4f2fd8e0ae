from __future__ import annotations

import signal
import threading

import pytest

from sft_mlflow.interrupts import uninterrupted


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_comes_after_the_block() -> None:
    done = []

    @uninterrupted()
    def work() -> None:
        ctrl_c()
        done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all of it"]


def test_a_second_one_does_not_wait() -> None:
    done = []

    @uninterrupted()
    def work() -> None:
        ctrl_c()
        done.append("first")
        ctrl_c()
        done.append("second")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["first"]


def test_a_block_within_another_waits_for_that() -> None:
    done = []

    @uninterrupted()
    def work() -> None:
        with uninterrupted():
            ctrl_c()
        done.append("outer")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["outer"]


def test_what_the_program_asked_for_is_as_before_and_hears_of_it() -> None:
    heard = []
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    theirs = [lambda number, frame: heard.append(number), signal.SIG_IGN]
    try:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), theirs, strict=True):
            signal.signal(number, handler)
        with uninterrupted():
            ctrl_c()
            signal.raise_signal(signal.SIGTERM)
            assert not heard
        assert heard == [signal.SIGINT]
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == theirs
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)


def test_other_threads_may_use_it() -> None:
    done = []

    @uninterrupted()
    def work() -> None:
        done.append(threading.current_thread().name)

    thread = threading.Thread(target=work, name="another")
    thread.start()
    thread.join()
    assert done == ["another"]
