"""Random draws that depend on the seed and their place, not on what was drawn before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_of(*key: int | str) -> int:
    """A 63-bit seed that belongs to the key: the same everywhere, unrelated to its neighbours'."""
    text = "/".join(map(str, key)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


@contextmanager
def keyed(*key: int | str) -> Iterator[None]:
    """Seed torch's global generator by the key, and put its state back afterwards.

    Dropout and torchvision's transforms draw from it and take no generator of their own. Only
    the state of an MPS device is not put back.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        # Not `torch.manual_seed`: that notes its call stack each time for devices that are not in
        # use, half a millisecond for every image and every step.
        seed = seed_of(*key)
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed(seed)
        if torch.backends.mps.is_available():
            torch.mps.manual_seed(seed)
        yield
