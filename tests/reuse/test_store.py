from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sft_mlflow.reuse import store as stores
from sft_mlflow.reuse.store import Shelf, Store, keys_of

ADDRESS = {"point": 3}


def made(store: Store, rows: int = 6, begin: int = 0, dtype: torch.dtype = torch.float32) -> Shelf:
    """A shelf with rows that are told apart by their first value."""
    shelf = store.shelf(ADDRESS)
    numbers = torch.arange(begin, begin + rows).to(dtype)
    shelf.put(keys_of(names(begin, rows)), numbers[:, None, None].expand(rows, 4, 5))
    shelf.flush()
    return shelf


def names(begin: int, rows: int) -> list[str]:
    return [f"image {number}" for number in range(begin, begin + rows)]


def blocks(store: Store) -> list[Path]:
    return sorted(store.folder.rglob("*.safetensors"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", budget_bytes=10**9)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.bfloat16])
def test_rows_come_back_to_the_bit_in_the_order_that_is_asked_for(
    dtype: torch.dtype, store: Store
) -> None:
    made(store, rows=6, dtype=dtype)
    made(store, rows=6, begin=6, dtype=dtype)
    order = [11, 0, 7, 3]
    rows, found = store.shelf(ADDRESS).read(keys_of([f"image {n}" for n in order]))
    assert found.all()
    assert rows is not None
    assert rows.dtype == dtype
    assert rows.shape == (4, 4, 5)
    assert rows[:, 0, 0].tolist() == order


def test_maps_of_one_pixel_are_kept_whatever_their_strides_say(store: Store) -> None:
    maps = torch.arange(24.0).view(3, 8, 1, 1).to(memory_format=torch.channels_last)
    assert maps.is_contiguous()
    assert maps.stride(-1) != 1
    shelf = store.shelf(ADDRESS)
    shelf.put(keys_of(names(0, 3)), maps)
    shelf.flush()
    rows, _ = store.shelf(ADDRESS).read(keys_of(names(0, 3)))
    assert rows is not None
    assert torch.equal(rows, maps)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_maps_come_back_in_their_memory_format_from_one_block_or_several(
    layout: torch.memory_format, store: Store
) -> None:
    maps = torch.randn(6, 3, 4, 5).to(memory_format=layout)
    shelf = store.shelf(ADDRESS)
    for begin, count in ((0, 4), (4, 2)):
        shelf.put(keys_of(names(begin, count)), maps[begin : begin + count])
        shelf.flush()
    order = [5, 0, 3]
    rows, found = store.shelf(ADDRESS).read(keys_of([f"image {n}" for n in order]))
    assert found.all()
    assert rows is not None
    assert torch.equal(rows, maps[order])
    assert rows.is_contiguous(memory_format=layout)
    whole, _ = store.shelf(ADDRESS).read(keys_of(names(0, 4)))
    assert whole is not None
    assert whole.stride() == maps[:4].stride()


def test_what_is_absent_is_told_and_the_others_are_read(store: Store) -> None:
    made(store)
    rows, found = store.shelf(ADDRESS).read(keys_of(["image 4", "stranger", "image 1"]))
    assert found.tolist() == [True, False, True]
    assert rows is not None
    assert rows[:, 0, 0].tolist() == [4, 1]
    nothing, found = store.shelf({"point": 4}).read(keys_of(["image 4"]))
    assert nothing is None
    assert not found.any()


def test_one_added_image_costs_one_row(store: Store) -> None:
    shelf = made(store, rows=6)
    assert np.flatnonzero(shelf.missing(keys_of(names(0, 7)))).tolist() == [6]


def test_another_process_sees_rows_as_soon_as_their_block_is_written(store: Store) -> None:
    reader = store.shelf(ADDRESS)
    assert reader.missing(keys_of(names(0, 6))).all()
    made(store)
    assert not reader.missing(keys_of(names(0, 6))).any()


@pytest.mark.parametrize("part", ["keys", "checksums", "rows", "header"])
def test_a_damaged_row_is_absent_and_never_read(part: str, store: Store) -> None:
    made(store)
    [block] = blocks(store)
    content = bytearray(block.read_bytes())
    length = int.from_bytes(content[:8], "little")
    at = {"header": 12, "rows": len(content) - 3}.get(part)
    if at is None:
        at = 8 + length + json.loads(content[8 : 8 + length])[part]["data_offsets"][0]
    content[at] ^= 0xFF
    block.write_bytes(content)
    rows, found = store.shelf(ADDRESS).read(keys_of(names(0, 6)))
    right = [n for n, here in enumerate(found) if here]
    assert len(right) < 6
    assert (rows is None) if not right else (rows is not None and rows[:, 0, 0].tolist() == right)


@pytest.mark.parametrize(
    ("said", "damaged"),
    [(b'"F32"', b'"I32"'), (b"[6,4,5,3]", b"[6,5,4,3]"), (b"channels_last", b"channels_lost")],
)
def test_rows_whose_header_says_something_else_of_them_are_never_read(
    said: bytes, damaged: bytes, store: Store
) -> None:
    shelf, keys = store.shelf(ADDRESS), keys_of(names(0, 6))
    shelf.put(keys, torch.randn(6, 3, 4, 5).to(memory_format=torch.channels_last))
    shelf.flush()
    [block] = blocks(store)
    content = block.read_bytes()
    assert content.count(said) == 1
    block.write_bytes(content.replace(said, damaged))
    rows, found = store.shelf(ADDRESS).read(keys)
    assert rows is None
    assert not found.any()


def test_a_truncated_block_is_absent_and_can_be_made_again(store: Store) -> None:
    made(store)
    [block] = blocks(store)
    block.write_bytes(block.read_bytes()[:-10])
    assert store.shelf(ADDRESS).missing(keys_of(names(0, 6))).all()
    rows, found = made(store).read(keys_of(names(0, 6)))
    assert found.all()
    assert rows is not None


def test_a_block_that_goes_while_it_is_open_is_absent_and_made_again_once(store: Store) -> None:
    shelf, keys = made(store), keys_of(names(0, 6))
    assert not shelf.missing(keys).any()
    for block in blocks(store):
        block.unlink()
    rows, found = shelf.read(keys)
    assert rows is None
    assert not found.any()
    assert shelf.missing(keys).all()
    shelf.put(keys, torch.ones(6, 4, 5))
    shelf.flush()
    rows, found = shelf.read(keys)
    assert found.all()
    assert rows is not None
    assert len(blocks(store)) == 1


def test_rows_that_another_process_made_meanwhile_are_kept_once(store: Store) -> None:
    shelves = [store.shelf(ADDRESS), store.shelf(ADDRESS)]
    for begin, shelf in enumerate(shelves):
        shelf.put(keys_of(names(begin, 6)), torch.ones(6, 4, 5))
    for shelf in shelves:
        shelf.flush()
    assert [len(stores._Block.open(block).keys) for block in blocks(store)] in ([6, 1], [1, 6])  # type: ignore[union-attr]
    assert not shelves[0].missing(keys_of(names(0, 7))).any()


def test_the_budget_is_kept_by_removing_what_was_longest_of_no_use(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", budget_bytes=25_000)
    for number in range(4):
        shelf = store.shelf({"number": number})
        shelf.put(keys_of(names(0, 10)), torch.zeros(10, 250))
        shelf.flush()
        used = sum(path.stat().st_size for path in store.folder.rglob("*") if path.is_file())
        assert used <= 25_000
        os.utime(shelf.folder, (number, number))
    kept = [n for n in range(4) if not store.shelf({"number": n}).missing(keys_of(["image 0"]))[0]]
    assert kept == [2, 3]


def filled(store: Store, number: int, last_use: float | None = None) -> Shelf:
    shelf = store.shelf({"number": number})
    shelf.put(keys_of(names(0, 10)), torch.zeros(10, 250))
    shelf.flush()
    if last_use is not None:
        os.utime(shelf.folder, (last_use, last_use))
    return shelf


def test_what_is_in_use_is_not_removed_for_others(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", budget_bytes=25_000)
    first, second = filled(store, 0), filled(store, 1)
    third = filled(store, 2)
    assert not third.takes_rows
    assert store.room_bytes < 5_000
    long_ago = time.time() - 2 * stores.IN_USE_SECONDS
    for shelf in (first, second):
        os.utime(shelf.folder, (long_ago, long_ago))
    # To look whether rows are there is no use; to read them is.
    assert not store.shelf({"number": 0}).missing(keys_of(["image 0"])).any()
    store.shelf({"number": 1}).read(keys_of(["image 0"]))
    assert filled(store, 3).takes_rows
    there = [n for n in range(4) if not store.shelf({"number": n}).missing(keys_of(["image 0"]))[0]]
    assert there == [1, 3]


def test_a_budget_that_was_lowered_is_kept_whatever_is_in_use(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", budget_bytes=45_000)
    for number in range(4):
        filled(store, number, last_use=time.time() - 10 + number)
    lower = replace(store, budget_bytes=25_000)
    assert lower.make_room()
    there = [n for n in range(4) if not store.shelf({"number": n}).missing(keys_of(["image 0"]))[0]]
    assert there == [2, 3]


def test_nothing_is_removed_for_what_has_no_room_anyway(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", budget_bytes=15_000)
    shelf = filled(store, 0, last_use=0)
    big = store.shelf(ADDRESS)
    big.put(keys_of(names(0, 10)), torch.zeros(10, 1000))
    big.flush()
    assert not big.takes_rows
    assert not shelf.missing(keys_of(names(0, 10))).any()


def test_a_budget_too_small_for_a_block_keeps_nothing_and_loses_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", budget_bytes=10)
    shelf = made(store)
    assert shelf.missing(keys_of(names(0, 6))).all()
    assert blocks(store) == []


def test_a_full_disk_ends_the_keeping_and_not_the_work(store: Store) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # What a full disk does: no file gets longer than that.
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    try:
        shelf = made(store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not shelf.takes_rows
    assert shelf.missing(keys_of(names(0, 6))).all()
    assert not list(store.folder.rglob("*.partial"))


def test_the_last_of_the_disk_is_left_for_other_files(store: Store) -> None:
    filled(store, 0, last_use=0)
    # No disk has so much.
    careful = replace(store, reserve_bytes=2**60)
    assert careful.room_bytes == 0
    shelf = made(careful)
    assert not shelf.takes_rows
    assert blocks(store) == []


def test_a_block_that_is_out_of_reach_for_a_moment_is_not_lost(store: Store) -> None:
    shelf = made(store)
    shelf.missing(keys_of(names(0, 6)))
    [block] = blocks(store)
    away = block.rename(store.folder / "away")
    # Something that cannot be read.
    block.mkdir()
    _, found = shelf.read(keys_of(names(0, 6)))
    assert not found.any()
    block.rmdir()
    away.rename(block)
    _, found = shelf.read(keys_of(names(0, 6)))
    assert found.all()


def test_a_fill_that_is_killed_leaves_whole_blocks_only(store: Store) -> None:
    script = f"""
import torch
from pathlib import Path
from sft_mlflow.reuse.store import Store, keys_of
shelf = Store(Path({str(store.folder)!r}), 10**10).shelf({ADDRESS!r})
number = 0
while True:
    shelf.put(keys_of([f"image {{number}}"]), torch.full((1, 2**20), float(number)))
    number += 1
    if number % 8 == 0:
        shelf.flush()
        print(number, flush=True)
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as filler:
        assert filler.stdout is not None
        assert filler.stdout.readline() == "8\n"
        filler.kill()
    rows, found = store.shelf(ADDRESS).read(keys_of(names(0, 64)))
    right = np.flatnonzero(found)
    assert len(right) >= 8
    assert rows is not None
    assert rows[:, 0].tolist() == right.tolist()


def test_what_a_killed_process_left_half_written_is_swept_away(store: Store) -> None:
    folder = made(store).folder
    old, young = folder / "old.partial", folder / "young.partial"
    for path in (old, young):
        path.write_bytes(b"half")
    long_ago = time.time() - 2 * stores._ABANDONED_SECONDS
    os.utime(old, (long_ago, long_ago))
    store.shelf(ADDRESS)
    assert not old.exists()
    assert young.exists()
