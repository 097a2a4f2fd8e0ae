"""Where trials run: in this process, or in worker processes beside it.

A lane runs one trial at a time and gives its events as they come; every event is answered with
whether to stop. The study does not know which kind of lane it has.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Generator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

import torch

from sft_mlflow.errors import SftError, TrialError
from sft_mlflow.training.events import FitEvent
from sft_mlflow.training.recipe import Recipe
from sft_mlflow.training.trial import Material, run_trial

Run = Generator[FitEvent, bool | None, None]


class WorkerDiedError(TrialError):
    """The process that ran the trial is gone; the trial can go on from its checkpoint."""


class Lane(Protocol):
    """A place for one trial at a time."""

    def run(self, recipe: Recipe, folder: Path) -> Run:
        """Events of the trial. Raises TrialError, or WorkerDiedError."""

    def close(self) -> None:
        """End whatever runs there."""


class LocalLane:
    """Trials in this process."""

    def __init__(self, material: Material) -> None:
        self._material = material

    def run(self, recipe: Recipe, folder: Path) -> Run:
        """Events of the trial."""
        return run_trial(self._material, recipe, folder)

    def close(self) -> None:
        """Nothing runs when nobody asks for events."""


class ProcessLane:
    """Trials in a process of their own, started anew if it dies."""

    def __init__(self, material: Material, threads: int) -> None:
        self._material = material
        self._threads = threads
        self._start()

    def run(self, recipe: Recipe, folder: Path) -> Run:
        """Events of the trial, as the worker sends them."""
        try:
            self.connection.send((recipe, folder))
            while True:
                message = self.connection.recv()
                if message is None:
                    return
                if isinstance(message, BaseException):
                    raise message
                stop = yield message
                self.connection.send(bool(stop))
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            self._start()
            raise WorkerDiedError(f"its process ended with exit code {code}") from None

    def close(self) -> None:
        """End the worker."""
        self.connection.close()
        self._process.join(timeout=5)
        self._process.kill()
        self._process.join()

    def _start(self) -> None:
        # Not forked: a copy of a process whose threads hold locks can wait for ever.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_work, args=(theirs, self._material, self._threads), daemon=True
        )
        self._process.start()
        theirs.close()


def open_lanes(material: Material, workers: int) -> Sequence[Lane]:
    """One lane a worker; a single one needs no process of its own."""
    if workers == 1:
        return [LocalLane(material)]
    threads = max(1, torch.get_num_threads() // workers)
    return [ProcessLane(material, threads) for _ in range(workers)]


def ready(lanes: Sequence[Lane]) -> list[Lane]:
    """Those of the lanes whose next event can be had without waiting; waits for the first."""
    connections = {lane.connection: lane for lane in lanes if isinstance(lane, ProcessLane)}
    if not connections:
        return list(lanes)
    return [connections[c] for c in multiprocessing.connection.wait([*connections])]  # type: ignore[index]


def _work(connection: Connection, material: Material, threads: int) -> None:
    """Run trials as they are sent, until the study's process is gone."""
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        while True:
            recipe, folder = connection.recv()
            try:
                _stream(connection, run_trial(material, recipe, folder))
            except SftError as error:
                connection.send(error)
    except (EOFError, OSError, KeyboardInterrupt):
        return


def _stream(connection: Connection, run: Run) -> None:
    stop: bool | None = None
    while True:
        try:
            event = run.send(stop)
        except StopIteration:
            connection.send(None)
            return
        connection.send(event)
        stop = connection.recv()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    # In the middle of a step: whoever goes on with this study must not meet a trial still running.
    os._exit(1)
