"""Weights that are there only as a pickle: refused, and converted once where that is asked for."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from starzoo.cli.main import main
from starzoo.errors import UntrustedInputError
from starzoo.models.convert_pickle import convert, convert_snapshot
from starzoo.models.pull import pull
from starzoo.models.sources import load_source
from starzoo.models.unpickle import main as unpickle
from tests.cli.conftest import run as run
from tests.conftest import MakeMember
from tests.hub.fakehub import FakeHub
from tests.hub.test_faults_hub import Evil

Files = dict[str, bytes]


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.fixture
def files(make_member: MakeMember) -> Files:
    """A model whose weights are a pickle; their metadata make every test's own."""
    folder = make_member(seed=7)
    state = load((folder / "model.safetensors").read_bytes())
    config = (folder / "config.json").read_bytes()
    return {"config.json": config, "pytorch_model.bin": saved({"state_dict": state, "note": str(folder)})}


def test_w03_a_pickle_is_converted_once_and_then_found(
    files: Files, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_hub.commit("ann/net", files)
    with pytest.raises(UntrustedInputError, match=r"which could run .*`starzoo pull --allow-pickle ann/net`") as caught:
        load_source("ann/net")
    assert caught.value.exit_code == 3
    assert not fake_hub.asked("/resolve/")
    folder = pull("ann/net", allow_pickle=True).folder
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    (tmp_path / "any").touch()
    assert {path.stat().st_mode for path in folder.iterdir()} == {(tmp_path / "any").stat().st_mode}
    monkeypatch.setattr(
        "starzoo.models.convert_pickle.subprocess.run", lambda *a, **b: pytest.fail("opened a second time")
    )
    source = load_source("ann/net")
    expected = torch.load(io.BytesIO(files["pytorch_model.bin"]), weights_only=True)["state_dict"]
    assert all(torch.equal(source.state[name], tensor.to(source.state[name])) for name, tensor in expected.items())
    assert source.record.repo == "ann/net"


def test_w03_fit_star_tells_how_a_pickle_is_converted_and_converts_none_itself(
    files: Files, fake_hub: FakeHub, run, tmp_path: Path
) -> None:
    fake_hub.commit("ann/net", files)
    ended = run("fit-star", "ann/net", "ann/net", "--out", tmp_path / "star")
    assert ended.code == 3
    assert "starzoo pull --allow-pickle ann/net" in " ".join(ended.err.split())
    assert not fake_hub.asked("/resolve/")
    assert not (tmp_path / "star").exists()
    assert run("fit-star", "ann/net", "ann/net", "--out", tmp_path / "star", "--allow-pickle").code == 2
    ended = run("pull", "--allow-pickle", "ann/net", "--json")
    assert ended.code == 0, ended.err
    assert "model.safetensors" in ended.out


@pytest.mark.parametrize("save", [saved, pickle.dumps], ids=["w01", "w02"])
def test_w01_w02_a_pickle_that_runs_code_is_not_converted(
    files: Files, fake_hub: FakeHub, tmp_path: Path, save: object, capfd: pytest.CaptureFixture[str]
) -> None:
    canary = tmp_path / "canary"
    fake_hub.commit("ann/net", {**files, "pytorch_model.bin": save(Evil(canary))})
    assert main(["pull", "--allow-pickle", "ann/net"]) == 3
    assert not canary.exists()
    error = capfd.readouterr().err
    assert "error: ann/net: " in error
    assert "cannot be converted: " in error
    assert "Traceback" not in error


def test_h11_the_process_that_opens_it_has_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def look(command: list[str], *, env: dict[str, str], **more: object) -> None:
        seen.update(env)
        raise OSError("enough")

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("GITHUB_PAT", "secret")
    monkeypatch.setattr("starzoo.models.convert_pickle.subprocess.run", look)
    with pytest.raises(OSError, match="enough"):
        convert_snapshot(
            tmp_path / "config.json",
            lambda: tmp_path / "x.bin",
            ("0" * 40, str(tmp_path)[-20:].replace("/", "-")),
            "a/b",
        )
    assert "PATH" in seen
    assert not {"HF_TOKEN", "GITHUB_PAT"} & set(seen)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"fc.bias": 1.0}, "something else than named tensors"),
        ([torch.ones(3)], "something else than named tensors"),
        ({"a": torch.ones(1).expand(1_000_000, 100)}, "its tensors take 400,000,000 bytes, but the file has"),
    ],
)
def test_what_is_no_table_of_tensors(tmp_path: Path, value: object, reason: str) -> None:
    (tmp_path / "x.bin").write_bytes(saved(value))
    assert reason in (unpickle(tmp_path / "x.bin", tmp_path / "out") or "")
    assert not (tmp_path / "out").exists()


def test_h11_a_pickle_is_not_downloaded_where_the_network_cannot_need_it(files: Files, fake_hub: FakeHub) -> None:
    fake_hub.commit("ann/net", {**files, "pytorch_model.bin": bytes(50_000_000)})
    with pytest.raises(
        UntrustedInputError, match=r"^ann/net: pytorch_model\.bin has 50,000,000 bytes, expected at most"
    ):
        pull("ann/net", allow_pickle=True)
    assert [path for path in fake_hub.asked("/resolve/") if path.endswith(".bin")] == []


def test_h11_a_pickle_that_fills_the_memory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "small.bin").write_bytes(saved({"a": torch.ones(1).expand(250_000_000)}))
    with (
        zipfile.ZipFile(tmp_path / "small.bin") as stored,
        zipfile.ZipFile(tmp_path / "bomb.bin", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed,
    ):
        for name in stored.namelist():
            with packed.open(name, "w") as file:
                for _ in range(1000 if name.endswith("data/0") else 0):
                    file.write(bytes(1_000_000))
                file.write(stored.read(name))
    with pytest.raises(UntrustedInputError, match=r"bomb\.bin cannot be converted: it takes more memory than its size"):
        convert(tmp_path / "bomb.bin", tmp_path / "out.safetensors", "a/b")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80\x04", bytes(99), b"PK\3\4" + bytes(99), pickle.dumps(Path("x")), saved({"a": Path("x")})],
    ids=["empty", "cut", "zeros", "zip", "pickle", "object"],
)
def test_h11_no_message_advises_to_switch_safety_off(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.bin").write_bytes(content)
    assert "weights_only" not in (unpickle(tmp_path / "x.bin", tmp_path / "out") or pytest.fail("opened"))


@pytest.mark.parametrize("name", ["config.json", "README.md", "star.json"])
def test_h11_each_file_has_its_own_limit_before_it_is_downloaded(name: str, fake_hub: FakeHub, files: Files) -> None:
    fake_hub.commit("ann/net", {**files, name: bytes(10_000_001)})
    with pytest.raises(
        UntrustedInputError, match=rf"^ann/net: {name} has 10,000,001 bytes, expected at most 10,000,000"
    ):
        pull("ann/net", allow_pickle=True)
    assert not fake_hub.asked("/resolve/")
