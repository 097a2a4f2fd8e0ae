"""What is to be known about data before an hour is spent on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know about the data.

    severity: error (a class cannot be learnt), warning (figures may be wrong) or note.
    """

    severity: Severity
    kind: str
    message: str
    paths: tuple[str, ...] = ()


def fault(kind: str, message: str, path: Path) -> Finding:
    """A warning of something wrong in one file."""
    return Finding("warning", kind, message, (str(path),))
