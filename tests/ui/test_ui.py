"""What people look at: the MLflow UI in a headless browser, on a study that went through."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.entities import Run
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.commands.test_finetune import children, parent_of
from tests.conftest import FinishedStudy

CHROMIUM = Path("/usr/bin/chromium")
# The UI is one large script, and the machine may be busy; a test that passes never waits so long.
PATIENCE_MILLISECONDS = 60_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.fail(f"{CHROMIUM} is missing. Install it: apt-get install chromium (see .ci/run).")
    with sync_playwright() as playwright:
        # The sandbox needs rights that containers do not have.
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    opened = browser.new_page(viewport={"width": 1400, "height": 1000})
    opened.set_default_timeout(PATIENCE_MILLISECONDS)
    expect.set_options(timeout=PATIENCE_MILLISECONDS)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def parent(finished_study: FinishedStudy) -> Run:
    return parent_of(finished_study.run.client, "fields")


@pytest.fixture(scope="module")
def trials(finished_study: FinishedStudy, parent: Run) -> list[Run]:
    return children(finished_study.run.client, parent)


def address(study: FinishedStudy, run: Run) -> str:
    return f"{study.run.tracking_uri}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"


def test_the_address_printed_at_the_end_shows_the_study_with_its_trials_and_test_figures(
    page: Page, finished_study: FinishedStudy, parent: Run, trials: list[Run]
) -> None:
    [printed] = [
        line.strip()
        for line in finished_study.printed.splitlines()
        if line.strip() == address(finished_study, parent)
    ]
    page.goto(printed)
    expect(page.get_by_role("heading", name="fields")).to_be_visible()
    for trial in trials:
        expect(page.get_by_role("link", name=trial.info.run_name, exact=True)).to_be_visible()
    for metric in ("test/accuracy", "test/macro_f1", "test/ece", "best/valid/accuracy"):
        expect(page.get_by_role("link", name=metric, exact=True)).to_be_attached()


def test_the_data_set_shows_on_the_study_and_on_a_trial(
    page: Page, finished_study: FinishedStudy, parent: Run, trials: list[Run]
) -> None:
    digest = parent.data.tags["sft.data_digest"][:16]
    for run in (parent, trials[0]):
        page.goto(address(finished_study, run))
        expect(page.get_by_text(f"fields ({digest})")).to_be_visible()


def test_the_report_opens_inside_the_ui(
    page: Page, finished_study: FinishedStudy, parent: Run
) -> None:
    page.goto(address(finished_study, parent))
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("report.html", exact=True).first.click()
    report = page.frame_locator("iframe")
    accuracy = parent.data.metrics["test/accuracy"]
    headline = f"Test accuracy {accuracy:.4f}, by trial {parent.data.tags['sft.best_trial']}"
    expect(report.get_by_role("heading", name=headline)).to_be_visible()
    expect(report.get_by_role("heading", name="What to do next")).to_be_visible()
    # Pictures and plots are inside the file, so the frame's sandbox does not keep them out.
    assert report.locator("svg").count() > 0
    for picture in report.locator("img").all():
        assert picture.evaluate("image => image.complete && image.naturalWidth > 0")


def test_a_trial_shows_its_confusion_matrix_and_the_curve_of_its_epochs(
    page: Page, finished_study: FinishedStudy, trials: list[Run]
) -> None:
    # The probe has a single point; the next trial trained an epoch.
    page.goto(address(finished_study, trials[1]))
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("confusion.png", exact=True).first.click()
    matrix = page.get_by_role("img", name="confusion.png")
    expect(matrix).to_be_visible()
    assert matrix.evaluate("image => image.complete && image.naturalWidth > 0")
    page.get_by_role("tab", name="Model metrics").click()
    for section in ("train", "valid"):
        expect(page.get_by_text(re.compile(rf"^{section}\s*\(\d+\)$")).first).to_be_visible()


def test_the_registered_model_shows_its_version_and_the_alias_challenger(
    page: Page, finished_study: FinishedStudy
) -> None:
    page.goto(f"{finished_study.run.tracking_uri}/#/models/fields")
    expect(page.get_by_role("link", name="Version 1", exact=True)).to_be_visible()
    expect(page.get_by_text("challenger").first).to_be_visible()
    page.get_by_role("link", name="Version 1", exact=True).click()
    expect(page.get_by_role("heading", name="Version 1")).to_be_visible()
    expect(page.get_by_text("sft.data_digest")).to_be_visible()
