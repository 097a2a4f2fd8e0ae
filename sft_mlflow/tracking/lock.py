"""A lock on a registered model that holds between machines, through the MLflow server alone.

MLflow has no compare-and-swap on an alias, but names of registered models are unique in its store:
to create one is atomic. So the lock is an empty registered model beside the one it guards, with the
owner in its description, where everyone can see it.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from sft_mlflow.errors import TrackingError
from sft_mlflow.tracking.fetch import exists_not

TOKEN = "sft.lock_token"
SUFFIX = "--promotion-lock"

# The work under the lock takes a second; who shows no end of it for so long has died.
LEASE_SECONDS = 60.0
_POLL_SECONDS = 0.2


class LockLostError(TrackingError):
    """Another process has taken the lock for abandoned; what was read under it may be stale."""


@dataclass(frozen=True)
class PromotionLock:
    """The lock while it is held."""

    client: MlflowClient
    name: str
    token: str

    def verify(self) -> None:
        """Raises LockLostError unless the lock is still this one; to be asked before each move."""
        if _holder(self.client, self.name) != self.token:
            raise LockLostError(
                f"{self.name}: the lock was taken by another process meanwhile. Start again."
            )


@contextmanager
def promotion_lock(
    client: MlflowClient,
    model_name: str,
    *,
    run_id: str,
    lease_seconds: float = LEASE_SECONDS,
) -> Iterator[PromotionLock]:
    """The lock of a registered model, held until the end of the block; waits for another's end.

    A lock that stays the same for `lease_seconds`, by the clock of the one who waits, is that of a
    process that died, and is removed. Raises TrackingError where the server refuses.
    """
    name = f"{model_name}{SUFFIX}"
    token = uuid.uuid4().hex
    description = (
        f"A promotion of {model_name!r} is being decided by process {os.getpid()} on "
        f"{socket.gethostname()} in run {run_id}. If none is, this can be deleted."
    )
    seen, since = None, time.monotonic()
    while not _create(client, name, token, description):
        holder = _holder(client, name)
        if holder != seen:
            seen, since = holder, time.monotonic()
        elif holder is not None and time.monotonic() - since > lease_seconds:
            _delete(client, name)
            continue
        time.sleep(min(_POLL_SECONDS, lease_seconds / 4))
    lock = PromotionLock(client, name, token)
    try:
        yield lock
    finally:
        if _holder(client, name) == token:
            _delete(client, name)


def _create(client: MlflowClient, name: str, token: str, description: str) -> bool:
    try:
        client.create_registered_model(name, tags={TOKEN: token}, description=description)
    except MlflowException as error:
        # The SQL store looks up whom the name was taken by, who may have given it up by then.
        if error.error_code in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
            return False
        raise TrackingError(f"{name}: the lock cannot be made ({error}).") from error
    return True


def _holder(client: MlflowClient, name: str) -> str | None:
    """Token of the one who holds the lock, None where nobody does."""
    try:
        return str(client.get_registered_model(name).tags.get(TOKEN, ""))
    except MlflowException as error:
        if exists_not(error):
            return None
        raise TrackingError(f"{name}: the lock cannot be read ({error}).") from error


def _delete(client: MlflowClient, name: str) -> None:
    # Another who waits may have removed it first.
    with suppress(MlflowException):
        client.delete_registered_model(name)
