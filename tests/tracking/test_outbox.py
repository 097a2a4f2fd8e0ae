from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE
from requests import HTTPError, Response

from sft_mlflow.errors import DataError
from sft_mlflow.tracking import outbox as module
from sft_mlflow.tracking.outbox import MESSAGES, Message, Outbox


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_PAUSE_SECONDS", 0.001)


class Recorder:
    """Stands for the server: keeps what was delivered, and fails as it is told."""

    def __init__(self, failures: list[Exception] | None = None) -> None:
        self.got: list[Message] = []
        self.again: list[bool] = []
        self._failures = failures or []

    def __call__(self, message: Message, ids: Mapping[str, str], again: bool) -> Mapping[str, str]:
        if self._failures:
            raise self._failures.pop(0)
        self.got.append(message)
        self.again.append(again)
        return {message["key"]: f"id of {message['key']}"}


def messages(count: int, first: int = 0) -> list[Message]:
    return [{"kind": "note", "key": str(n)} for n in range(first, first + count)]


def deliver(folder: Path, recorder: Recorder, sent: list[Message]) -> Outbox:
    outbox = Outbox(folder, recorder, {})
    for message in sent:
        outbox.put(message)
    assert outbox.flush(60)
    outbox.close()
    return outbox


def test_messages_arrive_in_order_and_once(tmp_path: Path) -> None:
    recorder = Recorder()
    deliver(tmp_path, recorder, messages(50))
    assert recorder.got == messages(50)


def test_a_server_that_is_away_is_tried_again_until_it_is_back(tmp_path: Path) -> None:
    away = MlflowException("gone", error_code=TEMPORARILY_UNAVAILABLE)
    # An error that says nothing is one too; and a night is long.
    recorder = Recorder([away, refused(503), OSError(), *[ConnectionError("refused")] * 1100])
    deliver(tmp_path, recorder, messages(3))
    assert recorder.got == messages(3)
    # Whether the failed attempt did arrive is not known, so its repetition says that it is one.
    assert recorder.again[0]
    assert not any(recorder.again[1:])


def refused(status: int) -> HTTPError:
    """What MLflow's client of artifacts raises for an answer with that status."""
    response = Response()
    response.status_code = status
    return HTTPError(f"{status}: x.png", response=response)


@pytest.mark.parametrize(
    "error",
    [
        MlflowException("x.png", error_code=INVALID_PARAMETER_VALUE),
        DataError("x.png: no such file"),
        FileNotFoundError("x.png"),
        # A proxy before the server takes no file so large.
        refused(413),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_refused_for_good_or_gone_is_kept_as_refused_and_the_rest_goes_on(
    error: Exception, tmp_path: Path
) -> None:
    recorder = Recorder([error])
    outbox = deliver(tmp_path, recorder, messages(3))
    assert recorder.got == messages(2, first=1)
    assert "x.png" in outbox.refused[0]


def test_what_one_process_could_not_deliver_the_next_one_does(tmp_path: Path) -> None:
    first = Outbox(tmp_path, Recorder([ConnectionError("away")] * 1000), {})
    for message in messages(3):
        first.put(message)
    first.close()

    recorder = Recorder()
    deliver(tmp_path, recorder, messages(1, first=3))

    assert recorder.got == messages(4)
    assert recorder.again[0]


def test_a_disk_that_was_full_for_a_moment_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    outbox = Outbox(tmp_path, recorder, {})
    write, full = module._write_state, [OSError(28, "No space left on device")] * 3

    def write_if_there_is_room(path: Path, state: module.Delivered) -> None:
        if full:
            raise full.pop()
        write(path, state)

    monkeypatch.setattr(module, "_write_state", write_if_there_is_room)
    for message in messages(5):
        outbox.put(message)
    assert outbox.flush(60)
    outbox.close()
    # What could not be noted as delivered was delivered again, and said to be so.
    assert [m["key"] for m in recorder.got] == ["0", "0", "0", "0", "1", "2", "3", "4"]
    assert recorder.again == [True, True, True, True, False, False, False, False]
    assert module.delivered(tmp_path).count == 5


def test_ids_that_the_server_gave_are_known_to_the_next_process(tmp_path: Path) -> None:
    deliver(tmp_path, Recorder(), messages(1))
    outbox = Outbox(tmp_path, Recorder(), {"parent": "new"})
    assert outbox.ids.items() >= {"0": "id of 0", "parent": "new"}.items()
    outbox.close()


def test_a_line_that_a_killed_process_left_half_written_is_dropped(tmp_path: Path) -> None:
    whole = json.dumps(messages(1)[0])
    (tmp_path / MESSAGES).write_text(f"{whole}\n{whole[:9]}")
    recorder = Recorder()
    deliver(tmp_path, recorder, messages(1, first=1))
    assert recorder.got == messages(2)


@pytest.mark.parametrize("waiting", [1, 5])
def test_flush_says_that_it_gave_up(tmp_path: Path, waiting: int) -> None:
    outbox = Outbox(tmp_path, Recorder([ConnectionError("away")] * 1000), {})
    for message in messages(waiting):
        outbox.put(message)
    assert not outbox.flush(0.1)
    assert outbox.waiting == waiting
    outbox.close()
