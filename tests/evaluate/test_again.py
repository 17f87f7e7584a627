"""A star is measured again: beside other stars, and on other images, where they were found before."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

from starzoo.align.align import align
from starzoo.align.probe import Probe
from starzoo.config import DataConfig
from starzoo.data.task import load_data
from starzoo.errors import StarzooError, UsageError
from starzoo.models.batch_norm import reestimate_batch_norm
from starzoo.models.weights import interpolate
from starzoo.star.star import load_star
from starzoo.workflows.evaluate import evaluate_star
from tests.stars import CONFIG, make_star

DATA = {"train_size": 300, "test_size": 60}
FEW = {"batch_norm_augment": "none", "points": 3, "source_pairs": 0, "sources": 0, "bma_samples": 0}


@pytest.fixture
def star(untrained: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_ASSETS_CACHE", str(tmp_path / "cache"))
    return make_star(tmp_path / "star", untrained[:2])


def test_the_path_to_another_star_equals_a_slow_reference(star: Path, untrained: list[Path], tmp_path: Path) -> None:
    other = make_star(tmp_path / "other", untrained[2:])
    report = evaluate_star(str(star), other_stars=[str(other)], data=DATA, evaluate=FEW)
    assert report.manifest.evaluation is not None
    [path] = report.manifest.evaluation.paths
    assert (path.kind, path.a, path.b) == ("star-star", "star", "other")
    first, second = load_star(str(star)), load_star(str(other))
    architecture = first.manifest.architecture
    data = load_data(DataConfig(**DATA), architecture.preprocessing)
    config = CONFIG.align
    meter = Probe(architecture.build(), *data.train.labeled_images(limit=config.images, seed=config.seed))
    [aligned] = align(architecture.spec, first.state, [second.state], config, meter=meter)
    images, labels = data.test.tensors()
    for t, loss in zip(path.t, path.loss, strict=True):
        model = architecture.build()
        model.load_state_dict(interpolate(first.state, aligned.state, t))
        reestimate_batch_norm(model, data.train.images(256, limit=CONFIG.evaluate.batch_norm_images))
        with torch.no_grad():
            assert loss == pytest.approx(float(cross_entropy(model(images), labels)), abs=1e-5)
    assert "star to another star" in (star / "README.md").read_text(encoding="utf-8")


def test_other_images_are_found_again_and_their_folder_is_not_published(star: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = tmp_path / "noise"
    for split in ("train", "val"):
        for name in ("a", "b"):
            (noise / split / name).mkdir(parents=True)
            for number in range(5):
                pixels = rng.integers(0, 256, (16, 16), dtype=np.uint8)
                Image.fromarray(pixels).save(noise / split / name / f"{number}.png")
    first = evaluate_star(str(star), data=DATA, evaluate={**FEW, "ood": str(noise)}).manifest
    assert first.evaluation is not None
    assert first.evaluation.ood_images == (10,)
    assert first.config.evaluate.ood[0].test_split == "val"  # since there is no `test`
    scores = [quality.ood for quality in first.evaluation.qualities]
    assert all(len(score) == 1 for score in scores)
    for file in ("star.json", "README.md"):
        assert str(tmp_path) not in (star / file).read_text(encoding="utf-8")
    again = evaluate_star(str(star), data=DATA, use_cache=False).manifest.evaluation
    assert again is not None
    assert [quality.ood for quality in again.qualities] == scores
    shutil.rmtree(noise)
    with pytest.raises(StarzooError, match="noise"):
        evaluate_star(str(star), data=DATA)


def test_baselines_are_refused_on_other_images_than_those_of_the_star(star: Path) -> None:
    with pytest.raises(UsageError, match="would be trained on other images than it was"):
        evaluate_star(str(star), data=DATA, evaluate={**FEW, "baselines": ("swa",)})
