"""The page of several stars: every number stands in a star.json, and no name breaks out."""

import pytest
from markdown_it import MarkdownIt

from starzoo.errors import UsageError
from starzoo.evaluate.results import Evaluation, PathCurve, PredictionScores
from starzoo.report.gallery import write_gallery
from starzoo.workflows.cards import render_gallery
from tests.report.test_html import HOSTILE, make_manifest


def keep(folder, manifest):
    folder.mkdir()
    (folder / "star.json").write_text(manifest.model_dump_json())


def test_the_page_has_a_row_for_each_star(tmp_path):
    def path(kind, bump):
        return PathCurve(
            kind=kind, a="star", b="m", split="test", t=(0, 0.5, 1), loss=(1, 1 + bump, 1), accuracy=(0.9,) * 3
        )

    def quality(role, accuracy, nll):
        return PredictionScores(name=role, role=role, split="test", accuracy=accuracy, nll=nll, ece=0)

    evaluation = Evaluation(
        paths=(path("star-heldout", 0.25), path("star-source", 0.125), path("source-source", 0.5)),
        qualities=(quality("source", 0.91, 0.3), quality("star", 0.92, 0.25), quality("ensemble", 0.93, 0.2)),
    )
    keep(tmp_path / "first", make_manifest("good-star").model_copy(update={"evaluation": evaluation}))
    keep(tmp_path / "second one", make_manifest("blank").model_copy(update={"evaluation": None}))
    text = write_gallery(tmp_path).read_text(encoding="utf-8")
    assert "| [good-star](first/) | 2 | me/pictures, test images | 0.250 | 0.125 | 0.500 |" in text
    assert "| 91.00 | 92.00 | 93.00 | 0.300 | 0.250 | 0.200 |" in text
    assert "| [blank](second%20one/) | 2 | me/pictures | – | – | – |" in text
    assert "plots/paths-test.png" in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.count("|") in {7, 10}  # cells of both tables
    assert write_gallery(tmp_path).read_text(encoding="utf-8") == text


def test_names_of_strangers_change_words_only(tmp_path):
    keep(tmp_path / "star", make_manifest(HOSTILE))
    text = write_gallery(tmp_path).read_text(encoding="utf-8")
    page = MarkdownIt("commonmark").enable("table").render(text)
    assert "<script" not in page
    assert 'evil.example/x.png"' not in page
    assert page.count("<img") == 1  # its own figure


def test_a_folder_without_stars_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no folder in it holds a star\.json"):
        write_gallery(tmp_path)


def test_a_page_of_somebody_else_is_kept(tmp_path):
    keep(tmp_path / "star", make_manifest("mine"))
    (tmp_path / "README.md").write_text("# My project")
    with pytest.raises(UsageError, match=r"README\.md: was not written by starzoo"):
        render_gallery(tmp_path)
    assert (tmp_path / "README.md").read_text() == "# My project"
    assert [file.name for file in (tmp_path / "star").iterdir()] == ["star.json"]


def test_h12_a_linked_folder_is_not_written_behind(tmp_path):
    keep(tmp_path / "else", make_manifest("theirs"))
    (tmp_path / "stars").mkdir()
    keep(tmp_path / "stars" / "mine", make_manifest("mine"))
    (tmp_path / "stars" / "linked").symlink_to(tmp_path / "else")
    with pytest.raises(UsageError, match=r"stars/linked: expected a file in .*, got a link that leads out of it"):
        render_gallery(tmp_path / "stars")
    assert sorted(file.name for file in tmp_path.rglob("*.*")) == ["star.json", "star.json"]


def test_h12_a_card_that_a_person_wrote_is_kept(tmp_path):
    for name in ("a", "b"):
        keep(tmp_path / name, make_manifest(name))
    (tmp_path / "b" / "README.md").write_text("# Mine")
    with pytest.raises(UsageError, match=r"b/README\.md: was not written by starzoo"):
        render_gallery(tmp_path)
    assert (tmp_path / "b" / "README.md").read_text() == "# Mine"
    assert sorted(file.name for file in tmp_path.rglob("*.*")) == ["README.md", "star.json", "star.json"]
