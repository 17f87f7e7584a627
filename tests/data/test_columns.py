"""Columns as people have them: labels as text or numbers; images from pandas, in WebDataset, or as paths in a table."""

from __future__ import annotations

import io
import math
import re
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from starzoo.config import DataConfig
from starzoo.data import ImageData, load_data, open_data
from starzoo.data.reading import StoredData
from starzoo.errors import IncompatibleError, UntrustedInputError, UsageError
from tests.data.pictures import encode, paint, png, write_pictures
from tests.test_data import COLOUR


def opened(folder: Path, **choice: object) -> StoredData:
    return open_data(DataConfig.model_validate({"dataset": str(folder), **choice}))


def write_parquet(folder: Path, labels: Sequence[Any], column: str = "label", **more: Sequence[Any]) -> Path:
    """Two splits with these labels, as pandas writes them: dicts of bytes and path, without the types of `datasets`."""
    folder.mkdir(exist_ok=True)
    for split in ("train", "test"):
        images = [{"bytes": png(), "path": f"{number}.png"} for number in range(len(labels))]
        pd.DataFrame({"image": images, column: labels, **more}).to_parquet(folder / f"{split}.parquet")
    return folder


# Labels


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        (["dog", "cat", "dog"], ("cat", "dog"), [1, 0, 1]),
        ([10, 9, 2, 10], ("2", "9", "10"), [2, 1, 0, 2]),
        ([0.0, 2.0, 1.0], ("0", "1", "2"), [0, 2, 1]),
        ([0.5, 0.25], ("0.25", "0.5"), [1, 0]),
        ([True, False], ("0", "1"), [1, 0]),
        (["10", "9", "2"], ("10", "2", "9"), [0, 2, 1]),
        (["caf\u00e9", "bar", "cafe\u0301"], ("bar", "café"), [1, 0, 1]),
        (pd.Categorical(["b", "a", "b"]), ("a", "b"), [1, 0, 1]),
        (pd.Series([3, 1], dtype="uint8"), ("1", "3"), [1, 0]),
    ],
)
def test_text_and_numbers_become_classes_in_their_order(
    tmp_path: Path, labels: Sequence[Any], names: tuple[str, ...], numbers: list[int]
) -> None:
    data = opened(write_parquet(tmp_path, labels))
    assert data.class_names == names
    assert data.train.labels.tolist() == data.test.labels.tolist() == numbers


def test_classes_are_those_of_both_splits_and_said_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_parquet(tmp_path, ["a", "b", "c", "d"])
    assert opened(tmp_path, test_size=2).class_names == ("a", "b", "c", "d")
    said = [record.getMessage() for record in caplog.records]
    assert f"{tmp_path}: the values of column 'label' are 4 classes (a, b, c, …)" in said
    write_parquet(tmp_path / "other", ["a", "b"])
    for split, labels in (("train", ["a", "b", "c"]), ("test", ["a", "b", "d"])):
        images = [{"bytes": png(), "path": None} for _ in labels]
        pd.DataFrame({"image": images, "label": labels}).to_parquet(tmp_path / "other" / f"{split}.parquet")
    with pytest.raises(UsageError, match=r"split 'train' has no images of 1 of 4 classes \(d\)"):
        opened(tmp_path / "other")


@pytest.mark.parametrize(
    ("labels", "count"),
    [([0, -1, -1, 1], 2), ([0.0, math.nan, 1.0], 1), (["a", None, "b"], 1), (["a", "", "b"], 1), ([-1.0, 0.0], 1)],
)
def test_images_without_a_label_are_counted(tmp_path: Path, labels: Sequence[Any], count: int) -> None:
    with pytest.raises(UsageError, match=rf"split 'train': {count} images? without a label"):
        opened(write_parquet(tmp_path, labels))


def load(folder: Path, names: Sequence[str] | None = None, count: int | None = None) -> ImageData:
    return load_data(DataConfig(dataset=str(folder)), COLOUR, class_names=names, num_classes=count)


def test_whole_numbers_from_0_are_the_numbers_of_the_models_classes(tmp_path: Path) -> None:
    write_parquet(tmp_path, [2, 0, 1])
    data = load(tmp_path, ("zebra", "cat", "dog"), 3)
    assert (data.class_names, data.label_names, data.test.labels.tolist()) == (("zebra", "cat", "dog"), None, [2, 0, 1])
    assert load(tmp_path, None, 3).class_names == ("0", "1", "2")
    assert load(tmp_path, ("2", "0", "1"), 3).test.labels.tolist() == [0, 1, 2]  # which are names here
    for names, count in ((("cat", "dog"), 2), (("a", "b", "c", "d"), 4)):
        with pytest.raises(IncompatibleError, match="missing"):
            load(tmp_path, names, count)
        with pytest.raises(IncompatibleError, match=f"expected the {count} classes of the models, got 3"):
            load(tmp_path, None, count)


def test_other_numbers_and_text_are_matched_by_name(tmp_path: Path) -> None:
    write_parquet(tmp_path / "numbers", [3, 1, 2])
    assert load(tmp_path / "numbers", ("1", "2", "3")).test.labels.tolist() == [2, 0, 1]
    with pytest.raises(IncompatibleError, match="3 missing"):
        load(tmp_path / "numbers", ("cat", "dog", "eel"))
    write_parquet(tmp_path / "text", ["cafe\u0301", "bar"])
    data = load(tmp_path / "text", ("café", "bar"))
    assert (data.test.labels.tolist(), data.label_names) == ([0, 1], ("bar", "café"))


def test_a_column_that_is_named_wins_over_its_type(tmp_path: Path) -> None:
    features = datasets.Features({
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["a", "b"]),
        "kind": datasets.Value("string"),
        "thumbnail": datasets.Value("binary"),
    })
    thumbnails = [png(), png()]
    for split in ("train", "test"):
        images = [{"bytes": png(), "path": None} for _ in range(2)]
        rows = {"image": images, "label": [0, 1], "kind": ["y", "x"], "thumbnail": thumbnails}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
    assert opened(tmp_path).class_names == ("a", "b")
    named = opened(tmp_path, label_column="kind", image_column="thumbnail")
    assert named.class_names == ("x", "y")
    assert [file.content for file in named.test.files([0, 1])] == thumbnails


def test_of_several_columns_one_is_named(tmp_path: Path) -> None:
    kind = write_parquet(tmp_path / "kind", ["a", "b"], column="kind", colour=["red", "green"])
    message = (
        r"expected one column of labels, got image \(dict\), kind \((large_)?string\), colour .*\(set label_column "
    )
    with pytest.raises(UsageError, match=message + "to one of kind, colour"):
        opened(kind)
    assert opened(kind, label_column="colour").class_names == ("green", "red")
    with pytest.raises(UsageError, match="expected a column 'image' of labels, got image"):
        opened(kind, label_column="image")
    label = write_parquet(tmp_path / "label", ["a", "b"], colour=["red", "green"])
    assert opened(label).class_names == ("a", "b")


# Images


def test_bytes_alone_are_images(tmp_path: Path) -> None:
    for split in ("train", "test"):
        table = {"picture": pa.array([png(), png()], pa.large_binary()), "label": [0, 1]}
        pq.write_table(pa.table(table), tmp_path / f"{split}.parquet")
    data = load(tmp_path)
    assert data.train.tensors()[0].shape == (2, 3, 8, 8)
    assert data.fingerprint == load(tmp_path).fingerprint


def test_pandas_gives_the_images_that_datasets_gives(tmp_path: Path) -> None:
    frames = {split: [png() for _ in range(4)] for split in ("train", "test")}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    for folder in ("pandas", "datasets"):
        (tmp_path / folder).mkdir()
    for split, images in frames.items():
        rows = {"image": [{"bytes": image, "path": None} for image in images], "label": [0, 1, 1, 0]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "datasets" / f"{split}.parquet")
        rows["label"] = ["a", "b", "b", "a"]
        pd.DataFrame(rows).to_parquet(tmp_path / "pandas" / f"{split}.parquet")
    assert opened(tmp_path / "pandas").fingerprint == opened(tmp_path / "datasets").fingerprint


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_table_of_paths(tmp_path: Path, suffix: str) -> None:
    write_pictures(tmp_path, {"images": 4})
    frame = pd.DataFrame({"file": [f"images/{number:03}.png" for number in range(4)], "kind": ["b", "a", "b", "a"]})
    for split, rows in (("train", frame[:2]), ("test", frame[2:])):
        if suffix == "csv":
            rows.to_csv(tmp_path / f"{split}.csv", index=False)
        else:
            rows.to_json(tmp_path / f"{split}.jsonl", orient="records", lines=True)
    data = opened(tmp_path, image_column="file", label_column="kind")
    assert (data.class_names, data.test.labels.tolist()) == (("a", "b"), [1, 0])
    assert next(data.test.files([1])).content == (tmp_path / "images" / "003.png").read_bytes()
    with pytest.raises(UsageError, match="expected one column of images"):
        opened(tmp_path, label_column="kind")


@pytest.mark.parametrize(
    "path", ["../secret.png", "images/../../secret.png", "{outside}/secret.png", "file:///etc/passwd"]
)
def test_paths_do_not_leave_the_folder_of_the_data_set(tmp_path: Path, path: str) -> None:
    paint().save(tmp_path / "secret.png")
    write_pictures(tmp_path / "data", {"images": 1})
    for split in ("train", "test"):
        text = f"file,label\nimages/000.png,a\n{path.format(outside=tmp_path)},b\n"
        (tmp_path / "data" / f"{split}.csv").write_text(text)
    data = opened(tmp_path / "data", image_column="file")
    with pytest.raises(
        UntrustedInputError,
        match=r"image 1 of split 'test' \((secret\.png|passwd)\): (expected|cannot be read)",
    ):
        list(data.test.files([0, 1]))


@pytest.mark.parametrize("kind", ["JPEG", "AVIF"])
def test_webdataset(tmp_path: Path, kind: str) -> None:
    suffix = {"JPEG": "jpg", "AVIF": "avif"}[kind]
    for split in ("train", "validation"):
        with tarfile.open(tmp_path / f"{split}-0000.tar", "w") as tar:
            for number in range(4):
                parts: Mapping[str, bytes] = {suffix: encode(paint(), kind), "cls": str(number % 2).encode()}
                for name, content in parts.items():
                    entry = tarfile.TarInfo(f"{number:05}.{name}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    data = load(tmp_path, ("cat", "dog"), 2)
    assert (data.class_names, data.test.name) == (("cat", "dog"), "validation")
    assert data.test.labels.tolist() == [0, 1, 0, 1]
    assert data.test.tensors()[0].shape == (4, 3, 8, 8)


def test_descriptions_beside_images(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_pictures(tmp_path, {split: 3})
        lines = [f'{{"file_name": "{number:03}.png", "label": {label}}}' for number, label in enumerate((5, 3, 5))]
        (tmp_path / split / "metadata.jsonl").write_text("\n".join(lines))
    data = opened(tmp_path)
    assert (data.class_names, data.test.labels.tolist()) == (("3", "5"), [1, 0, 1])
    for split in ("train", "test"):
        (tmp_path / split / "metadata.jsonl").unlink()
        (tmp_path / split / "metadata.csv").write_text("file_name,kind\n000.png,x\n001.png,y\n")
    data = opened(tmp_path)
    assert (data.class_names, data.test.labels.tolist()) == (("x", "y"), [0, 1])
    assert re.fullmatch(r".*/test/001\.png", data.test.rows["image"][1]["path"])
