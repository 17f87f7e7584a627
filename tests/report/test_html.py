"""The card as one page: it holds what the card holds, needs nothing else, and lets nothing through."""

import base64
import io
from html.parser import HTMLParser

import pytest
from PIL import Image

from starzoo.config import DataConfig, RunConfig
from starzoo.evaluate.results import Evaluation, Path, Quality
from starzoo.models.architecture import Architecture
from starzoo.report.html import render_report, write_report
from starzoo.star.manifest import ModelRecord, StarManifest

HOSTILE = "<script>alert(1)</script> ![x](https://evil.example/x.png) <img src=https://evil.example/y>"


def make_manifest(name="my-star", **changes):
    path = Path(kind="star-source", a="star", b="m", split="test", t=(0, 0.5, 1), loss=(1, 1.2, 1), accuracy=(0.9,) * 3)
    scores = {"split": "test", "accuracy": 0.9, "nll": 0.3, "ece": 0.02}
    qualities = (
        Quality(name="m", role="member", **scores),
        Quality(name="star", role="star", **scores),
        Quality(name="ensemble of 2", role="ensemble", passes=2, **scores),
    )
    return StarManifest(
        name=name,
        architecture=Architecture(name="test_resnet", num_classes=2, label_names=("cat", name)),
        sources=(ModelRecord(name="m"), ModelRecord(name=name, licence=name)),
        config=RunConfig(data=DataConfig(dataset="me/pictures")),
        data_fingerprint="0" * 64,
        evaluation=Evaluation(paths=(path,), qualities=qualities),
        **changes,
    )


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words += data


@pytest.fixture(scope="module")
def page():
    return Page(render_report(make_manifest()))


def test_the_page_says_what_the_card_says(page):
    for words in (
        "my-star",
        "Who wins",
        "How it is connected",
        "star to source",
        "How it predicts",
        "Limits",
        "Licence",
    ):
        assert words in page.words
    assert "pipeline_tag" not in page.words  # that is for the Hub


def test_figures_are_inside_the_page_for_a_screen_and_for_a_phone(page):
    figures = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    narrow = [attrs["srcset"] for tag, attrs in page.tags if tag == "source"]
    assert len(figures) == len(narrow) == 2  # paths and qualities
    for wide, small in zip(figures, narrow, strict=True):
        sizes = []
        for uri in (wide, small):
            head, _, data = uri.partition(",")
            assert head == "data:image/png;base64"
            sizes.append(Image.open(io.BytesIO(base64.b64decode(data))).width)
        assert sizes[1] == sizes[0] / 2  # so that letters are twice as large at the same width
    assert all(attrs["alt"] for tag, attrs in page.tags if tag == "img")


@pytest.mark.parametrize("name", ["my-star", HOSTILE])
def test_nothing_is_requested_and_nothing_runs(name):
    page = Page(render_report(make_manifest(name)))
    assert {"script", "link", "iframe", "object", "form"} & {tag for tag, _ in page.tags} == set()
    for tag, attrs in page.tags:
        for attribute, value in attrs.items():
            assert not attribute.startswith("on")
            if attribute in {"src", "srcset"}:
                assert value.startswith("data:image/png;base64,")
            if attribute == "href":
                assert (tag, value.partition("/")[0]) == ("a", "https:")
    policy = [attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert name in page.words


def test_every_table_scrolls_by_itself(page):
    before = [page.tags[place - 1] for place, (tag, _) in enumerate(page.tags) if tag == "table"]
    assert len(before) >= 3
    assert set(map(str, before)) == {str(("div", {"class": "table"}))}


def test_a_rerun_writes_the_same_page(tmp_path):
    first = write_report(tmp_path, make_manifest()).read_bytes()
    assert write_report(tmp_path, make_manifest()).read_bytes() == first


def test_a_star_that_was_not_evaluated_has_a_page():
    page = Page(render_report(make_manifest().model_copy(update={"evaluation": None})))
    assert "It has not been evaluated" in page.words
    assert "img" not in {tag for tag, _ in page.tags}
