"""Messages to the tracking server: written to disk first, delivered in order, each once.

Training never waits for the server. A thread takes the messages from the file and delivers them;
while the server is away it tries again, and what is not delivered when the process ends goes out
when the study goes on.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INTERNAL_ERROR,
    PERMISSION_DENIED,
    REQUEST_LIMIT_EXCEEDED,
    TEMPORARILY_UNAVAILABLE,
    UNAUTHENTICATED,
    ErrorCode,
)
from requests import HTTPError, RequestException

from sft_mlflow.errors import DataError, TrackingError, first_line
from sft_mlflow.interrupts import uninterrupted
from sft_mlflow.whole_file import whole_file

_log = logging.getLogger(__name__)

MESSAGES = "outbox.jsonl"
DELIVERED = "delivered.json"
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 10.0
# Under this key, ids hold a name of the outbox itself that no other one has.
OUTBOX = "outbox"
# Refused credentials too: a token that ran out is renewed while the study goes on.
_TRANSIENT = {
    ErrorCode.Name(code)
    for code in (
        INTERNAL_ERROR,
        REQUEST_LIMIT_EXCEEDED,
        TEMPORARILY_UNAVAILABLE,
        UNAUTHENTICATED,
        PERMISSION_DENIED,
    )
}

_TRANSIENT_STATUS = {401, 403, 408, 429}

Message = Mapping[str, Any]


class UnknownKeyError(TrackingError):
    """A message speaks of something that the server refused to make."""


# What a delivery may end in without being a bug: the server's refusals and absences, and files
# that are gone.
_EXPECTED = (MlflowException, RequestException, OSError, UnknownKeyError, DataError)


@dataclass
class Delivered:
    """How far the delivery is. ids: what the server called the things that messages made.

    refused: messages that the server answered with a lasting error, and the error.
    """

    count: int = 0
    ids: dict[str, str] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)


# Does what the message says; gives the ids it learnt. `again`: it may have been delivered before.
Deliver = Callable[[Message, Mapping[str, str], bool], Mapping[str, str]]


class Outbox:
    """A queue on disk, and the thread that empties it."""

    def __init__(self, folder: Path, deliver: Deliver, ids: Mapping[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._messages = folder / MESSAGES
        self._state_path = folder / DELIVERED
        self._deliver = deliver
        self._state = _read_state(self._state_path)
        self._state.ids.setdefault(OUTBOX, uuid.uuid4().hex)
        self._state.ids.update(ids)
        _write_state(self._state_path, self._state)
        self._queue = _read_messages(self._messages)[self._state.count :]
        # What an earlier process could not deliver.
        self.inherited = tuple(self._queue)
        self._changed = threading.Condition()
        self._closing = False
        self._file = self._messages.open("a")
        self.problem: str | None = None
        self._bug: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def put(self, message: Message) -> None:
        """Queue a message (JSON); returns as soon as it is in the file."""
        with uninterrupted(), self._changed:
            self._file.write(json.dumps(message) + "\n")
            self._file.flush()
            self._queue.append(message)
            self._changed.notify_all()

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until everything is delivered; False if that took too long.

        Raises whatever bug ended the delivery.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._queue or self._bug, timeout_seconds)
            if self._bug is not None:
                raise self._bug
            return not self._queue

    def close(self) -> None:
        """End the thread; what is queued stays on disk."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self._file.close()

    @property
    def ids(self) -> Mapping[str, str]:
        """What the server called the things that delivered messages made."""
        with self._changed:
            return dict(self._state.ids)

    @property
    def waiting(self) -> int:
        """Number of messages that are not delivered."""
        with self._changed:
            return len(self._queue)

    @property
    def refused(self) -> tuple[str, ...]:
        """What the server refused for good."""
        with self._changed:
            return tuple(self._state.refused)

    def _run(self) -> None:
        try:
            self._deliver_all()
        except Exception as bug:
            # A bug must not end in a thread that nobody looks at: `flush` raises it.
            with self._changed:
                self._bug = bug
                self._changed.notify_all()

    def _deliver_all(self) -> None:
        # The first may have been delivered by a process that died before it could note so.
        again = True
        pause = FIRST_PAUSE_SECONDS
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
                if self._closing:
                    return
                message = self._queue[0]
            try:
                self._deliver_one(message, again)
            except _EXPECTED as error:
                again = True
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                self.problem = first_line(error)
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, pause)
                continue
            again = False
            pause = FIRST_PAUSE_SECONDS
            self.problem = None

    def _deliver_one(self, message: Message, again: bool) -> None:
        """Deliver the first message of the queue. Raises what may go by, a full disk too."""
        learnt: Mapping[str, str] = {}
        refused = list(self.refused)
        try:
            learnt = self._deliver(message, self.ids, again)
        except _EXPECTED as error:
            if not is_lasting(error):
                raise
            _log.warning("MLflow refused %s: %s", message["kind"], error)
            refused.append(f"{message['kind']}: {error}")
        with self._changed:
            before = self._state
            state = Delivered(before.count + 1, {**before.ids, **learnt}, refused)
            _write_state(self._state_path, state)
            self._state = state
            self._queue.pop(0)
            self._changed.notify_all()


def is_lasting(error: Exception) -> bool:
    """Whether trying again cannot help."""
    if isinstance(error, FileNotFoundError | UnknownKeyError | DataError):
        return True
    if isinstance(error, HTTPError) and error.response is not None:
        # Of artifacts, which MLflow sends past its own errors: one that is too large, say.
        status = error.response.status_code
        return 400 <= status < 500 and status not in _TRANSIENT_STATUS
    if not isinstance(error, MlflowException):
        return False
    # A server that cannot be reached is an MlflowException too, with the HTTP error in its text.
    return error.error_code not in _TRANSIENT


def _read_messages(path: Path) -> list[Message]:
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    # A process killed while it wrote leaves a last line without its end.
    whole, rest = lines[:-1], lines[-1]
    if rest:
        os.truncate(path, path.stat().st_size - len(rest.encode()))
    return [json.loads(line) for line in whole]


def delivered(folder: Path) -> Delivered:
    """How far the delivery of the outbox in that folder came."""
    return _read_state(folder / DELIVERED)


def _read_state(path: Path) -> Delivered:
    return Delivered(**json.loads(path.read_text())) if path.exists() else Delivered()


def _write_state(path: Path, state: Delivered) -> None:
    with whole_file(path) as beside:
        beside.write_text(json.dumps(state.__dict__))


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000
