from __future__ import annotations

import threading

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

from sft_mlflow.tracking.lock import SUFFIX, LockLostError, promotion_lock


def locks(client: MlflowClient) -> list[str]:
    return [m.name for m in client.search_registered_models() if m.name.endswith(SUFFIX)]


def test_the_lock_is_seen_while_it_is_held_and_gone_after(client: MlflowClient) -> None:
    with promotion_lock(client, "colours", run_id="r1") as lock:
        lock.verify()
        assert locks(client) == ["colours--promotion-lock"]
        assert "r1" in client.get_registered_model(lock.name).description
    assert locks(client) == []


def test_an_error_under_the_lock_frees_it(client: MlflowClient) -> None:
    with pytest.raises(ZeroDivisionError), promotion_lock(client, "colours", run_id="r"):
        raise ZeroDivisionError
    assert locks(client) == []


def test_only_one_is_under_the_lock_at_a_time(client: MlflowClient) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        own = MlflowClient(tracking_uri=client.tracking_uri)
        for _ in range(3):
            with promotion_lock(own, "colours", run_id=str(number)):
                inside.append(number)
                most.append(len(inside))
                own.search_registered_models()
                inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 9
    assert max(most) == 1
    assert locks(client) == []


def test_the_lock_of_a_dead_process_is_removed_after_its_lease(client: MlflowClient) -> None:
    client.create_registered_model(f"colours{SUFFIX}", tags={"sft.lock_token": "dead"})
    with promotion_lock(client, "colours", run_id="r", lease_seconds=0.2) as lock:
        lock.verify()
    assert locks(client) == []


def test_who_lost_the_lock_learns_it_and_leaves_the_new_one(client: MlflowClient) -> None:
    with promotion_lock(client, "colours", run_id="r") as lock:
        client.delete_registered_model(lock.name)
        client.create_registered_model(lock.name, tags={"sft.lock_token": "other"})
        with pytest.raises(LockLostError):
            lock.verify()
    assert locks(client) == [lock.name]


def test_a_lock_that_is_freed_while_it_is_asked_for_is_asked_for_again(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = client.create_registered_model
    answers = iter([MlflowException("not found", RESOURCE_DOES_NOT_EXIST)])

    def create_or_miss(*arguments: object, **named: object) -> object:
        for error in answers:
            raise error
        return create(*arguments, **named)

    monkeypatch.setattr(client, "create_registered_model", create_or_miss)
    with promotion_lock(client, "freed", run_id="r", lease_seconds=0.4) as lock:
        lock.verify()
