"""What a new user sees first: three lines, completion, and one sentence before the tables."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from starzoo.cli.main import main
from starzoo.evaluate.results import EnsembleSize
from starzoo.report.summary import headline
from starzoo.star.manifest import MANIFEST, read_manifest
from tests.cli.conftest import run as run

CARD = Path(__file__).parents[2] / "model_cards" / "digits-star"


def test_without_a_command_three_lines_say_what_to_do(run) -> None:
    ended = run()
    lines = ended.out.strip().splitlines()
    assert (ended.code, ended.err, len(lines)) == (0, "", 3)
    for line in lines:
        _, command, *_ = shlex.split(line)
        assert command == "--help" or run(command, "--help").code == 0


def test_the_shell_completes_commands(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("_STARZOO_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "starzoo fi")
    monkeypatch.setenv("COMP_CWORD", "1")
    with pytest.raises(SystemExit, match="0"):
        main([])
    assert capfd.readouterr().out.split() == ["fit-star"]


def test_one_sentence_says_what_matters() -> None:
    evaluation = read_manifest(CARD / MANIFEST).evaluation
    assert evaluation is not None
    assert headline(evaluation, "test") == (
        "The star on the test images: accuracy 99.44 %; barrier 0.020 to 5 held-outs, and 0.051 between two sources."
    )
    star = evaluation.qualities_of("star")[0].model_copy(update={"dee": 2.43, "dee_interval": (1.9, 12.0)})
    size = EnsembleSize(split="test", size=12, subsets=1, nll=1, nll_std=0, accuracy=1, accuracy_std=0)
    sized = evaluation.model_copy(update={"qualities": (star,), "ensembles": (size,)})
    assert "worth an ensemble of 2.4 sources (1.9 to ≥12); barrier 0.020" in headline(sized, "test")
    empty = evaluation.model_copy(update={"qualities": (), "paths": ()})
    assert headline(empty, "test") == "The star on the test images: not measured."
