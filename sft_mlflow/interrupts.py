"""Ctrl-C where it would tear apart what belongs together."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM come after the block; a second one does not wait for its end.

    Python gives signals to the main thread only: in any other one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
    waiting: list[int] = []

    def later(number: int, frame: FrameType | None) -> None:
        if number in waiting:
            handlers[number](number, frame)
            return
        waiting.append(number)

    try:
        for name in (signal.SIGINT, signal.SIGTERM):
            # What ends the process at once, or is ignored, stays as it is.
            if callable(now := signal.getsignal(name)):
                handlers[name] = now
                signal.signal(name, later)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in waiting:
            signal.raise_signal(number)
