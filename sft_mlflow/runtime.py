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
# By which users say the same to glibc, in either of its two ways.
_MALLOC_WORDS = ("MMAP_MAX", "MMAP_THRESHOLD", "TRIM_THRESHOLD", "TOP_PAD")


def tune() -> None:
    """Have threads that wait sleep soon, and freed memory stay with this process.

    Threads heed it only if torch is not loaded yet. What the user's environment says of either
    stands.
    """
    _sleep_soon()
    _keep_memory()


@contextmanager
def loading() -> Iterator[None]:
    """While code is loaded, and ever after, what it consists of is not looked through for garbage.

    Python's collector would, again and again (docs/performance.md). Where torch is there already,
    this is somebody's process, and its collector is left alone.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def skip_last_collection() -> None:
    """To be called last: what could be freed is not looked for, since all of it will be."""
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
    # quarter to three fifths of a forward pass of large batches (docs/performance.md).
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    told = any(
        f"MALLOC_{word}_" in os.environ or f"glibc.malloc.{word.lower()}=" in tunables
        for word in _MALLOC_WORDS
    )
    if told or sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # Other C libraries have none, and another way with memory.
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        # As unsigned the largest number there is: never.
        mallopt(_TRIM_THRESHOLD, -1)
