"""Faults and abuse of the Hub and the network: what a pull must withstand."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load

from starzoo.errors import HubError, StarzooError, UntrustedInputError
from starzoo.hub.offline import offline_mode
from starzoo.models.pull import pull
from starzoo.models.sources import load_source
from tests.conftest import MakeMember
from tests.hub.fakehub import FakeHub, Request, Response

Files = dict[str, bytes]


@pytest.fixture
def files(make_member: MakeMember) -> Files:
    return {path.name: path.read_bytes() for path in make_member().iterdir()}


def cached_files() -> list[str]:
    from huggingface_hub import constants

    return sorted(path.name for path in Path(constants.HF_HUB_CACHE).glob("*/snapshots/*/*"))


class Evil:
    """Unpickling it makes a file, which shows that it was opened."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.canary,)


def zipped(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def harmless(value: object) -> bytes:
    return zipped({"fc.bias": torch.ones(3)})


@pytest.mark.parametrize("save", [zipped, pickle.dumps, harmless], ids=["w01", "w02", "w03"])
@pytest.mark.parametrize("place", ["folder", "repository"])
def test_w01_w02_w03_pickles_are_never_opened(
    files: Files, tmp_path: Path, fake_hub: FakeHub, save: Callable[[object], bytes], place: str
) -> None:
    canary = tmp_path / "canary"
    holding = {"config.json": files["config.json"], "pytorch_model.bin": save(Evil(canary))}
    fake_hub.commit("ann/net", holding)
    folder = tmp_path / "net"
    folder.mkdir()
    for name, data in holding.items():
        (folder / name).write_bytes(data)
    with pytest.raises(UntrustedInputError, match=r"net: holds its weights only as pytorch_model.bin.*safetensors"):
        load_source(folder if place == "folder" else "ann/net")
    assert not canary.exists()
    assert not fake_hub.asked("resolve")


def test_the_canary_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Evil(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_c15_missing_files(files: Files, fake_hub: FakeHub, missing: str) -> None:
    del files[missing]
    fake_hub.commit("ann/net", files)
    with pytest.raises(UntrustedInputError, match=f"ann/net: has no {missing} .*config.json and model.safetensors"):
        load_source("ann/net")
    assert not fake_hub.asked("resolve")


def test_w19_weights_in_several_files_are_not_followed(files: Files, fake_hub: FakeHub) -> None:
    index = b'{"weight_map": {"fc.weight": "../../other/model.safetensors"}}'
    fake_hub.commit("ann/net", {"config.json": files["config.json"], "model.safetensors.index.json": index})
    with pytest.raises(UntrustedInputError, match=r"ann/net: holds its weights in several files"):
        load_source("ann/net")
    assert not fake_hub.asked("resolve")


@pytest.mark.parametrize(
    "index",
    [
        {"fc.weight": "model-00001.safetensors", "fc.bias": "../../other/model.safetensors"},
        {"fc.weight": "model-00001.safetensors", "fc.bias": "model-00009.safetensors"},
        {"fc.weight": "pytorch_model.bin"},
    ],
    ids=["outside", "missing", "pickle"],
)
@pytest.mark.parametrize("twice", [False, True])
def test_w20_an_index_that_lies_is_not_followed(files: Files, fake_hub: FakeHub, index: dict, twice: bool) -> None:
    text = json.dumps({"weight_map": index})
    if twice:
        text = text.replace('"fc.weight"', '"fc.weight": "model-00002.safetensors", "fc.weight"')
    shard = files["model.safetensors"]
    held = {"model.safetensors.index.json": text.encode(), "model-00001.safetensors": shard}
    fake_hub.commit("ann/net", {"config.json": files["config.json"], **held})
    with pytest.raises(UntrustedInputError, match=r"ann/net: holds its weights in several files") as caught:
        load_source("ann/net")
    assert caught.value.exit_code == 3
    assert not fake_hub.asked("resolve")


def test_w04_c16_only_the_files_of_a_model_are_asked_for(files: Files, fake_hub: FakeHub) -> None:
    strangers = {"pytorch_model.bin": b"\x80\x04.", "modeling.py": b"raise SystemExit", "sub/model.safetensors": b""}
    config = files["config.json"].replace(b"{", b'{"auto_map": {"AutoModel": "modeling.Net"},', 1)
    fake_hub.commit("ann/net", {**files, **strangers, "config.json": config})
    load_source("ann/net")
    asked = {request.rpartition("/")[2] for request in fake_hub.asked("/resolve/")}
    assert asked == {"config.json", "model.safetensors"}
    assert cached_files() == ["config.json", "model.safetensors"]


def test_the_header_is_checked_before_the_weights_are_downloaded(files: Files, fake_hub: FakeHub) -> None:
    weights = files["model.safetensors"]
    fake_hub.commit("ann/net", {**files, "model.safetensors": weights + bytes(1_000_000)})
    with pytest.raises(UntrustedInputError, match=r"ann/net: model.safetensors: has 1,000,000 bytes after the last"):
        pull("ann/net")
    assert cached_files() == ["config.json"]
    asked = [request for request in fake_hub.requests if request.path.endswith("/model.safetensors")]
    length = int.from_bytes(weights[:8], "little")
    assert [request.headers["range"] for request in asked] == ["bytes=0-7", f"bytes=8-{7 + length}"]


def test_the_config_is_checked_before_the_weights_are_asked_for(files: Files, fake_hub: FakeHub) -> None:
    fake_hub.commit("ann/net", {**files, "config.json": b'{"architecture": "../resnet18"}'})
    with pytest.raises(UntrustedInputError, match=r"ann/net: config.json: architecture '../resnet18' is not a name"):
        pull("ann/net")
    assert not fake_hub.asked("resolve.*safetensors")


def test_c04_c05_other_weights_are_not_followed(
    files: Files, fake_hub: FakeHub, caplog: pytest.LogCaptureFixture
) -> None:
    places = (
        b'"pretrained_cfg": {"hf_hub_id": "eve/net", "hf_hub_filename": "other.safetensors", "source": "url",'
        b' "url": "https://example.com/x.pth", "file": "/etc/passwd",'
    )
    config = files["config.json"].replace(b'"pretrained_cfg": {', places)
    fake_hub.commit("ann/net", {**files, "config.json": config, "other.safetensors": b""})
    fake_hub.commit("eve/net", files)
    load_source("ann/net")
    assert not fake_hub.asked("eve|other|passwd|x.pth")
    assert "ann/net: config.json points to other weights (url, file, source, hf_hub_id, hf_hub_filename)" in caplog.text


def test_n01_main_moves_between_listing_and_download(files: Files, fake_hub: FakeHub) -> None:
    first = fake_hub.commit("ann/net", files)

    def move(request: Request) -> None:
        fake_hub.commit("ann/net", {"config.json": b"{}", "model.safetensors": b"other"})

    fake_hub.intercept("/resolve/.*/config.json", move, times=1)
    snapshot = pull("ann/net")
    assert snapshot.sha == first != fake_hub.repos["ann/net"].branches["main"]
    assert all((snapshot.folder / name).read_bytes() == files[name] for name in files)
    assert len(fake_hub.asked("GET /api/models/ann/net$")) == 1
    assert fake_hub.asked("/resolve/") == fake_hub.asked(f"/resolve/{first}/")


def test_n02_a_commit_that_is_gone(files: Files, fake_hub: FakeHub) -> None:
    fake_hub.commit("ann/net", files)
    with pytest.raises(HubError, match=r"ann/net: no revision '0{40}' .*/ann/net/commits"):
        pull("ann/net@" + "0" * 40)
    with pytest.raises(HubError, match=r"ann/net: no revision 'v9'"):
        pull("ann/net@v9")


def test_n03_gated(files: Files, fake_hub: FakeHub) -> None:
    fake_hub.commit("ann/net", files, gated=True)
    with pytest.raises(
        HubError, match=rf"ann/net: access is restricted \(ask for access at {fake_hub.endpoint}/ann/net "
    ):
        load_source("ann/net")


def test_n04_no_such_repository(fake_hub: FakeHub) -> None:
    with pytest.raises(HubError, match=r"ann/nothing: no such repository, or a private one \(check the name"):
        load_source("ann/nothing")


@pytest.mark.parametrize("pattern", ["GET /api/models/ann/net", "HEAD .*config.json", "GET .*model.safetensors"])
def test_n06_a_hub_that_fails(files: Files, fake_hub: FakeHub, pattern: str) -> None:
    fake_hub.commit("ann/net", files)
    fake_hub.fail(pattern, 501)
    with pytest.raises(HubError, match=r"ann/net: the Hub answered HTTP 501 \(try again later"):
        load_source("ann/net")


def test_a_hub_that_cannot_be_reached(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable() -> huggingface_hub.HfApi:
        return api("http://127.0.0.1:9")

    api = huggingface_hub.HfApi
    monkeypatch.setattr(huggingface_hub, "HfApi", unreachable)
    with pytest.raises(HubError, match=r"ann/net: the Hub cannot be reached \(ConnectError\) \(check the network"):
        load_source("ann/net")


def damaged(fake_hub: FakeHub, name: str) -> Callable[[Request], Response | None]:
    """A whole download with its last bit flipped; requests for a range are answered as usual."""

    def respond(request: Request) -> Response | None:
        data = fake_hub.files("ann/net")[name]
        return None if "range" in request.headers else Response(200, data[:-1] + bytes([data[-1] ^ 1]))

    return respond


def test_n12_a_damaged_download_is_repeated_once(files: Files, fake_hub: FakeHub) -> None:
    fake_hub.commit("ann/net", files)
    ranges_and_first_download = 3
    fake_hub.intercept("GET .*model.safetensors", damaged(fake_hub, "model.safetensors"), ranges_and_first_download)
    snapshot = pull("ann/net")
    assert (snapshot.folder / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert len(fake_hub.asked("GET .*model.safetensors")) == ranges_and_first_download + 1


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_n12_a_download_that_is_always_damaged(files: Files, fake_hub: FakeHub, name: str) -> None:
    fake_hub.commit("ann/net", files)
    fake_hub.intercept(f"GET .*{name}", damaged(fake_hub, name))
    with pytest.raises(UntrustedInputError, match=rf"ann/net: {name} does not have the hash .* commit [0-9a-f]{{12}}"):
        pull("ann/net")
    assert name not in cached_files()


def test_n14_offline_from_the_cache_without_a_request(
    files: Files, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = fake_hub.commit("ann/net", {**files, "README.md": b"---\nlicense: mit\n---\n"})
    online = pull("ann/net")
    asked = len(fake_hub.requests)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert pull("ann/net") == pull(f"ann/net@{sha}") == online
    with pytest.raises(HubError, match=r"ann/other: not complete in the local cache, and offline .*HF_HUB_OFFLINE"):
        pull("ann/other")
    with pytest.raises(HubError, match=r"ann/net: config.json is not in the local cache, and offline"):
        pull("ann/net@" + "0" * 40)
    assert len(fake_hub.requests) == asked


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_n14_offline_from_a_cache_without_links(files: Files, fake_hub: FakeHub, weights: str) -> None:
    """As HF_HUB_DISABLE_SYMLINKS and `cp -rL` leave it: no file's name tells its hash, and there is no other copy."""
    state = load(files["model.safetensors"])
    pickled = io.BytesIO()
    torch.save(state, pickled)
    contents = {"model.safetensors": files["model.safetensors"], "pytorch_model.bin": pickled.getvalue()}
    fake_hub.commit("ann/net", {"config.json": files["config.json"], weights: contents[weights]})
    online = pull("ann/net", allow_pickle=True)
    [cache] = Path(constants.HF_HUB_CACHE).glob("models--*")
    links = [path for path in cache.rglob("*") if path.is_symlink()]
    for link in links:
        content = link.read_bytes()
        link.unlink()
        link.write_bytes(content)
    shutil.rmtree(cache / "blobs")
    with offline_mode():
        assert pull("ann/net") == online
    assert len(links) == 2
    assert all(link.is_file() for link in links)


def test_n14_offline_nothing_is_removed(files: Files, fake_hub: FakeHub) -> None:
    fake_hub.commit("ann/net", files)
    file = pull("ann/net").folder / "model.safetensors"
    blob = file.resolve()
    blob.write_bytes(damage := blob.read_bytes()[:-1] + b"x")
    with (
        offline_mode(),
        pytest.raises(UntrustedInputError, match=r"ann/net: model.safetensors .* is damaged: .*unset"),
    ):
        pull("ann/net")
    assert file.read_bytes() == damage
    assert (pull("ann/net").folder / "model.safetensors").read_bytes() == files["model.safetensors"]


def test_p01_messages_do_not_show_the_token(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_CANARY")
    with pytest.raises(StarzooError, match="ann/nothing") as caught:
        load_source("ann/nothing")
    assert "hf_CANARY" in fake_hub.requests[0].headers["authorization"]
    assert "CANARY" not in str(caught.value)
