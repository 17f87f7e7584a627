"""The card as one page: it holds what the card holds, needs nothing else, and lets nothing through."""

import base64
import io
import os
import shutil
import subprocess
import threading
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from PIL import Image

from starzoo.config import DataConfig, RunConfig
from starzoo.errors import UsageError
from starzoo.evaluate.results import Evaluation, PathCurve, PredictionScores
from starzoo.models.architecture import Architecture
from starzoo.models.record import ModelRecord
from starzoo.report import html as report
from starzoo.report.card import render
from starzoo.report.html import render_report, write_report
from starzoo.star.manifest import StarManifest
from tests.hostile import HOSTILE as HOSTILE_STRINGS
from tests.hostile import full_manifest, with_every_string

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
HOSTILE = "<script>alert(1)</script> ![x](https://evil.example/x.png) <img src=https://evil.example/y>"


def make_manifest(name="my-star", **changes):
    path = PathCurve(
        kind="star-source", a="star", b="m", split="test", t=(0, 0.5, 1), loss=(1, 1.2, 1), accuracy=(0.9,) * 3
    )
    scores = {"split": "test", "accuracy": 0.9, "nll": 0.3, "ece": 0.02}
    qualities = (
        PredictionScores(name="m", role="source", **scores),
        PredictionScores(name="star", role="star", **scores),
        PredictionScores(name="ensemble of 2", role="ensemble", passes=2, **scores),
    )
    return StarManifest(
        name=name,
        architecture=Architecture(name="test_resnet", num_classes=2, label_names=("cat", name)),
        sources=(ModelRecord(name="m"), ModelRecord(name=name, license=name)),
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
        "License",
    ):
        assert words in page.words
    assert "pipeline_tag" not in page.words  # that is for the Hub


def test_figures_are_inside_the_page(page):
    figures = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert len(figures) == 2  # paths and qualities
    for uri in figures:
        head, _, data = uri.partition(",")
        assert head == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).width == 1520
    assert all(attrs["alt"] for tag, attrs in page.tags if tag == "img")


@pytest.mark.parametrize("name", ["my-star", HOSTILE])
def test_nothing_is_requested_and_nothing_runs(name):
    page = Page(render_report(make_manifest(name)))
    assert {"script", "link", "iframe", "object", "form"} & {tag for tag, _ in page.tags} == set()
    for tag, attrs in page.tags:
        for attribute, value in attrs.items():
            assert not attribute.startswith("on")
            if attribute == "src":
                assert value.startswith("data:image/png;base64,")
            if attribute == "href":
                assert (tag, value.partition("/")[0]) == ("a", "https:")
    policy = [attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy == [POLICY]
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


ALLOWED = {
    "html": {"lang"},
    "head": set(),
    "meta": {"charset", "http-equiv", "content", "name"},
    "title": set(),
    "style": set(),
    "body": set(),
    "div": {"class"},
    "details": {"open"},
    "code": {"class"},
    "a": {"href"},
    "img": {"src", "alt"},
    "th": {"style"},  # its alignment
    "td": {"style"},
} | {
    tag: set()
    for tag in ["h1", "h2", "h3", "p", "ul", "li", "em", "strong", "pre", "summary", "table", "thead", "tbody", "tr"]
}


@pytest.fixture
def no_figures(monkeypatch):
    """Figures hold no text of a stranger, and take seconds."""
    names = [f"{kind}-{split}" for kind in ("paths", "quality", "plane") for split in ("test", "train")]
    monkeypatch.setattr(report, "_draw", lambda _: dict.fromkeys(names, "data:image/png;base64,"))


@pytest.mark.parametrize("text", HOSTILE_STRINGS)
def test_h02_the_page_has_only_its_own_tags(text, no_figures):
    text = text.replace("BEACON", "https://evil.example")
    page = Page(render_report(with_every_string(full_manifest(), text)))
    plain = Page(render_report(with_every_string(full_manifest(), "Plain words")))
    assert [(tag, sorted(attrs)) for tag, attrs in page.tags] == [(tag, sorted(attrs)) for tag, attrs in plain.tags]
    for tag, attrs in page.tags:
        assert attrs.keys() <= ALLOWED[tag]
        assert attrs.get("style") in {None, "text-align:right"}
        assert attrs.get("href", "https://huggingface.co/").startswith((
            "https://huggingface.co/",
            "https://arxiv.org/",
        ))
        assert all(attrs[key].startswith("data:image/png;base64,") for key in ("src", "srcset") if key in attrs)
    assert [attrs for tag, attrs in page.tags if tag == "meta"] == [
        {"charset": "utf-8"},
        {"http-equiv": "Content-Security-Policy", "content": POLICY},
        {"name": "viewport", "content": "width=device-width, initial-scale=1"},
    ]


def test_h02_of_html_only_folding_passes_and_an_unknown_image_is_text():
    markdown = MarkdownIt("commonmark", renderer_cls=report._Renderer).enable("table")
    text = "<details open>\n<summary>a</summary>\n\n<form action=x>b <svg onload=y> "
    text += "![c](https://evil.example/d.png) ![e](plots/f-g.png)"
    tags = [tag for tag, _ in Page(markdown.render(text, {"figures": {}})).tags]
    assert tags == ["details", "summary"]


@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium")
def test_h02_a_browser_asks_for_nothing_and_runs_nothing(tmp_path, no_figures):
    asked = []

    class Beacon(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    def show(page):
        file = tmp_path / "page.html"
        file.write_text(page, encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        options += ["--timeout=3000", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
        home = {**os.environ, "HOME": str(tmp_path)}
        browser = [CHROMIUM, *options, file.as_uri()]
        done = subprocess.run(browser, capture_output=True, text=True, check=True, env=home, timeout=60)
        found, asked[:] = [path for path in asked if "favicon" not in path], []
        return found, done.stdout

    with ThreadingHTTPServer(("127.0.0.1", 0), Beacon) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        beacon = f"http://127.0.0.1:{server.server_port}"
        texts = [text.replace("BEACON", beacon) for text in HOSTILE_STRINGS]
        scripts = "".join(texts[:2])
        control, shown = show(f"<html><body>{scripts}</body></html>")  # the harness sees what a page may do
        assert control
        assert 'pwned="1"' in shown.partition("<body>")[0]
        hostile = with_every_string(full_manifest(), *texts)
        for page in (
            render_report(hostile),
            MarkdownIt("commonmark").enable("table").render(ModelCard(render(hostile, "me/star")).text),
        ):
            found, shown = show(page)
            assert found == []
            assert 'pwned="1"' not in shown.partition("<body>")[0]
            assert "pwned" in shown  # as text
        server.shutdown()


def test_h12_a_page_that_a_person_wrote_is_kept(tmp_path, no_figures):
    (tmp_path / "report.html").write_text("<html>mine</html>")
    with pytest.raises(UsageError, match=r"report\.html: was not written by starzoo"):
        write_report(tmp_path, make_manifest())
    assert (tmp_path / "report.html").read_text() == "<html>mine</html>"
