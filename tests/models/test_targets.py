"""Mixed, smoothed and one-hot targets are those of timm, and depend on the key of the batch alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch.testing import assert_close

from starzoo.config import StarConfig, TrainConfig
from starzoo.errors import UsageError
from starzoo.models.training.targets import Targets, criterion, mix_labels, probabilities

CLASSES = 5


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images, logits = torch.rand(8, 3, 6, 6, generator=generator), torch.randn(8, CLASSES, generator=generator)
    return images, torch.randint(0, CLASSES, (8,), generator=generator), logits


def test_labels_stay_as_they_are_where_nothing_is_asked_for(batch) -> None:
    images, labels, _ = batch
    found = Targets(TrainConfig(), CLASSES, 8, seed=1)(images, labels, 0)
    assert found[0] is images
    assert found[1] is labels


@pytest.mark.parametrize("options", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0, "mixup_prob": 0.7}])
def test_images_are_mixed_as_timm_mixes_them(options: dict[str, float], batch) -> None:
    images, labels, logits = batch
    config = StarConfig(label_smoothing=0.1, **options)
    targets = Targets(config, CLASSES, 8, seed=3)
    theirs = Mixup(
        options.get("mixup", 0.0),
        options.get("cutmix", 0.0),
        prob=options.get("mixup_prob", 1.0),
        label_smoothing=0.1,
        num_classes=CLASSES,
    )
    mixed = set()
    for step in range(6):
        before = np.random.get_state()[1].copy()
        mine = targets(images.clone(), labels, step, 1)
        assert (np.random.get_state()[1] == before).all()
        np.random.seed([3, 4, step, 1])
        expected = theirs(images.clone(), labels)
        assert all(map(torch.equal, mine, expected))
        assert_close(criterion(config)(logits, mine[1]), SoftTargetCrossEntropy()(logits, expected[1]))
        assert all(map(torch.equal, mine, targets(images.clone(), labels, step, 1)))
        mixed.add(float(mine[0][0].sum()))
    assert len(mixed) > 2
    keys = [(step, draw) for step in range(6) for draw in range(2)]
    assert len({float(targets(images.clone(), labels, *key)[0][0].sum()) for key in keys}) > len(mixed)


def test_smoothing_and_binary_losses_are_those_of_timm(batch) -> None:
    images, labels, logits = batch
    smooth = TrainConfig(label_smoothing=0.1)
    target = Targets(smooth, CLASSES, 8, seed=0)(images, labels, 0)[1]
    assert_close(criterion(smooth)(logits, target), LabelSmoothingCrossEntropy(0.1)(logits, labels))
    binary = TrainConfig(label_smoothing=0.1, bce=True)
    target = Targets(binary, CLASSES, 8, seed=0)(images, labels, 0)[1]
    assert_close(criterion(binary)(logits, target), BinaryCrossEntropy(0.1)(logits, labels))


def test_a_prediction_is_mixed_with_labels_of_any_kind(batch) -> None:
    _, labels, logits = batch
    hard = torch.nn.functional.one_hot(labels, CLASSES).float()
    for bce in (False, True):
        prediction = probabilities(TrainConfig(bce=bce), logits)
        assert_close(prediction, logits.sigmoid() if bce else logits.softmax(1))
        assert_close(mix_labels(labels, prediction, 0.5), (hard + 0.5 * prediction) / 1.5)
        assert_close(mix_labels(hard, prediction, 0.5), (hard + 0.5 * prediction) / 1.5)
    assert mix_labels(labels, None, 0.5) is labels


def test_an_odd_batch_has_no_pairs() -> None:
    with pytest.raises(UsageError, match=r"batch_size: Mixup and CutMix mix pairs of images, and a batch has 7"):
        Targets(TrainConfig(mixup=0.2), CLASSES, 7, seed=0)
