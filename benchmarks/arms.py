"""Arms of a benchmark: each in a process of its own, their lines in one JSON file."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping

from benchmarks import machine


def run_all(module: str, arms: Iterable[str], threads: int) -> None:
    """This command once more for each arm, one after the other."""
    for arm in arms:
        again = [sys.executable, "-m", module, *sys.argv[1:], "--arm", arm]
        subprocess.run(again, check=True, env=os.environ | machine.threads(threads))


def keep_line(
    module: str, options: argparse.Namespace, line: Mapping[str, object]
) -> dict[str, dict]:
    """All lines so far, that of this arm among them, as they now stand in the JSON file."""
    lines = json.loads(options.output.read_text()) if options.output.exists() else {}
    lines[options.arm] = machine.report(module, options.threads, line)
    options.output.write_text(json.dumps(lines, indent=2) + "\n")
    return lines
