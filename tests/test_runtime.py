from __future__ import annotations

import gc
import os
import platform
import subprocess
import sys

import pytest

from sft_mlflow import runtime

# Pages that the system has to find for eight arrays, one after the other. Some go before them:
# glibc needs a few to find places that are aligned.
SCRIPT = """
import resource, sys
from sft_mlflow import runtime
if sys.argv[1] == "tuned":
    runtime.tune()
import numpy

def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(32):
    numpy.ones(64 * 2**17)
before = pages()
for _ in range(8):
    numpy.ones(64 * 2**17)
print(pages() - before)
"""


def _pages(mode: str, **environment: str) -> int:
    said = ("MALLOC_", "GLIBC_TUNABLES")
    # Huge pages would be few in any case.
    environment = {"NUMPY_MADVISE_HUGEPAGE": "0", **environment}
    plain = {name: value for name, value in os.environ.items() if not name.startswith(said)}
    told = subprocess.run(
        [sys.executable, "-c", SCRIPT, mode],
        env={**plain, **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    return int(told.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others have no mallopt")
def test_memory_of_a_freed_array_serves_the_next_one() -> None:
    plain = _pages("plain")
    assert 8 * _pages("tuned") < plain
    # Which says nothing of this.
    assert 8 * _pages("tuned", MALLOC_ARENA_MAX="2") < plain
    assert 8 * _pages("tuned", GLIBC_TUNABLES="glibc.malloc.arena_max=2") < plain


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others have no mallopt")
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MALLOC_TRIM_THRESHOLD_", "131072"),
        ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=131072"),
    ],
)
def test_what_the_user_says_of_memory_stands(variable: str, value: str) -> None:
    told = {variable: value}
    assert 2 * _pages("tuned", **told) > _pages("plain", **told)


def test_waiting_threads_sleep_soon_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    runtime.tune()
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    runtime.tune()
    assert "GOMP_SPINCOUNT" not in os.environ


def test_what_was_loaded_is_not_looked_through_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    before = gc.get_freeze_count()
    try:
        with runtime.loading():
            assert not gc.isenabled()
            kept = [[] for _ in range(1000)]
        assert gc.isenabled()
        assert gc.get_freeze_count() >= before + len(kept)
        assert not any(one is kept for one in gc.get_objects())
    finally:
        gc.unfreeze()


def test_the_collector_of_a_process_that_has_torch_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torch", sys)
    before = gc.get_freeze_count()
    with runtime.loading():
        assert gc.isenabled()
    assert gc.get_freeze_count() == before


def test_a_command_tunes_its_process_and_leaves_without_looking_for_garbage() -> None:
    script = """
import atexit, gc, os, sys
from sft_mlflow import cli
sys.argv = ["sft-mlflow", "check", "--help"]
atexit.register(lambda: print(os.environ.get("GOMP_SPINCOUNT"), gc.get_freeze_count() > 1000))
cli.main()
"""
    said = ("GOMP_", "OMP_")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(said)}
    told = subprocess.run(
        [sys.executable, "-c", script], env=plain, check=True, capture_output=True, text=True
    )
    assert told.stdout.splitlines()[-1] == "1000 True"
