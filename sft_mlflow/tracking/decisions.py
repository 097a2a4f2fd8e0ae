"""The log of decisions on a registered model: tags on it, numbered, so that the UI shows them too.

An entry is written before the aliases move and settled after. Who finds one that is not settled
finishes it, so a promotion that died half-way leaves neither a gap in the log nor a wrong alias.
All of it happens under the promotion lock.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from typing import Literal

from mlflow import MlflowClient

from sft_mlflow.tracking.fetch import CHAMPION, PREVIOUS, registered_model, version_at
from sft_mlflow.tracking.lock import PromotionLock

Outcome = Literal["promoted", "refused", "rolled back"]
State = Literal["moving", "done", "abandoned"]

TAG = "sft.decision"
_NUMBERED = re.compile(rf"{re.escape(TAG)}\.(\d+)")


@dataclass(frozen=True)
class Entry:
    """One decision. version: the candidate's, or the one brought back; champion: before it.

    metric: what `figure` and `champion_figure` are; failed: conditions of the gate that were not
    met; time: ISO 8601, UTC.
    """

    number: int
    outcome: Outcome
    version: str
    champion: str | None
    run_id: str
    time: str
    state: State
    metric: str | None = None
    figure: float | None = None
    champion_figure: float | None = None
    test_digest: str | None = None
    failed: tuple[str, ...] = ()


def decisions(client: MlflowClient, model_name: str) -> tuple[Entry, ...]:
    """Every decision on the registered model, by number from 1. Raises TrackingError if unknown."""
    tags = registered_model(client, model_name).tags
    values = [json.loads(text) for key, text in tags.items() if _NUMBERED.fullmatch(key)]
    entries = (Entry(**{**value, "failed": tuple(value["failed"])}) for value in values)
    return tuple(sorted(entries, key=lambda entry: entry.number))


def record(client: MlflowClient, model_name: str, entry: Entry) -> None:
    """Writes the entry to the log, over one of its number, and as a tag on both versions."""
    key, text = f"{TAG}.{entry.number}", json.dumps(asdict(entry))
    client.set_registered_model_tag(model_name, key, text)
    for version in {entry.version, entry.champion} - {None}:
        client.set_model_version_tag(model_name, version, key, text)


def move(client: MlflowClient, model_name: str, entry: Entry, lock: PromotionLock) -> Entry:
    """The entry, done: logged first, then `champion` moved to its version, `previous` to the old.

    Raises LockLostError before anything moves where the lock is no longer held.
    """
    lock.verify()
    record(client, model_name, entry)
    lock.verify()
    client.set_registered_model_alias(model_name, CHAMPION, entry.version)
    return _finish(client, model_name, entry)


def settle(client: MlflowClient, model_name: str) -> tuple[Entry, ...]:
    """The log, after the end of what a process that died has left half-done."""
    settled = []
    for entry in decisions(client, model_name):
        settled.append(_settle(client, model_name, entry) if entry.state == "moving" else entry)
    return tuple(settled)


def _settle(client: MlflowClient, model_name: str, entry: Entry) -> Entry:
    champion = version_at(client, model_name, CHAMPION)
    if champion is not None and str(champion.version) == entry.version:
        return _finish(client, model_name, entry)
    abandoned = replace(entry, state="abandoned")
    record(client, model_name, abandoned)
    return abandoned


def _finish(client: MlflowClient, model_name: str, entry: Entry) -> Entry:
    if entry.champion is not None:
        client.set_registered_model_alias(model_name, PREVIOUS, entry.champion)
    done = replace(entry, state="done")
    record(client, model_name, done)
    return done
