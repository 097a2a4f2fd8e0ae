"""Optimiser and schedule of a recipe."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from sft_mlflow.training.recipe import Recipe


def optimiser(stages: list[list[nn.Parameter]], recipe: Recipe, lr: float) -> torch.optim.Optimizer:
    """AdamW or SGD with discriminative learning rates.

    stages: trainable parameters from the lowest stage to the head. The head has `lr`, every stage
    below it `layer_decay` times that of the one above (Howard & Ruder 2018, arXiv 1801.06146).
    Norms and biases have no weight decay.
    """
    groups = []
    for distance, parameters in enumerate(reversed(stages)):
        for decay, chosen in (
            (recipe.weight_decay, [p for p in parameters if p.ndim > 1]),
            (0.0, [p for p in parameters if p.ndim <= 1]),
        ):
            if chosen:
                rate = lr * recipe.layer_decay**distance
                groups.append({"params": chosen, "lr": rate, "weight_decay": decay})
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=recipe.momentum, fused=True)
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def schedule(optimizer: torch.optim.Optimizer, steps: int, warmup: float) -> LambdaLR:
    """Linear warm-up over that share of the steps, then half a cosine down to zero."""
    rising = max(1, round(steps * warmup))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))

    return LambdaLR(optimizer, factor)
