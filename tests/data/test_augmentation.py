"""timm's training transform: the same pixels as timm itself, keyed, checked when made."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp

from starzoo.config import DataConfig, TransformConfig, validate
from starzoo.data.augmentation import training_transform, transform_key
from starzoo.data.preprocessing import Preprocessing
from starzoo.data.task import ImageTask, load_data
from starzoo.errors import UsageError
from tests.data.pictures import paint

COLOR = Preprocessing(input_size=(3, 16, 16), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
TRANSFORMS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "erasing": {"re_prob": 0.7, "re_count": 3},
    "RandAugment": {"auto_augment": "rand-m6-mstd0.5-inc1", "interpolation": "bicubic", "scale": (0.3, 1.0)},
    "AugMix": {"auto_augment": "augmix-m3-w3", "re_prob": 0.5, "re_mode": "rand"},
    "3-Augment": {"auto_augment": "3a", "color_jitter": [0.3, 0.3, 0.3, 0.1], "color_jitter_prob": 0.8},
    "the whole image": {"train_crop_mode": "rkrr", "vflip": 0.3, "grayscale_prob": 0.3, "gaussian_blur_prob": 0.3},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of 30 × 24 pixels of two classes in one split, and four in another."""
    root = tmp_path_factory.mktemp("photos")
    for split, count in (("train", 6), ("test", 2)):
        for label in ("a", "b"):
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                smooth = paint(100 * (label == "b") + 10 * (split == "test") + number, (5, 4)).resize((30, 24))
                smooth.save(root / split / label / f"{number}.png")
    return root


def load(folder: Path, **transform: Any) -> ImageTask:
    config = validate(DataConfig, {"dataset": str(folder), "augment": "timm", "transform": transform})
    return load_data(config, COLOR)


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_pixels_are_those_of_timm(transform: dict[str, Any], folder: Path) -> None:
    loader = load(folder, **transform).train.loader(6, epoch=2, seed=1, augment="timm", workers=0)
    defaults = {"interpolation": "random", "re_mode": "pixel"}  # those of timm's train.py
    options = {"mean": COLOR.mean, "std": COLOR.std, **defaults, **transform}
    of_timm = create_transform((3, 16, 16), is_training=True, **options)
    files = sorted((folder / "train").glob("*/*.png"))
    shown = torch.cat([images for images, _ in loader])
    for row, image in zip(torch.cat(loader.batches).tolist(), shown, strict=True):
        seed = int(loader.draws[row])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        assert torch.equal(image, of_timm(Image.open(files[row]).convert("RGB")))
    assert len({image.numpy().tobytes() for image in shown}) == 12


def test_pixels_depend_on_seed_epoch_and_image_and_change_no_generator(folder: Path) -> None:
    train = load(folder, auto_augment="augmix-m3-w3", re_prob=0.5).train

    def collect(**options: Any) -> torch.Tensor:
        loader = train.loader(4, **{"epoch": 0, "seed": 0, "shuffle": False, "workers": 0} | options, augment="timm")
        return torch.cat([images for images, _ in loader])

    first, before = collect(), [random.random(), np.random.rand(), float(torch.rand(1))]
    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(5)
    expected = [random.random(), np.random.rand(), float(torch.rand(1))]
    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(5)
    assert torch.equal(collect(), first)
    assert [random.random(), np.random.rand(), float(torch.rand(1))] == expected != before
    assert not torch.equal(collect(epoch=1), first)
    assert not torch.equal(collect(seed=1), first)
    shards = [collect(shard=rank, num_shards=2) for rank in range(2)]
    assert torch.equal(torch.stack(shards, dim=1).flatten(0, 1), first)


def operations(transform: Any) -> list[AugmentOp]:
    """All operations of a policy."""
    steps = [step for step in transform.transforms if hasattr(step, "ops") or hasattr(step, "policy")]
    return [each for step in steps for group in getattr(step, "policy", [getattr(step, "ops", [])]) for each in group]


@pytest.mark.parametrize(
    ("policy", "name", "level"),
    [
        ("rand-m9-mstd0.5-inc1", "PosterizeIncreasing", 10),
        ("augmix-m3-w3", "PosterizeIncreasing", 10),
        ("v0", "Posterize", 2),
        ("original", "PosterizeOriginal", 0),
    ],
)
def test_posterize_keeps_a_bit(policy: str, name: str, level: float) -> None:
    found = operations(training_transform(TransformConfig(auto_augment=policy), COLOR))
    posterizing, image = [each for each in found if each.name == name], paint(0, (40, 40))
    assert posterizing
    for operation in posterizing:
        operation.prob, operation.magnitude, operation.magnitude_std = 1.0, level, 0.0
        kept = 4 if name == "PosterizeOriginal" else 1
        assert np.unique(np.asarray(operation(image))).tolist() == list(range(0, 256, 2 ** (8 - kept)))
    plain = AugmentOp(name, prob=1.0, magnitude=level)
    try:
        changes = not np.array_equal(np.asarray(plain(image)), np.asarray(posterizing[0](image)))
    except ValueError:  # Pillow 13
        changes = True
    assert changes == (name != "PosterizeOriginal")  # or else nothing has to be guarded
    assert all(each.aug_fn is AugmentOp(each.name).aug_fn for each in found if "Posterize" not in each.name)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ({"auto_augment": "rand-q9"}, r"data\.transform: timm refuses it: Unknown RandAugment config section"),
        ({"color_jitter": [0.1, 0.1, 0.1, 0.9]}, r"data\.transform: timm refuses it: hue values"),
        ({"auto_augment": "random"}, r"configuration transform\.auto_augment: String should match"),
        ({"auto_augment": "augmix-w99999"}, r"configuration transform\.auto_augment: String should match"),
        ({"scale": (1.0, 0.5)}, r"configuration transform\.scale: expected the lower value first, got 1.0 and 0.5"),
        ({"scale": (0.0, 0.5)}, r"configuration transform\.scale\.0: Input should be greater than"),
        ({"mixup": 0.2}, r"configuration transform\.mixup: no such setting"),
    ],
)
def test_what_timm_does_not_know_is_refused(transform: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(UsageError, match=message):
        load(folder, **transform)


def test_the_transform_is_recorded_where_it_is_used() -> None:
    assert DataConfig().transform is None
    assert DataConfig(augment="timm").transform == TransformConfig()
    plain, used = DataConfig(augment="flip"), DataConfig(augment="timm", transform={"re_prob": 0.25})
    assert transform_key(plain, "flip", None) == transform_key(used, "none") == {}
    key = transform_key(used, None, "timm")["transform"]
    assert key["re_prob"] == 0.25
    assert key["versions"].keys() == {"pillow", "timm", "torchvision"}
    assert key["versions"]["pillow"] == Image.__version__
    assert transform_key(plain, "timm")["transform"]["re_prob"] == 0


def test_images_for_statistics_are_transformed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load(folder, re_prob=0.5)
    draw = partial(data.train.images, 4, limit=8, seed=3, augment="timm")
    first = list(draw())
    loader = data.train.loader(12, epoch=0, seed=3, augment="timm", shuffle=False, workers=0)
    [(everything, _)] = loader
    assert torch.equal(torch.cat(first), everything[data.train.sample_indices(8, 3)])
    monkeypatch.setattr("starzoo.data.loader.read_keyed", None)
    assert all(torch.equal(one, other) for one, other in zip(first, draw(), strict=True))
    monkeypatch.undo()
    assert not torch.equal(first[0], next(data.train.images(4, limit=8, seed=4, augment="timm")))
