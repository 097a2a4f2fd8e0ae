"""What a process asks of Python and of the C libraries below torch, to lose no time there."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Of glibc's malloc.h. See mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def settle() -> None:
    """Have threads that wait sleep soon, and freed memory stay with this process.

    Threads heed it only if torch is not loaded yet. What the user's environment says of either
    stands.
    """
    _sleep_soon()
    _keep_memory()


@contextmanager
def loading() -> Iterator[None]:
    """While code is loaded, and ever after, its half a million objects are not looked through.

    Python's collector would, again and again, for a fifth of the time that loading takes.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def leave() -> None:
    """To be called last: nothing is looked for that could be freed, since all of it will be.

    Else taking down torch and MLflow takes two seconds.
    """
    gc.freeze()


def _sleep_soon() -> None:
    # torch's threads spin while they wait for each other, which keeps whoever shares the machine
    # from working, and then they wait for those. To spin for a moment and then sleep is about as
    # fast where the cores are idle, and much faster where they are not (docs/performance.md).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _keep_memory() -> None:
    # glibc takes the memory of a large tensor from the system and gives it back as soon as it is
    # freed, so each layer of each batch pays for pages that the one before just gave away: a
    # quarter of a forward pass of large batches (docs/performance.md).
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # Other C libraries have none, and another way with memory.
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        # As unsigned the largest number there is: never.
        mallopt(_TRIM_THRESHOLD, -1)
