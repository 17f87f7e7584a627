"""A whole run from a warm cache, in which nothing opens a socket."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import typer
import yaml

from starzoo.cli.main import app
from starzoo.config import DataConfig, EvalConfig, RunConfig, StarConfig
from starzoo.hub.offline import offline_mode
from starzoo.models.pull import pull_all
from starzoo.star.manifest import read_manifest
from tests.cli.conftest import run as run
from tests.conftest import MakeMember
from tests.hub.fakehub import FakeHub
from tests.processes import start_python

READING = ("train", "pull", "plan", "inspect", "align", "fit-star", "evaluate", "predict", "join", "verify", "doctor")


def end_at_a_connection() -> None:
    """Let this process end at once when it opens a connection."""

    def end(*_: object) -> None:
        os._exit(99)

    socket.socket.connect = socket.socket.connect_ex = end  # type: ignore[method-assign]


CONFIG = RunConfig(
    data=DataConfig(dataset="digits", train_size=200, test_size=100),
    star=StarConfig(epochs=1, batch_size=100),
    evaluate=EvalConfig(points=3, source_pairs=1, batch_norm_images=100, validation_images=50),
)


def test_every_command_that_reads_from_the_hub_can_be_kept_from_asking() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    offline = {name for name, command in commands.items() if any("--offline" in each.opts for each in command.params)}
    assert offline == set(READING)


def test_offline_holds_for_this_process_and_those_that_it_starts(
    fake_hub: FakeHub, make_member: MakeMember, run, tmp_path: Path
) -> None:
    folder = make_member()
    fake_hub.commit("ann/net", {path.name: path.read_bytes() for path in folder.iterdir()})
    for words in (
        ("inspect", "ann/net"),
        ("align", "ann/net", "ann/net", "--out", tmp_path / "aligned"),
        ("evaluate", "ann/net"),
        ("fit-star", "ann/net", "ann/net", "--out", tmp_path / "star"),
        ("join", "ann/net", folder),
        ("predict", "ann/net", tmp_path / "cat.png"),
        ("verify", "ann/net"),
    ):
        ended = run(*words, "--offline")
        assert ended.code == 4, (words, ended.err)
        assert "ann/net" in ended.err
        assert "offline" in ended.err
    assert fake_hub.requests == []
    child = [sys.executable, "-c", "from huggingface_hub import constants; print(constants.HF_HUB_OFFLINE)"]
    with offline_mode():
        assert subprocess.run(child, capture_output=True, text=True, check=True).stdout.strip() == "True"
    assert subprocess.run(child, capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_n14_a_whole_run_offline_opens_no_socket(digits_zoo: list[Path], fake_hub: FakeHub, tmp_path: Path) -> None:
    refs = [f"them/member-{number}" for number in range(3)]
    for ref, folder in zip(refs, digits_zoo, strict=False):
        files = {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}
        fake_hub.commit(ref, files)
    pull_all(refs)
    asked = len(fake_hub.requests)

    connect = "import socket; socket.create_connection(('127.0.0.1', 9))"
    assert start_python("-c", connect, before=end_at_a_connection).wait().code == 99

    (tmp_path / "run.yaml").write_text(yaml.safe_dump(CONFIG.model_dump(mode="json", exclude_none=True)))
    words = ["fit-star", *refs[:2], "--holdout", refs[2], "--config", tmp_path / "run.yaml", "--out", tmp_path / "star"]
    ended = start_python("-m", "starzoo.cli", *words, "--offline", before=end_at_a_connection).wait()
    assert ended.code == 0, ended.err
    manifest = read_manifest(tmp_path / "star" / "star.json")
    assert [source.repo for source in manifest.sources] == refs[:2]
    assert [(source.dtype, source.preprocessing) for source in manifest.sources] == [
        ("float32", manifest.architecture.preprocessing)
    ] * 2
    assert manifest.evaluation is not None
    assert len(fake_hub.requests) == asked
