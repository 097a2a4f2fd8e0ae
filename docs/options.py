"""Prints docs/options.md: every option of every command, from sft_mlflow/options.py.

python docs/options.py > docs/options.md
"""

from __future__ import annotations

from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from sft_mlflow.options import COMMANDS, Options, flag

HEAD = """# Options

Made by `python docs/options.py > docs/options.md` from `sft_mlflow/options.py`; a test holds them
equal.

On the command line an option is `--lr-min 0.001`, in `mlflow run` it is `-P lr_min=0.001`, and in
Python it is the keyword `lr_min`. Every option takes a value, also those that are on or off
(`--rollback yes`). Lists are separated by commas. All wrong values are reported at once, with exit
code 2; then those that do not go together or do not fit the task."""

BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def render() -> str:
    """The whole document."""
    return "\n\n".join([HEAD, *(section(name, model) for name, model in COMMANDS.items())]) + "\n"


def section(command: str, model: type[Options]) -> str:
    """One command: its purpose, and a row for each option in the order of the model."""
    rows = [
        f"| `{flag(name)}` | {values(info)} | {default(info)} | {cell(info.description or '')} |"
        for name, info in model.model_fields.items()
    ]
    head = ["| option | values | default | |", "|---|---|---|---|"]
    return "\n".join([f"## {command}", "", model.__doc__ or "", "", *head, *rows])


def values(info: FieldInfo) -> str:
    """What may be given: the choices, or the type and its bounds."""
    kind = info.annotation
    choices = [choice for choice in get_args(kind) if isinstance(choice, str) and choice]
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in choices)
    # A number that may be left out is a union with None.
    parts = get_args(kind) if get_origin(kind) not in (None, tuple, Literal) else (kind,)
    word = "text"
    for part, name in ((bool, "`yes`, `no`"), (int, "whole number"), (float, "number")):
        if part in parts:
            word = name
    if get_origin(kind) is tuple or any(get_origin(part) is tuple for part in parts):
        word = "list"
    limits = [
        f"{sign} {getattr(bound, name)}"
        for bound in info.metadata
        for name, sign in BOUNDS.items()
        if hasattr(bound, name)
    ]
    return " ".join([word, ", ".join(limits)]).strip()


def default(info: FieldInfo) -> str:
    """The default as it would be given, or that there is none."""
    if info.is_required():
        return "needed"
    value = info.default
    if value in (None, "", ()):
        return ""
    if isinstance(value, bool):
        return "`yes`" if value else "`no`"
    return f"`{','.join(map(str, value)) if isinstance(value, tuple) else value}`"


def cell(text: str) -> str:
    """Text that does not end the cell of a table."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(render(), end="")
