"""The command line: options from `options.py`, errors as messages, exit codes.

0: done; 1: data, server or trial; 2: options; 3: a promotion was refused; 130: interrupted.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import click

from sft_mlflow import __version__, runtime
from sft_mlflow.errors import SftError
from sft_mlflow.options import (
    COMMANDS,
    CheckOptions,
    FinetuneOptions,
    PromoteOptions,
    ReportOptions,
    ScoreOptions,
    flag,
    parse,
)

REFUSED = 3
INTERRUPTED = 130


def main() -> None:
    """Entry point of the console script and of `python -m sft_mlflow`."""
    runtime.tune()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, _interrupt)
    try:
        code = _group.main(standalone_mode=False)
    except SftError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)
    finally:
        runtime.skip_last_collection()
    sys.exit(code or 0)


def _interrupt(number: int, frame: object) -> None:
    """Let the command end its runs in peace; a second Ctrl-C does not wait for that."""
    # `mlflow run` passes Ctrl-C on as SIGINT and, right after it, SIGTERM.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise KeyboardInterrupt


@click.group(
    # `-P lr_min=...` of `mlflow run` arrives as `--lr_min`.
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-")},
    help="Supervised fine-tuning for computer vision, tracked by MLflow.",
)
@click.version_option(__version__, package_name="sft-mlflow")
def _group() -> None:
    """Group of all commands."""


def _command(name: str, run: Callable[[Any], int]) -> click.Command:
    """The command of that name, whose options are the fields of its model."""
    model = COMMANDS[name]

    def callback(**values: str | None) -> int:
        return run(parse(model, {k: v for k, v in values.items() if v is not None}))

    parameters: list[click.Parameter] = [
        click.Option(
            [flag(field), field],
            metavar=_metavar(info.annotation),
            required=False,
            help=f"{info.description or ''}{_default(info.default)}",
        )
        for field, info in model.model_fields.items()
    ]
    return click.Command(name, params=parameters, callback=callback, help=model.__doc__)


def _metavar(annotation: Any) -> str:
    """How a type looks in the help: its choices, or what to write."""
    if get_origin(annotation) is Literal:
        return "|".join(str(choice) for choice in get_args(annotation) if choice != "")
    if get_origin(annotation) in (Union, UnionType):
        return _metavar(get_args(annotation)[0])
    return {int: "INTEGER", float: "NUMBER", bool: "yes|no"}.get(annotation, "TEXT")


def _default(value: object) -> str:
    if value in (None, "") or repr(value) == "PydanticUndefined":
        return ""
    shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
    return f" [default: {('no', 'yes')[value] if isinstance(value, bool) else shown}]"


# Commands are imported when they run: `--help` should not wait for torch.


def _finetune(options: FinetuneOptions) -> int:
    with runtime.loading():
        from sft_mlflow.commands import finetune
        from sft_mlflow.display import display

    with display() as observer:
        done = finetune(options, observer)
    click.echo("\n".join(done.lines))
    registered = done.version is not None or options.register_ == "none"
    return 0 if done.report.best is not None and registered else 1


def _check(options: CheckOptions) -> int:
    with runtime.loading():
        from sft_mlflow.commands import check
        from sft_mlflow.display import display

    with display() as observer:
        found = check(options, observer)
    click.echo("\n".join(found.report.lines()))
    if found.unfit is None:
        return 0
    click.echo(f"error: {found.unfit}", err=True)
    return 1


def _promote(options: PromoteOptions) -> int:
    with runtime.loading():
        from sft_mlflow.commands import promote
        from sft_mlflow.commands.wording import decision_lines
        from sft_mlflow.display import display

    with display() as observer:
        decision = promote(options, observer)
    click.echo("\n".join(decision_lines(decision)))
    return REFUSED if decision.outcome == "refused" else 0


def _score(options: ScoreOptions) -> int:
    with runtime.loading():
        from sft_mlflow.commands import score
        from sft_mlflow.display import display

    with display() as observer:
        ended = score(options, observer)
    if ended.already_there:
        click.echo(f"{ended.output}: already holds these {ended.total} images; nothing to do.")
        return 0
    click.echo(
        f"{ended.output}: {ended.total} images, {ended.errors} unreadable; {ended.scored} scored "
        f"now, {ended.images_per_second:.0f} images/s"
    )
    return 0


def _report(options: ReportOptions) -> int:
    with runtime.loading():
        from sft_mlflow.commands import report

    click.echo(report(options))
    return 0


_RUNS: Mapping[str, Callable[[Any], int]] = {
    "finetune": _finetune,
    "check": _check,
    "promote": _promote,
    "score": _score,
    "report": _report,
}
for _name, _run in _RUNS.items():
    _group.add_command(_command(_name, _run))
