from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from requests import RequestException

from sft_mlflow.commands import opening
from sft_mlflow.errors import TrackingError
from sft_mlflow.tracking import messages, runs, versions
from sft_mlflow.tracking.outbox import Outbox

from . import made_models


@pytest.fixture(autouse=True)
def here(experiment_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment_id)


def test_the_run_of_a_command_has_its_options_and_ends_well(client: MlflowClient) -> None:
    with runs.single(client, "score", "sft-mlflow score", {"model": "m", "input": "i"}) as run_id:
        assert client.get_run(run_id).info.status == "RUNNING"
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"options.model": "m", "options.input": "i"}


@pytest.mark.parametrize(
    ("error", "raised", "status", "said"),
    [
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "KILLED", "stop"),
        (ValueError("a bug"), ValueError, "FAILED", "a bug"),
        (MlflowException("gone"), TrackingError, "FAILED", "does not answer any more"),
        (
            MlflowException("no", error_code=INVALID_PARAMETER_VALUE),
            TrackingError,
            "FAILED",
            "refuses this",
        ),
        (RequestException("cut off"), TrackingError, "FAILED", "does not answer any more"),
    ],
)
def test_the_run_ends_as_its_command_does(
    error: BaseException,
    raised: type[BaseException],
    status: str,
    said: str,
    client: MlflowClient,
) -> None:
    with pytest.raises(raised, match=said), runs.single(client, "s", "s", {}) as run_id:
        raise error
    assert client.get_run(run_id).info.status == status


def test_a_server_that_goes_before_the_last_word_is_told_and_no_traceback(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*arguments: object) -> None:
        raise MlflowException("connection refused")

    with pytest.raises(TrackingError, match="connection refused"):  # noqa: SIM117
        with runs.single(client, "s", "s", {}):
            monkeypatch.setattr(client, "set_terminated", gone)


def test_what_one_invocation_began_to_take_over_the_next_one_takes_over_wholly(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = runs.parent_run(client, "first", "command")
    outbox = Outbox(
        tmp_path, messages.Delivery(client, first.experiment_id), {messages.PARENT: first.run_id}
    )
    for number in range(3):
        outbox.put(messages.created(f"trial {number}", f"{number}", {}, 0))
    assert outbox.flush(60)
    outbox.close()
    children = [outbox.ids[f"trial {number}"] for number in range(3)]
    second = runs.parent_run(client, "second", "command")
    with monkeypatch.context() as patch:
        moved = []

        def end_if_running(*of: object) -> None:
            # Ctrl-C after the first of them.
            moved.append(of)
            raise KeyboardInterrupt

        patch.setattr(runs, "_end_if_running", end_if_running)
        with pytest.raises(KeyboardInterrupt):
            runs.adopt(client, tmp_path, second)
        assert len(moved) == 1
    third = runs.parent_run(client, "third", "command")
    runs.adopt(client, tmp_path, third)
    for child in map(client.get_run, children):
        assert child.data.tags["mlflow.parentRunId"] == third.run_id
        assert child.info.status == "FAILED"
    assert client.get_run(first.run_id).data.tags["sft.continued_by"] == third.run_id


def test_a_run_that_a_killed_process_could_not_announce_is_ended_once_it_is_made(
    client: MlflowClient, tmp_path: Path
) -> None:
    def away(*of: object) -> dict[str, str]:
        raise ConnectionError

    outbox = Outbox(tmp_path, away, {})
    outbox.put(messages.created("trial 0", "0", {}, 0))
    outbox.close()
    with opening.tracked(client, tmp_path, "study", "command") as (outbox, parent):
        outbox.put(messages.created("trial 1", "1", {}, 0))
        assert outbox.flush(60)
        made = [client.get_run(outbox.ids[f"trial {number}"]) for number in (0, 1)]
        assert [run.info.status for run in made] == ["FAILED", "RUNNING"]
    assert client.get_run(parent.run_id).info.status == "FINISHED"


def test_two_that_register_for_the_first_time_at_once_both_do(
    client: MlflowClient, experiment_id: str, good_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, model_id = made_models.log_model(client, experiment_id, good_folder)
    client.create_registered_model("both")
    # As it was a moment ago.
    monkeypatch.setattr(client, "search_registered_models", lambda query: [])
    found = [
        versions.version_of(
            client, "both", model_id, source=f"models:/{model_id}", run_id=run_id, tags={}
        ).version
    ]
    monkeypatch.undo()
    found.append(
        versions.version_of(
            client, "both", model_id, source=f"models:/{model_id}", run_id=run_id, tags={}
        ).version
    )
    assert found[0] == found[1]
