"""Tags on runs that are started while this product is at work.

MLflow imports this module at `import mlflow`: no torch and nothing heavy here.
"""

from __future__ import annotations

import sys

from mlflow.tracking.context.abstract_context import RunContextProvider

from sft_mlflow import __version__

# Whoever has imported the commands is running one of them; a notebook that merely has the plugin
# installed has not.
AT_WORK = "sft_mlflow.commands"


class SftRunContext(RunContextProvider):  # type: ignore[misc, unused-ignore]
    """Entry point of `mlflow.run_context_provider`."""

    def in_context(self) -> bool:
        """Whether a command of this product runs in this process."""
        return AT_WORK in sys.modules

    def tags(self) -> dict[str, str]:
        """`sft.version`: the version of this product."""
        return {"sft.version": __version__}
