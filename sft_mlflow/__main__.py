"""`python -m sft_mlflow`, which is what MLproject calls."""

from sft_mlflow.cli import main

# Guarded: worker processes import the main module once more.
if __name__ == "__main__":
    main()
