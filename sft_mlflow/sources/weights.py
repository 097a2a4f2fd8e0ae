"""Weights in files: read without running their code, digested by content."""

from __future__ import annotations

import hashlib
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sft_mlflow.errors import DataError
from sft_mlflow.whole_file import whole_file

# torch's reader of pickles raises whatever a stray or a missing byte leads to.
_UNREADABLE = (
    *(SafetensorError, OSError, EOFError, RuntimeError, struct.error),
    *(LookupError, ValueError, TypeError, AttributeError, AssertionError),
)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """State dict of a `.safetensors` file or of a torch file that holds tensors alone.

    A pickle that would run code on loading is refused. A checkpoint that nests its state dict
    under `state_dict` or `model`, as training scripts write it, is unwrapped.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such weights file.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path}: refused, because loading it would run code or build objects other than "
            f"tensors. Save the bare state dict: torch.save(model.state_dict(), path)."
        ) from error
    except _UNREADABLE as error:
        raise DataError(f"{path}: not a readable weights file ({error}).") from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()
    ):
        raise DataError(f"{path}: holds no state dict (a mapping of names to tensors).")
    return {name.removeprefix("module."): tensor for name, tensor in loaded.items()}


def write_state_dict(state_dict: Mapping[str, Tensor], path: Path) -> None:
    """Write the tensors as safetensors, at once: a reader sees the old file or the whole new one.

    Tensors are copied, since safetensors refuses two names that share memory.
    """
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in state_dict.items()}
    with whole_file(path) as beside:
        save_file(tensors, beside)


def digest(state_dict: Mapping[str, Tensor]) -> str:
    """SHA-256 in hex over names, dtypes, shapes and bytes, whatever the order or file format."""
    sha = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name].detach().cpu().contiguous()
        sha.update(f"{name}\t{tensor.dtype}\t{tuple(tensor.shape)}\n".encode())
        # A view as bytes, because numpy has no bfloat16; flattened, because a scalar has no view.
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
