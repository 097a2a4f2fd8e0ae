"""A thread pool that keeps the order of its input and never runs far ahead of the reader."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")

# Pillow lets go of the interpreter lock while it decodes, so one thread a core keeps all busy.
THREADS = os.cpu_count() or 1


def ordered_map(
    function: Callable[[In], Out], items: Iterable[In], *, threads: int = THREADS, ahead: int
) -> Generator[Out, None, None]:
    """Results of the function, in the order of the items.

    At most `ahead` results are under way or waiting, so any number of items takes bounded memory.
    An exception of the function is raised in its place; the calls not yet begun are dropped then,
    and also when the iterator is closed early.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    waiting: deque[Future[Out]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
