"""The documents say what is so: their commands are executed as they stand, in their order."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import click
import mlflow.cli
import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient

from sft_mlflow.options import FinetuneOptions, parse
from tests.conftest import Server, draw_pictures
from tests.docs.documents import DOCUMENTS, README, ROOT, Block, Workplace, blocks, commands

EXECUTED = ("sh", "python")
# `install` changes the machine, `network` needs what tests may not use, `server` does not end, a
# `study` takes minutes, and `scenes` stands on one.
MARKED = ("sh install", "sh network", "sh server", "sh study", "sh scenes")
SHOWN = ("text", "csv", "json")
# Ports as the README has them; the test takes free ones instead.
SERVED_PORT = "5001"

ALL = [block for document in DOCUMENTS for block in blocks(document)]
OTHERS = [document for document in DOCUMENTS if document != README]


def of_kind(*kinds: str) -> list[Block]:
    return [block for block in ALL if block.kind in kinds]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Workplace:
    made = Workplace.make(tmp_path_factory.mktemp("docs") / "clone", server.uri)
    draw_pictures(made.folder / "photos", per_class=24)
    return made


@pytest.fixture(scope="module")
def printed(workplace: Workplace) -> Iterator[dict[str, str]]:
    """What each block of the README printed, by its text."""
    port = _free_port()
    served: subprocess.Popen[bytes] | None = None
    found: dict[str, str] = {}
    for block in blocks(README):
        text = block.text.replace(SERVED_PORT, port)
        if block.kind in EXECUTED:
            found[block.text] = workplace.execute(block, text)
        elif "models serve" in text:
            served = workplace.start(text)
            _wait_for(f"http://127.0.0.1:{port}/ping", served, workplace.folder / "server.log")
    yield found
    if served is not None:
        os.killpg(served.pid, signal.SIGKILL)
        served.wait()


def test_every_block_is_of_a_kind_that_some_test_looks_at() -> None:
    assert [str(b) for b in ALL if b.kind not in (*EXECUTED, *MARKED, *SHOWN)] == []


def test_the_readme_walks_from_a_folder_of_images_to_a_champion_and_its_answers(
    printed: dict[str, str], workplace: Workplace
) -> None:
    def said(part: str) -> str:
        [text] = [out for command, out in printed.items() if part in command]
        return text

    assert "72 files, 3 classes" in said("check --data")
    assert "4 trials: " in said("mlflow run . --env-manager local -P data=photos")
    assert "Study photos: 6 trials: " in said("--workers 2")
    assert "promoted (champion before: none)" in said("promote --model-name photos\n")
    refused = said("--min-improvement 0.01")
    assert "FAILED improvement" in refused
    assert "exit code 3" in refused
    assert "models:/photos/1: promoted" in said("--min-improvement -0.02")
    assert "rolled back" in said("--rollback yes")
    assert "72 images, 0 unreadable" in said("sft-mlflow score")
    assert (workplace.folder / "report.html").read_text().startswith("<!DOCTYPE html>")
    client = MlflowClient(tracking_uri=workplace.tracking_uri)
    aliases = client.get_registered_model("photos").aliases
    # As before the promotion that was taken back.
    assert str(aliases["previous"]) == "1" != str(aliases["champion"])


def test_what_is_served_is_what_was_scored(printed: dict[str, str], workplace: Workplace) -> None:
    [answer] = [out for command, out in printed.items() if "/invocations" in command]
    [row] = json.loads(answer)["predictions"]
    scores = pd.read_parquet(workplace.folder / "scores.parquet")
    [same] = scores[scores["path"].str.endswith("photos/red/000.jpg")].to_dict("records")
    assert row["prediction"] == same["prediction"] == "red"
    assert row["probabilities"]["red"] == pytest.approx(same["probability_red"], abs=1e-5)


@pytest.fixture(scope="module")
def others(printed: dict[str, str], workplace: Workplace) -> dict[Path, Future[None]]:
    """The other documents, which stand on the README's study and not on each other."""

    def walk(document: Path) -> None:
        for block in blocks(document):
            if block.kind in EXECUTED:
                workplace.execute(block)

    with ThreadPoolExecutor(max_workers=2) as pool:
        return {document: pool.submit(walk, document) for document in OTHERS}


@pytest.mark.parametrize("document", OTHERS, ids=lambda document: document.name)
def test_the_commands_of_the_other_documents_work_after_those_of_the_readme(
    document: Path, others: dict[Path, Future[None]]
) -> None:
    others[document].result()


@pytest.mark.parametrize("block", of_kind("sh network"), ids=str)
def test_without_a_network_the_message_says_which_files_to_put_where(
    block: Block, workplace: Workplace
) -> None:
    # Nothing listens there, so that every way out is closed on any machine.
    closed = dict.fromkeys(
        ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"
    )
    with pytest.raises(AssertionError) as failed:
        workplace.execute(block, **closed, no_proxy="127.0.0.1", NO_PROXY="127.0.0.1")
    message = str(failed.value)
    # The weights are looked for first; the archive of the data has a test among the readers.
    assert "no network to download the weights" in message
    assert "resnet50-" in message
    assert "TORCH_HOME" in message
    assert "Traceback" not in message.partition("error: ")[2].partition("mlflow.projects")[0]


@pytest.mark.parametrize(
    ("metric", "least"), [("Test mAP at 0.50", 0.8), ("Test mean IoU", 0.4)], ids=["boxes", "masks"]
)
def test_composed_scenes_are_learnt_by_the_commands_for_them(
    metric: str, least: float, workplace: Workplace
) -> None:
    (block,) = of_kind("sh study")
    command = block.text.splitlines()["IoU" in metric]
    # One trial instead of twelve: the probe has most of it.
    printed = workplace.execute(block, f"{command} -P trials=1 -P depths=0")
    found = re.search(rf"{metric} (0\.\d+)", printed)
    assert found is not None
    assert float(found[1]) > least
    others = "-P coco=FILE" + (" and -P masks=FOLDER" if "IoU" in metric else "")
    assert f"(other forms besides: {others})" in printed
    (after,) = of_kind("sh scenes")
    name = "masks" if "IoU" in metric else "boxes"
    (scoring,) = [line for line in after.text.splitlines() if f"--output {name}.parquet" in line]
    workplace.execute(after, scoring)
    written = json.loads((workplace.folder / f"{name}.json").read_text())
    assert len(written["images"]) == 72
    assert len(list((workplace.folder / "masks").rglob("*.png"))) == (72 if name == "masks" else 0)


@pytest.mark.parametrize("block", of_kind("sh install"), ids=str)
def test_installing_names_files_extras_and_options_that_exist(block: Block) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for words in commands(block):
        match words:
            case ["pip", "install", *rest]:
                extras = re.findall(r'"?\.\[(\w+)\]', " ".join(rest))
                assert set(extras) <= project["optional-dependencies"].keys()
                named = [w for w in rest if not w.startswith(('"', ".", "-"))]
                assert {"mlflow"} >= set(named)
            case ["mlflow", "run", ".", *rest]:
                _assert_run_parses(rest)
            case ["conda", "env", "create", "-f", file]:
                environment = yaml.safe_load((ROOT / file).read_text())
                assert f"conda activate {environment['name']}" in block.text
            case ["python", "-m", "pytest", *_]:
                assert (ROOT / "tests" / "conftest.py").exists()
            case ["conda", "activate", _] | ["python3.11", "-m", "venv", _] | ["source", _]:
                pass
            case ["ruff" | "mypy" | "lint-imports" as tool, *_]:
                declared = " ".join(project["optional-dependencies"]["dev"])
                assert tool.replace("lint-imports", "import-linter") in declared
            case ["bash", ".ci/run"]:
                assert (ROOT / ".ci" / "run").exists()
            case _:
                pytest.fail(f"{block}: no check for {shlex.join(words)}")


def test_the_server_blocks_are_commands_that_mlflow_has() -> None:
    for block in of_kind("sh server"):
        [[program, *words]] = commands(block)
        assert program == "mlflow"
        command: click.Command = mlflow.cli.cli
        while isinstance(command, click.Group):
            command = command.commands[words.pop(0)]
        known = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known


def test_every_link_and_picture_leads_to_a_file() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_picture_of_the_report_is_small() -> None:
    picture = ROOT / "docs" / "images" / "report.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size < 300_000


def _assert_run_parses(words: list[str]) -> None:
    given = [after for word, after in itertools.pairwise(words) if word == "-P"]
    parse(FinetuneOptions, dict(pair.split("=", 1) for pair in given))


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        with suppress(OSError), urllib.request.urlopen(url, timeout=2):
            return
        with suppress(subprocess.TimeoutExpired):
            code = process.wait(timeout=0.2)
            pytest.fail(f"{url}: the server ended with {code}: {log.read_text()[-3000:]}")
    pytest.fail(f"{url} did not answer: {log.read_text()[-3000:]}")
