"""Data sets of strangers on the Hub: they decide nothing outside of their repository."""

from __future__ import annotations

import re
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from starzoo.config import DataConfig
from starzoo.data import open_data
from starzoo.data.reading import StoredData
from starzoo.errors import UntrustedInputError
from starzoo.hub.offline import working_offline
from tests.data.pictures import png
from tests.data.test_security import ALIASES, MERGES, OUTSIDE, cell, own, table
from tests.data.watch import watching
from tests.hub.fakehub import FakeHub

REPO = "datasets/ann/pictures"
PICTURES = [f"{split}/{kind}/{number}.png" for split in ("train", "test") for kind in "xy" for number in range(3)]
KINDS = {"parquet": "parquet", "arrow": "arrow"}


@pytest.fixture
def hub(fake_hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    return fake_hub


def opened() -> StoredData:
    return open_data(DataConfig(dataset="ann/pictures"))


@pytest.mark.parametrize("kind", ["parquet", "arrow", "jsonl", "csv"])
@pytest.mark.parametrize("inside", [False, True])
def test_h01_a_table_of_the_hub_names_no_file(hub: FakeHub, tmp_path: Path, kind: str, inside: bool) -> None:
    picture = (tmp_path / "datasets/downloads" if inside else tmp_path / "private") / "own.png"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(png())
    files = {}
    info = {"features": [{"name": "image", "dtype": "image"}, {"name": "label", "dtype": "string"}]}
    for split in ("train", "test"):
        if kind in KINDS:
            table(tmp_path / f"{split}.{kind}", [cell(picture), cell(picture)])
            files[f"{split}.{kind}"] = (tmp_path / f"{split}.{kind}").read_bytes()
        elif kind == "csv":
            files[f"{split}.csv"] = f"image,label\n{picture},a\n{picture},b\n".encode()
        else:
            files[f"{split}.jsonl"] = f'{{"image": "{picture}", "label": "a"}}\n'.encode() * 2
    if kind not in KINDS:
        files["README.md"] = f"---\n{yaml.safe_dump({'dataset_info': info})}---\n".encode()
    hub.commit(REPO, files)
    with (
        watching() as seen,
        pytest.raises(UntrustedInputError, match="expected the image itself in the table") as caught,
    ):
        assert opened().fingerprint
    assert caught.value.exit_code == 3
    assert str(picture) not in seen.paths
    with working_offline(), watching() as seen, pytest.raises(UntrustedInputError, match="expected the image itself"):
        assert opened().fingerprint  # what the cache holds is not trusted more
    assert str(picture) not in seen.paths


def test_h01_image_files_of_the_hub_are_read(hub: FakeHub) -> None:
    hub.commit(REPO, {name: png() for name in PICTURES})
    found = opened().fingerprint
    with working_offline():
        assert opened().fingerprint == found


@pytest.mark.parametrize("where", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize("path", OUTSIDE)
def test_h03_a_description_of_the_hub_leads_nowhere_else(hub: FakeHub, tmp_path: Path, path: str, where: str) -> None:
    hub.commit("datasets/ann/other", {name: png() for name in PICTURES})
    path = path.format(private=tmp_path)
    splits = [{"split": "train", "path": path}, {"split": "test", "path": "test/**"}]
    text = yaml.safe_dump({"configs": [{"config_name": "default", "data_files": splits}]})
    content = f"---\n{text}---\n" if where == "README.md" else text
    hub.commit(REPO, {**{name: png() for name in PICTURES}, where: content.encode()})
    with watching() as seen, pytest.raises(UntrustedInputError, match=re.escape(f"ann/pictures: {where}: data_files")):
        opened()
    allowed = "/api/datasets/ann/pictures|/datasets/ann/pictures/resolve/.*(README.md|huggingface.yaml|infos.json)"
    assert [request for request in hub.asked("") if not re.search(allowed, request)] == []
    assert hub.asked("/tree/|other") == []
    assert not [path for path in seen.paths if Path(path).parent == tmp_path and "datasets" not in path]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("bomb", [ALIASES, MERGES, f"a: {'1:' * 480_000}1\n"], ids=["aliases", "merges", "sexagesimal"])
@pytest.mark.parametrize("where", ["README.md", ".huggingface.yaml"])
def test_h05_a_description_of_the_hub_is_plain_yaml(hub: FakeHub, bomb: str, where: str) -> None:
    content = f"---\n{bomb}license: mit\n---\n" if where == "README.md" else bomb
    hub.commit(REPO, {**{name: png() for name in PICTURES}, where: content.encode()})
    with pytest.raises(UntrustedInputError, match=re.escape(f"ann/pictures: {where}: cannot be read as YAML: ")):
        opened()
    assert hub.asked("/tree/") == []


def test_h03_what_is_read_is_the_commit_that_was_checked(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from starzoo.data import descriptions

    first = hub.commit(REPO, {name: png() for name in PICTURES})
    check = descriptions.check_repository

    def check_then_move(dataset: str, revision: str | None) -> str:
        commit = check(dataset, revision)
        hub.commit(
            REPO, {"README.md": b"---\nconfigs: [{config_name: a, data_files: 'hf://datasets/ann/other/**'}]\n---\n"}
        )
        return commit

    monkeypatch.setattr("starzoo.data.opening.check_repository", check_then_move)
    assert opened().revision == first


def test_the_table_of_a_stranger_is_what_it_says(tmp_path: Path) -> None:
    table(tmp_path / "x.parquet", [cell("a.png"), own()])
    assert pq.read_table(BytesIO((tmp_path / "x.parquet").read_bytes()))["image"][0].as_py() == cell("a.png")
