"""A recipe that trains a small network in a second; tests replace what they are about."""

from __future__ import annotations

from sft_mlflow.training.recipe import Recipe

RECIPE = Recipe(
    source="torchvision://shufflenet_v2_x0_5/random",
    depth=9,
    lr=2e-3,
    epochs=3,
    batch_size=16,
    image_size=32,
    optimizer="adamw",
    weight_decay=0.02,
    layer_decay=0.9,
    label_smoothing=0.1,
    class_weights=None,
    augmentation="none",
    views=3,
    mixup=0.0,
    head_start="random",
    patience=10,
    precision="float32",
    metric="accuracy",
    seed=0,
    averaging=0.2,
)
