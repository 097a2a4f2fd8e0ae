"""Composition: one function a command. What they need from the layers above meets only here."""

from sft_mlflow.commands.check import check
from sft_mlflow.commands.finetune import Finetuned, finetune
from sft_mlflow.commands.promote import promote
from sft_mlflow.commands.report import report
from sft_mlflow.commands.score import score

__all__ = ["Finetuned", "check", "finetune", "promote", "report", "score"]
