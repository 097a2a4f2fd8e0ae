"""What is left when processes or the tracking server die in the middle of a study."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from mlflow.entities import Run

from sft_mlflow.commands import opening
from tests.conftest import CommandLine, Server, command_line

# One trial of the whole network that is long enough to be hit.
STUDY = (
    *("finetune", "--study", "crash", "--model-name", "crash", "--image-size", "32"),
    *("--precision", "float32", "--augment", "none", "--depths", "full", "--trials", "1"),
    *("--epochs", "3", "--batch-size", "4"),
)


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """Read what the command says until the text comes; the line that has it."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if text in line:
            return line
    pytest.fail(f"{text!r} never came: {''.join(said)}")


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, f"{process.returncode}\n{out}\n{err}"
    return out + err


def runs(line: CommandLine) -> list[Run]:
    experiment = line.client.get_experiment_by_name(line.experiment)
    assert experiment is not None
    order = ["attributes.start_time ASC"]
    return list(line.client.search_runs([experiment.experiment_id], order_by=order))


def steps(line: CommandLine, run: Run, metric: str = "valid/accuracy") -> list[int]:
    return [m.step for m in line.client.get_metric_history(run.info.run_id, metric)]


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Ids of the processes that the command started to run trials."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in listed if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]


@pytest.fixture
def line(tmp_path: Path, server: Server, request: pytest.FixtureRequest) -> CommandLine:
    return command_line(tmp_path / "user", server, experiment=request.node.name)


def test_kill_9_loses_at_most_the_epoch_under_way_and_leaves_nothing_running(
    line: CommandLine, pictures: Path
) -> None:
    words = (*STUDY, "--data", str(pictures))
    process = line.start(*words)
    wait_for(process, "epoch 1, loss")
    process.kill()
    killed = time.time() * 1000
    # Its pipes are closed when the guardian, which has them too, has done its work.
    process.communicate(timeout=120)
    assert {run.info.status for run in runs(line)} == {"KILLED", "FAILED"}

    said = finish(line.start(*words))

    assert "Interrupted trials go on from their checkpoints" in said
    assert all(run.info.status != "RUNNING" for run in runs(line))
    [done] = [r for r in runs(line) if r.data.tags.get("sft.state") == "COMPLETE"]
    assert done.data.tags["sft.attempt"] == "2"
    assert steps(line, done) == [0, 1, 2, 3]
    history = line.client.get_metric_history(done.info.run_id, "train/loss")
    # The first epoch, and a second if it was quick, are not computed again.
    assert history[0].timestamp < killed < history[2].timestamp
    # The interrupted attempt is there too, under the same parent.
    [lost] = [r for r in runs(line) if r.info.status == "FAILED"]
    assert lost.data.tags["mlflow.parentRunId"] == done.data.tags["mlflow.parentRunId"]


def test_ctrl_c_ends_every_run_and_the_study_goes_on(line: CommandLine, pictures: Path) -> None:
    words = (*STUDY, "--data", str(pictures))
    process = line.start(*words)
    wait_for(process, "epoch 1, loss")
    # As `mlflow run` passes it on.
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert {run.info.status for run in runs(line)} == {"KILLED"}

    finish(line.start(*words))

    [done] = [r for r in runs(line) if r.data.tags.get("sft.state") == "COMPLETE"]
    assert steps(line, done) == [0, 1, 2, 3]


def test_ctrl_c_is_for_the_study_and_not_for_its_workers_even_while_they_load(
    line: CommandLine, pictures: Path
) -> None:
    process = line.start(*STUDY, "--data", str(pictures), "--workers", "2", "--trials", "3")
    wait_for(process, "trial 0")
    workers = workers_of(process)
    assert len(workers) == 2
    for pid in workers:
        status = Path(f"/proc/{pid}/status").read_text()
        blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
        assert blocked >> (signal.SIGINT - 1) & 1
        os.kill(pid, signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "To go on where it stopped: sft-mlflow finetune" in said
    assert "Traceback" not in said


def test_a_killed_worker_costs_its_epoch_and_not_the_study(
    line: CommandLine, pictures: Path
) -> None:
    words = (*STUDY, "--data", str(pictures), "--workers", "2", "--trials", "3")
    process = line.start(*words, "--depths", "4,full")
    wait_for(process, "epoch 1, loss")
    pid, *_ = workers_of(process)
    subprocess.run(["kill", "-9", str(pid)], check=True)

    said = finish(process)

    assert "exit code -9" in said
    trials = [r for r in runs(line) if "sft.trial" in r.data.tags]
    assert sorted(r.info.status for r in trials if r.info.status != "KILLED")[0] == "FAILED"
    finished = [r for r in trials if r.data.tags["sft.state"] in ("COMPLETE", "PRUNED")]
    assert len(finished) == 3
    assert len({r.data.tags["mlflow.parentRunId"] for r in trials}) == 1


def test_a_server_that_goes_away_in_the_middle_stops_nothing_and_gets_everything(
    tmp_path: Path, pictures: Path, own_server: Server
) -> None:
    line = command_line(tmp_path / "user", own_server)
    process = line.start(
        *("finetune", "--study", "away", "--model-name", "away", "--data", str(pictures)),
        *("--image-size", "32", "--precision", "float32", "--epochs", "2", "--trials", "4"),
    )
    wait_for(process, "trial 1: epoch 1, loss")
    own_server.stop()
    # A trial ends and logs its model, another one begins, runs and ends, all without a server.
    wait_for(process, "trial 2: complete")
    wait_for(process, "Waiting for the tracking server")
    own_server.start()

    finish(process)

    trials = {r.data.tags["sft.trial"]: r for r in runs(line) if "sft.trial" in r.data.tags}
    assert sorted(trials) == ["0", "1", "2", "3"]
    for number in ("1", "2"):
        run = trials[number]
        assert run.info.status == "FINISHED"
        assert steps(line, run) == [0, 1, 2]
        [output] = run.outputs.model_outputs
        assert line.client.get_logged_model(output.model_id).status == "READY"
    assert all(run.info.status != "RUNNING" for run in runs(line))
    assert line.client.get_model_version_by_alias("away", "challenger").version == "1"


def test_a_study_that_is_being_run_is_not_run_beside(line: CommandLine, pictures: Path) -> None:
    with opening.alone(line.home / "studies" / "crash", "crash"):
        said = line.refused(*STUDY, "--data", str(pictures))
    assert "another process is running it" in said
