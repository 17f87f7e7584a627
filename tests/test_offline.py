"""A whole run from a warm cache, in which nothing opens a socket."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from starzoo.config import DataConfig, EvalConfig, RunConfig, StarConfig
from starzoo.hub.offline import working_offline
from starzoo.hub.pull import pull_all
from starzoo.pipeline import fit_star
from tests.hub.server import FakeHub

CONFIG = RunConfig(
    data=DataConfig(dataset="digits", train_size=200, test_size=100),
    star=StarConfig(epochs=1, batch_size=100),
    evaluate=EvalConfig(points=3, statistics_images=100),
)


def test_n14_a_whole_run_offline_opens_no_socket(
    digits_zoo: list[Path], fake_hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, folder in enumerate(digits_zoo[:3]):
        files = {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}
        fake_hub.commit(f"them/member-{number}", files)
    refs = [f"them/member-{number}" for number in range(3)]
    pull_all(refs)
    asked = len(fake_hub.requests)

    def refuse(*arguments: object) -> None:
        raise AssertionError("a socket is opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(AssertionError, match="a socket is opened"):
        socket.create_connection(("127.0.0.1", 9))
    with working_offline():
        report = fit_star(refs[:2], refs[2:], CONFIG, tmp_path / "star")
    assert [source.repo for source in report.manifest.sources] == refs[:2]
    assert report.manifest.evaluation is not None
    assert len(fake_hub.requests) == asked
