from __future__ import annotations

import json
import multiprocessing
import shutil
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from sft_mlflow.data.loading import load_manifest, read_manifest, save_manifest
from sft_mlflow.data.manifest import Manifest
from sft_mlflow.errors import DataError, OptionsError, TrackingError
from sft_mlflow.tracking import decisions as log
from sft_mlflow.tracking import promotion
from sft_mlflow.tracking.decisions import Entry, decisions
from sft_mlflow.tracking.gate import Gate
from sft_mlflow.tracking.lock import promotion_lock
from sft_mlflow.tracking.promotion import Decision, promote, rollback

from . import made_models

NAME = "colours"


class Registry:
    """A registered model, and the commands on it."""

    def __init__(self, client: MlflowClient, experiment_id: str, cache: Path) -> None:
        self.client, self.experiment_id, self.cache = client, experiment_id, cache

    def add(self, folder: Path, alias: str = "") -> str:
        run_id, model_id = made_models.log_model(self.client, self.experiment_id, folder)
        return made_models.register(self.client, NAME, model_id, run_id, alias=alias)

    def promote(self, candidate: str = "", **options: object) -> Decision:
        return promote(
            self.client,
            model_name=NAME,
            run_id=self.run(),
            cache=self.cache,
            candidate=candidate,
            **options,  # type: ignore[arg-type]
        )

    def rollback(self) -> Decision:
        return rollback(self.client, model_name=NAME, run_id=self.run())

    def run(self) -> str:
        self.last_run: str = self.client.create_run(self.experiment_id).info.run_id
        return self.last_run

    def aliases(self) -> dict[str, str]:
        found = self.client.get_registered_model(NAME).aliases
        return {alias: str(version) for alias, version in found.items()}

    def tags(self, version: str) -> dict[str, str]:
        found: dict[str, str] = self.client.get_model_version(NAME, version).tags
        return found


@pytest.fixture
def registry(client: MlflowClient, experiment_id: str, tmp_path: Path) -> Registry:
    return Registry(client, experiment_id, tmp_path / "cache")


def test_the_first_champion_passes_by_its_own_figure(
    registry: Registry, good_folder: Path, manifest: Manifest
) -> None:
    version = registry.add(good_folder, "challenger")
    decision = registry.promote()
    assert (decision.outcome, decision.version, decision.champion) == ("promoted", version, None)
    assert registry.aliases() == {"challenger": version, "champion": version}
    assert decision.test is not None
    assert decision.test.images == len(manifest.side("test"))
    assert registry.tags(version)["sft.test_readings"] == "1"


def test_a_bad_first_champion_is_refused_by_name_of_the_condition(
    registry: Registry, bad_folder: Path
) -> None:
    registry.add(bad_folder, "challenger")
    decision = registry.promote(gate=Gate(minimum=0.9))
    assert decision.outcome == "refused"
    assert [condition.name for condition in decision.failed] == ["minimum"]
    assert "champion" not in registry.aliases()


def test_a_better_challenger_takes_the_place_and_the_old_one_stays_as_previous(
    registry: Registry, good_folder: Path, bad_folder: Path
) -> None:
    bad = registry.add(bad_folder, "champion")
    good = registry.add(good_folder, "challenger")
    decision = registry.promote(gate=Gate(max_p_value=0.05))
    assert (decision.outcome, decision.champion) == ("promoted", bad)
    assert registry.aliases() == {"challenger": good, "champion": good, "previous": bad}
    assert registry.tags(good)["sft.test_readings"] == registry.tags(bad)["sft.test_readings"]
    assert decision.verdict is not None
    assert decision.verdict.comparison is not None
    # The other takes two of three classes for each other.
    assert decision.verdict.comparison.challenger.values["accuracy"] == 1.0
    assert {c.name: c.champion for c in decision.verdict.comparison.classes} == {
        "blue": 1.0,
        "green": 0.0,
        "red": 0.0,
    }


def test_a_worse_challenger_is_refused_and_nothing_moves(
    registry: Registry, good_folder: Path, bad_folder: Path
) -> None:
    good = registry.add(good_folder, "champion")
    bad = registry.add(bad_folder, "challenger")
    decision = registry.promote()
    assert decision.outcome == "refused"
    assert {"improvement", "not worse", "class drop"} <= {c.name for c in decision.failed}
    assert registry.aliases() == {"champion": good, "challenger": bad}


def test_the_decision_is_on_the_run_the_log_and_both_versions(
    registry: Registry, good_folder: Path, bad_folder: Path, tmp_path: Path
) -> None:
    bad = registry.add(bad_folder, "champion")
    good = registry.add(good_folder, "challenger")
    decision = registry.promote()
    assert decision.test is not None
    run = registry.client.get_run(registry.last_run)
    assert run.data.metrics["challenger/accuracy"] == 1.0
    assert run.data.metrics["gate/accuracy_gain"] == pytest.approx(
        1.0 - run.data.metrics["champion/accuracy"]
    )
    assert run.data.tags["sft.decision"] == "promoted"
    (logged,) = run.inputs.dataset_inputs
    assert decision.test.digest.startswith(logged.dataset.digest)
    folder = Path(registry.client.download_artifacts(registry.last_run, "promotion", str(tmp_path)))
    written = json.loads((folder / "decision.json").read_text())
    assert (written["outcome"], written["version"], written["champion"]) == ("promoted", good, bad)
    assert read_manifest(folder / "test_manifest.parquet").digest == decision.test.digest
    (entry,) = decisions(registry.client, NAME)
    assert (entry.number, entry.outcome, entry.state) == (1, "promoted", "done")
    assert entry.test_digest == decision.test.digest
    for version in (good, bad):
        assert json.loads(registry.tags(version)["sft.decision.1"])["run_id"] == registry.last_run


def test_images_that_either_was_trained_on_are_left_out_and_counted(
    registry: Registry, good_folder: Path, tmp_path: Path, manifest: Manifest
) -> None:
    # The champion was trained on half of what the challenger is tested on.
    tested = manifest.side("test")
    seen = {sample.digest for sample in tested[::2]}
    moved = tuple(replace(s, split="train") if s.digest in seen else s for s in manifest.samples)
    champion = tmp_path / "champion"
    shutil.copytree(good_folder, champion)
    save_manifest(replace(manifest, samples=moved), champion / "manifest.parquet")
    registry.add(champion, "champion")
    registry.add(good_folder, "challenger")
    decision = registry.promote()
    assert decision.test is not None
    assert decision.test.seen_by_challenger == 0
    assert decision.test.seen_by_champion == len(seen)
    assert decision.test.images == len(tested) - len(seen)


def test_given_data_without_sides_are_all_tested_but_what_was_trained_on(
    registry: Registry, good_folder: Path, manifest: Manifest
) -> None:
    registry.add(good_folder, "challenger")
    decision = registry.promote(data=manifest.uri)
    assert decision.test is not None
    assert decision.test.images == len(manifest.side("test"))
    assert decision.test.seen_by_challenger == len(manifest.samples) - decision.test.images


def test_given_data_that_were_all_trained_on_are_refused(
    registry: Registry, good_folder: Path, manifest: Manifest, tmp_path: Path
) -> None:
    registry.add(good_folder, "challenger")
    seen = tuple(replace(s, split="test") for s in manifest.side("train"))
    save_manifest(replace(manifest, samples=seen), tmp_path / "seen.parquet")
    with pytest.raises(DataError, match="none is left"):
        registry.promote(data=str(tmp_path / "seen.parquet"))


def test_given_data_of_an_unknown_class_are_refused(
    registry: Registry, good_folder: Path, tmp_path: Path
) -> None:
    registry.add(good_folder, "challenger")
    images = made_models.write_images(tmp_path / "images", 2, seed=5)
    (images / "red").rename(images / "reds")
    with pytest.raises(DataError, match="'reds'; nearest is 'red'"):
        registry.promote(data=str(images))


def test_a_test_image_that_changed_is_refused(registry: Registry, tmp_path: Path) -> None:
    images = made_models.write_images(tmp_path / "images", 12, seed=7)
    own = load_manifest(str(images), cache=tmp_path / "cache").manifest
    registry.add(made_models.write_model(tmp_path / "model", own), "challenger")
    first, other = own.side("test")[0].path, own.side("train")[0].path
    shutil.copyfile(other, first)
    with pytest.raises(DataError, match="SHA-256 changed"):
        registry.promote()
    first.unlink()
    with pytest.raises(DataError, match=first.name):
        registry.promote()


def test_a_logged_model_becomes_one_version_however_often_it_is_a_candidate(
    registry: Registry, good_folder: Path, bad_folder: Path
) -> None:
    run_id, model_id = made_models.log_model(registry.client, registry.experiment_id, good_folder)
    decision = registry.promote(f"models:/{model_id}")
    assert (decision.outcome, decision.version) == ("promoted", "1")
    assert registry.promote(f"runs:/{run_id}").outcome == "unchanged"
    assert [str(v.version) for v in registry.client.search_model_versions(f"name='{NAME}'")] == [
        "1"
    ]
    tags = registry.tags("1")
    assert tags["sft.task"] == "classification"
    assert "other" not in tags
    assert len(decisions(registry.client, NAME)) == 1


def test_a_champion_with_fewer_classes_is_compared_on_its_own(
    registry: Registry, good_folder: Path, manifest: Manifest, tmp_path: Path
) -> None:
    images = made_models.write_images(tmp_path / "two", 12, seed=9, classes=("blue", "green"))
    two = made_models.manifest_of(images, tmp_path / "cache")
    registry.add(made_models.write_model(tmp_path / "model", two), "champion")
    registry.add(good_folder, "challenger")
    decision = registry.promote()
    assert decision.outcome == "promoted"
    assert decision.verdict is not None
    assert decision.verdict.comparison is not None
    shared = [s for s in manifest.side("test") if s.label != "red"]
    assert decision.verdict.comparison.champion.images == len(shared)


def test_rollback_brings_the_previous_champion_back_and_again_undoes_it(
    registry: Registry, good_folder: Path, bad_folder: Path
) -> None:
    bad = registry.add(bad_folder, "champion")
    good = registry.add(good_folder, "challenger")
    registry.promote()
    decision = registry.rollback()
    assert (decision.outcome, decision.version, decision.champion) == ("rolled back", bad, good)
    assert registry.aliases()["champion"] == bad
    assert registry.aliases()["previous"] == good
    registry.rollback()
    assert registry.aliases()["champion"] == good
    assert [entry.outcome for entry in decisions(registry.client, NAME)] == [
        "promoted",
        "rolled back",
        "rolled back",
    ]


def test_rollback_without_a_previous_champion_says_so(
    registry: Registry, good_folder: Path
) -> None:
    with pytest.raises(TrackingError, match="no registered model 'colours'"):
        registry.rollback()
    registry.add(good_folder, "champion")
    with pytest.raises(TrackingError, match="no 'previous' champion"):
        registry.rollback()


def test_a_promotion_starts_over_where_the_champion_changed_meanwhile(
    registry: Registry,
    good_folder: Path,
    bad_folder: Path,
    other_good_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bad = registry.add(bad_folder, "champion")
    good = registry.add(good_folder)
    other = registry.add(other_good_folder, "challenger")
    judge = promotion.judge

    def judge_while_another_promotes(*args: object) -> object:
        monkeypatch.setattr(promotion, "judge", judge)
        assert registry.promote(f"models:/{NAME}/{good}").champion == bad
        return judge(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(promotion, "judge", judge_while_another_promotes)
    decision = registry.promote()
    assert (decision.version, decision.champion, decision.number) == (other, good, 2)
    assert registry.aliases() == {"challenger": other, "champion": other, "previous": good}


def test_a_metric_of_another_task_is_refused_before_anything_is_read(
    registry: Registry, good_folder: Path
) -> None:
    version = registry.add(good_folder, "challenger")
    with pytest.raises(OptionsError, match="--metric miou: classification has accuracy"):
        registry.promote(gate=Gate(metric="miou"))
    assert "sft.test_readings" not in registry.tags(version)


def test_data_with_sides_but_no_test_are_refused_by_that(
    registry: Registry, good_folder: Path, manifest: Manifest, tmp_path: Path
) -> None:
    registry.add(good_folder, "challenger")
    sided = tuple(s for s in manifest.samples if s.split != "test")
    save_manifest(replace(manifest, samples=sided), tmp_path / "sided.parquet")
    with pytest.raises(DataError, match="none of them is on test"):
        registry.promote(data=str(tmp_path / "sided.parquet"))


def promoted_elsewhere(uri: str, experiment_id: str, cache: Path, version: str) -> str:
    mlflow.set_tracking_uri(uri)
    one = Registry(MlflowClient(tracking_uri=uri), experiment_id, cache)
    return one.promote(f"models:/{NAME}/{version}").outcome


def test_the_log_is_one_chain_after_promotions_at_once(
    registry: Registry,
    good_folder: Path,
    other_good_folder: Path,
    bad_folder: Path,
    tmp_path: Path,
) -> None:
    first = registry.add(bad_folder, "champion")
    versions = [registry.add(good_folder), registry.add(other_good_folder)]
    about = (registry.client.tracking_uri, registry.experiment_id)
    work = [(*about, tmp_path / f"cache-{version}", version) for version in versions]
    # Processes, as commands are: networks are traced, which threads of one cannot do at once.
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert set(pool.starmap(promoted_elsewhere, work)) == {"promoted"}
    champion = first
    entries = decisions(registry.client, NAME)
    assert [entry.number for entry in entries] == [1, 2]
    for entry in entries:
        assert (entry.champion, entry.state) == (champion, "done")
        champion = entry.version
    assert registry.aliases()["champion"] == champion
    assert registry.aliases()["previous"] == entries[-1].champion
    assert registry.tags(first)["sft.test_readings"] in ("1", "2")


@pytest.mark.parametrize("moved", [True, False])
def test_what_a_dead_promotion_left_half_done_is_finished_by_the_next(
    registry: Registry, good_folder: Path, bad_folder: Path, other_good_folder: Path, moved: bool
) -> None:
    bad = registry.add(bad_folder, "champion")
    good = registry.add(good_folder)
    registry.add(other_good_folder, "challenger")
    dead = Entry(1, "promoted", good, bad, "dead run", "2026-01-01T00:00:00+00:00", "moving")
    with promotion_lock(registry.client, NAME, run_id="dead run"):
        log.record(registry.client, NAME, dead)
        if moved:
            registry.client.set_registered_model_alias(NAME, "champion", good)
    decision = registry.promote()
    first, second = decisions(registry.client, NAME)
    assert first.state == ("done" if moved else "abandoned")
    assert second.champion == (good if moved else bad)
    assert decision.number == 2
