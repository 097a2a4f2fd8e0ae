from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

from sft_mlflow import __version__

# Which of our modules, and which heavy ones, `import mlflow` brings.
_IMPORT = """
    import json, sys
    import mlflow, mlflow.data, mlflow.tracking.fluent, mlflow.data.pandas_dataset
    heavy = ["torch", "torchvision", "timm", "sklearn", "imagehash", "PIL", "optuna"]
    found = [name for name in heavy if name in sys.modules]
    ours = sorted(name for name in sys.modules if name.split(".")[0] == "sft_mlflow")
    print(json.dumps([found, ours]))
"""

_TAGS = """
    import sys, types
    {at_work}
    from mlflow.tracking.context.registry import resolve_tags
    print(resolve_tags().get("sft.version"))
"""


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip().splitlines()[-1]


def test_importing_mlflow_loads_the_plugin_without_what_is_heavy() -> None:
    found, ours = json.loads(run(_IMPORT))
    assert found == []
    plugin = ["sft_mlflow.run_context", "sft_mlflow.tracking", "sft_mlflow.tracking.datasets"]
    assert ours == ["sft_mlflow", *plugin]


@pytest.mark.parametrize("at_work", [True, False])
def test_runs_are_tagged_only_where_a_command_is_at_work(at_work: bool) -> None:
    # The module stands for the commands, which would take seconds to import.
    line = 'sys.modules["sft_mlflow.commands"] = types.ModuleType("c")' if at_work else ""
    assert run(_TAGS.format(at_work=line)) == (__version__ if at_work else "None")
