"""Real parts for the tests: an MLflow server on loopback, image files, and the command line."""

from __future__ import annotations

from sft_mlflow import runtime

# As the command line does, before torch is loaded.
runtime.tune()

import io
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch
from urllib.error import URLError

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from sft_mlflow.cli import _group
from sft_mlflow.errors import SftError

# A study this small takes seconds and still has a probe, three depths and an epoch of each.
SMALL = ("--image-size", "32", "--epochs", "1", "--trials", "4", "--precision", "float32")


@dataclass
class Server:
    """An MLflow server that can be stopped and started again on the same port."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        # Without its job runners: more processes that load MLflow, for what no test asks for.
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=environment,
                start_new_session=True,
            )
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it at once, as a crash would."""
        if self.process is not None:
            # It may have ended by itself.
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, 9)
            self.process.wait()
            self.process = None

    def _wait_until_it_answers(self) -> None:
        for _ in range(1800):
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=1):
                    return
            except (URLError, OSError):
                assert self.process is not None
                try:
                    code = self.process.wait(timeout=0.1)
                except subprocess.TimeoutExpired:
                    continue
                log = (self.folder / "server.log").read_text()
                pytest.fail(f"the MLflow server ended with {code}: {log[-2000:]}")
        pytest.fail("the MLflow server did not answer within three minutes")


@pytest.fixture(scope="session")
def migrated_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty sqlite store; its migrations take seconds, so they run once."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


def make_server(folder: Path, migrated_store: Path) -> Server:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(migrated_store, folder / "mlflow.db")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return Server(folder, port)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, migrated_store: Path) -> Iterator[Server]:
    """A server for all tests that do not stop it."""
    made = make_server(tmp_path_factory.mktemp("server"), migrated_store)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def own_server(tmp_path: Path, migrated_store: Path) -> Iterator[Server]:
    """A server of the test's own, to be stopped and started."""
    made = make_server(tmp_path / "server", migrated_store)
    made.start()
    yield made
    made.stop()


@dataclass(frozen=True)
class CommandLine:
    """`sft-mlflow` as a user calls it, with its own home."""

    home: Path
    tracking_uri: str
    folder: Path
    experiment: str = "Default"

    def environment(self, **more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        return {
            **kept,
            "SFT_MLFLOW_HOME": str(self.home),
            "MLFLOW_TRACKING_URI": self.tracking_uri,
            "MLFLOW_EXPERIMENT_NAME": self.experiment,
            **more,
        }

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "sft_mlflow", *words],
            env=self.environment(**environment),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *words: str, code: int = 0, **environment: str) -> str:
        """Run it to its end; what it printed, on both streams."""
        process = self.start(*words, **environment)
        out, err = process.communicate(timeout=600)
        assert process.returncode == code, f"{process.returncode}\n{out}\n{err}"
        return out + err

    def here(self, *words: str, **environment: str) -> str:
        """Run it to its end in this process, which need not load everything; what it printed."""
        said = io.StringIO()
        with (
            patch.dict(os.environ, self.environment(**environment), clear=True),
            redirect_stdout(said),
            redirect_stderr(said),
        ):
            mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
            try:
                assert not _group.main(list(words), standalone_mode=False)
            finally:
                mlflow.set_tracking_uri(None)
        return said.getvalue()

    def refused(self, *words: str, code: int = 2, **environment: str) -> str:
        """The message of the error that it ends with, in this process too."""
        with pytest.raises(SftError) as raised:
            self.here(*words, **environment)
        assert raised.value.exit_code == code
        return str(raised.value)

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=self.tracking_uri)


def command_line(folder: Path, server: Server, experiment: str = "Default") -> CommandLine:
    folder.mkdir(parents=True, exist_ok=True)
    return CommandLine(folder / "home", server.uri, folder, experiment)


COLOURS: Mapping[str, tuple[int, int, int]] = {
    "blue": (40, 60, 200),
    "green": (40, 170, 60),
    "red": (200, 40, 40),
}


def draw_pictures(root: Path, per_class: int, seed: int = 0) -> Path:
    """Class folders of noisy colour fields: easy, all different, and really JPEG."""
    generator = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            noise = generator.normal(0, 45, (40, 40, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:03d}.jpg", quality=95)
    return root


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: 3 classes of 24 images."""
    return draw_pictures(tmp_path_factory.mktemp("data") / "fields", per_class=24)


@pytest.fixture(scope="session")
def digits_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the embedded digits, and the scenes that are composed of them, are written once."""
    return tmp_path_factory.mktemp("digits") / "data"


@dataclass(frozen=True)
class FinishedStudy:
    """A study that went through, and what it printed."""

    run: CommandLine
    data: Path
    printed: str


@pytest.fixture(scope="session")
def finished_study(
    tmp_path_factory: pytest.TempPathFactory, server: Server, pictures: Path
) -> FinishedStudy:
    """The main job on the user's folder, run once for all tests that look at its results."""
    run = command_line(tmp_path_factory.mktemp("study"), server)
    printed = run(
        "finetune", "--data", str(pictures), "--study", "fields", "--model-name", "fields", *SMALL
    )
    return FinishedStudy(run, pictures, printed)
