from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from starzoo.cli.main import main

TINY = ["--model-args", '{"layers": [1, 1, 0, 0], "channels": [8, 8, 8, 8]}', "--image-size", "16"]
FEW_IMAGES = ["--train-size", "100", "--test-size", "50"]


@dataclass(frozen=True)
class Ended:
    """What a command left: its exit code, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Ended]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs one command in this process."""

    def run_command(*arguments: str | Path) -> Ended:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return Ended(code, *capfd.readouterr())

    return run_command


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four tiny members, trained by the command."""
    folder = tmp_path_factory.mktemp("cli") / "zoo"
    options: Sequence[str] = ["--seeds", "0-3", "--epochs", "2", "--jobs", "1", "--quiet", *TINY, *FEW_IMAGES]
    assert main(["train", "resnet18", "--out", str(folder), *options]) == 0
    return folder


@pytest.fixture(scope="session")
def star(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A star of three members, with the fourth held out; made by the command."""
    folder = tmp_path_factory.mktemp("star") / "tiny-star"
    members = [str(zoo / f"seed-{seed}") for seed in range(3)]
    quick = [
        "--epochs",
        "1",
        "--points",
        "3",
        "--source-pairs",
        "1",
        "--seed",
        "3",
        "--set",
        "star.batch_size=50",
        "--set",
        "evaluate.validation_images=100",
        *FEW_IMAGES,
    ]
    arguments = ["fit-star", *members, "--holdout", str(zoo / "seed-3"), "--out", str(folder), "--name", "Tiny", *quick]
    assert main([*arguments, "--quiet"]) == 0
    return folder
