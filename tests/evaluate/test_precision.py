"""An evaluation in bfloat16: close to one in float32, kept apart from it, and by how much it is off is stated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from starzoo.data.task import load_data
from starzoo.evaluate.evaluator import Evaluator
from starzoo.evaluate.results import Evaluation
from starzoo.models.timm_folder import read_architecture
from starzoo.models.weights import interpolate
from starzoo.star.star import load_star
from starzoo.workflows.evaluate import evaluate_star
from tests.evaluate.test_result_cache import DATA, MEASURE, forward_passes
from tests.star.runs import run
from tests.stars import CONFIG, make_star

BF16 = {**MEASURE, "precision": "bf16"}


@pytest.fixture
def star(digits_zoo: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_ASSETS_CACHE", str(tmp_path / "cache"))
    return make_star(tmp_path / "star", digits_zoo[:2])


def measure(star: Path, **evaluate: object) -> Evaluation:
    found = evaluate_star(str(star), data=DATA, evaluate=evaluate).manifest.evaluation
    assert found is not None
    return found


def values(evaluation: Evaluation) -> torch.Tensor:
    losses = [loss for path in evaluation.paths for loss in path.loss]
    return torch.tensor([*losses, *(quality.nll for quality in evaluation.qualities)], dtype=torch.float64)


def test_bf16_is_near_fp32_and_the_stars_difference_is_stated(star: Path) -> None:
    with forward_passes() as first:
        full = measure(star, **MEASURE)
    assert full.rounding is None
    assert "bfloat16" not in (star / "README.md").read_text(encoding="utf-8")
    with forward_passes() as second:
        rounded = measure(star, **BF16)
    looks = first.count("ResNet") - second.count("ResNet")  # at the models, which were there the second time
    assert 0 <= looks < first.count("ResNet") / 2  # none of the other precision; the star in float32 was there
    gaps = (values(rounded) - values(full)).abs()
    assert 0 < float(gaps.max()) < 0.02  # 0.0032 when this was written, where losses reach 2.2
    [ours], [theirs] = rounded.qualities_of("star"), full.qualities_of("star")
    assert rounded.rounding is not None
    assert rounded.rounding.nll == abs(ours.nll - theirs.nll) > 0
    assert rounded.rounding.accuracy == abs(ours.accuracy - theirs.accuracy)
    card = " ".join((star / "README.md").read_text(encoding="utf-8").split())
    stated = f"negative log-likelihood differs by {rounded.rounding.nll:.2g} nats"
    assert f"Forward passes were in bfloat16: the star's own {stated}" in card
    assert load_star(star).manifest.evaluation == rounded
    with forward_passes() as third:
        assert measure(star, **BF16) == rounded
        assert measure(star, **MEASURE, precision="fp32") == full
    assert third == []


def test_the_command_says_what_bf16_changes(star: Path) -> None:
    options = ["--train-size", "300", "--test-size", "60", "--points", "3", "--source-pairs", "0", "--bma-samples", "0"]
    [ended] = run("evaluate", star, *options, "--set", "evaluate.precision=bf16")
    assert ended.code == 0, ended.text
    assert "Forward passes were in bfloat16" in " ".join(ended.text.split())


def test_weights_that_change_in_place_are_seen_in_bf16(star: Path) -> None:
    architecture = read_architecture(star)
    state = load_file(star / "model.safetensors")
    data = load_data(CONFIG.data, architecture.preprocessing)

    def evaluator(*, repairs: bool = False) -> Evaluator:
        return Evaluator(
            architecture.build(),
            {"test": (lambda: data.test.images(100, limit=100), data.test.labels[:100])},
            lambda: data.train.images(100, limit=100),
            repairs=repairs,
            precision="bf16",
        )

    other = {name: tensor * 1.5 if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    again, points = evaluator(), [state, other, interpolate(state, other, 0.5)]
    for point in points:
        assert torch.equal(again.log_probabilities(point)["test"], evaluator().log_probabilities(point)["test"])
