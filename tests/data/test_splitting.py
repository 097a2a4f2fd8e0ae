from __future__ import annotations

import hashlib
from collections import defaultdict
from pathlib import Path

import pytest

from sft_mlflow.data.manifest import SPLITS, Sample, Split
from sft_mlflow.data.readers import Entry, Listing
from sft_mlflow.data.scan import FileFacts, Problem
from sft_mlflow.data.splitting import assign, units_per_class

Row = tuple[str, str, Split | None, str | None]


def row(
    content: object, label: str = "a", split: Split | None = None, group: str | None = None
) -> Row:
    return (str(content), label, split, group)


def assigned(rows: list[Row], seed: int = 0) -> tuple[Sample, ...]:
    entries = tuple(
        Entry(Path(f"/{at}-{content}"), label, split, group)
        for at, (content, label, split, group) in enumerate(rows)
    )
    facts = [
        FileFacts(entry.path, hashlib.sha256(content.encode()).hexdigest(), len(content))
        for entry, (content, *_) in zip(entries, rows, strict=True)
    ]
    return assign(Listing("l", "u", entries), facts, seed=seed)


def sides(samples: tuple[Sample, ...]) -> dict[str, set[Split]]:
    found: dict[str, set[Split]] = defaultdict(set)
    for sample in samples:
        found[sample.digest].add(sample.split)
    return dict(found)


@pytest.mark.parametrize("seed", range(5))
def test_the_fractions_are_met_within_chance(seed: int) -> None:
    samples = assigned([row(n, "ab"[n % 2]) for n in range(4_000)], seed)
    for label in "ab":
        for split, fraction in (("valid", 0.15), ("test", 0.15), ("train", 0.70)):
            count = sum(s.split == split and s.label == label for s in samples)
            # Five standard deviations of a binomial draw.
            assert abs(count - 2_000 * fraction) < 5 * (2_000 * fraction * (1 - fraction)) ** 0.5


@pytest.mark.parametrize("seed", range(5))
def test_a_sample_keeps_its_side_when_data_are_added(seed: int) -> None:
    before = sides(assigned([row(n) for n in range(200)], seed))
    more = [row(n, "b", None, f"g{n % 7}") for n in range(500, 900)]
    after = sides(assigned(more + [row(n) for n in reversed(range(200))], seed))
    assert all(after[digest] == side for digest, side in before.items())


def test_a_sample_keeps_its_side_when_its_label_is_corrected() -> None:
    before = sides(assigned([row(n) for n in range(100)]))
    assert sides(assigned([row(n, "b") for n in range(100)])) == before


@pytest.mark.parametrize("seed", range(5))
def test_a_group_is_never_divided(seed: int) -> None:
    samples = assigned([row(n, "ab"[n % 2], None, f"g{n % 60}") for n in range(600)], seed)
    by_group = defaultdict(set)
    for sample in samples:
        by_group[sample.group].add(sample.split)
    assert all(len(found) == 1 for found in by_group.values())
    assert {split for found in by_group.values() for split in found} == set(SPLITS)


@pytest.mark.parametrize("seed", range(20))
def test_shared_content_ties_its_groups_together(seed: int) -> None:
    rows = [
        row("x", group="one"),
        row("x", group="two"),
        row("y", group="two"),
        row("y", group="three"),
        row("z", group="three"),
        row("z"),
    ]
    assert len({sample.split for sample in assigned(rows, seed)}) == 1


@pytest.mark.parametrize("seed", range(20))
def test_exact_duplicates_never_stand_on_two_sides(seed: int) -> None:
    samples = assigned([row(n % 40) for n in range(200)], seed)
    assert len(samples) == 200
    assert all(len(found) == 1 for found in sides(samples).values())


def test_a_given_split_is_respected_to_the_last_sample() -> None:
    rows = [row(n, split=SPLITS[n % 3]) for n in range(60)]
    assert [sample.split for sample in assigned(rows)] == [split for _, _, split, _ in rows]


def test_a_missing_valid_side_is_drawn_from_train_and_test_is_left_alone() -> None:
    rows = [row(n, split="test" if n % 4 == 0 else "train") for n in range(400)]
    for sample, (_, _, given, _) in zip(assigned(rows), rows, strict=True):
        assert sample.split in (("test",) if given == "test" else ("train", "valid"))
    assert 20 < sum(sample.split == "valid" for sample in assigned(rows)) < 75


def test_giving_the_test_side_later_moves_nothing_from_train_to_valid() -> None:
    drawn = assigned([row(n) for n in range(300)])
    rows = [row(n, split="test" if s.split == "test" else "train") for n, s in enumerate(drawn)]
    assert sides(assigned(rows)) == sides(drawn)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (("train", "test"), "test"),
        (("train", "valid"), "valid"),
        (("valid", "test"), "test"),
        (("train", "valid", "test"), "test"),
    ],
)
def test_of_copies_given_on_several_sides_the_judging_one_stays(
    given: tuple[Split, ...], kept: Split
) -> None:
    rows = [row("same", split=split) for split in given]
    others = [row(n, split=split) for n, split in enumerate(SPLITS)]
    assert sides(assigned(rows + others))[hashlib.sha256(b"same").hexdigest()] == {kept}
    assert len(assigned(rows + others)) == 4


def test_an_entry_without_a_side_joins_the_given_side_of_its_group() -> None:
    rows = [row(1, split="test", group="p"), row(2, group="p"), row(3, split="valid"), row(4)]
    assert [sample.split for sample in assigned(rows)] == ["test", "test", "valid", "train"]


def test_all_copies_of_content_with_two_labels_are_left_out() -> None:
    rows = [row("x", "a"), row("x", "b"), row("x", "a"), row("y", "a")]
    assert [sample.path.name for sample in assigned(rows)] == ["3-y"]


def test_broken_files_are_left_out_and_conflict_with_nothing() -> None:
    entries = (Entry(Path("/1"), "a"), Entry(Path("/2"), "b"), Entry(Path("/3"), "b"))
    empty = Problem("empty", "the file is empty")
    facts = [
        FileFacts(Path("/1"), "0" * 64, 0, problem=empty),
        FileFacts(Path("/2"), "0" * 64, 0, problem=empty),
        FileFacts(Path("/3"), "1" * 64, 9),
    ]
    assert [s.path for s in assign(Listing("l", "u", entries), facts, seed=0)] == [Path("/3")]


def test_a_unit_is_what_no_split_divides() -> None:
    rows = [row(1, group="p"), row(2, group="p"), row(3), row(3), row(4, "b")]
    assert units_per_class(assigned(rows)) == {"a": 2, "b": 1}
