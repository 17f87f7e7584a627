"""Folders of class folders: whatever the classes are called, and however the splits."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import datasets
import numpy as np
import pytest

from starzoo.config import DataConfig
from starzoo.data.folders import find_split, scan_folder, spread_classes
from starzoo.data.records import RawSplit, RawTask, open_data
from starzoo.data.task import load_unlabeled
from starzoo.errors import UntrustedInputError, UsageError
from tests.data.pictures import paint, png, write_pictures
from tests.data.test_data import COLOR


def opened(folder: Path, **choice: object) -> RawTask:
    return open_data(DataConfig.model_validate({"dataset": str(folder), **choice}))


def names_of(records: RawSplit, names: tuple[str, ...]) -> list[str]:
    return [names[label] for label in records.labels]


def contents_of(records: RawSplit) -> list[bytes]:
    return [file.content for file in records.files(range(len(records)))]


def splits(*classes: str, of: tuple[str, ...] = ("train", "test")) -> list[str]:
    return [f"{split}/{name}" for split, name in product(of, classes)]


# Classes that are called like a split


@pytest.mark.parametrize(
    "classes",
    [
        ("bus", "train"),
        ("beaker", "test_tube"),
        ("bus", "bullet train"),
        ("eval", "val"),
        ("train", "test"),
        ("dev", "x"),
    ],
)
def test_classes_called_like_a_split(tmp_path: Path, classes: tuple[str, ...]) -> None:
    data = opened(write_pictures(tmp_path, splits(*classes), each=4))
    assert data.class_names == tuple(sorted(classes))
    for split, records in (("train", data.train), ("test", data.test)):
        files = [tmp_path / split / name / f"{number:03}.png" for name in sorted(classes) for number in range(4)]
        assert contents_of(records) == [file.read_bytes() for file in files]
        assert names_of(records, data.class_names) == [file.parent.name for file in files]


@pytest.mark.parametrize(
    "classes", [("bus", "train"), ("beaker", "test_tube"), ("test", "bus", "val"), ("validation", "a")]
)
def test_classes_called_like_a_split_in_a_folder_without_splits(tmp_path: Path, classes: tuple[str, ...]) -> None:
    write_pictures(tmp_path / "photos", classes, each=10)
    data = opened(tmp_path / "photos", train_split="train[:80%]", test_split="train[80%:]")
    assert data.class_names == tuple(sorted(classes))
    assert np.bincount(data.train.labels).tolist() == [8] * len(classes)
    assert np.bincount(data.test.labels).tolist() == [2] * len(classes)
    assert len({*contents_of(data.train), *contents_of(data.test)}) == 10 * len(classes)


def test_other_files_beside_the_images_do_not_matter(tmp_path: Path) -> None:
    write_pictures(tmp_path, splits("bus", "train"))
    expected = opened(tmp_path).fingerprint
    for name in (
        "README.md",
        "classes.txt",
        "train.csv",
        "labels.json",
        "train/train/boxes.txt",
        "images.zip",
        ".DS_Store",
    ):
        (tmp_path / name).write_text("# Photos\n")
    write_pictures(tmp_path, ["__MACOSX/train", ".cache/train", "train/bus/.hidden"])
    assert opened(tmp_path).fingerprint == expected


def test_a_folder_in_a_folder(tmp_path: Path) -> None:
    write_pictures(tmp_path, [f"ILSVRC/Data/{folder}" for folder in splits("bus", "train")])
    assert opened(tmp_path).class_names == ("bus", "train")
    write_pictures(tmp_path / "nested", splits("vehicle/bus", "vehicle/train", "animal/cat"))
    assert opened(tmp_path / "nested").class_names == ("bus", "cat", "train")


def test_the_same_rows_as_datasets_where_no_class_is_called_like_a_split(tmp_path: Path) -> None:
    write_pictures(
        tmp_path, {f"{split}/{name}": 12 for split in ("train", "test") for name in ("c1", "c10", "b b", "C")}
    )
    data = opened(tmp_path)
    plain = datasets.load_dataset(str(tmp_path))
    for split, records in (("train", data.train), ("test", data.test)):
        rows = plain[split].cast_column("image", datasets.Image(decode=False))
        assert rows.features["label"].names == list(data.class_names)
        assert records.labels.tolist() == rows["label"]
        assert [row["path"] for row in records.rows["image"]] == [row["path"] for row in rows["image"]]


def test_one_class_in_one_of_the_splits_keeps_its_label(tmp_path: Path) -> None:
    """`datasets` reads no labels here, if this split comes first."""
    data = opened(write_pictures(tmp_path, ["train/cat", "test/cat"]))
    assert (data.class_names, data.train.labels.tolist()) == (("cat",), [0, 0, 0])


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("metadata.csv", ["file_name,label", "bus/000.png,red", "train/000.png,blue"]),
        (
            "metadata.jsonl",
            [f'{{"file_name": "bus/00{n}.png", "label": "{c}"}}' for n, c in enumerate(("red", "blue"))],
        ),
    ],
)
def test_a_description_counts_more_than_the_folders(tmp_path: Path, name: str, lines: list[str]) -> None:
    write_pictures(tmp_path, splits("bus", "train"))
    for split in ("train", "test"):
        (tmp_path / split / name).write_text("\n".join(lines) + "\n")
    assert opened(tmp_path).class_names == ("blue", "red")


def test_a_readme_with_configurations_counts_more_than_the_folders(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["one/cat", "one/dog", "two/cat", "two/dog"])
    paths = [{"split": "train", "path": "two/**"}, {"split": "test", "path": "one/**"}]
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {paths}\n---\n")
    assert contents_of(opened(tmp_path).train)[0] == (tmp_path / "two/cat/000.png").read_bytes()
    (tmp_path / "README.md").write_text("---\nconfigs: [\n---\n")
    with pytest.raises(UntrustedInputError, match="cannot be read"):
        opened(tmp_path)


def test_c17_a_loading_script_beside_images_is_never_run(tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos", splits("cat", "dog"))
    (tmp_path / "photos" / "photos.py").write_text("raise SystemExit(99)")
    with pytest.raises(UntrustedInputError, match="comes with a loading script, which is never run"):
        opened(tmp_path / "photos")


def test_unlabeled_images_of_a_folder_with_splits(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["train", "test"], each=5)
    assert len(load_unlabeled(DataConfig(dataset=str(tmp_path)), COLOR)) == 5
    with pytest.raises(UsageError, match="5 images without a label"):
        opened(tmp_path)
    write_pictures(tmp_path / "other", ["train/cat", "train/dog", "test"])
    assert len(load_unlabeled(DataConfig(dataset=str(tmp_path / "other")), COLOR)) == 3


def test_what_a_scan_finds(tmp_path: Path) -> None:
    assert scan_folder(write_pictures(tmp_path, ["cat", "dog"], each=1), ["train"]) == {
        "train": ["cat/000.png", "dog/000.png"]
    }
    assert scan_folder(tmp_path / "cat", ["train"]) is None


# Names of splits


@pytest.mark.parametrize(
    ("name", "available", "expected"),
    [
        ("test", ["train", "test"], "test"),
        ("test", ["train", "validation"], "validation"),
        ("test", ["train", "val"], "val"),
        ("test", ["train", "valid", "unlabeled"], "valid"),
        ("test", ["train", "val", "Testing"], "Testing"),
        ("validation", ["train", "test"], None),
        ("validation", ["train", "val"], "val"),
        ("val", ["train", "validation"], "validation"),
        ("train", ["Training"], "Training"),
        ("extra", ["train", "test"], None),
    ],
)
def test_splits_are_found_under_other_names(name: str, available: list[str], expected: str | None) -> None:
    assert find_split(name, available) == expected


@pytest.mark.parametrize("split", ["validation", "val", "valid"])
def test_a_validation_split_is_taken_where_there_is_no_test_split(
    tmp_path: Path, split: str, caplog: pytest.LogCaptureFixture
) -> None:
    from starzoo.data.task import load_data

    write_pictures(tmp_path, splits("cat", "dog", of=("train", split)))
    data = load_data(DataConfig(dataset=str(tmp_path)), COLOR)
    assert (data.config.train_split, data.config.test_split, data.test.name) == ("train", split, split)
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"{tmp_path}: has no split 'test'; {split!r} is taken"]
    again = load_data(data.config, COLOR)
    assert again.fingerprint == data.fingerprint
    assert len(load_unlabeled(DataConfig(dataset=str(tmp_path)), COLOR)) == 6


def test_a_validation_split_of_a_table_is_taken_too(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    for split in ("train", "validation"):
        rows = {"image": [{"bytes": png(), "path": None} for _ in range(4)], "label": [0, 1, 0, 1]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
    assert opened(tmp_path).test.name == "validation"
    assert opened(tmp_path, test_split="val").test.name == "validation"
    with pytest.raises(UsageError, match="'validation' is both the training and the test split"):
        opened(tmp_path, train_split="validation")


# Parts of a split


def test_parts_of_a_split_have_all_classes_in_proportion(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_pictures(tmp_path, {"cat": 40, "dog": 20, "eel": 10})
    parts = {"train_split": "train[:80%]", "test_split": "train[80%:]"}
    first, again = opened(tmp_path, **parts), opened(tmp_path, **parts)
    assert np.bincount(first.train.labels).tolist() == [32, 16, 8]
    assert np.bincount(first.test.labels).tolist() == [8, 4, 2]
    assert first.fingerprint == again.fingerprint
    assert len({*contents_of(first.train), *contents_of(first.test)}) == 70
    cats = [row["path"] for row in first.test.rows["image"][:8]]
    assert cats == sorted(cats)  # the order is that of the folder
    assert cats[-1] > f"{tmp_path}/cat/032.png" > cats[0]  # and the images are drawn from all of it
    message = f"{tmp_path}: parts of a split are drawn at random, always the same, in proportion from each class"
    assert [record.getMessage() for record in caplog.records] == [message]


def test_the_order_for_parts_is_a_permutation() -> None:
    labels = np.repeat([0, 1, 2], [7, 50, 3])
    order = spread_classes(labels)
    assert sorted(order) == list(range(60))
    assert np.array_equal(order, spread_classes(labels))
    half = np.bincount(labels[order[:30]], minlength=3)
    assert np.abs(half - [3.5, 25, 1.5]).max() <= 1
    assert order[labels[order] == 1].tolist() != sorted(order[labels[order] == 1])


def test_parts_that_are_none_are_refused_in_one_line(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["cat", "dog"])
    with pytest.raises(UsageError, match=r"Unknown split \"test\"\. Should be one of \['train'\].*train\[80%:\]"):
        opened(tmp_path)
    with pytest.raises(UsageError, match=re.escape("Unrecognized instruction format: train[x:]")):
        opened(tmp_path, test_split="train[x:]")


# Classes and images that the splits share


def test_a_split_without_a_class_is_refused_with_the_number(tmp_path: Path) -> None:
    write_pictures(tmp_path, [*splits("cat", "dog"), "train/eel", "train/fox"])
    message = r"split 'test' has no images of 2 of 4 classes \(eel, fox\), of which split 'train' has some"
    with pytest.raises(UsageError, match=message) as caught:
        opened(tmp_path)
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match=message):
        opened(tmp_path, train_size=8)


def test_a_subset_that_was_asked_for_may_lack_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_pictures(tmp_path, splits("cat", "dog", "eel"))
    opened(tmp_path, test_size=2)
    assert "split 'test' has no images of 1 of 3 classes" in caplog.text


def test_classes_without_any_image_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "n/a"])})
    for split in ("train", "test"):
        rows = {"image": [{"bytes": png(), "path": None} for _ in range(2)], "label": [0, 1]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
    assert opened(tmp_path).class_names == ("a", "b", "n/a")
    assert f"{tmp_path}: no split has images of 1 of 3 classes (n/a)" in caplog.text


def test_parts_of_a_table_that_is_sorted_by_class_are_refused(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": [{"bytes": png(), "path": None} for _ in range(8)], "label": [0] * 4 + [1] * 4}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UsageError, match=r"split 'train\[:50%\]' has no images of 1 of 2 classes .*shuffle the rows"):
        opened(tmp_path, train_split="train[:50%]", test_split="train[50%:]")


def test_images_of_both_splits_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_pictures(tmp_path, {"train/cat": 5, "train/dog": 5, "test/cat": 150, "test/dog": 50})
    for number in range(2):
        content = (tmp_path / "train" / "dog" / f"{number:03}.png").read_bytes()
        (tmp_path / "test" / "cat" / f"{number:03}.png").write_bytes(content)
    assert opened(tmp_path).fingerprint
    assert f"{tmp_path}: 2 of 200 test images are also training images" in caplog.text
    paint(0).save(tmp_path / "train" / "cat" / "000.png")
    paint(0).save(tmp_path / "test" / "cat" / "100.png")
    with pytest.raises(UsageError, match="3 of 200 test images are also training images") as caught:
        assert opened(tmp_path).fingerprint
    assert caught.value.hint
