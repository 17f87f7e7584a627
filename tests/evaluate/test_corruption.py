"""Corrupted images are a function of the seed, and scored by corruption and severity."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from starzoo.config import DataConfig
from starzoo.data.corruption import CORRUPTIONS, check_corruptions, corrupt_split
from starzoo.data.preprocessing import Preprocessing
from starzoo.data.split import Split
from starzoo.data.task import load_data
from starzoo.errors import UsageError
from starzoo.evaluate.cached_evaluation import CORRUPTED
from starzoo.evaluate.scores import score_corruption


def digits(size: int, channels: int = 3) -> Split:
    half = (0.5,) * channels
    preprocessing = Preprocessing(input_size=(channels, size, size), mean=half, std=half, crop_pct=0.9)
    return load_data(DataConfig(dataset="digits"), preprocessing).test


pytest.importorskip("imagecorruptions", reason="it or a library of the system is missing", exc_type=ImportError)


@pytest.mark.parametrize("channels", [1, 3])
def test_corruptions_grow_and_depend_on_the_seed_alone(channels: int) -> None:
    split = digits(32, channels)
    before = np.random.get_state()[1].copy()
    found = corrupt_split(split, 4, seed=1)
    assert np.array_equal(np.random.get_state()[1], before)
    other = corrupt_split(split, 4, seed=2)
    assert len(found) == len(CORRUPTIONS) * 5 * 4
    pixels = found.tensors()[0].reshape(len(CORRUPTIONS), 5, 4, channels, 32, 32)
    np.random.seed(7)
    again = corrupt_split(split, 4, seed=1)
    assert torch.equal(found.tensors()[0], again.tensors()[0])
    assert not torch.equal(found.tensors()[0], other.tensors()[0])
    rows = split.sample_indices(4, 1)
    assert torch.equal(found.labels.reshape(-1, 4), split.labels[rows].expand(len(CORRUPTIONS) * 5, 4))
    clean = split.tensors()[0][rows]
    distances = (pixels - clean).square().mean(dim=(2, 3, 4, 5))
    assert (distances > 0).all()
    assert ((distances[:, 4] > distances[:, 0]) | (distances[:, 4] > 0.05)).all()


def test_what_cannot_be_corrupted_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    check_corruptions(0, (3, 16, 16))
    check_corruptions(5, (3, 32, 32))
    with pytest.raises(UsageError, match="16 x 32 pixels, and corruptions need 32"):
        check_corruptions(5, (3, 16, 32))
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(UsageError, match="cannot import imagecorruptions") as caught:
        check_corruptions(5, (3, 32, 32))
    assert "pip install 'starzoo[corruptions]'" in caught.value.hint


def test_scores_are_by_corruption_and_severity() -> None:
    generator = torch.Generator().manual_seed(0)
    images = len(CORRUPTIONS) * 5 * 7
    logs = torch.randn(images, 3, generator=generator).log_softmax(1)
    labels = torch.randint(0, 3, (images,), generator=generator)
    evaluation = SimpleNamespace(labels=lambda split: {CORRUPTED: labels}[split])
    found = score_corruption(evaluation, {CORRUPTED: logs})  # type: ignore[arg-type]
    assert found is not None
    table: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for number in range(images):
        key = CORRUPTIONS[number // 35], number // 7 % 5
        right = float(logs[number].argmax() == labels[number])
        table.setdefault(key, []).append((right, -float(logs[number, labels[number]])))
    for severity in range(5):
        rows = [
            value for (_, found_severity), values in table.items() if found_severity == severity for value in values
        ]
        assert found.accuracy[severity] == pytest.approx(np.mean([right for right, _ in rows]))
        assert found.nll[severity] == pytest.approx(np.mean([loss for _, loss in rows]), abs=1e-6)
    by_name = {
        name: np.mean([right for (of, _), values in table.items() if of == name for right, _ in values])
        for name in CORRUPTIONS
    }
    assert found.worst == min(by_name, key=lambda name: by_name[name])
    assert found.worst_accuracy == pytest.approx(by_name[found.worst])
    assert score_corruption(evaluation, {}) is None  # type: ignore[arg-type]
