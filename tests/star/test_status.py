"""status.json moves during every stage, and says how long the stage still takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from starzoo.progress import no_progress
from starzoo.star.run.status import Status


def test_a_stage_says_how_many_seconds_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, status = [0.0], Status(tmp_path, no_progress)
    monkeypatch.setattr("starzoo.star.run.status.time.monotonic", lambda: clock[0])

    def report(stage: str, done: int, at: float) -> int | None:
        clock[0] = at
        status(stage, done, 10, turn=1)
        document = json.loads((tmp_path / "status.json").read_text())
        assert (document["stage"], document["done"], document["figures"]) == (stage, done, {"turn": 1})
        return document["seconds_left"]  # type: ignore[no-any-return]

    assert report("fitting the star", 2, at=10) is None  # a resumed stage: its first units took no time now
    assert report("fitting the star", 4, at=20) == 30
    assert report("measuring paths", 1, at=30) is None
    assert report("measuring paths", 2, at=32) == 16
