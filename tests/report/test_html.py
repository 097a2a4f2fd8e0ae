from __future__ import annotations

import base64
import io
import re
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from sft_mlflow.report import html
from sft_mlflow.report.tables import DataTable, NextStep

from .made_study import figures_of, picture, study, trial

# Elements that HTML closes by itself.
_VOID = {"meta", "img", "br", "link", "input", "hr"}
_SECTIONS = (
    "history",
    "lr-depth",
    "importance",
    "trials",
    "classes",
    "confusion",
    "reliability",
    "worst",
    "typical",
    "data",
    "again",
)


class Page(HTMLParser):
    """What a browser sees: elements with attributes, and the text of each section by its id."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: dict[str, str] = {}
        self._open: list[tuple[str, str | None]] = []
        self.feed(source)
        self.close()
        assert self._open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in _VOID:
            within = dict(attrs).get("id") if tag == "section" else self._section()
            self._open.append((tag, within))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1][0] == "style":
            return
        section = self._section() or "head"
        self.text[section] = " ".join((self.text.get(section, "") + " " + data).split())

    def _section(self) -> str | None:
        return self._open[-1][1] if self._open else None

    def tags(self, name: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.elements if tag == name]


def test_every_section_shows_what_the_study_found() -> None:
    page = Page(html.render(study()))
    assert set(_SECTIONS) | {"next"} <= set(page.text)
    expected = {
        "head": ("Test accuracy 0.9812, by trial 3", "0.9701 to 0.9903", "models:/pets/3"),
        "next": ("sft-mlflow promote --model-name pets", "3 broken files were left out."),
        "history": ("the classes are balanced",),
        "importance": ("70%", "30%"),
        "trials": ("0.9634", "1.0e-3", "3 of 17", "below the median", "the loss is NaN in epoch 1"),
        "classes": ("cat", "0.9300", "dog", "0.9299"),
        "confusion": ("cat dog 1 10.0 %", "dog cat 2 20.0 %"),
        "reliability": ("1.37", "ECE 0.0421", "ECE 0.0132"),
        "worst": ("cat/worst.png", "0.9876"),
        "typical": ("dog/typical.png",),
        "data": ("/data/pets", "d1ge57", "train 70, test 20", "3 broken", "cat/9.png: cut off"),
        "again": ("sft-mlflow finetune --data pets --epochs 2", "2.14.1"),
    }
    for section, texts in expected.items():
        for text in texts:
            assert text in page.text[section]


def test_the_gain_over_the_linear_probe_is_the_difference_of_their_values() -> None:
    assert "+0.0622 over the probe (0.9012)" in Page(html.render(study())).text["head"]


def test_the_best_trial_stands_first_and_the_failed_one_last() -> None:
    source = html.render(study())
    rows = re.findall(r'<tr class="[^"]*">\s*<td class="num">(\d+)</td>', source)
    assert rows == ["3", "0", "1", "2"]


def test_what_comes_from_outside_is_shown_and_never_run() -> None:
    evil = "<script>alert('\"1')</script>"
    hostile = study(
        title=evil,
        model=evil,
        command=evil,
        objective_reason=evil,
        notes=(evil,),
        next_steps=(NextStep(evil, evil),),
        versions={evil: evil},
        importance={evil: 0.5},
        data=DataTable(evil, evil, evil, {evil: 1}, 2),
        check={
            "files": 1,
            "broken": 1,
            "left_out": 0,
            "findings": [
                {"severity": "note", "kind": evil, "message": evil, "paths": [evil, evil]}
            ],
        },
        trials=(
            trial(0, 0.5, source=evil, reason=evil),
            trial(1, 0.6, source="other", metrics={evil: 0.1}),
        ),
        best=0,
        test=figures_of((evil, 'dog" onload="x'), None, (picture(evil, evil, evil),)),
    )
    page = Page(html.render(hostile))
    assert "script" not in {tag for tag, _ in page.elements}
    assert not [name for _, attributes in page.elements for name in attributes if name[:2] == "on"]
    for section in {*_SECTIONS, "next", "head"} - {"reliability", "typical"}:
        assert evil in page.text[section]


@pytest.mark.parametrize("classes", [2, 24, 25, 120])
def test_the_page_asks_for_nothing_outside_itself(classes: int) -> None:
    names = tuple(f"class-{i}" for i in range(classes))
    source = html.render(study(test=figures_of(names, None, (picture("class-0", "class-1"),))))
    page = Page(source)
    addresses = [
        attributes[name]
        for _, attributes in page.elements
        for name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster")
        if name in attributes
    ]
    assert addresses
    assert all(address.startswith(("data:image/", "#")) for address in addresses)
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.elements}
    assert "http" not in source
    assert "@import" not in source
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", source))


def test_ids_are_unique_and_every_reference_has_its_target() -> None:
    source = html.render(study())
    ids = Counter(attributes["id"] for _, attributes in Page(source).elements if "id" in attributes)
    assert max(ids.values()) == 1
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', source)) <= set(ids)


def test_the_same_study_gives_the_same_bytes() -> None:
    assert html.render(study()) == html.render(study())


def test_the_pictures_of_mistakes_and_hits_decode() -> None:
    images = [tag["src"] for tag in Page(html.render(study())).tags("img")]
    assert len(images) == 2
    for source in images:
        data = base64.b64decode(source.removeprefix("data:image/jpeg;base64,"), validate=True)
        assert Image.open(io.BytesIO(data)).size == (24, 16)


def test_few_classes_get_a_matrix_of_counts_and_many_get_a_picture() -> None:
    few = Page(html.render(study()))
    assert "matrix" in {tag.get("class") for tag in few.tags("table")}
    confusion = np.diag([30] * 120)
    confusion[5, 77] = 10
    names = tuple(f"class-{i}" for i in range(120))
    many = Page(html.render(study(test=figures_of(names, confusion))))
    assert "matrix" not in {tag.get("class") for tag in many.tags("table")}
    assert "Confusion matrix" in {tag.get("aria-label") for tag in many.tags("svg")}
    assert "class-5 class-77 10 25.0 %" in many.text["confusion"]
    assert "100 more classes" in many.text["classes"]


def test_without_mistakes_the_page_says_so() -> None:
    page = Page(html.render(study(test=figures_of(("cat", "dog")))))
    assert "Nothing was taken for another class." in page.text["confusion"]
    assert "None to show." in page.text["worst"]


def test_without_importance_the_page_says_so() -> None:
    page = Page(html.render(study(importance={})))
    assert "Too few finished trials to say." in page.text["importance"]


@pytest.mark.parametrize("number", [0, 3])
def test_a_single_trial_is_a_report(number: int) -> None:
    page = Page(html.render(study(trials=(trial(number, 0.95),), best=number, importance={})))
    assert f"by trial {number}" in page.text["head"]
    assert "over the probe (0." not in page.text["head"]
    assert "0.9500" in page.text["trials"]


def test_a_study_of_failures_says_why_and_shows_no_model() -> None:
    failed = study(
        trials=(trial(0, None), trial(1, None), trial(2, None, reason="out of memory")),
        best=None,
        test=None,
        model=None,
        importance={},
        next_steps=(),
        notes=(),
    )
    page = Page(html.render(failed))
    assert "No trial finished" in page.text["head"]
    assert "2 x the loss is NaN in epoch 1" in page.text["head"]
    assert "1 x out of memory" in page.text["head"]
    assert not {"next", "classes", "confusion", "worst"} & set(page.text)


def test_a_study_without_trials_is_still_a_report() -> None:
    page = Page(html.render(study(trials=(), best=None, test=None, importance={})))
    assert "No trial finished" in page.text["head"]


def test_a_learning_rate_between_round_numbers_still_has_its_tick() -> None:
    trials = (trial(0, 0.9), trial(3, 0.95, lr=3.7e-4))
    page = Page(html.render(study(trials=trials)))
    assert "probe 3.7e-4 learning rate" in page.text["lr-depth"]


def test_sources_are_told_apart_where_there_are_several() -> None:
    trials = (trial(0, 0.9), trial(3, 0.95, source="torchvision://resnet50"))
    page = Page(html.render(study(trials=trials)))
    for section in ("lr-depth", "trials"):
        assert "torchvision://resnet50" in page.text[section]
        assert "embedded://efficientnet_lite0" in page.text[section]


def test_what_else_was_searched_is_a_column() -> None:
    trials = (trial(0, 0.9), trial(3, 0.95, others={"views": 5}), trial(4, 0.97, others={}))
    assert " views " in Page(html.render(study(trials=trials))).text["trials"]
    assert " views " not in Page(html.render(study(trials=trials[::2]))).text["trials"]
