from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from starzoo.errors import HubError, UntrustedInputError, UsageError
from starzoo.files import write_text
from starzoo.hub.ref import ModelRef
from starzoo.hub.upload import list_stars, published_files, push
from starzoo.models.pull import pull
from starzoo.models.sources import load_source
from starzoo.workflows.publish import publish_star
from tests.conftest import MakeMember
from tests.hub.fakehub import FakeHub, Request
from tests.processes import run_python

SECRET = "canary-password"
CARD = "---\nlicense: apache-2.0\ntags:\n- starzoo\n- star-model\n---\n# A star\n"
LOAD_WITH_TIMM = """
import json, sys, timm, torch
model = timm.create_model("hf-hub:ann/star", pretrained=True).eval()
logits = model(torch.linspace(-1, 1, 2 * 256).reshape(2, 1, 16, 16))
assert not [name for name in sys.modules if name.startswith("starzoo")]
print(json.dumps({"logits": logits.tolist(), "config": model.pretrained_cfg}))
"""


@pytest.fixture
def star(make_member: MakeMember) -> Path:
    """A folder with all that a star consists of, and with strangers in between."""
    folder = make_member("star")
    (folder / "README.md").write_text(CARD)
    (folder / "star.json").write_text('{"schema": 1}')
    (folder / "permutations.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    for name in ("plots/paths-test.png", "metrics/paths.csv", "plots/notes.png", "metrics/.items.csv", ".git/config"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    (folder / "pytorch_model.bin").write_bytes(b"stranger")
    (folder / ".env").write_text("secret")
    return folder


FILES = (
    "README.md",
    "config.json",
    "metrics/paths.csv",
    "model.safetensors",
    "permutations.safetensors",
    "plots/paths-test.png",
    "star.json",
)


def test_a_star_comes_back_bit_for_bit(star: Path, fake_hub: FakeHub) -> None:
    result = push(star, "ann/star")
    assert result.files == FILES == published_files(star)
    assert result.url == f"{fake_hub.endpoint}/ann/star/commit/{result.sha}"
    snapshot = pull("ann/star")
    assert (snapshot.repo, snapshot.sha) == ("ann/star", result.sha)
    assert sorted(snapshot.files) == sorted(set(FILES) - {"metrics/paths.csv", "plots/paths-test.png"})
    for name in snapshot.files:
        assert (snapshot.folder / name).read_bytes() == (star / name).read_bytes()
    ours, theirs = load_source(star).state, load_source("hf-hub:ann/star").state
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_p06_plain_timm_loads_a_pushed_star_bit_for_bit(star: Path, fake_hub: FakeHub) -> None:
    push(star, "ann/star")
    ended = run_python("-c", LOAD_WITH_TIMM, forget="starzoo")
    assert ended.code == 0, ended.err
    seen = json.loads(ended.out)
    expected = load_source(star).model()(torch.linspace(-1, 1, 2 * 256).reshape(2, 1, 16, 16))
    assert torch.equal(torch.tensor(seen["logits"]), expected)
    assert seen["config"]["label_names"] == ["cat", "dog", "señor"]
    assert not [key for key in ("license", "tag", "paper_ids", "origin_url") if seen["config"].get(key)]


def test_p05_one_commit_with_the_files_of_the_format_only(star: Path, fake_hub: FakeHub) -> None:
    result = push(star, "ann/star", message="Shine", tag="v1")
    assert sorted(fake_hub.files("ann/star")) == sorted([*FILES, ".gitattributes"])
    commits = [request for request in fake_hub.requests if request.path.endswith("/commit/main")]
    assert len(commits) == 1
    header = json.loads(commits[0].body.splitlines()[0])["value"]
    assert header["summary"] == "Shine"
    assert header["parentCommit"] in fake_hub.repos["ann/star"].commits
    assert fake_hub.repos["ann/star"].tags == {"v1": result.sha}


def test_p05_the_same_content_again_changes_nothing(star: Path, fake_hub: FakeHub) -> None:
    first = push(star, "ann/star", tag="v1")
    again = push(star, "ann/star", tag="v1")
    assert (first.changed, again.changed) == (True, False)
    assert again.sha == first.sha
    assert len(fake_hub.asked("POST .*/commit/main")) == 1
    assert len(fake_hub.asked("PUT /large/")) == 2
    (star / "star.json").write_text('{"schema": 2}')
    with pytest.raises(UsageError, match=f"the tag 'v1' stands on {first.sha[:12]}.*choose another tag"):
        push(star, "ann/star", tag="v1")


def test_p05_a_head_that_moved_during_a_push_is_not_overwritten(star: Path, fake_hub: FakeHub) -> None:
    push(star, "ann/star")
    (star / "star.json").write_text('{"schema": 2}')

    def somebody_else(request: Request) -> None:
        fake_hub.commit("ann/star", {"star.json": b"{}"})

    fake_hub.intercept("POST .*/commit/main", somebody_else, times=1)
    with pytest.raises(HubError, match=r"ann/star: somebody else changed the repository.*run it again"):
        push(star, "ann/star")
    assert fake_hub.files("ann/star")["star.json"] == b"{}"
    assert push(star, "ann/star").changed
    assert fake_hub.files("ann/star")["star.json"] == b'{"schema": 2}'


def test_p05_an_interrupted_push_leaves_no_half_commit(star: Path, fake_hub: FakeHub) -> None:
    fake_hub.fail("PUT /large/", 400, times=1)
    with pytest.raises(HubError, match=r"ann/star: the Hub answered HTTP 400"):
        push(star, "ann/star")
    assert sorted(fake_hub.files("ann/star")) == [".gitattributes"]
    assert push(star, "ann/star").changed


def test_a_pull_request_leaves_main_alone(star: Path, fake_hub: FakeHub) -> None:
    push(star, "ann/star")
    (star / "star.json").write_text('{"schema": 2}')
    result = push(star, "ann/star", create_pr=True)
    assert result.url == f"{fake_hub.endpoint}/ann/star/discussions/1"
    assert fake_hub.files("ann/star")["star.json"] == b'{"schema": 1}'
    assert fake_hub.files("ann/star", "refs/pr/1")["star.json"] == b'{"schema": 2}'


def test_a_private_repository(star: Path, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    push(star, "ann/star", private=True)
    assert pull("ann/star").repo == "ann/star"
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    with pytest.raises(HubError, match=r"ann/star: no such repository, or a private one .*HF_TOKEN"):
        pull("ann/star")


def test_published_stars_are_found_by_their_tag(star: Path, fake_hub: FakeHub) -> None:
    fake_hub.commit("ann/other", {"README.md": b"---\ntags: [cat]\n---\n"})
    for repo in ("ann/star", "bob/star"):
        push(star, repo)
    assert [found.repo for found in list_stars()] == ["ann/star", "bob/star"]
    (only,) = list_stars("bob")
    assert (only.repo, only.downloads, only.likes, only.updated) == ("bob/star", 3, 1, "2026-01-01")


def test_what_cannot_be_pushed(star: Path, tmp_path: Path, fake_hub: FakeHub) -> None:
    with pytest.raises(UsageError, match=r"star: expected the name of a repository .*user/name"):
        push(star, "star")
    with pytest.raises(UsageError, match=r"has no config.json"):
        push(tmp_path, "ann/star")
    with pytest.raises(UsageError, match=r"has no config.json"):
        publish_star(tmp_path, "ann/star")
    (star / "model.safetensors").write_bytes(b"12345678")
    with pytest.raises(UntrustedInputError, match=r"model.safetensors: claims a header"):
        publish_star(star, "ann/star")
    assert not fake_hub.requests


@pytest.mark.parametrize(
    ("text", "repo", "revision"),
    [
        ("timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k", None),
        ("timm/resnet18@v1.0", "timm/resnet18", "v1.0"),
        ("ann/zoo/cifar10/seed-0@v1.0", "ann/zoo", "v1.0"),
        ("hf-hub:timm/resnet18@refs/pr/1", "timm/resnet18", "refs/pr/1"),
        ("HF_HUB:a/b", "a/b", None),
    ],
)
def test_references_to_the_hub(text: str, repo: str, revision: str | None) -> None:
    ref = ModelRef.parse(text)
    inside = "cifar10/seed-0" if repo == "ann/zoo" else ""
    assert ref == ModelRef(repo=repo, revision=revision, subfolder=inside)
    assert ModelRef.parse(str(ref)) == ref


def test_an_existing_folder_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("timm/resnet18").mkdir(parents=True)
    assert ModelRef.parse("timm/resnet18") == ModelRef(folder=Path("timm/resnet18"))
    assert ModelRef.parse("hf-hub:timm/resnet18").repo == "timm/resnet18"
    with pytest.raises(UsageError, match="timm/resnet18: expected a repository, got a local folder"):
        ModelRef.parse("timm/resnet18").resolve()
    with pytest.raises(UsageError, match="timm/resnet18: is a local folder already"):
        pull("timm/resnet18")


@pytest.mark.parametrize(
    "text",
    [
        "./a/b",
        "/a",
        "~/nowhere/x",
        "a/b/c/",
        "a/b//c",
        "a/b/../c",
        "a/b/.c",
        "..",
        "",
        "net",
        "a/b@",
        "a/b@c d",
        "a/..b",
        "a--b/c",
        "x:y/z",
    ],
)
def test_references_to_nothing(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    if text == "..":
        text = "../nowhere"
    with pytest.raises(UsageError, match=r"(no such folder|neither a folder nor a repository) \(write user/repo"):
        ModelRef.parse(text)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "weights").touch()
    with pytest.raises(UsageError, match=r"weights: expected a folder, got a file"):
        ModelRef.parse(tmp_path / "weights")


def test_the_server_refuses_what_the_hub_refuses(fake_hub: FakeHub) -> None:
    fake_hub.commit("ann/net", {"a.txt": b"a"})
    assert fake_hub.answer(Request("GET", "/ann/net/resolve/main/b.txt", {}, {})).status == 404
    assert fake_hub.answer(Request("GET", "/ann/net/resolve/main/a.txt", {}, {"range": "bytes=9-"})).status == 416
    assert fake_hub.answer(Request("PUT", "/large/" + "0" * 64, {}, {}, b"x")).status == 400


def test_a_link_that_leads_out_is_not_published(star: Path, fake_hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "id_rsa").write_text("secret")
    (star / "plots" / "cost-test.png").symlink_to(tmp_path / "id_rsa")
    with pytest.raises(UsageError, match=r"plots/cost-test\.png: expected a file in .*, got a link that leads out"):
        push(star, "ann/star")
    (star / "plots" / "cost-test.png").unlink()
    (star / "plots" / "cost-test.png").symlink_to("paths-test.png")  # its own file
    assert published_files(star) == tuple(sorted([*FILES, "plots/cost-test.png"]))


def test_what_was_pulled_is_pushed_and_its_card_written_beside_the_cache(star: Path, fake_hub: FakeHub) -> None:
    push(star, "ann/star")
    folder = pull("ann/star").folder
    assert (folder / "model.safetensors").is_symlink()
    blob = (folder / "README.md").resolve()
    push(folder, "ann/copy")
    assert fake_hub.files("ann/copy")["model.safetensors"] == (star / "model.safetensors").read_bytes()
    write_text(folder / "README.md", "another")
    assert blob.read_text() == CARD


def test_h12_only_figures_and_tables_of_starzoo_are_published(star: Path) -> None:
    for name in ("plots/private.png", "plots/private.svg", "metrics/salaries.csv", "metrics/curves.csv"):
        (star / name).write_text("private")
    assert published_files(star) == tuple(sorted([*FILES, "metrics/curves.csv"]))
    (star / "star.json").unlink()  # whose figures and tables these are is not known then
    assert published_files(star) == ("README.md", "config.json", "model.safetensors", "permutations.safetensors")


@pytest.mark.parametrize("name", ["config.json", "plots/paths-test.png"])
def test_h12_a_hard_link_is_not_published(star: Path, name: str, tmp_path: Path, fake_hub: FakeHub) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes((star / name).read_bytes())
    (star / name).unlink()
    (star / name).hardlink_to(secret)
    with pytest.raises(UsageError, match=f"star/{name}: is a hard link"):
        push(star, "ann/star")
    assert not [request for request in fake_hub.requests if request.method != "GET"]


def test_h12_the_commit_names_no_password(star: Path, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(self: object, repo: str, *_: object, **__: object) -> SimpleNamespace:
        url = f"https://me:{SECRET}@mirror.example/{repo}/commit/{'0' * 40}"
        return SimpleNamespace(commit_url=url, pr_url=None, oid="0" * 40)

    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", answer)
    fake_hub.commit("ann/star", {"README.md": b"x"})
    assert push(star, "ann/star").url == f"https://mirror.example/ann/star/commit/{'0' * 40}"
