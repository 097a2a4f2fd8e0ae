from __future__ import annotations

from pathlib import Path

import torch

from sft_mlflow.training.checkpoints import SMALL_BYTES, Checkpoint, Checkpoints


def checkpoint(value: float, size: int = 3) -> Checkpoint:
    tensors = {"weight": torch.full((size,), value)}
    return Checkpoint(tensors, tensors, tensors, torch.zeros(2, 3), {}, {}, ())


def test_the_last_checkpoint_is_read_as_it_was_kept(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path / "trial", every_seconds=0)
    assert kept.load() is None
    for value in (1.0, 2.0):
        kept.keep(checkpoint(value))
    found = Checkpoints(tmp_path / "trial").load()
    assert found is not None
    assert found.best["weight"].tolist() == [2.0, 2.0, 2.0]
    kept.remove()
    assert not list((tmp_path / "trial").iterdir())


def test_a_large_checkpoint_soon_after_another_is_not_written(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, every_seconds=3600)
    kept.keep(checkpoint(1.0, size=SMALL_BYTES // 4 + 1))
    assert kept.load() is None
    kept.keep(checkpoint(1.0, size=SMALL_BYTES // 4))
    assert kept.load() is not None
