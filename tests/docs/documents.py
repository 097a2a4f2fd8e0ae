"""The documents' fenced blocks, and a folder in which they are executed as they stand."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCUMENTS = (README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))

_FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block. kind: its language and, if any, the word behind it (`sh network`)."""

    document: Path
    line: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.document.name}:{self.line}"


def blocks(document: Path) -> list[Block]:
    """Every fenced block of the document, in its order."""
    text = document.read_text()
    return [
        Block(document, text.count("\n", 0, found.start()) + 1, found["info"], found["text"])
        for found in _FENCE.finditer(text)
    ]


def commands(block: Block) -> list[list[str]]:
    """The words of each command of a block that has nothing but plain commands."""
    lines = block.text.replace("\\\n", " ").replace("&&", "\n").splitlines()
    return [words for line in lines if (words := line.split())]


@dataclass(frozen=True)
class Workplace:
    """A user's folder: the project files of a clone, and their images in `photos`."""

    folder: Path
    tracking_uri: str

    @classmethod
    def make(cls, folder: Path, tracking_uri: str) -> Workplace:
        folder.mkdir()
        for name in ("MLproject", "python_env.yaml"):
            shutil.copy(ROOT / name, folder)
        return cls(folder, tracking_uri)

    def environment(self, **more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        return {
            **kept,
            # As after the activation of the environment that runs the tests.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}",
            "SFT_MLFLOW_HOME": str(self.folder / "home"),
            "MLFLOW_TRACKING_URI": self.tracking_uri,
            **more,
        }

    def execute(self, block: Block, text: str | None = None, **environment: str) -> str:
        """Run the block to its end, stopping at its first failure; what it printed."""
        program = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
        ended = subprocess.run(
            [*program[block.kind.split()[0]], block.text if text is None else text],
            cwd=self.folder,
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            timeout=300,
        )
        printed = ended.stdout + ended.stderr
        assert ended.returncode == 0, f"{block} ended with {ended.returncode}:\n{printed}"
        return printed

    def start(self, text: str) -> subprocess.Popen[bytes]:
        """Start a command that goes on until it is ended, in a group of its own."""
        with (self.folder / "server.log").open("ab") as log:
            return subprocess.Popen(
                ["bash", "-c", f"exec {text}"],
                cwd=self.folder,
                env=self.environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
