"""Supervised fine-tuning for computer vision, as an MLflow plugin and an MLflow project."""

__version__ = "0.1.0"
