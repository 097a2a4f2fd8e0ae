from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sft_mlflow.errors import DataError
from sft_mlflow.sources import model_folder, weights


class Touch:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "text-pickle"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(
    form: str, tmp_path: Path
) -> None:
    path, mark = tmp_path / "weights.pth", tmp_path / "mark"
    value = {"weight": torch.ones(2), "more": Touch(mark)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(Touch(mark), protocol=2))
    elif form == "text-pickle":
        path.write_bytes(pickle.dumps(Touch(mark), protocol=0))
    else:
        torch.save(value, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(DataError, match=r"weights\.pth"):
        weights.read_state_dict(path)
    assert not mark.exists()
    # The trap works where it is not refused.
    if form.endswith("pickle"):
        pickle.loads(path.read_bytes())
        assert mark.exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"<html>404</html>", b"PK\x03", b"\x80\x02"])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_what_is_no_weights_file_is_said_to_be_none(
    content: bytes, name: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        weights.read_state_dict(tmp_path / name)


@pytest.mark.parametrize("size", [100, 1000, 8000])
@pytest.mark.parametrize("new", [True, False])
def test_a_file_that_is_cut_off_is_said_to_be_broken(size: int, new: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    state_dict = {f"layer{i}.weight": torch.ones(8, 8) for i in range(40)}
    torch.save(state_dict, path, _use_new_zipfile_serialization=new)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=r"a\.pth"):
        weights.read_state_dict(path)


@pytest.mark.parametrize("value", [[torch.ones(2)], {"a": 1}, {0: torch.ones(2)}, torch.ones(2)])
def test_tensors_without_names_are_no_state_dict(value: object, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "a.pth")
    with pytest.raises(DataError, match="holds no state dict"):
        weights.read_state_dict(tmp_path / "a.pth")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such weights file"):
        weights.read_state_dict(tmp_path / "a.pth")


def test_the_digest_changes_with_name_shape_dtype_and_value() -> None:
    base = {"a": torch.zeros(2, 3)}
    others = [
        {"b": torch.zeros(2, 3)},
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(2, 3, dtype=torch.int32)},
        {"a": torch.full((2, 3), -0.0)},
        {**base, "b": torch.zeros(())},
    ]
    assert len({weights.digest(value) for value in [base, *others]}) == len(others) + 1
    assert weights.digest({"a": torch.zeros(3, 2).T}) == weights.digest(base)


def test_tensors_come_back_from_a_file_to_the_bit(tmp_path: Path) -> None:
    shared = torch.randn(4, 3)
    state_dict = {
        "first": shared,
        "again": shared,
        "turned": shared.T,
        "short": torch.randn(5).bfloat16(),
        "count": torch.tensor(7),
    }
    weights.write_state_dict(state_dict, tmp_path / "a.safetensors")
    found = weights.read_state_dict(tmp_path / "a.safetensors")
    assert weights.digest(found) == weights.digest(state_dict)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": 99}', '{"format": 1}'])
def test_a_config_of_something_else_is_said_to_be_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    save_file({"a": torch.ones(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(DataError, match=r"config\.json"):
        model_folder.read_config(tmp_path)
