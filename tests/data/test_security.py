"""Data sets of strangers in folders: their cells, descriptions and files decide nothing outside of their folder."""

from __future__ import annotations

import json
import os
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from starzoo.cli.main import main
from starzoo.config import DataConfig
from starzoo.data.records import RawTask, open_data
from starzoo.errors import HubError, UntrustedInputError, exit_code_of
from starzoo.hub.offline import offline_mode
from tests.data.pictures import png, write_pictures
from tests.data.watch import watching

FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """Somebody's own pictures, which no data set is to reach."""
    write_pictures(tmp_path / "private", [f"{split}/{name}" for split in ("train", "test") for name in ("Ann", "Bob")])
    return tmp_path / "private"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.DOWNLOADED_DATASETS_PATH", tmp_path / "cache" / "downloads")
    monkeypatch.setattr("datasets.config.EXTRACTED_DATASETS_PATH", tmp_path / "cache" / "downloads" / "extracted")


def opened(folder: Path, **choice: object) -> RawTask:
    return open_data(DataConfig.model_validate({"dataset": str(folder), **choice}))


def table(file: Path, cells: list[Any], labels: list[int] | None = None) -> None:
    """Write images as a stranger writes them: `datasets` would look whether the files are there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    labels = labels or [number % 2 for number in range(len(cells))]
    schema = FEATURES.arrow_schema
    rows = pa.table({"image": pa.array(cells, schema.field("image").type), "label": pa.array(labels)}, schema=schema)
    if file.suffix == ".parquet":
        pq.write_table(rows, file)
    else:
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            writer.write_table(rows)


def cell(path: object) -> dict[str, Any]:
    return {"bytes": None, "path": str(path)}


def own() -> dict[str, Any]:
    return {"bytes": png(), "path": None}


# H01: cells


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("named", ["{private}/train/Ann/000.png", "../private/train/Ann/000.png", "link.png"])
def test_h01_a_cell_names_no_file_of_the_machine(tmp_path: Path, private: Path, kind: str, named: str) -> None:
    picture = private / "train/Ann/000.png"
    for split in ("train", "test"):
        table(tmp_path / "data" / f"{split}.{kind}", [own(), cell(named.format(private=private)), own()])
    data = opened(tmp_path / "data")
    (tmp_path / "data" / "link.png").symlink_to(picture)  # after the folder was looked at
    with (
        watching() as seen,
        pytest.raises(UntrustedInputError, match=r"image 1 of split 'train' .*: expected a file in"),
    ):
        assert data.fingerprint
    assert not seen.below(private)


@pytest.mark.parametrize("path", ["/etc/passwd", "/proc/kmsg", "/dev/zero", "/proc/self/environ", "data\0.png", "~/x"])
def test_h01_files_of_the_system_are_not_opened(tmp_path: Path, path: str) -> None:
    for split in ("train", "test"):
        table(tmp_path / "data" / f"{split}.parquet", [own(), cell(path)])
    with watching() as seen, pytest.raises(UntrustedInputError) as caught:
        assert opened(tmp_path / "data").fingerprint
    assert caught.value.exit_code == 3
    assert os.path.realpath(path.replace("\0", "")) not in seen.paths


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
def test_h01_only_regular_files_are_images(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_pictures(tmp_path / "data", ["train/cat", "train/dog", "test/cat", "test/dog"])
    odd = folder / "test/dog/odd.png"
    if kind == "pipe":
        os.mkfifo(odd)
    elif kind == "device":
        odd.symlink_to("/dev/zero")
    else:
        import socket

        with socket.socket(socket.AF_UNIX) as listener:
            monkeypatch.chdir(odd.parent)  # the address of a socket is a short path
            listener.bind(odd.name)
    with pytest.raises(
        UntrustedInputError, match=r"odd\.png.*: (expected a regular file|expected a file in|cannot be)"
    ):
        assert opened(folder).fingerprint


def test_h01_what_lies_in_the_folder_is_read(tmp_path: Path, private: Path) -> None:
    folder = write_pictures(tmp_path / "data", ["pictures"])
    (folder / "again.png").symlink_to("pictures/000.png")
    for split in ("train", "test"):
        table(
            folder / f"{split}.parquet",
            [cell(folder / "pictures/001.png"), cell("pictures/002.png"), cell("again.png")],
        )
    files = [file.content for file in opened(folder).train.files(range(3))]
    assert files == [(folder / "pictures" / f"00{number}.png").read_bytes() for number in (1, 2, 0)]
    assert opened(private).class_names == ("Ann", "Bob")


@pytest.mark.parametrize("column", [5, 2.5])
def test_h01_a_path_that_is_no_text(tmp_path: Path, column: float) -> None:
    for split in ("train", "test"):
        image = pa.array([{"bytes": None, "path": column}] * 2, pa.struct({"bytes": pa.binary(), "path": pa.float64()}))
        (tmp_path / "data").mkdir(exist_ok=True)
        pq.write_table(pa.table({"image": image, "label": ["a", "b"]}), tmp_path / "data" / f"{split}.parquet")
    with pytest.raises(UntrustedInputError, match="is missing"):
        assert opened(tmp_path / "data").fingerprint


# H03: descriptions

OOD = [
    "{private}/train/**",
    "../private/train/**",
    "x/../../private/train/**",
    "/**/Ann/*.png",
    "~/**",
    "file://{private}/train/**",
    "local://{private}/train/**",
    "file:{private}/train/**",
    "hf://datasets/ann/other/**",
    "http://127.0.0.1:9/x.parquet",
    "https://example.com/x.parquet",
    "zip://*::{private}/x.zip",
    "data/zip://*::/x.zip",
    "s3://bucket/x.parquet",
    "simplecache::http://127.0.0.1:9/x.parquet",
]


def describe(folder: Path, where: str, description: object) -> None:
    folder.mkdir(exist_ok=True)
    text = yaml.safe_dump(description)
    (folder / where).write_text(f"---\n{text}---\n# Pictures\n" if where == "README.md" else text)


@pytest.mark.parametrize("where", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize("path", OOD)
def test_h03_a_description_leads_nowhere_else(tmp_path: Path, private: Path, path: str, where: str) -> None:
    folder = write_pictures(tmp_path / "data", ["train/cat", "train/dog", "test/cat", "test/dog"])
    path = path.format(private=private)
    for entry in (
        {"data_files": path},
        {"data_files": ["train/**", path]},
        {"data_files": [{"split": "train", "path": path}, {"split": "test", "path": ["test/**", path]}]},
        {"data_dir": path.removesuffix("/**")},
    ):
        describe(folder, where, {"configs": [{"config_name": "default", **entry}]})
        with (
            watching() as seen,
            offline_mode(),
            pytest.raises(UntrustedInputError, match=re.escape(where)) as caught,
        ):
            opened(folder)
        assert caught.value.exit_code == 3
        assert "own folder" in caught.value.message
        assert not seen.below(private)
        assert seen.connections == []


def test_h03_class_names_of_another_folder_reach_no_config(
    tmp_path: Path, private: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    splits = [{"split": split, "path": f"{private}/{split}/**"} for split in ("train", "test")]
    describe(tmp_path / "data", "README.md", {"configs": [{"config_name": "default", "data_files": splits}]})
    words = ["train", "resnet18", "--dataset", str(tmp_path / "data"), "--seeds", "0", "--epochs", "1", "--quiet"]
    options = ["--model-args", '{"layers": [1, 0, 0, 0], "channels": [8, 8, 8, 8]}', "--image-size", "16"]
    with watching() as seen:
        code = main([*words, *options, "--out", str(tmp_path / "zoo"), "--offline"])
    said = capfd.readouterr().err
    assert (code, "README.md" in said, said.count("\n")) == (3, True, 1)
    assert not seen.below(private)
    assert not list(tmp_path.glob("zoo/**/config.json"))


@pytest.mark.parametrize("what", ["file", "folder", "table", "description"])
def test_h03_no_link_leads_out_of_a_folder_that_datasets_reads(tmp_path: Path, private: Path, what: str) -> None:
    folder = write_pictures(tmp_path / "data", ["train/cat", "train/dog", "test/cat", "test/dog"])
    describe(folder, "README.md", {"configs": [{"config_name": "default", "data_files": [
        {"split": "train", "path": "train/**"}, {"split": "test", "path": "test/**"}
    ]}]})  # fmt: skip
    if what == "file":
        (folder / "train/cat/link.png").symlink_to(private / "train/Ann/000.png")
    elif what == "folder":
        (folder / "train/Ann").symlink_to("../../private/train/Ann")
    elif what == "table":
        table(private / "own.parquet", [own()])
        (folder / "train/x.parquet").symlink_to(private / "own.parquet")
    else:
        (private / "README.md").write_bytes((folder / "README.md").read_bytes())
        (folder / "README.md").unlink()
        (folder / "README.md").symlink_to(private / "README.md")
    with watching() as seen, pytest.raises(UntrustedInputError, match=r"expected a file in .*data, got"):
        opened(folder)
    assert not seen.below(private)


def test_h03_honest_descriptions_are_followed(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "data", ["one/cat", "one/dog", "two/cat", "two/dog"])
    splits = [{"split": "train", "path": ["two/**"]}, {"split": "test", "path": "one/[a-z]*/*.png"}]
    info = {"features": [
        {"name": "image", "dtype": "image"},
        {"name": "label", "dtype": {"class_label": {"names": {"0": "cat", "1": "dog"}}}},
    ]}  # fmt: skip
    describe(folder, "README.md", {"configs": [{"config_name": "default", "data_files": splits}], "dataset_info": info})
    assert opened(folder).class_names == ("cat", "dog")
    describe(folder, "README.md", {"license": "mit", "configs": [{"config_name": "default", "data_files": splits}]})
    assert len(opened(folder).test) == 6


def test_h03_a_type_of_a_column_calls_no_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(pa, "create_library_symlinks", lambda: called.append("readme"))
    folder = write_pictures(tmp_path / "data", ["train/cat", "train/dog", "test/cat", "test/dog"])
    describe(folder, "README.md", {"dataset_info": {"features": [{"name": "x", "dtype": "create_library_symlinks"}]}})
    with pytest.raises(UntrustedInputError, match="create_library_symlinks: expected the type of a column"):
        opened(folder)
    value = {"x": {"dtype": "create_library_symlinks", "_type": "Value"}}
    kept = {"huggingface": json.dumps({"info": {"features": value}})}
    for split in ("train", "test"):
        rows = pa.table({"x": [1, 2]}).replace_schema_metadata(kept)
        (tmp_path / "table").mkdir(exist_ok=True)
        pq.write_table(rows, tmp_path / "table" / f"{split}.parquet")
    with pytest.raises(UntrustedInputError, match="create_library_symlinks: expected the type of a column"):
        opened(tmp_path / "table")
    assert called == []


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"skiprows": 10**9}, "sets 'skiprows', which a data set of images does not need"),  # a set of as many numbers
        ({"sep": "(a+)+$", "engine": "python"}, "sep: expected at most 3 characters"),
        ({"chunksize": 10**15}, "sets 'chunksize'"),
        ({"converters": {"file": "eval"}}, "sets 'converters'"),
    ],
    ids=lambda option: next(iter(option)) if isinstance(option, dict) else "",
)
def test_h03_a_description_sets_no_option_that_takes_for_ever(
    tmp_path: Path, option: dict[str, object], message: str
) -> None:
    folder = write_pictures(tmp_path / "data", {"images": 2})
    for split in ("train", "test"):
        (folder / f"{split}.csv").write_text("file;label\nimages/000.png;a\nimages/001.png;b\n")
    splits = [{"split": split, "path": f"{split}.csv"} for split in ("train", "test")]
    entry = {"config_name": "default", "data_files": splits, "sep": ";"}
    describe(folder, "README.md", {"configs": [entry]})
    assert opened(folder, image_column="file").class_names == ("a", "b")
    describe(folder, "README.md", {"configs": [entry | option]})
    with pytest.raises(UntrustedInputError, match=re.escape(message)):
        opened(folder, image_column="file")


def test_h03_a_folder_that_is_called_like_a_data_set_of_the_hub_is_not_taken_for_it(tmp_path: Path) -> None:
    for split in ("train", "test"):
        table(tmp_path / "ann___pictures" / f"{split}.parquet", [own(), own()])
    assert opened(tmp_path / "ann___pictures").fingerprint
    assert list((tmp_path / "cache").glob("ann___pictures/*/*/*/dataset_info.json"))
    with offline_mode(), pytest.raises(HubError, match="ann/pictures: not in the local cache, and offline"):
        opened(Path("ann/pictures"))


# H05: their YAML

ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(7)
)
MERGES = "a: &a {k: v}\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)}\n  <<: [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(7)
)
BOMBS = {
    "aliases": ALIASES,
    "merges": MERGES,
    "sexagesimal": f"a: {'1:' * 480_000}1\n",
    "large": "a: [" + "x, " * 100_000 + "]\n",
    "deep": "a: " + "[" * 20_000 + "\n",
    "tag": "a: !!python/object/apply:os.system [exit 1]\n",
    "twice": "configs: []\nconfigs: []\n",
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("where", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_h05_a_description_is_plain_yaml(tmp_path: Path, bomb: str, where: str) -> None:
    folder = write_pictures(tmp_path / "data", ["train/cat", "train/dog", "test/cat", "test/dog"])
    (folder / where).write_text(f"---\n{BOMBS[bomb]}---\n" if where == "README.md" else BOMBS[bomb])
    with pytest.raises(UntrustedInputError, match=re.escape(f"{where}: cannot be read as YAML: ")):
        opened(folder)


# All of them


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "where", ["README.md", ".huggingface.yaml", "dataset_infos.json", "train.parquet", "metadata.csv"]
)
@pytest.mark.parametrize("kind", ["pipe", "device", "link"])
def test_h07_files_of_a_data_set_are_regular(tmp_path: Path, private: Path, where: str, kind: str) -> None:
    folder = write_pictures(tmp_path / "data", ["train/cat", "train/dog", "test/cat", "test/dog"])
    secret = private / "secret"
    secret.write_text("---\nconfigs: []\n---\n")
    if kind == "pipe":
        os.mkfifo(folder / where)
    else:
        (folder / where).symlink_to(secret if kind == "link" else "/dev/zero")
    with watching() as seen:
        code, error = outcome(folder)
    if kind == "pipe" and where in {"train.parquet", "metadata.csv"}:
        assert code in {0, 2, 3}, error  # a table that is none; it is not opened
    else:
        assert code == 3, error
    assert not seen.below(private)


WORDS = [
    *(
        "cat",
        "data",
        "**",
        "../**",
        "/**",
        "/etc/passwd",
        "/proc/kmsg",
        "/dev/zero",
        "~",
        "",
        ".",
        "..",
        "\0",
        "[",
        "*" * 50,
    ),
    *(
        "file:///etc/passwd",
        "hf://datasets/a/b/**",
        "http://127.0.0.1:9/a.csv",
        "a::b",
        "zip://a::b",
        "é/*",
        "x" * 300,
        "-1",
    ),
    *("1e400", "null", "image", "int32", "show_info", "struct", "list", "train", "test", "default"),
]
KEYS = [
    *("config_name", "data_files", "data_dir", "features", "version", "split", "path", "default", "dtype", "name"),
    *(
        "sep",
        "engine",
        "chunksize",
        "batch_size",
        "drop_labels",
        "metadata_filenames",
        "encoding",
        "splits",
        "num_bytes",
    ),
    *(
        "num_examples",
        "class_label",
        "names",
        "list",
        "sequence",
        "struct",
        "filters",
        "columns",
        "field",
        "block_size",
    ),
]
LEAVES = st.one_of(st.sampled_from(WORDS), st.integers(-(10**30), 10**30), st.floats(), st.none(), st.booleans())
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)),
    max_leaves=8,
)
CONFIGS = st.one_of(
    VALUES,
    st.lists(
        st.fixed_dictionaries({"config_name": st.sampled_from(WORDS)}, optional=dict.fromkeys(KEYS[1:], VALUES)),
        max_size=2,
    ),
)


def outcome(folder: Path) -> tuple[int, Exception | None]:
    try:
        assert opened(folder).fingerprint
    except Exception as error:  # noqa: BLE001 - as the command line does
        return exit_code_of(error), error
    return 0, None


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(
        tmp_path_factory.mktemp("shared") / "data", ["train/cat", "train/dog", "test/cat", "test/dog"], each=1
    )


FOREIGN = ("/etc/passwd", "/proc/kmsg", "/dev/zero", "/proc/self/environ")


@pytest.mark.timeout(120)
def test_h03_hostile_descriptions_end_well(pictures: Path) -> None:
    @settings(max_examples=40)
    @given(
        where=st.sampled_from(["README.md", ".huggingface.yaml"]),
        description=st.fixed_dictionaries(
            {}, optional={"configs": CONFIGS, "dataset_info": CONFIGS, "license": VALUES}
        ),
    )
    def check(where: str, description: dict[str, Any]) -> None:
        describe(pictures, where, description)
        try:
            with watching() as seen, offline_mode():
                code, error = outcome(pictures)
            assert code in {0, 2, 3}, error
            assert seen.connections == []
            assert seen.paths.isdisjoint(FOREIGN)
            assert not [path for path in seen.paths if path == "/" or Path(path) == pictures.parent]
        finally:
            (pictures / where).unlink()

    check()


CELLS = st.one_of(
    st.none(),
    st.builds(
        lambda content, path: {"bytes": content, "path": path},
        st.one_of(st.none(), st.binary(max_size=40), st.just(png())),
        st.one_of(
            st.none(), st.sampled_from([*WORDS, *FOREIGN, "test.parquet", "train.parquet"]), st.text(max_size=20)
        ),
    ),
)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_h01_hostile_cells_end_well(tmp_path: Path, kind: str) -> None:
    @settings(max_examples=25)
    @given(st.lists(CELLS, min_size=2, max_size=4))
    def check(cells: list[Any]) -> None:
        for split in ("train", "test"):
            table(tmp_path / "data" / f"{split}.{kind}", cells)
        with watching() as seen, offline_mode():
            code, error = outcome(tmp_path / "data")
        assert code in {0, 2, 3}, error
        assert seen.connections == []
        assert seen.paths.isdisjoint(FOREIGN)

    check()


def test_the_watch_sees_what_is_opened(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(BytesIO(b"x").getvalue())
    with watching() as seen:
        (tmp_path / "x").read_bytes()
        list(os.scandir(tmp_path))
    assert {str(tmp_path / "x"), str(tmp_path)} <= seen.below(tmp_path)
