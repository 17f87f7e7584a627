"""Images: what is found, what is refused, and what order, subset and augmentation depend on."""

from __future__ import annotations

import errno
import itertools
import re
import shutil
import unicodedata
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import torch
from datasets.exceptions import DatasetGenerationError
from huggingface_hub.errors import HfHubHTTPError, Response
from huggingface_hub.utils import get_session
from PIL import Image, ImageOps
from timm.data import create_transform
from torch import Tensor

from starzoo.config import DataConfig
from starzoo.data.augmentation import flip_and_crop
from starzoo.data.decoding import _resized, decode, image_loader
from starzoo.data.hub_datasets import _explain
from starzoo.data.image_files import read_images
from starzoo.data.preprocessing import Preprocessing
from starzoo.data.records import ImageFile, RawSplit, open_data
from starzoo.data.split import Split
from starzoo.data.task import load_data, load_unlabeled
from starzoo.errors import (
    HubError,
    IncompatibleError,
    ResourceError,
    StarzooError,
    UntrustedInputError,
    UsageError,
)
from starzoo.hub.error_mapping import HubUnavailableError
from tests.data.pictures import paint

GRAY = Preprocessing(input_size=(1, 8, 8), mean=(0.3,), std=(0.35,))
COLOR = Preprocessing(input_size=(3, 8, 8), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
CLASSES = ("c1", "c2", "c10")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two splits of a folder of image files: three classes, four and two images of each."""
    for split, count in (("train", 4), ("test", 2)):
        for number, name in enumerate(CLASSES):
            place = tmp_path / "photos" / split / name
            place.mkdir(parents=True)
            for index in range(count):
                paint(100 * number + index + 50 * (split == "test")).save(place / f"{index}.png")
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def digits() -> Split:
    return load_data(DataConfig(), GRAY).train


# Reading


def test_digits_are_split_by_class_and_always_the_same() -> None:
    first, second = load_data(DataConfig(), GRAY), load_data(DataConfig(), GRAY, seed=5)
    assert (len(first.train), len(first.test)) == (1437, 360)
    assert first.class_names == tuple("0123456789")
    assert first.test.labels.bincount().tolist() == [36] * 10
    assert first.fingerprint == second.fingerprint
    images, _ = first.train.tensors()
    tests, _ = first.test.tensors()
    assert images.shape == (1437, 1, 8, 8)
    distinct = {image.numpy().tobytes() for image in torch.cat([images, tests])}
    assert len(distinct) > 1780  # nearly all: no image is in both splits by mistake
    assert 0.29 < float(first.train.pixels[torch.arange(1437)].double().mean() / 255) < 0.32


def test_image_folder_finds_columns_and_converts_channels(folder: Path) -> None:
    data = load_data(DataConfig(dataset=str(folder)), COLOR)
    assert data.class_names == ("c1", "c10", "c2")  # the order of `datasets`, which T04 is about
    assert data.train.labels.bincount().tolist() == [4, 4, 4]
    images, labels = data.test.tensors()
    expected = torch.from_numpy(np.array(Image.open(folder / "test" / "c10" / "0.png")))
    pixels = data.test.pixels[(labels == 1).nonzero()[:1, 0]][0]
    assert torch.equal(pixels, expected)
    gray = load_data(DataConfig(dataset=str(folder)), GRAY).test.tensors()[0]
    assert (images.shape[1], gray.shape[1]) == (3, 1)


def test_parquet_folder_reads_like_image_folder(folder: Path, tmp_path: Path) -> None:
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=list(CLASSES))})
    (tmp_path / "parquet").mkdir()
    for split in ("train", "test"):
        files = sorted((folder / split).glob("*/*.png"))
        table = {
            "picture": [{"bytes": file.read_bytes(), "path": None} for file in files],
            "kind": [CLASSES.index(file.parent.name) for file in files],
        }
        rows = datasets.Dataset.from_dict(table, features=features)
        rows.to_parquet(tmp_path / "parquet" / f"{split}-00000-of-00001.parquet")
    here = load_data(DataConfig(dataset=str(tmp_path / "parquet")), COLOR, class_names=CLASSES)
    there = load_data(DataConfig(dataset=str(folder)), COLOR)
    assert torch.equal(here.train.tensors()[0], there.train.tensors()[0])
    assert here.train.labels.tolist() == [0] * 4 + [2] * 4 + [1] * 4


def test_subset_is_balanced_seeded_and_part_of_the_fingerprint() -> None:
    config = DataConfig(train_size=205, test_size=20)
    first, again, other = (open_data(config, seed=seed) for seed in (0, 0, 1))
    counts = np.bincount(first.train.labels)
    assert counts.sum() == 205
    assert set(counts) == {20, 21}
    assert np.bincount(first.test.labels).tolist() == [2] * 10
    assert first.fingerprint == again.fingerprint
    assert len({first.fingerprint, other.fingerprint, open_data(DataConfig()).fingerprint}) == 3


def test_validation_images_are_those_that_a_subset_leaves() -> None:
    assert load_data(DataConfig(), GRAY).validation is None  # all were trained on
    part = open_data(DataConfig(train_size=1400))
    whole, rest = open_data(DataConfig()).train, part.validation
    assert rest is not None
    assert len(rest) == len(whole) - 1400 == 37
    assert sorted([*part.train.numbers, *rest.numbers]) == list(range(len(whole)))
    assert [file.content for file in rest.files([0, 36])] == [
        file.content for file in whole.files(rest.numbers[[0, 36]].tolist())
    ]
    assert np.array_equal(rest.labels, whole.labels[rest.numbers])
    split = load_data(DataConfig(train_size=1400), GRAY).validation
    assert split is not None
    assert split.tensors()[0].shape == (37, 1, 8, 8)


def test_k13_fingerprint_notices_one_changed_image(folder: Path) -> None:
    config = DataConfig(dataset=str(folder))
    before = open_data(config).fingerprint
    assert open_data(config).fingerprint == before
    paint(999).save(folder / "train" / "c1" / "0.png")
    assert open_data(config).fingerprint != before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_split": "extra"}, r"photos: Unknown split \"extra\"\. Should be one of \['test', 'train'\]"),
        ({"name": "large"}, r"photos: BuilderConfig 'large' not found"),
        (
            {"image_column": "pixels"},
            r"expected a column 'pixels' of images, got image \(Image\), label \(ClassLabel\)",
        ),
        ({"label_column": "image"}, r"expected a column 'image' of labels, got image \(Image\)"),
        ({"test_split": "train"}, "both the training and the test split"),
        ({"train_size": 13}, "split 'train': 13 images asked for, 12 there"),
    ],
)
def test_wrong_part_of_a_data_set_is_a_usage_error(folder: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load_data(DataConfig(dataset=str(folder), **changes), COLOR)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dataset", ["no such folder", "./photo", "json", "imagefolder", "hf://datasets/a/b"])
def test_unknown_data_set_is_refused_without_the_network(dataset: str) -> None:
    with pytest.raises(UsageError, match=f"{re.escape(dataset)}: no such folder, and no data set id"):
        load_data(DataConfig(dataset=dataset), COLOR)


def test_columns_of_the_wrong_type_are_listed(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("text,stars\ngood,5\n")
    with pytest.raises(
        UsageError, match=r"expected one column of images, got text \((large_)?string\), stars \(int64\)"
    ):
        load_data(DataConfig(dataset=str(tmp_path)), COLOR)


def test_missing_labels_are_refused(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    for split, label in (("train", 0), ("test", -1)):
        rows = datasets.Dataset.from_dict({"image": [paint(0), paint(1)], "label": [1, label]}, features=features)
        rows.to_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(UsageError, match="split 'test': 1 image without a label"):
        load_data(DataConfig(dataset=str(tmp_path)), COLOR)


def test_labels_beyond_the_class_names_are_refused(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    for split in ("train", "test"):
        rows = datasets.Dataset.from_dict({"image": [paint(0), paint(1)], "label": [0, 1]}, features=features)
        table = rows.data.table.set_column(1, "label", [pyarrow.array([0, 5])])
        table = table.replace_schema_metadata(rows.data.table.schema.metadata)
        pyarrow.parquet.write_table(table, tmp_path / f"{split}.parquet")
    with pytest.raises(UntrustedInputError, match="has the label 5, but only 2 class names"):
        load_data(DataConfig(dataset=str(tmp_path)), COLOR)


@pytest.mark.parametrize(
    ("train", "test"), [("train", "train[50%:]"), ("train+test", "test"), ("train[:9]+test", "train+test[5:]")]
)
def test_splits_that_share_images_are_refused(folder: Path, train: str, test: str) -> None:
    config = DataConfig(dataset=str(folder), train_split=train, test_split=test)
    with pytest.raises(UsageError, match="share images"):
        load_data(config, COLOR)
    parts = config.model_copy(update={"train_split": "train[:50%]", "test_split": "train[50%:]"})
    assert len(load_data(parts, COLOR).train) == 6


def test_a_broken_archive_is_untrusted_input(folder: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        archive = shutil.make_archive(str(tmp_path / "zipped" / split), "zip", folder / split)
        content = Path(archive).read_bytes()
        Path(archive).write_bytes(content[: len(content) // 2])
    with pytest.raises(UntrustedInputError, match="cannot be read") as caught:
        load_data(DataConfig(dataset=str(tmp_path / "zipped")), COLOR)
    assert caught.value.exit_code == 3


def test_unlabeled_images_of_one_split(tmp_path: Path) -> None:
    for number in range(5):
        paint(number).save(tmp_path / f"{number}.png")
    config = DataConfig(dataset=str(tmp_path), test_split="train")
    images = load_unlabeled(config, COLOR)
    assert (images.labels.tolist(), images.pixels.shape) == ([0] * 5, (5, 8, 8, 3))
    some = load_unlabeled(config.model_copy(update={"test_size": 3}), COLOR)
    assert len(some) == 3
    with pytest.raises(UsageError, match=r"expected one column of labels, got image \(Image\) "):
        load_data(config.model_copy(update={"train_split": "train[:3]", "test_split": "train[3:]"}), COLOR)
    with pytest.raises(UsageError, match='Unknown split "test"'):
        load_unlabeled(DataConfig(dataset=str(tmp_path)), COLOR)
    with pytest.raises(UsageError, match="split 'train': 6 images asked for, 5 there"):
        load_unlabeled(config.model_copy(update={"test_size": 6}), COLOR)


def test_damaged_table_is_untrusted_input(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.parquet").write_bytes(b"nothing")
    with pytest.raises(UntrustedInputError, match="cannot be read: Parquet") as caught:
        load_data(DataConfig(dataset=str(tmp_path)), COLOR)
    assert caught.value.exit_code == 3


def test_unreachable_hub_is_a_hub_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="someone/pictures: ") as caught:
        load_data(DataConfig(dataset="someone/pictures"), COLOR)
    assert caught.value.exit_code == 4


def answered(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    request = get_session().build_request("GET", "http://127.0.0.1")
    return kind(f"{status} from the server", response=Response(status, request=request))


def chained(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def hiding(error: Exception, reason: Exception) -> Exception:
    error.__context__, error.__suppress_context__ = reason, True
    return error


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (ValueError("'a' is not there\nMore"), UsageError, "a/b: 'a' is not there .check"),
        (answered(HfHubHTTPError, 503), HubUnavailableError, "a/b: the Hub answered HTTP 503"),
        (
            hiding(FileNotFoundError(""), answered(HfHubHTTPError, 503)),
            HubUnavailableError,
            "a/b: the Hub answered HTTP 503",
        ),
        (chained(DatasetGenerationError(""), OSError(errno.ENOSPC, "")), ResourceError, "a/b: the disk is full"),
    ],
)
def test_what_datasets_says_becomes_one_line(error: Exception, expected: type[StarzooError], message: str) -> None:
    explained = _explain("a/b", error)
    assert type(explained) is expected
    assert re.match(message, str(explained))
    assert "\n" not in str(explained)


# Rows of FAULTS.md


def test_t04_classes_are_counted_where_names_are_not_known(folder: Path) -> None:
    config = DataConfig(dataset=str(folder))
    with pytest.raises(IncompatibleError, match="expected the 4 classes of the models, got 3") as caught:
        load_data(config, COLOR, num_classes=4)
    assert caught.value.exit_code == 5
    found = load_data(config, COLOR, num_classes=3)
    assert found.class_names == ("c1", "c10", "c2")
    assert found.class_orders == [("c1", "c10", "c2"), CLASSES]  # and as timm sorts class folders


def test_t04_class_names_are_matched_by_name(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = DataConfig(dataset=str(folder), train_size=9)
    stored = load_data(config, COLOR)
    found = load_data(config, COLOR, class_names=CLASSES)
    for here, there in ((found.train, stored.train), (found.test, stored.test), (found.validation, stored.validation)):
        assert [CLASSES[label] for label in here.labels] == [stored.class_names[label] for label in there.labels]
        assert torch.equal(here.tensors()[0], there.tensors()[0])
    assert (found.class_names, found.label_names, stored.label_names) == (CLASSES, ("c1", "c10", "c2"), None)
    assert found.fingerprint == stored.fingerprint
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder}: its classes are in another order than those of the models, and matched by name"
    ]
    assert load_data(config, COLOR, class_names=["c1", "c10", "c2"]).label_names is None
    for names, message in (
        (CLASSES[:2], r"0 missing, 1 unknown \(c10\)"),
        ((*CLASSES, "c11"), r"1 missing \(c11\), 0 unknown"),
        (
            ("c1", "c2", "C10"),
            r"photos: expected the classes of the models, got others: 1 missing \(C10\), 1 unknown \(c10\)",
        ),
    ):
        with pytest.raises(IncompatibleError, match=message) as caught:
            load_data(config, COLOR, class_names=names)
        assert caught.value.exit_code == 5


def test_t04_class_folders_of_a_mac_have_the_names_of_the_models(tmp_path: Path) -> None:
    names = ("apple", "café")
    for split, name, number in itertools.product(("train", "test"), names, range(2)):
        place = tmp_path / split / unicodedata.normalize("NFD" if split == "train" else "NFC", name)
        place.mkdir(parents=True, exist_ok=True)
        paint().save(place / f"{number}.png")
    data = load_data(DataConfig(dataset=str(tmp_path)), COLOR, class_names=names, num_classes=2)
    assert (data.class_names, data.label_names) == (names, None)
    assert data.class_orders == [names]
    assert data.train.labels.tolist() == data.test.labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda _: b"no image", lambda _: b""])
def test_t07_broken_image_is_named_and_never_replaced(folder: Path, damage) -> None:
    victim = folder / "test" / "c10" / "1.png"
    victim.write_bytes(damage(victim.read_bytes()))
    data = load_data(DataConfig(dataset=str(folder)), COLOR)
    data.train.tensors()
    with pytest.raises(UntrustedInputError, match=r"image 3 of split 'test' \(1\.png\): cannot be read") as caught:
        list(data.test.images(2))
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


def test_broken_image_of_a_subset_has_its_number_in_the_whole_split(folder: Path) -> None:
    config = DataConfig(dataset=str(folder), train_size=3)
    chosen = open_data(config).train.numbers
    for number in chosen[1:]:
        (folder / "train" / ("c1", "c10", "c2")[number // 4] / f"{number % 4}.png").write_bytes(b"")
    with pytest.raises(UntrustedInputError, match=rf"image {chosen[1]} of split 'train' \({chosen[1] % 4}\.png\)"):
        load_data(config, COLOR).train.tensors()


def test_t08_decompression_bomb_is_one_line(folder: Path) -> None:
    Image.new("1", (100_000, 2_000)).save(folder / "train" / "c1" / "0.png")
    data = load_data(DataConfig(dataset=str(folder)), COLOR)
    with pytest.raises(
        UntrustedInputError, match=r"image 0 of split 'train' \(0\.png\): .*decompression bomb"
    ) as caught:
        data.train.tensors()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("size", "pixels"), [((1, 60_000), "256 × 15360000"), ((60_000, 1), "15360000 × 256"), ((1, 2), None)]
)
def test_t08_an_image_that_resizing_would_blow_up(size: tuple[int, int], pixels: str | None) -> None:
    """Pillow takes the few bytes of a very long and narrow one; its short side would become 256 pixels long."""
    content = BytesIO()
    Image.new("1", size).save(content, format="PNG")
    read = image_loader(Preprocessing(input_size=(3, 224, 224), crop_pct=0.875), "data")
    file = ImageFile("here", content.getvalue())
    if pixels is None:
        assert read(file).shape == (224, 224, 3)
        return
    with pytest.raises(UntrustedInputError, match=f"here: cannot be read: .* would be resized to {pixels}") as caught:
        read(file)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("crop_mode", ["center", "border", "squash"])
def test_the_size_after_resizing_is_known_before(crop_mode: str) -> None:
    preprocessing = Preprocessing(input_size=(3, 20, 30), crop_pct=0.5, crop_mode=crop_mode)
    transform = create_transform(
        input_size=preprocessing.input_size, crop_pct=0.5, crop_mode=crop_mode, interpolation="bicubic"
    )
    for size in ((50, 100), (300, 20), (7, 7)):
        expected = transform.transforms[0](Image.new("RGB", size)).size
        assert np.abs(np.subtract(_resized(size, preprocessing), expected)).max() <= 1


def test_t07_a_mode_that_cannot_be_converted_is_refused_like_a_broken_image() -> None:
    content = BytesIO()
    Image.new("LAB", (8, 8)).save(content, format="TIFF")
    with pytest.raises(UntrustedInputError, match=r"here: cannot be read: conversion from LAB to .* not supported"):
        image_loader(GRAY, "data")(ImageFile("here", content.getvalue()))


def test_c17_loading_script_is_never_run(tmp_path: Path) -> None:
    place = tmp_path / "scripted"
    place.mkdir()
    (place / "scripted.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w').close()\n")
    with pytest.raises(
        UntrustedInputError, match="scripted: comes with a loading script, which is never run"
    ) as caught:
        load_data(DataConfig(dataset=str(place)), COLOR)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "canary").exists()


def test_only_plain_eight_bit_pictures_are_decoded() -> None:
    deep = BytesIO()
    Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(deep, format="PNG")
    with pytest.raises(UntrustedInputError, match=r"here: has more than 8 bits per channel \(mode I;16\)"):
        decode(ImageFile("here", deep.getvalue()))
    postscript = BytesIO()
    paint(0).save(postscript, format="EPS")
    with pytest.raises(UntrustedInputError, match="expected an image in a format that Pillow decodes"):
        decode(ImageFile("here", postscript.getvalue()))


def test_decoded_image_is_upright() -> None:
    lying, file = paint(3, (6, 4)), BytesIO()
    exif = Image.Exif()
    exif[Image.ExifTags.Base.Orientation] = 6
    lying.save(file, format="PNG", exif=exif)
    assert decode(ImageFile("here", file.getvalue())).size == (4, 6)
    for turn in range(1, 9):
        exif[Image.ExifTags.Base.Orientation] = turn
        file = BytesIO()
        lying.save(file, format="PNG", exif=exif)
        expected = ImageOps.exif_transpose(Image.open(file))
        assert decode(ImageFile("here", file.getvalue())).tobytes() == expected.tobytes()


def test_what_else_a_camera_wrote_does_not_matter() -> None:
    content = BytesIO()
    exif = Image.Exif()
    exif[Image.ExifTags.Base.Orientation] = 6
    exif[Image.ExifTags.Base.XResolution] = 72.0
    paint(3, (6, 4)).save(content, format="JPEG", exif=exif)
    place = content.getvalue().find(b"\x01\x1a\x00\x05")  # the resolution, said to be the name of the maker
    assert place > 0
    odd = content.getvalue().replace(b"\x01\x1a\x00\x05", b"\x01\x0f\x00\x05", 1)
    with pytest.raises((AttributeError, TypeError)):
        ImageOps.exif_transpose(Image.open(BytesIO(odd)))
    assert decode(ImageFile("here", odd)).size == (4, 6)


# What a model sees


@pytest.mark.parametrize(
    "preprocessing",
    [
        COLOR,
        Preprocessing(input_size=(3, 16, 16), interpolation="bilinear", crop_pct=0.8),
        Preprocessing(input_size=(3, 8, 12), crop_pct=0.9, crop_mode="border"),
        Preprocessing(input_size=(3, 10, 10), crop_pct=1.0, crop_mode="squash"),
    ],
)
def test_images_are_those_of_timm_bit_for_bit(tmp_path: Path, preprocessing: Preprocessing) -> None:
    for split in ("train", "test"):
        for name in ("one", "two"):
            (tmp_path / split / name).mkdir(parents=True)
        paint(9).save(tmp_path / split / "two" / "0.png")
        for index in range(5):
            paint(index, (14 + index, 20)).save(tmp_path / split / "one" / f"{index}.png")
    images, _ = load_data(DataConfig(dataset=str(tmp_path)), preprocessing).test.tensors()
    transform = create_transform(**preprocessing.model_dump())
    expected = [transform(Image.open(tmp_path / "test" / "one" / f"{index}.png")) for index in range(5)]
    assert torch.equal(images[:5], torch.stack(expected))


def test_named_files_are_read_as_those_of_a_data_set(folder: Path) -> None:
    data, files = load_data(DataConfig(dataset=str(folder)), COLOR), sorted((folder / "test").glob("*/*.png"))
    images, _ = data.test.tensors()
    assert torch.equal(read_images(files, COLOR), images)
    assert torch.equal(read_images([str(files[1])], COLOR), images[1:2])


def test_files_that_are_no_images_are_named(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.png: no such file"):
        read_images([folder / "nowhere.png"], COLOR)
    with pytest.raises(UsageError, match=r"test: no such file \(name image files, not folders"):
        read_images([folder / "test"], COLOR)
    with pytest.raises(UsageError, match="no image is given"):
        read_images([], COLOR)
    (folder / "text.png").write_text("no image")
    with pytest.raises(UntrustedInputError, match=r"text\.png: cannot be read: expected an image in a format that"):
        read_images([folder / "text.png"], COLOR)


def test_images_come_in_order_and_a_limit_draws_some(digits: Split) -> None:
    everything, _ = digits.tensors()
    assert torch.equal(torch.cat(list(digits.images(100))), everything)
    some, again, others = (torch.cat(list(digits.images(30, limit=70, seed=seed))) for seed in (0, 0, 1))
    assert some.shape[0] == 70
    assert torch.equal(some, again)
    assert not torch.equal(some, others)
    assert torch.equal(torch.cat(list(digits.images(500, limit=5000))), everything)
    assert [len(batch) for batch in digits.images(64, limit=129)] == [43, 43, 43]  # none counts for less


def test_large_splits_are_decoded_each_time_where_no_file_can_be_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DataConfig(dataset=str(folder))
    before, _ = load_data(config, COLOR).train.tensors()
    monkeypatch.setattr("starzoo.data.decoding._MEMORY_BYTES", 0)
    monkeypatch.setattr("starzoo.data.decoding._MOST_MEMORY_BYTES", 0)
    monkeypatch.setenv("HF_ASSETS_CACHE", str(folder / "train" / "c1" / "0.png"))  # no folder can be made there
    fresh = load_data(config, COLOR).train
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(fresh.tensors()[0], before)
    finally:
        torch.set_num_threads(threads)
    paint(77).save(folder / "train" / "c1" / "0.png")
    assert not torch.equal(fresh.tensors()[0], before)


# Epochs


def collect(split: Split, **options) -> tuple[Tensor, Tensor]:
    batches = list(split.loader(64, **{"epoch": 0, "seed": 0} | options))
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def test_epoch_is_a_permutation_keyed_by_seed_and_epoch(digits: Split) -> None:
    images, labels = collect(digits, drop_last=False)
    assert len(labels) == len(digits)
    assert labels.bincount().tolist() == digits.labels.bincount().tolist()
    torch.manual_seed(1)
    np.random.seed(1)
    again = collect(digits, drop_last=False)
    assert torch.equal(images, again[0])
    assert torch.equal(labels, again[1])
    for other in ({"epoch": 1}, {"seed": 1}):
        assert not torch.equal(labels, collect(digits, drop_last=False, **other)[1])
    state = torch.random.get_rng_state()
    collect(digits, augment="crop-flip")
    assert torch.equal(state, torch.random.get_rng_state())


def test_incomplete_batch_is_dropped_or_kept(digits: Split) -> None:
    loader = digits.loader(100, epoch=0, seed=0)
    assert [len(labels) for _, labels in loader] == [100] * 14
    assert len(loader) == 14
    assert [len(labels) for _, labels in digits.loader(1000, epoch=0, seed=0, drop_last=False)] == [1000, 437]
    unshuffled = torch.cat([y for _, y in digits.loader(100, epoch=3, seed=0, shuffle=False, drop_last=False)])
    assert torch.equal(unshuffled, digits.labels)


def test_augmentation_depends_on_seed_epoch_and_image_alone(digits: Split) -> None:
    """The same image is augmented the same way whatever batch, order or rank it comes in."""
    ordered, labels = collect(digits, augment="crop-flip", shuffle=False, drop_last=False)
    by_rank = [collect(digits, augment="crop-flip", shard=rank, num_shards=4) for rank in range(4)]
    shuffled = torch.cat([images for images, _ in by_rank])
    everything = {image.numpy().tobytes() for image in ordered}
    assert all(image.numpy().tobytes() in everything for image in shuffled)
    plain, _ = digits.tensors()
    changed = (ordered != plain).flatten(1).any(1).double().mean()
    assert changed > 0.85  # of 18 equally likely outcomes one is the image itself
    assert not torch.equal(ordered, collect(digits, augment="crop-flip", shuffle=False, drop_last=False, epoch=1)[0])
    assert torch.equal(labels, digits.labels)


def test_alternating_flips_show_every_image_both_ways(digits: Split) -> None:
    draws = [digits.loader(100, epoch=e, seed=1, augment="crop-alternating-flip").draws for e in range(4)]
    flips = [draw[:, 0] < 0.5 for draw in draws]
    assert 0.4 < flips[0].double().mean() < 0.6
    assert torch.equal(flips[1], ~flips[0])
    assert [torch.equal(flips[epoch], flips[epoch % 2]) for epoch in range(4)] == [True] * 4
    for epoch, draw in enumerate(draws):  # crops are those of crop-flip, and so is the first epoch
        same = digits.loader(100, epoch=epoch, seed=1, augment="crop-flip").draws
        assert torch.equal(draw[:, 1:], same[:, 1:])
        assert torch.equal(draw, same) is (epoch == 0)
    first, _ = collect(digits, augment="crop-alternating-flip", shuffle=False, drop_last=False)
    assert torch.equal(first, collect(digits, augment="crop-flip", shuffle=False, drop_last=False)[0])


def test_augmentation_matches_a_loop_over_images() -> None:
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (40, 16, 24, 3), dtype=np.uint8))
    draws = torch.from_numpy(rng.random((40, 3), dtype=np.float32))
    for image, draw, result in zip(pixels, draws, flip_and_crop(pixels, draws, crop=True), strict=True):
        expected = np.pad(image.numpy(), ((2, 2), (3, 3), (0, 0)))
        top, left = int(draw[1] * 5), int(draw[2] * 7)
        expected = expected[top : top + 16, left : left + 24]
        assert np.array_equal(result.numpy(), expected[:, ::-1] if draw[0] < 0.5 else expected)
    flipped = flip_and_crop(pixels, draws, crop=False)
    for image, draw, result in zip(pixels, draws, flipped, strict=True):
        assert torch.equal(result, image.flip(1) if draw[0] < 0.5 else image)


def test_ranks_share_every_batch(digits: Split) -> None:
    whole = list(digits.loader(64, epoch=2, seed=3))
    shares = [list(digits.loader(64, epoch=2, seed=3, shard=rank, num_shards=2)) for rank in range(2)]
    for (images, labels), *parts in zip(whole, *shares, strict=True):
        assert [len(y) for _, y in parts] == [32, 32]
        together = torch.stack([y for _, y in parts], dim=1).flatten()
        assert torch.equal(together, labels)
        assert torch.equal(parts[0][0], images[0::2])
    with pytest.raises(UsageError, match="batch_size: expected a multiple of 2 processes or draws, got 63"):
        digits.loader(63, epoch=0, seed=0, num_shards=2)
    with pytest.raises(UsageError, match="a batch of 2000 images is more than the 1437"):
        digits.loader(2000, epoch=0, seed=0)


def test_models_with_other_channels_are_refused() -> None:
    with pytest.raises(UsageError, match="digits: images are gray or RGB, but the model takes 4 channels"):
        load_data(DataConfig(), Preprocessing(input_size=(4, 8, 8), mean=(0.0,) * 4, std=(1.0,) * 4))


@pytest.mark.parametrize(
    ("cell", "message"),
    [(None, ": is missing"), ({"bytes": None, "path": "/dev/zero"}, r" \(zero\): expected the image itself")],
)
def test_rows_without_an_image_file_are_named(cell: dict[str, str] | None, message: str) -> None:
    features = datasets.Features({"image": datasets.Image(decode=False)})
    rows = datasets.Dataset.from_dict({"image": [cell]}, features=features)
    records = RawSplit(
        dataset="d",
        name="test",
        rows=rows,
        image_column="image",
        labels=np.zeros(1, dtype=np.int64),
        numbers=np.arange(1),
    )
    with pytest.raises(UntrustedInputError, match=f"d: image 0 of split 'test'{message}"):
        Split(records, COLOR).tensors()
