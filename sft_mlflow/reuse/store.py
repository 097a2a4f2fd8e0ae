"""Rows on disk, found by what they are: the decoded pixels or an activation of one image.

A *shelf* holds rows of one kind (one shape, dtype and way of making), and a row is found by the
key of its image. A shelf is a folder of *blocks*: files that are written once, whole or not at
all, and never changed. So a killed process, a second one on the same shelf, a full disk or a
removed block cost time and nothing else. Every row has a checksum; one that does not match is as
good as absent.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sft_mlflow.whole_file import remove_abandoned, whole_file

# Rows are gathered until they fill a block.
BLOCK_BYTES = 32 * 2**20
_BLOCK = ".safetensors"
# Of the disk, for what cannot be made again: checkpoints, models, messages, other programs' files.
RESERVE_BYTES = 2**30
# In the metadata of blocks whose rows lie so.
_CHANNELS_LAST = "channels_last"
# A shelf that was read or written so lately is in use, perhaps by another process; readers say so
# as often as that.
IN_USE_SECONDS, NOTED_SECONDS = 300.0, 60.0
# A file that is still being written is younger; an older one belongs to a process that is gone.
_ABANDONED_SECONDS = 3600.0

# (N, 2) uint64: the two halves of a digest of 16 bytes.
Keys = NDArray[np.uint64]


def keys_of(names: Sequence[str]) -> Keys:
    """A key for each name."""
    digests = [hashlib.blake2b(name.encode(), digest_size=16).digest() for name in names]
    return np.frombuffer(b"".join(digests), dtype=np.uint64).reshape(-1, 2)


@dataclass(frozen=True)
class Store:
    """All shelves below a folder, which together take no more than that many bytes.

    reserve_bytes: what they leave of the disk.
    """

    folder: Path
    budget_bytes: int
    reserve_bytes: int = RESERVE_BYTES

    def shelf(self, address: Mapping[str, object]) -> Shelf:
        """The shelf of what the address describes: all that its rows depend on but the image."""
        text = json.dumps(address, sort_keys=True)
        folder = self.folder / hashlib.sha256(text.encode()).hexdigest()[:32]
        if folder.is_dir():
            remove_abandoned(folder, _ABANDONED_SECONDS)
        return Shelf(self, folder, text)

    @property
    def room_bytes(self) -> int:
        """What can be had beside the shelves that are in use."""
        shelves = self._survey()
        in_use = sum(one.size for one in shelves if one.in_use)
        return max(0, self._limit(sum(one.size for one in shelves)) - in_use)

    def make_room(self, wanted: int = 0) -> bool:
        """Whether so many bytes fit, once shelves that were longest of no use are gone.

        None that is in use goes for what is wanted, so that those of a trial, or of two studies at
        once, do not drive each other out; and none at all for what will not fit anyway. But what is
        more than the budget, which may have been lowered, goes in any case.
        """
        shelves = self._survey()
        used = sum(one.size for one in shelves)
        limit = self._limit(used)
        fits = sum(one.size for one in shelves if one.in_use) + wanted <= limit
        for one in shelves:
            enough = used + (wanted if fits else 0) <= limit
            if enough or (one.in_use and used <= self.budget_bytes):
                break
            # Whoever reads it finds its rows missing, and makes them again.
            shutil.rmtree(one.folder, ignore_errors=True)
            used -= one.size
        return used + wanted <= limit

    def _limit(self, used: int) -> int:
        """What all shelves may take, which take `used` now: the budget, or what the disk has."""
        there = next(path for path in (self.folder, *self.folder.parents) if path.is_dir())
        return min(self.budget_bytes, used + shutil.disk_usage(there).free - self.reserve_bytes)

    def _survey(self) -> list[_Used]:
        """All shelves, longest of no use first."""
        folders = list(self.folder.iterdir()) if self.folder.is_dir() else []
        since = time.time() - IN_USE_SECONDS
        used = {folder: _last_use(folder) for folder in folders if folder.is_dir()}
        ordered = sorted(used, key=used.__getitem__)
        return [_Used(folder, size_bytes(folder), used[folder] > since) for folder in ordered]


class _Used(NamedTuple):
    """What a shelf takes, and whether it was read or written lately."""

    folder: Path
    size: int
    in_use: bool


class Shelf:
    """Rows of one kind. Several processes may use it; in one process, one thread."""

    def __init__(self, store: Store, folder: Path, address: str) -> None:
        self.folder = folder
        self._address = address
        self._store = store
        self._blocks: dict[str, _Block] = {}
        self._index = _Index.of([])
        self._keys: list[Keys] = []
        self._rows: list[Tensor] = []
        self._noted = -math.inf
        self.takes_rows = True

    def lock(self) -> FileLock:
        """To be held by who fills the shelf, so that two processes do not do the same work."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / "fill.lock")

    def missing(self, keys: Keys) -> NDArray[np.bool_]:
        """For each key whether its row is absent."""
        block, _ = self._find(keys)
        return block < 0

    def read(self, keys: Keys) -> tuple[Tensor | None, NDArray[np.bool_]]:
        """The rows that are here, in the order of their keys, and for each key whether it is.

        None where there is not one.
        """
        self.note_use()
        block, row = self._find(keys)
        found = block >= 0
        lost = False
        parts: list[tuple[NDArray[np.intp], Tensor]] = []
        for number in np.unique(block[found]):
            where = np.flatnonzero(block == number)
            at = self._index.blocks[number]
            try:
                parts.append((where, at.read(keys[where], row[where])))
            except OSError:
                # Evicted by another process, or out of reach just now: these rows are made again.
                found[where], lost = False, True
            except CorruptedError:
                # All of it is made again.
                at.path.unlink(missing_ok=True)
                found[where], lost = False, True
        if lost:
            # Else its rows would be looked for there for ever.
            self._refresh()
        if not parts:
            return None, found
        position = np.cumsum(found) - 1
        rows = empty_like_rows(parts[0][1], int(found.sum()))
        for where, part in parts:
            rows[torch.from_numpy(position[where])] = part
        return rows, found

    def put(self, keys: Keys, rows: Tensor) -> None:
        """Take in rows (N, …); they are on disk when their block is full, or after `flush`.

        They come back in the memory format that they have.
        """
        if not self.takes_rows:
            return
        self._keys.append(keys)
        self._rows.append(rows)
        if sum(part.nbytes for part in self._rows) >= BLOCK_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what was taken in. Where there is no room, the shelf takes no more rows."""
        if not self._rows:
            return
        keys, rows = np.concatenate(self._keys), torch.cat(self._rows)
        self._keys, self._rows = [], []
        # Another process may have made the same meanwhile.
        absent = self.missing(keys)
        keys, rows = keys[absent], rows[torch.from_numpy(absent)]
        if not len(keys):
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.takes_rows = self._store.make_room(rows.nbytes)
            if self.takes_rows:
                # For people who wonder what fills their disk.
                (self.folder / "address.json").write_text(self._address)
                with whole_file(self.folder / f"{uuid.uuid4().hex}{_BLOCK}") as beside:
                    _write(beside, keys, rows)
        except FileNotFoundError:
            # Another process has just made room of this shelf: these rows are made again.
            pass
        except (OSError, SafetensorError):
            # A full disk, which safetensors has an error of its own for: what is not kept is
            # computed.
            self.takes_rows = False

    def note_use(self) -> None:
        """Not to be removed for others, from now on for a while."""
        if time.monotonic() - self._noted > NOTED_SECONDS:
            self._noted = time.monotonic()
            with suppress(FileNotFoundError):
                os.utime(self.folder)

    def _find(self, keys: Keys) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        block, row = self._index.find(keys)
        if (block < 0).any() and self._refresh():
            block, row = self._index.find(keys)
        return block, row

    def _refresh(self) -> bool:
        """Look at the folder again; whether anything changed."""
        names = sorted(path.name for path in self.folder.glob(f"*{_BLOCK}"))
        if names == list(self._blocks):
            return False
        known = self._blocks
        self._blocks = {}
        for name in names:
            block = known.get(name) or _Block.open(self.folder / name)
            if block is not None:
                self._blocks[name] = block
        self._index = _Index.of(list(self._blocks.values()))
        return True


class CorruptedError(Exception):
    """A row is not what was written."""


@dataclass(frozen=True)
class _Block:
    """One file: keys and checksums in memory, rows on disk from `offset` on.

    shape: of a row as it lies there; channels_last: whether that is (H, W, C) of a map (C, H, W).
    """

    path: Path
    keys: Keys
    checksums: NDArray[np.uint32]
    dtype: torch.dtype
    shape: tuple[int, ...]
    channels_last: bool
    offset: int

    @classmethod
    def open(cls, path: Path) -> _Block | None:
        """The block, or None where the file is damaged, which removes it."""
        try:
            with safe_open(path, "pt") as file:
                keys, checksums = file.get_tensor("keys"), file.get_tensor("checksums")
                rows = file.get_slice("rows")
                empty = rows[0:0]
                channels_last = _CHANNELS_LAST in (file.metadata() or {})
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                begin = json.loads(file.read(length))["rows"]["data_offsets"][0]
        except OSError:
            return None
        except (SafetensorError, ValueError, KeyError):
            path.unlink(missing_ok=True)
            return None
        return cls(
            path,
            # Not the mapped file, which would keep its place on the disk after it was removed.
            keys.numpy().copy(),
            checksums.numpy().copy(),
            empty.dtype,
            tuple(empty.shape[1:]),
            channels_last,
            8 + length + begin,
        )

    def read(self, keys: Keys, rows: NDArray[np.int64]) -> Tensor:
        """Those rows; raises OSError and CorruptedError."""
        values = torch.empty((len(rows), *self.shape), dtype=self.dtype)
        size = values[0].nbytes
        raw, begun = _bytes_of(values), _checksum_of_kind(values, self.channels_last)
        file = os.open(self.path, os.O_RDONLY)
        try:
            for i, row in enumerate(rows.tolist()):
                part = raw[i * size : (i + 1) * size]
                if os.preadv(file, [part], self.offset + row * size) != size:
                    raise CorruptedError
                if _checksum(begun, keys[i], part) != self.checksums[row]:
                    raise CorruptedError
        finally:
            os.close(file)
        return values.movedim(-1, 1) if self.channels_last else values


@dataclass(frozen=True)
class _Index:
    """Where each key's row is: 32 bytes a row, sorted by the first half of the key.

    Its blocks have 20 more: key and checksum.
    """

    blocks: list[_Block]
    first: NDArray[np.uint64]
    second: NDArray[np.uint64]
    block: NDArray[np.int64]
    row: NDArray[np.int64]

    @classmethod
    def of(cls, blocks: list[_Block]) -> _Index:
        counts = [len(block.keys) for block in blocks]
        keys = np.concatenate([np.empty((0, 2), np.uint64), *(block.keys for block in blocks)])
        order = np.argsort(keys[:, 0], kind="stable")
        block = np.repeat(np.arange(len(blocks)), counts)
        row = np.concatenate([np.empty(0, np.int64), *map(np.arange, counts)])
        return cls(blocks, keys[order, 0], keys[order, 1], block[order], row[order])

    def find(self, keys: Keys) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Block and row of each key, -1 where there is none."""
        if not len(self.first):
            nowhere = np.full(len(keys), -1, np.int64)
            return nowhere, nowhere
        at = np.minimum(np.searchsorted(self.first, keys[:, 0]), len(self.first) - 1)
        # Two keys with the same first half: the second one is not found, and made again.
        same = (self.first[at] == keys[:, 0]) & (self.second[at] == keys[:, 1])
        return np.where(same, self.block[at], -1), np.where(same, self.row[at], -1)


def empty_like_rows(rows: Tensor, count: int) -> Tensor:
    """A tensor for so many rows of their shape, dtype, device and memory format."""
    layout = torch.channels_last if _is_channels_last(rows) else torch.contiguous_format
    shape = (count, *rows.shape[1:])
    return torch.empty(shape, dtype=rows.dtype, device=rows.device, memory_format=layout)


def _is_channels_last(rows: Tensor) -> bool:
    # Maps of one pixel are both.
    return (
        rows.ndim == 4
        and not rows.is_contiguous()
        and rows.is_contiguous(memory_format=torch.channels_last)
    )


def _write(path: Path, keys: Keys, rows: Tensor) -> None:
    channels_last = _is_channels_last(rows)
    rows = (rows.movedim(1, -1) if channels_last else rows).contiguous()
    size = rows[0].nbytes
    raw, begun = _bytes_of(rows), _checksum_of_kind(rows, channels_last)
    checksums = [
        _checksum(begun, key, raw[i * size : (i + 1) * size]) for i, key in enumerate(keys)
    ]
    tensors = {
        "keys": torch.from_numpy(keys.copy()),
        "checksums": torch.tensor(checksums, dtype=torch.uint32),
        "rows": rows,
    }
    save_file(tensors, path, metadata={_CHANNELS_LAST: "yes"} if channels_last else None)


def _bytes_of(rows: Tensor) -> memoryview:
    """The memory of a contiguous tensor, byte by byte."""
    # As one row: strides of dimensions of one element, as of maps of one pixel, mean nothing.
    return rows.view(-1).view(torch.uint8).numpy().data.cast("B")


def _checksum_of_kind(rows: Tensor, channels_last: bool) -> int:
    """What a row's checksum begins with: of what the file's header says of all rows."""
    return zlib.crc32(f"{rows.dtype} {tuple(rows.shape[1:])} {channels_last}".encode())


def _checksum(begun: int, key: NDArray[np.uint64], row: memoryview) -> int:
    """Of the row under its key, so that a damaged key or header is noticed too."""
    return zlib.crc32(row, zlib.crc32(key.tobytes(), begun))


def size_bytes(folder: Path) -> int:
    """Bytes of all files below the folder, while others may write and remove them."""
    total = 0
    for below, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(below, name)).st_size
    return total


def _last_use(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0
