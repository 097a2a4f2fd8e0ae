"""Batch scoring: images in, one Parquet row an image out. Knows no MLflow and no screen."""
