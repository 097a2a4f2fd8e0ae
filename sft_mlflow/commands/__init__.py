"""Composition: one function a command. What they need from the layers above meets only here.

    from sft_mlflow.commands import finetune

A command is imported when it is asked for: looking at data should not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sft_mlflow.commands._check import check
    from sft_mlflow.commands._finetune import finetune
    from sft_mlflow.commands._promote import promote
    from sft_mlflow.commands._report import report
    from sft_mlflow.commands._score import score
    from sft_mlflow.commands.closing import Finetuned

__all__ = ["Finetuned", "check", "finetune", "promote", "report", "score"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(name)
    module = "closing" if name == "Finetuned" else f"_{name}"
    return getattr(import_module(f"{__name__}.{module}"), name)
