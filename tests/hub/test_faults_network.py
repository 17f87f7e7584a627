"""A Hub that is busy, slow, cut off or deleted; a full disk, a killed process, two processes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import hf_xet
import pytest

from starzoo.config import DataConfig
from starzoo.data.preprocessing import Preprocessing
from starzoo.data.task import load_data
from starzoo.errors import HubError, ResourceError, StarzooError, UntrustedInputError
from starzoo.hub import retry
from starzoo.hub.error_mapping import HubUnavailableError
from starzoo.hub.offline import offline_mode
from starzoo.hub.upload import list_stars, push
from starzoo.models.pull import pull, pull_all
from starzoo.models.sources import load_source, load_sources
from starzoo.models.timm_folder import sha256_file
from tests.conftest import MakeMember
from tests.hub.fakehub import FakeHub, Request, Response
from tests.processes import Started, start_python

Files = dict[str, bytes]
WEIGHTS = "GET .*model.safetensors"
PULL = "import sys; from starzoo.models.pull import pull; print(pull(sys.argv[1]).files['model.safetensors'])"


@pytest.fixture
def files(make_member: MakeMember) -> Files:
    return {path.name: path.read_bytes() for path in make_member().iterdir()}


def hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def start_pull(ref: str) -> Started:
    return start_python("-c", PULL, ref)


def whole(answer: Response) -> object:
    """An interception that answers requests for whole files, not for a range."""
    return lambda request: None if "range" in request.headers else answer


def test_n02_a_deleted_commit_can_be_used_offline_from_the_cache(files: Files, fake_hub: FakeHub) -> None:
    sha = fake_hub.commit("ann/net", files)
    online = pull("ann/net")
    fake_hub.repos["ann/net"].commits.clear()
    fake_hub.repos["ann/net"].branches.clear()
    with pytest.raises(HubError, match=f"ann/net: no revision '{sha}'"):
        pull(f"ann/net@{sha}")
    asked = len(fake_hub.requests)
    with offline_mode():
        assert pull(f"ann/net@{sha}") == pull("ann/net") == online
    assert len(fake_hub.requests) == asked


@pytest.mark.parametrize("pattern", ["GET /api/models/ann/net$", "HEAD .*config.json", WEIGHTS])
def test_n05_a_hub_that_fails_once(files: Files, fake_hub: FakeHub, pattern: str) -> None:
    fake_hub.commit("ann/net", files)
    fake_hub.fail(pattern, 503, times=1)
    snapshot = pull("ann/net")
    assert (snapshot.folder / "model.safetensors").read_bytes() == files["model.safetensors"]


def test_n05_a_body_that_is_an_error_once(files: Files, fake_hub: FakeHub) -> None:
    fake_hub.commit("ann/net", files)
    failed = []

    def fail_once(request: Request) -> Response | None:
        if "range" in request.headers or failed:
            return None
        failed.append(request)
        return Response(503, b"busy")

    fake_hub.intercept(WEIGHTS, fail_once)
    assert sha256_file(pull("ann/net").folder / "model.safetensors") == pull("ann/net").files["model.safetensors"]
    assert len(failed) == 1


@pytest.mark.parametrize("pattern", ["GET /api/models/ann/net$", "HEAD .*config.json", WEIGHTS])
@pytest.mark.parametrize("status", [500, 503])
def test_n06_a_hub_that_fails_forever_is_asked_five_times(
    files: Files, fake_hub: FakeHub, pattern: str, status: int
) -> None:
    fake_hub.commit("ann/net", files)
    fake_hub.fail(pattern, status)
    with pytest.raises(HubError, match=rf"^ann/net: the Hub answered HTTP {status} \(try again later") as caught:
        pull("ann/net")
    assert caught.value.exit_code == 4
    assert len(fake_hub.asked(pattern)) == 5


def test_n06_the_pauses_are_bounded(short_pauses: tuple[float, ...]) -> None:
    assert len(short_pauses) == 4
    assert sum(short_pauses) < retry.MAX_WAIT <= 60  # of those that it stands for


@pytest.mark.parametrize("pattern", ["GET /api/models/ann/net$", "HEAD .*config.json", WEIGHTS])
def test_n07_too_many_requests_with_a_time_to_wait(
    files: Files, fake_hub: FakeHub, pattern: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake_hub.commit("ann/net", files)
    fake_hub.fail(pattern, 429, times=1, Retry_After="2")
    waited: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", waited.append)
    pull("ann/net")
    assert 2 in waited
    assert "ann/net: the Hub answered HTTP 429 and asks to wait 2 s; trying again in 2 s" in caplog.text


@pytest.mark.parametrize("pattern", ["GET /api/models/ann/net$", "HEAD .*config.json", WEIGHTS])
@pytest.mark.parametrize("headers", [{"Retry_After": "86400"}, {"ratelimit": '"api";r=0;t=86400'}])
def test_n08_a_hub_that_asks_to_wait_for_a_day(
    files: Files, fake_hub: FakeHub, pattern: str, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_hub.commit("ann/net", files)
    fake_hub.fail(pattern, 429, **headers)
    waited: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", waited.append)
    with pytest.raises(HubError, match=r"HTTP 429 and asks to wait 86400 s \(try again later, or set HF_") as caught:
        pull("ann/net")
    assert caught.value.exit_code == 4
    assert sum(waited) < 1
    assert len(fake_hub.asked(pattern)) == 1


@pytest.mark.parametrize(
    ("pattern", "action"),
    [
        ("GET /api/models$", lambda folder: list_stars()),
        ("POST .*/info/lfs/", lambda folder: push(folder, "ann/net")),
        ("GET /api/datasets/ann/images", lambda folder: load_data(DataConfig(dataset="ann/images"), Preprocessing())),
    ],
    ids=["list", "push", "data"],
)
def test_n08_no_command_waits_for_a_day(
    make_member: MakeMember, fake_hub: FakeHub, pattern: str, action: Callable[[Path], object]
) -> None:
    folder = make_member("a")
    fake_hub.fail(pattern, 429, Retry_After="86400")
    with pytest.raises(HubError, match="HTTP 429 and asks to wait 86400 s") as caught:
        action(folder)
    assert caught.value.exit_code == 4
    assert len(fake_hub.asked(pattern)) == 1


def test_n08_a_hub_that_asks_to_wait_a_little_forever(
    files: Files, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_hub.commit("ann/net", files)
    fake_hub.fail("GET /api/models", 429, Retry_After="13")
    waited: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", waited.append)
    with pytest.raises(HubError, match="HTTP 429 and asks to wait 13 s"):
        pull("ann/net")
    assert waited == [13, 13, 13, 13]


def test_n08_all_waits_together_are_bounded(files: Files, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub.commit("ann/net", files)
    fake_hub.fail("GET /api/models", 429, Retry_After="25")
    waited: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", waited.append)
    monkeypatch.setattr(retry.time, "monotonic", lambda: sum(waited))
    with pytest.raises(HubError, match="HTTP 429 and asks to wait 25 s"):
        pull("ann/net")
    assert waited == [25, 25]  # a third one would be beyond the minute


@pytest.mark.parametrize("name", ["api", "model.safetensors"])
def test_n09_a_read_timeout(files: Files, fake_hub: FakeHub, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub.commit("ann/net", files)
    pull_first = pull("ann/net") if name == "api" else None
    fake_hub.spoil("GET .*(?<!revision/)" + name, late=0.8)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    monkeypatch.setattr("starzoo.hub.ref.TIMEOUT", 0.1)
    monkeypatch.setattr("starzoo.hub.download.TIMEOUT", 0.1)
    monkeypatch.setattr(retry, "_PAUSES", ())
    with pytest.raises(HubError, match=r"ann/net: the Hub cannot be reached \(ReadTimeout\) \(check the net") as caught:
        pull("ann/net")
    assert caught.value.exit_code == 4
    assert pull_first is None or pull_first.folder.is_dir()


def test_n10_a_connection_that_is_cut_once(files: Files, fake_hub: FakeHub) -> None:
    fake_hub.commit("ann/net", files)
    size, cut = len(files["model.safetensors"]), []

    def cut_once(request: Request) -> Response | None:
        if "range" in request.headers or cut:
            return None
        cut.append(request)
        return Response(200, files["model.safetensors"], {"Content-Length": str(size)}, cut=size // 2)

    fake_hub.intercept(WEIGHTS, cut_once)
    snapshot = pull("ann/net")
    assert (snapshot.folder / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert len(cut) == 1


def test_n11_a_process_that_is_killed_in_the_middle_of_a_download(files: Files, fake_hub: FakeHub) -> None:
    fake_hub.commit("ann/net", files)
    fake_hub.intercept(WEIGHTS, whole(Response(200, files["model.safetensors"], slow=5)))
    process = start_pull("ann/net")
    deadline = time.monotonic() + 120
    while not list(hub_cache().rglob("*.incomplete")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send(signal.SIGKILL)
    process.wait()
    orphans = list(hub_cache().rglob("*.incomplete"))
    assert orphans
    fake_hub.interceptions.clear()
    snapshot = pull("ann/net")
    assert (snapshot.folder / "model.safetensors").read_bytes() == files["model.safetensors"]


def test_n13_no_old_commit_is_taken_where_the_hub_fails(files: Files, fake_hub: FakeHub) -> None:
    old = fake_hub.commit("ann/net", files)
    assert pull("ann/net").sha == old
    new = fake_hub.commit("ann/net", {"README.md": b"new"})
    fake_hub.fail("GET /api/models/ann/net$", 500, times=5)
    with pytest.raises(HubError, match="ann/net: the Hub answered HTTP 500"):
        pull("ann/net")
    assert pull("ann/net").sha == new


def test_n14_nothing_opens_a_socket_offline(files: Files, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub.commit("ann/net", files)
    before = load_source("ann/net")

    def refuse(*arguments: object) -> None:
        raise AssertionError("a socket is opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with offline_mode():
        after = load_source("ann/net")
    assert after.record == before.record


def test_n15_more_than_fits_on_the_disk_is_not_begun(
    files: Files, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_hub.commit("ann/net", files)
    free = len(files["config.json"]) + len(files["model.safetensors"]) - 1
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))
    words = f"{free + 1:,} bytes are to be downloaded, but only {free:,} are free"
    with pytest.raises(ResourceError, match=words) as caught:
        pull("ann/net")
    assert caught.value.exit_code == 8
    assert not fake_hub.asked("/resolve/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free + 1))
    assert pull("ann/net").files


def test_n15_a_disk_that_gets_full_during_the_download(
    files: Files, fake_hub: FakeHub, request: pytest.FixtureRequest
) -> None:
    assert len(files["model.safetensors"]) > 2**20
    fake_hub.commit("ann/net", files)
    request.getfixturevalue("small_files")
    with pytest.raises(ResourceError, match="ann/net: the disk is full"):
        pull("ann/net")
    assert not list(hub_cache().rglob("*.incomplete"))


@pytest.mark.parametrize(
    ("failure", "kind", "asked"),
    [
        (
            RuntimeError("Task error: File reconstruction error: CAS Client Error: connection closed"),
            HubUnavailableError,
            5,
        ),
        (RuntimeError("Task error: I/O error: No space left on device (os error 28)"), ResourceError, 1),
        (hf_xet.XetAuthenticationError("401"), HubError, 1),
        (hf_xet.XetObjectNotFoundError("404"), HubError, 1),
    ],
    ids=["cut off", "full disk", "no right", "no such object"],
)
def test_n06_xet_fails_in_its_own_words(
    files: Files,
    fake_hub: FakeHub,
    monkeypatch: pytest.MonkeyPatch,
    failure: Exception,
    kind: type[StarzooError],
    asked: int,
) -> None:
    """The Xet client raises what no other part of huggingface_hub does; its server cannot be had on loopback."""
    fake_hub.commit("ann/net", files)
    tried = []

    def fail(*arguments: object, **more: object) -> str:
        tried.append(arguments)
        raise failure

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    monkeypatch.setattr(retry.time, "sleep", lambda seconds: None)
    with pytest.raises(StarzooError, match=r"^ann/net: the (Xet storage of the Hub failed|disk is full)") as caught:
        pull("ann/net")
    assert type(caught.value) is kind
    assert caught.value.__cause__ is failure
    assert len(tried) == asked


def test_n06_a_push_through_xet_that_breaks_off(
    files: Files, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)

    def fail(*arguments: object, **more: object) -> None:
        raise RuntimeError("Upload task error: CAS Client Error: connection closed")

    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", fail)
    with pytest.raises(HubError, match=r"ann/net: the Xet storage of the Hub failed \(RuntimeError\)"):
        push(tmp_path, "ann/net")


def test_n16_two_processes_with_one_cache(files: Files, fake_hub: FakeHub) -> None:
    fake_hub.commit("ann/net", files)
    fake_hub.spoil(WEIGHTS, late=0.2)
    ended = [process.wait() for process in [start_pull("ann/net"), start_pull("ann/net")]]
    assert len({each.out for each in ended}) == 1, ended
    assert sha256_file(pull("ann/net").folder / "model.safetensors") == ended[0].out.strip()


@pytest.mark.parametrize("path", ["../../evil.safetensors", "/etc/passwd", "a/../../b", "..\\b"])
def test_n17_a_listing_that_leaves_the_repository(files: Files, fake_hub: FakeHub, path: str) -> None:
    fake_hub.commit("ann/net", {**files, path: b"evil"})
    with pytest.raises(UntrustedInputError, match=r"ann/net: lists a file .*, which lies outside of the repository"):
        pull("ann/net")
    assert not fake_hub.asked("/resolve/")


def test_n18_the_token_does_not_go_to_another_host(files: Files, fake_hub: FakeHub) -> None:
    fake_hub.commit("ann/net", files)
    fake_hub.large_files_elsewhere = True
    snapshot = pull("ann/net")
    assert (snapshot.folder / "model.safetensors").read_bytes() == files["model.safetensors"]
    there = [request for request in fake_hub.requests if request.headers["host"] in fake_hub.storage]
    here = [request for request in fake_hub.requests if request.headers["host"] in fake_hub.endpoint]
    assert [request.method for request in there].count("GET") == 3  # two ranges for the header, and the file
    assert not [request for request in there if "authorization" in request.headers]
    assert all("authorization" in request.headers for request in here)


def test_five_sources_are_pulled_at_the_same_time_and_nothing_twice(make_member: MakeMember, fake_hub: FakeHub) -> None:
    for seed in range(5):
        folder = make_member(f"m{seed}", seed=seed)
        fake_hub.commit(f"ann/m{seed}", {path.name: path.read_bytes() for path in folder.iterdir()})
    fake_hub.repos["ann/m0"].tags["v1"] = fake_hub.repos["ann/m0"].branches["main"]
    together = threading.Barrier(5)

    def wait_for_the_others(request: Request) -> None:
        if "range" not in request.headers:
            fake_hub.lock.release()  # as the server holds it while it calls an interception
            try:
                together.wait(timeout=60)
            finally:
                fake_hub.lock.acquire()

    fake_hub.intercept(WEIGHTS, wait_for_the_others)
    refs = [f"ann/m{seed}" for seed in range(5)]
    sources = load_sources(refs)
    assert [source.name for source in sources] == ["m0", "m1", "m2", "m3", "m4"]
    assert not together.broken
    assert len(fake_hub.asked("GET .*/resolve/")) == 5 * (1 + 2 + 1)  # config.json, two ranges of a header, the weights
    pull_all([*refs, "ann/m0@v1", *refs])
    assert len(fake_hub.asked("GET .*/resolve/")) == 20


def test_the_first_failure_ends_the_other_downloads(
    make_member: MakeMember, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(2):
        folder = make_member(f"m{seed}", seed=seed)
        fake_hub.commit(f"ann/m{seed}", {path.name: path.read_bytes() for path in folder.iterdir()})
    fake_hub.spoil("GET .*/m0/.*model.safetensors", slow=0.5)
    fake_hub.fail("HEAD .*/m1/.*model.safetensors", 501)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 50_000)  # at each it may be told to stop
    with pytest.raises(HubError, match="ann/m1: the Hub answered HTTP 501"):
        pull_all(["ann/m0", "ann/m1"])
    weights = sha256(fake_hub.files("ann/m0")["model.safetensors"]).hexdigest()
    left = {path.name for path in hub_cache().rglob("*")}
    assert weights not in left
    assert not [name for name in left if name.endswith("incomplete")]


def test_messages_and_environment_show_no_token(fake_hub: FakeHub) -> None:
    assert os.environ["HF_TOKEN"]
    with pytest.raises(HubError) as caught:
        pull("ann/nothing")
    assert os.environ["HF_TOKEN"] not in str(caught.value)
