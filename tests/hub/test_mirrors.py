"""Mirrors of the Hub that state less than it does, and revisions with names that only git knows."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from starzoo.errors import HubError, UntrustedInputError, UsageError
from starzoo.hub.listing import list_files
from starzoo.hub.names import is_revision
from starzoo.hub.offline import offline_mode
from starzoo.hub.ref import ModelRef
from starzoo.models.pull import pull
from tests.conftest import MakeMember
from tests.hub.fakehub import FakeHub, Request, Response

Files = dict[str, bytes]


@pytest.fixture
def files(make_member: MakeMember) -> Files:
    return {path.name: path.read_bytes() for path in make_member().iterdir()}


def state_only(fake_hub: FakeHub, *keys: str) -> None:
    """From now on the Hub says of a repository and of its files no more than this."""

    def answer(request: Request) -> Response:
        response = fake_hub.route(request)
        info = json.loads(response.body)
        siblings = [{key: file[key] for key in ("rfilename", *keys) if key in file} for file in info["siblings"]]
        body = {"id": info["id"], "siblings": siblings, **{key: info[key] for key in keys if key in info}}
        return replace(response, body=json.dumps(body).encode())

    fake_hub.intercept("GET /api/models/[^/]+/[^/]+", answer)


def change_headers(fake_hub: FakeHub, pattern: str, headers: Mapping[str, str | None]) -> None:
    def answer(request: Request) -> Response:
        response = fake_hub.route(request)
        stated = {name.lower(): value for name, value in {**response.headers, **headers}.items()}
        return replace(response, headers={name: value for name, value in stated.items() if value is not None})

    fake_hub.intercept(pattern, answer)


@pytest.mark.parametrize("stated", [("sha",), ("sha", "size"), ("sha", "blobId"), ()], ids="-".join)
def test_the_etag_is_the_hash_where_the_list_states_none(
    stated: tuple[str, ...], files: Files, fake_hub: FakeHub
) -> None:
    sha = fake_hub.commit("ann/net", {**files, "README.md": b"card", "notes.txt": b"of no interest"})
    online = list_files("ann/net")
    state_only(fake_hub, *stated)
    assert list_files("ann/net") == online
    assert fake_hub.asked("HEAD .*notes.txt") == []
    snapshot = pull("ann/net")
    assert snapshot.sha == sha
    assert (snapshot.folder / "model.safetensors").read_bytes() == files["model.safetensors"]


def test_n12_a_body_with_another_hash_than_its_etag_is_refused(files: Files, fake_hub: FakeHub) -> None:
    fake_hub.commit("ann/net", files)
    state_only(fake_hub, "sha")
    other = files["config.json"].replace(b"3", b"4")

    def spoil(request: Request) -> Response:
        return replace(fake_hub.route(request), body=other)

    fake_hub.intercept("GET .*/config.json", spoil)
    with pytest.raises(UntrustedInputError, match=r"config\.json does not have the hash that the Hub states"):
        pull("ann/net")


def test_a_weak_etag_is_one(files: Files, fake_hub: FakeHub) -> None:
    fake_hub.commit("ann/net", files)
    state_only(fake_hub, "sha")
    digest = hashlib.sha1(b"blob %d\0" % len(files["config.json"]) + files["config.json"]).hexdigest()
    change_headers(fake_hub, "(HEAD|GET) .*/config.json", {"ETag": f'W/"{digest}"'})
    assert list_files("ann/net").files["config.json"].digest == digest
    pull("ann/net")


@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": f'"{hashlib.md5(b"").hexdigest()}"'},
        {"ETag": None},
        {"X-Repo-Commit": "0" * 40},
        {"X-Repo-Commit": None},
    ],
    ids=["md5", "no etag", "another commit", "no commit"],
)
def test_without_a_hash_of_the_commit_nothing_is_downloaded(
    headers: dict[str, str | None], files: Files, fake_hub: FakeHub
) -> None:
    fake_hub.commit("ann/net", files)
    state_only(fake_hub, "sha")
    change_headers(fake_hub, "HEAD .*/config.json", headers)
    with pytest.raises(UntrustedInputError, match=r"ann/net: states no hash of 'config\.json' at commit") as caught:
        pull("ann/net")
    assert caught.value.exit_code == 3
    assert not fake_hub.asked("GET .*/resolve/")


@pytest.mark.parametrize("revision", [None, "release"])
def test_n01_a_commit_that_only_the_files_name_is_resolved_once(
    revision: str | None, files: Files, fake_hub: FakeHub, make_member: MakeMember
) -> None:
    sha = fake_hub.commit("ann/net", files)
    fake_hub.repos["ann/net"].tags["release"] = sha
    state_only(fake_hub, "size", "blobId", "lfs")
    ref = f"ann/net@{revision}" if revision else "ann/net"
    online = pull(ref)
    assert online.sha == sha
    assert len(fake_hub.asked(f"HEAD .*/resolve/{revision or 'main'}/")) == 1
    with offline_mode():
        assert pull(ref) == online


@pytest.mark.parametrize("stated", [None, "../../../evil", "main"])
def test_a_hub_that_names_no_commit(stated: str | None, files: Files, fake_hub: FakeHub) -> None:
    fake_hub.commit("ann/net", files)
    state_only(fake_hub)
    change_headers(fake_hub, "HEAD ", {"X-Repo-Commit": stated})
    with pytest.raises(HubError, match="ann/net: the Hub names no commit"):
        pull("ann/net")
    assert not list(Path(constants.HF_HUB_CACHE).glob("*/refs/*"))


@pytest.mark.parametrize(
    "body",
    [
        b"<html>Welcome to our wireless network</html>",
        b"null",
        b"[]",
        b"{}",
        b'{"id": "ann/net", "lastModified": "yesterday"}',
        b'{"id": "ann/net", "siblings": [{"rfilename": "config.json", "lfs": {"size": 1}}]}',
    ],
)
def test_what_is_no_hub_is_no_fault_in_starzoo(body: bytes, files: Files, fake_hub: FakeHub) -> None:
    fake_hub.commit("ann/net", files)
    fake_hub.intercept("GET /api/models/", lambda request: Response(200, body))
    with pytest.raises(HubError, match="ann/net: expected the description of a repository, got another answer"):
        pull("ann/net")


ALLOWED = (
    *(
        "main",
        "v1.0",
        "v1.0+exp",
        "refs/pr/3",
        "feature/x",
        "release#2",
        "träume",
        "a@b",
        "@/a",
        "HEAD",
        "1e9",
        "_",
        "!x",
    ),
    *("a.lock.b", "a.locked", "a./b", "a%2fb", "a&b=c", "a;b", "$(a)", "`a`", '"a"', "日本語", "x" * 250, "{a}"),
)
REFUSED = (
    *(
        "",
        "@",
        "-x",
        "a b",
        "a~1",
        "a^",
        "a:b",
        "a?",
        "a*",
        "a[b",
        "a\\b",
        "a@{b",
        "a..b",
        "a\tb",
        "a\nb",
        "a\x00",
        "a\x7f",
    ),
    *(
        ".",
        "..",
        ".a",
        "a/.b",
        "../a",
        "a/../b",
        "a/..",
        "/a",
        "a/",
        "a//b",
        "a.",
        "a.lock",
        "a.lock/b",
        "x" * 251,
        "\udce9",
    ),
)


@pytest.mark.parametrize("name", ALLOWED)
def test_a_revision_has_any_name_that_git_allows(name: str) -> None:
    assert ModelRef.parse(f"ann/net/sub@{name}") == ModelRef(repo="ann/net", revision=name, subfolder="sub")


@pytest.mark.parametrize("name", REFUSED)
def test_a_revision_has_no_name_that_git_refuses(name: str) -> None:
    with pytest.raises(UsageError, match="neither a folder nor a repository"):
        ModelRef.parse(f"ann/net@{name}")


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_thinks_the_same() -> None:
    for name in (*ALLOWED, *(name for name in REFUSED if "\0" not in name and len(name) < 250)):
        asked = subprocess.run(["git", "check-ref-format", "--allow-onelevel", name], capture_output=True, check=False)
        assert is_revision(name) == (asked.returncode == 0) or name == "\udce9", name


@pytest.mark.parametrize("name", ["refs/pr/3", "feature/x", "v1.0+exp", "release#2", "träume", "a@b", "a%2fb"])
def test_a_revision_of_any_name_is_found_and_remembered(name: str, files: Files, fake_hub: FakeHub) -> None:
    sha = fake_hub.commit("ann/net", files)
    fake_hub.commit("ann/net", {"config.json": b"another"})
    fake_hub.repos["ann/net"].branches[name] = sha
    online = pull(f"ann/net@{name}")
    assert online.sha == sha
    refs = Path(constants.HF_HUB_CACHE) / "models--ann--net" / "refs"
    assert [path.relative_to(refs).as_posix() for path in refs.rglob("*") if path.is_file()] == [name]
    with offline_mode():
        assert pull(f"ann/net@{name}") == online
