"""The head that trials of a study start with: fitted to what the frozen body gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sft_mlflow.tasks.base import Evidence
from sft_mlflow.whole_file import whole_file

_EVIDENCE = "evidence"
_HEAD = "head."


@dataclass(frozen=True)
class HeadStart:
    """tensors: of the head, by their names in it; evidence: of its answers for validation.

    The evidence is None where the head was asked about a part of that side only.
    """

    tensors: Mapping[str, Tensor]
    evidence: Evidence | None

    def copy_into(self, head: nn.Module) -> None:
        """Give the head these weights."""
        head.load_state_dict(dict(self.tensors))

    def save(self, path: Path) -> None:
        """Write it as safetensors, at once."""
        named = {f"{_HEAD}{name}": tensor.contiguous() for name, tensor in self.tensors.items()}
        if self.evidence is not None:
            named[_EVIDENCE] = torch.from_numpy(np.ascontiguousarray(self.evidence))
        with whole_file(path) as beside:
            save_file(named, beside)

    @classmethod
    def load(cls, path: Path) -> HeadStart:
        """What `save` wrote."""
        named = load_file(path)
        evidence = named.pop(_EVIDENCE, None)
        tensors = {name.removeprefix(_HEAD): tensor for name, tensor in named.items()}
        return cls(tensors, None if evidence is None else evidence.numpy())
