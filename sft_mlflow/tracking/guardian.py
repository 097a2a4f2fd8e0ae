"""A small process beside a study, that ends its runs should the study be killed.

It waits on a pipe from the study's process. An orderly end is announced there; a pipe that closes
without a word means that the process is gone (kill -9, out of memory), and whatever still says
RUNNING under its parent run is ended. Only then is MLflow imported: until then it costs nothing.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_FAREWELL = b"ended\n"


@contextmanager
def guarded(tracking_uri: str, experiment_id: str, run_id: str) -> Iterator[None]:
    """Have the parent run and its children ended, if this process dies within the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, tracking_uri, experiment_id, run_id],
        stdin=subprocess.PIPE,
        # Ctrl-C is for the study; it ends its runs itself.
        start_new_session=True,
    )
    assert process.stdin is not None
    try:
        yield
    finally:
        # Whoever killed the guardian alone has only lost the guard.
        with suppress(BrokenPipeError):
            process.stdin.write(_FAREWELL)
            process.stdin.close()
        process.wait()


def _watch(tracking_uri: str, experiment_id: str, run_id: str) -> None:
    if sys.stdin.buffer.read() == _FAREWELL:
        return
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=tracking_uri)
    children = client.search_runs(
        [experiment_id],
        f"tags.`mlflow.parentRunId` = '{run_id}' AND attributes.status = 'RUNNING'",
    )
    for child in children:
        client.set_tag(child.info.run_id, "sft.reason", "its process was killed")
        client.set_terminated(child.info.run_id, "FAILED")
    if client.get_run(run_id).info.status == "RUNNING":
        client.set_terminated(run_id, "KILLED")


if __name__ == "__main__":
    _watch(*sys.argv[1:])
