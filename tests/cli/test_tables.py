from __future__ import annotations

import pytest

from starzoo.cli.output import Output
from starzoo.cli.tables import show_star, summary_json
from starzoo.config import RunConfig
from starzoo.evaluate.results import Evaluation, PathCurve, PredictionScores
from starzoo.models.architecture import Architecture
from starzoo.models.record import ModelRecord
from starzoo.star.manifest import StarManifest
from starzoo.workflows.fit import StarResult


def path(kind, b, middle, split="test"):
    return PathCurve(
        kind=kind, a="star", b=b, split=split, t=(0, 0.5, 1), loss=(0.2, middle, 0.4), accuracy=(0.9, 0.8, 0.9)
    )


EVALUATION = Evaluation(
    paths=(
        path("star-source", "a", 0.4),
        path("star-source", "b", 0.6),
        path("source-source", "b", 1.3),
        path("star-source", "a", 0.3, split="train"),
    ),
    qualities=(
        PredictionScores(name="a", role="source", split="test", accuracy=0.9, nll=0.4, ece=0.05),
        PredictionScores(name="b", role="source", split="test", accuracy=0.8, nll=0.6, ece=0.07),
        PredictionScores(name="all", role="ensemble", split="test", accuracy=0.95, nll=0.2, ece=0.01, passes=2),
        PredictionScores(name="a", role="source", split="train", accuracy=1.0, nll=0.0, ece=0.0),
    ),
)


@pytest.fixture
def report(tmp_path):
    sources = tuple(ModelRecord(name=name) for name in "ab")
    manifest = StarManifest(
        name="my-star",
        architecture=Architecture(name="test_resnet", num_classes=10),
        sources=sources,
        config=RunConfig(),
        data_fingerprint="0",
        parameters=1,
        groups=1,
        coverage=1.0,
        evaluation=EVALUATION,
    )
    return StarResult(folder=tmp_path / "star", manifest=manifest)


def test_summary_holds_means_by_split_kind_and_role():
    summary = summary_json(EVALUATION)
    test = summary["test"]
    assert list(test["connectivity"]) == ["star-source", "source-source"]
    assert test["connectivity"]["star-source"]["barrier"] == pytest.approx({
        "mean": 0.2,
        "std": 0.02**0.5,
        "worst": 0.3,
        "count": 2,
        "interval": None,  # of two models
    })
    assert test["predictions"]["source"]["accuracy"] == pytest.approx({
        "mean": 0.85,
        "std": 0.005**0.5,
        "worst": 0.8,
        "count": 2,
    })
    assert list(summary["train"]["connectivity"]) == ["star-source"]
    assert list(summary["train"]["predictions"]) == ["source"]


def test_a_person_sees_both_tables_and_the_folder(report, capsys):
    show_star(Output(), report)
    shown = capsys.readouterr().out
    rows = {tuple(line.split()) for line in shown.splitlines()}
    assert ("star-source", "2", "0.2000", "0.3000", "0.1000", "0.5000", "80.00", "%") in rows
    assert ("source", "2", "85.00", "±", "7.07", "%", "0.5000", "0.0600", "1") in rows
    assert ("ensemble", "1", "95.00", "%", "0.2000", "0.0100", "2") in rows
    assert shown.splitlines()[-1] == f"my-star: {report.folder}"


def test_a_terminal_of_80_columns_is_wide_enough(report, capsys, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")  # 80 columns, no colors
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    show_star(Output(), report)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:-1])) <= 80
    assert [line.split()[-1] for line in lines if "source-source" in line] == ["%"]


def test_a_program_gets_the_summary_and_the_whole_manifest(report, capsys):
    import json

    show_star(Output(as_json=True), report)
    document = json.loads(capsys.readouterr().out)
    assert document["folder"] == str(report.folder)
    assert document["pushed"] is None
    assert document["summary"]["test"]["predictions"]["ensemble"]["nll"]["mean"] == 0.2
    assert StarManifest.model_validate(document["manifest"]) == report.manifest


def test_a_script_gets_the_folder(report, capsys):
    show_star(Output(quiet=True), report)
    assert capsys.readouterr().out == f"{report.folder}\n"
