"""Where trials run: in this process, or in worker processes beside it.

A lane runs one trial at a time and gives its events as they come; every event is answered with
whether to stop. The study does not know which kind of lane it has.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

import torch

from sft_mlflow import runtime
from sft_mlflow.errors import SftError, TrialError
from sft_mlflow.training.events import FitEnded, FitEvent
from sft_mlflow.training.recipe import Recipe
from sft_mlflow.training.trial import Material, run_trial

# For workers in the middle of a step, once they are not wanted any more.
PATIENCE_SECONDS = 5.0


class WorkerDiedError(TrialError):
    """The process that ran the trial is gone; the trial can go on from its checkpoint."""


class Lane(Protocol):
    """A place for one trial at a time. Every event is answered before the next is asked for."""

    def start(self, recipe: Recipe, folder: Path) -> None:
        """Begin a trial."""

    def next(self) -> FitEvent:
        """The trial's next event; `FitEnded` is the last. Raises TrialError, WorkerDiedError."""

    def answer(self, stop: bool) -> None:
        """Let the trial go on, or end with what it has."""


class LocalLane:
    """Trials in this process."""

    def __init__(self, material: Material) -> None:
        self._material = material
        self._stop = False

    def start(self, recipe: Recipe, folder: Path) -> None:
        """Begin a trial; it gets on while its events are asked for."""
        self._run = run_trial(self._material, recipe, folder)
        self._begun = False

    def next(self) -> FitEvent:
        """Run up to the next event."""
        if self._begun:
            return self._run.send(self._stop)
        self._begun = True
        return next(self._run)

    def answer(self, stop: bool) -> None:
        """Keep the answer until the trial gets on."""
        self._stop = stop


class ProcessLane:
    """Trials in a process of their own, which is started anew if it dies."""

    def __init__(self, material: Material, threads: int) -> None:
        self._material = material
        self._threads = threads
        self._open()

    def start(self, recipe: Recipe, folder: Path) -> None:
        """Send the worker its trial; should it be dead, `next` says so."""
        with suppress(OSError):
            self.connection.send((recipe, folder))

    def next(self) -> FitEvent:
        """Wait for what the worker sends."""
        try:
            message: FitEvent | SftError = self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            self._open()
            raise WorkerDiedError(f"its process ended with exit code {code}") from None
        if isinstance(message, SftError):
            raise message
        return message

    def answer(self, stop: bool) -> None:
        """Send the worker the answer; should it be dead, `next` says so."""
        with suppress(OSError):
            self.connection.send(stop)

    def dismiss(self) -> None:
        """Let the worker end when it next asks or tells."""
        self.connection.close()

    def end(self, patience_seconds: float) -> None:
        """Wait so long for the dismissed worker, and no longer."""
        self._process.join(patience_seconds)
        self._process.kill()
        self._process.join()

    def _open(self) -> None:
        # Not forked: a copy of a process whose threads hold locks can wait for ever.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_work, args=(theirs, self._material, self._threads), daemon=True
        )
        # Ctrl-C reaches the whole group, and the study's process decides what it means: a worker
        # blocks it as its parent does here, from its first moment on. Python's tracker, which
        # every first worker starts, would unblock it (https://bugs.python.org/issue33613).
        multiprocessing.resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()


@contextmanager
def open_lanes(material: Material, workers: int) -> Iterator[Sequence[Lane]]:
    """One lane a worker, each ended with the block; a single one needs no process of its own."""
    if workers == 1:
        yield [LocalLane(material)]
        return
    threads = max(1, torch.get_num_threads() // workers)
    lanes: list[ProcessLane] = []
    try:
        for _ in range(workers):
            lanes.append(ProcessLane(material, threads))
        yield lanes
    finally:
        for lane in lanes:
            lane.dismiss()
        deadline = time.monotonic() + PATIENCE_SECONDS
        for lane in lanes:
            lane.end(max(0.0, deadline - time.monotonic()))


def ready(lanes: Sequence[Lane]) -> list[Lane]:
    """Those of the lanes whose next event can be had without waiting; waits for the first."""
    connections = {lane.connection: lane for lane in lanes if isinstance(lane, ProcessLane)}
    if not connections:
        return list(lanes)
    return [connections[c] for c in multiprocessing.connection.wait([*connections])]  # type: ignore[index]


def _work(connection: Connection, material: Material, threads: int) -> None:
    """Run trials as they are sent, until the study's process is gone."""
    # Of its half about threads only what the study's process said counts: torch is loaded here.
    runtime.tune()
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # That is what a parent that is gone looks like.
    with suppress(EOFError, ConnectionError):
        while True:
            recipe, folder = connection.recv()
            try:
                run = run_trial(material, recipe, folder)
                event = next(run)
                connection.send(event)
                while not isinstance(event, FitEnded):
                    event = run.send(connection.recv())
                    connection.send(event)
            except SftError as error:
                connection.send(error)
    runtime.skip_last_collection()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    # In the middle of a step: whoever goes on with this study must not meet a trial still running.
    os._exit(1)
