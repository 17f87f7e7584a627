"""Files of strangers: what opens them waits for nothing, reads no more than it must, and follows no link out."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from starzoo.errors import UntrustedInputError, exit_code_of
from starzoo.files import read_file
from starzoo.models.licenses import read_license
from starzoo.models.safetensors_header import read_header
from starzoo.models.timm_folder import sha256_file
from starzoo.star.manifest import read_manifest
from starzoo.star.run.local_paths import LocalPaths
from starzoo.star.star import load_star
from starzoo.strict_json import read_json
from starzoo.strict_yaml import YAML_LIMIT, parse_yaml
from starzoo.workflows.import_checkpoints import import_checkpoints
from starzoo.workflows.refs import read_zoo_file
from tests.conftest import MakeMember
from tests.data.test_security import BOMBS
from tests.data.watch import watching

READERS: dict[str, Callable[[Path], Any]] = {
    "star.json": read_manifest,
    "config.json": read_json,
    "training.json": read_json,
    "zoo.yaml": read_zoo_file,
    "model.safetensors": read_header,
    "local-paths.json": lambda file: LocalPaths.read(file.parent),
    "args.yaml": lambda file: import_checkpoints([file.parent / "best.safetensors"], file.parent / "out"),
}


@pytest.fixture
def folder(make_member: MakeMember, tmp_path: Path) -> Path:
    """A cloned folder, beside a folder with the same files that are not the stranger's."""
    for place in ("clone", "private"):
        made = make_member(place)
        shutil.copy(made / "model.safetensors", made / "best.safetensors")
        for name, text in {
            "star.json": "{}",
            "training.json": "{}",
            "zoo.yaml": "sources: [a/b]",
            "args.yaml": "a: 1",
        }.items():
            (made / name).write_text(text)
        (made / "local-paths.json").write_text("{}")
        (made / "README.md").write_text("---\nlicense: mit\n---\n")
    return tmp_path / "clone"


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "device", "proc", "link", "chain"])
@pytest.mark.parametrize("name", READERS)
def test_h07_only_regular_files_of_the_folder_are_opened(folder: Path, name: str, kind: str) -> None:
    file, private = folder / name, folder.parent / "private"
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "chain":
        (folder / "up").symlink_to("..")
        file.symlink_to(f"up/private/{name}")
    else:
        file.symlink_to({"device": "/dev/zero", "proc": "/proc/kmsg", "link": private / name}[kind])
    with watching() as seen, pytest.raises(UntrustedInputError, match=r"expected a (regular )?file") as caught:
        READERS[name](file)
    assert (caught.value.exit_code, name in str(caught.value)) == (3, True)
    assert not seen.below(private)
    assert seen.paths.isdisjoint({"/dev/zero", "/proc/kmsg"})


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "device", "link"])
def test_h07_the_license_in_a_card(folder: Path, kind: str) -> None:
    card = folder / "README.md"
    assert read_license(card) == "mit"
    card.unlink()
    if kind == "pipe":
        os.mkfifo(card)
    else:
        card.symlink_to("/dev/zero" if kind == "device" else folder.parent / "private/README.md")
    assert read_license(card) is None


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", ["pipe", "device", "link"])
def test_h07_permutations(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    from unittest.mock import Mock

    from starzoo.models.timm_folder import read_architecture

    manifest = Mock(architecture=read_architecture(folder), sources=())
    monkeypatch.setattr("starzoo.star.star.read_manifest", lambda _: manifest)
    file, private = folder / "permutations.safetensors", folder.parent / "private"
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to("/dev/zero" if kind == "device" else private / "model.safetensors")
    with watching() as seen, pytest.raises(UntrustedInputError, match=r"permutations\.safetensors: expected a"):
        load_star(folder)
    assert not seen.below(private)


@pytest.mark.timeout(20)
def test_h07_no_more_is_read_than_the_limit(tmp_path: Path) -> None:
    file = tmp_path / "endless"
    with file.open("wb") as sparse:
        sparse.truncate(10**13)
    with pytest.raises(UntrustedInputError, match="expected at most 1,000 bytes, got more"):
        read_file(file, 1_000)
    with pytest.raises(UntrustedInputError, match="expected at most 100 bytes, got more"):
        read_file(Path("/proc/cpuinfo"), 100)  # which says that it has no bytes
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UntrustedInputError, match="expected a regular file, got a pipe"):
        sha256_file(tmp_path / "pipe")


def test_h07_the_cache_of_the_client_is_read(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b/snapshots/0123", tmp_path / "models--a--b/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "77").write_text('{"a": 1}')
    (snapshot / "config.json").symlink_to("../../blobs/77")
    assert read_json(snapshot / "config.json") == {"a": 1}
    (tmp_path / "secret").write_text("{}")
    (snapshot / "star.json").symlink_to("../../../secret")
    with pytest.raises(UntrustedInputError, match="expected a file in"):
        read_json(snapshot / "star.json")


def test_h07_a_member_that_is_a_link_is_not_taken_for_one_of_a_zoo(folder: Path) -> None:
    from starzoo.workflows.refs import expand_refs

    zoo = folder.parent / "zoo"
    zoo.mkdir()
    (folder.parent / "private/star.json").unlink()
    (zoo / "seed-0").symlink_to("../private")
    with pytest.raises(Exception, match="leads out of") as caught:
        expand_refs([str(zoo)])
    assert exit_code_of(caught.value) in {2, 3}


# YAML


@pytest.mark.timeout(30)
@pytest.mark.parametrize("bomb", BOMBS)
def test_h05_yaml_of_strangers_is_plain(folder: Path, bomb: str) -> None:
    (folder / "zoo.yaml").write_text(BOMBS[bomb])
    (folder / "args.yaml").write_text(BOMBS[bomb])
    (folder / "README.md").write_text(f"---\nlicense: mit\n{BOMBS[bomb]}---\n")
    with pytest.raises(Exception, match=r"zoo\.yaml: (cannot be read as YAML: |expected at most)") as caught:
        read_zoo_file(folder / "zoo.yaml")
    assert exit_code_of(caught.value) in {2, 3}
    with pytest.raises(UntrustedInputError, match=r"args\.yaml: (cannot be read as YAML: |expected at most)"):
        READERS["args.yaml"](folder / "args.yaml")
    assert read_license(folder / "README.md") is None


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "text",
    [
        *("[[]," * 16_000, "[" + "[]," * 21_000 + "]", "? " * 32_000, "- " * 32_000, "{" * 64_000, "a:\n" * 20_000),
        *(
            "a: |\n" + " x\n" * 20_000,
            '"' + "\\n" * 30_000,
            "a: 'x" + "\n" * 60_000,
            "%YAML 1.1\n" * 6_000,
            "--- a\n" * 9_000,
        ),
        *(
            "a: " + "1:" * 31_000 + "1",
            "a: " + "9" * 60_000,
            "a: 0." + "1" * 60_000,
            "&a " * 20_000,
            "!x " * 20_000,
            "\0",
            "\x85" * 999,
        ),
    ],
)
def test_h05_any_text_is_read_or_refused_in_time(text: str) -> None:
    try:
        parse_yaml(text.encode()[:YAML_LIMIT], "it")
    except UntrustedInputError as error:
        reason = error.message
    else:
        reason = "it: cannot be read as YAML: not at all"
    assert reason.startswith("it: cannot be read as YAML: ")


@pytest.mark.parametrize(
    "value", [None, True, 224, -3, 0.9, 1e-6, 1e22, "text", "123", "true", "", "null", "a: b", "- x", [1, "2"], {}]
)
def test_h05_the_arguments_that_timm_writes_keep_their_types(value: object) -> None:
    from starzoo.workflows.import_checkpoints import _parse_value

    assert parse_yaml(yaml.safe_dump({"key": value}).encode(), "it", plain=_parse_value) == {"key": value}
    assert parse_yaml(yaml.safe_dump({"key": "x"}).encode(), "it") == {"key": "x"}


def test_h05_the_text_stays_text() -> None:
    text = b"a: 2024-13-45\nb: 1:1:1\nc: no\nd: {e: [~, 0x10]}\n"
    assert parse_yaml(text, "it") == {"a": "2024-13-45", "b": "1:1:1", "c": "no", "d": {"e": ["~", "0x10"]}}
    assert json.dumps(parse_yaml(b"", "it")) == "null"
