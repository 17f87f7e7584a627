"""Several members in one repository, and zoos that a file lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from starzoo.errors import UntrustedInputError, UsageError
from starzoo.hub.offline import offline_mode
from starzoo.hub.ref import ModelRef
from starzoo.models.pull import pull
from starzoo.models.record import ModelRecord
from starzoo.models.sources import load_source, load_sources
from starzoo.report.card import render
from starzoo.star.run.local_paths import resolve_records
from starzoo.workflows.refs import expand_refs, read_zoo_file, resolve_zoo
from tests.conftest import MakeMember
from tests.hub.fakehub import FakeHub
from tests.report.test_card import make_manifest


@pytest.fixture
def zoo(make_member: MakeMember, fake_hub: FakeHub) -> str:
    """A repository of two members with one card; returns its commit."""
    files: dict[str, bytes] = {"README.md": b"---\nlicense: mit\n---\n", "a/README.md": b"---\nlicense: cc0-1.0\n---\n"}
    for seed, name in enumerate("ab"):
        folder = make_member(name, seed=seed)
        files |= {f"{name}/{path.name}": path.read_bytes() for path in folder.iterdir()}
    return fake_hub.commit("ann/zoo", files)


def test_a_member_of_a_repository_is_a_model(zoo: str, fake_hub: FakeHub) -> None:
    first, second = load_sources(["ann/zoo/a", f"ann/zoo/b@{zoo}"])
    assert [source.name for source in (first, second)] == ["a", "b"]
    assert (first.record.repo, second.record.repo) == ("ann/zoo/a", "ann/zoo/b")
    assert (first.record.license, second.record.license) == ("cc0-1.0", "mit")
    assert first.record.sha == second.record.sha == zoo
    assert set(fake_hub.asked("GET .*/resolve/.*safetensors")) == {
        f"GET /ann/zoo/resolve/{zoo}/{name}/model.safetensors" for name in "ab"
    }


def test_a_member_is_found_again_by_its_record_and_offline(zoo: str, fake_hub: FakeHub) -> None:
    source = load_source("ann/zoo/b")
    record = ModelRecord(name="b", repo=source.record.repo, sha=source.record.sha)
    [ref] = resolve_records([record], [])
    assert ref == f"hf-hub:ann/zoo/b@{zoo}"
    with offline_mode():
        assert load_source(ref).record.files == source.record.files
        assert pull("ann/zoo/b").model_id == "ann/zoo/b"


def test_the_root_of_such_a_repository_names_its_members(zoo: str, fake_hub: FakeHub) -> None:
    words = "ann/zoo: has no config.json, but 2 of its folders have one .*: ann/zoo/a, ann/zoo/b"
    with pytest.raises(UntrustedInputError, match=words):
        pull("ann/zoo")
    with pytest.raises(UntrustedInputError, match=r"ann/zoo/c: has no config.json \(a model in timm format"):
        pull("ann/zoo/c")


def test_the_card_links_the_folder_and_names_the_repository_once() -> None:
    sources = tuple(ModelRecord(name=name, repo=f"ann/zoo/{name}", sha="c" * 40) for name in "ab")
    card = render(make_manifest(sources=sources))
    assert f"https://huggingface.co/ann/zoo/tree/{'c' * 40}/a" in card
    assert "base_model:\n- ann/zoo\nbase_model_relation: merge\n" in card
    assert f"ann/zoo/b@{'c' * 40}" in card


def test_a_zoo_file_names_sources_and_held_outs(tmp_path: Path, make_member: MakeMember) -> None:
    make_member("m/seed-10")
    make_member("m/seed-9")
    file = tmp_path / "zoo.yaml"
    file.write_text("sources:\n- ./m\n- ann/zoo/a@v1\nholdouts: [bob/net]\n")
    sources, holdouts = resolve_zoo([str(file), "cy/net"], ["di/net"])
    assert [Path(ref).name for ref in sources] == ["seed-9", "seed-10", "a@v1", "net"]
    assert holdouts == ["bob/net", "di/net"]
    assert expand_refs([str(file)])[-2:] == ["ann/zoo/a@v1", "bob/net"]
    assert expand_refs([str(file)], of="holdouts") == ["bob/net"]


def test_a_folder_that_a_zoo_file_names_is_never_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("zoo.yaml").write_text("sources: [./timm/resnet18.a1_in1k]\n")
    [ref] = read_zoo_file(Path("zoo.yaml")).sources
    with pytest.raises(UsageError, match=f"{tmp_path}/timm/resnet18.a1_in1k: "):
        ModelRef.parse(ref)


def test_a_zoo_file_that_would_be_passed_over_is_refused(tmp_path: Path) -> None:
    held, outer = tmp_path / "held.yaml", tmp_path / "outer.yaml"
    held.write_text("sources: [bob/net]\n")
    outer.write_text("sources: [ann/net, ./held.yaml]\nholdouts: [cy/net]\n")
    assert resolve_zoo(["ann/net", str(held)], []) == (["ann/net", "bob/net"], [])
    for call in (lambda: resolve_zoo(["ann/net"], [str(held)]), lambda: expand_refs([str(held)], of="holdouts")):
        with pytest.raises(UsageError, match=r"held\.yaml: names no held-outs"):
            call()
    with pytest.raises(UsageError, match=r"outer\.yaml: names .*held\.yaml, another zoo file"):
        resolve_zoo([str(outer)], [])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "No such file or directory"),
        ("[a", "cannot be read as YAML: line 1: expected"),
        ("sources: [!!bool maybe]", "cannot be read as YAML: line 1: expected plain values, got a tag"),
        ("sources: &a [*a]", "cannot be read as YAML: line 1: expected plain values, got an anchor or alias"),
        ("<<: {sources: [a/b]}", "cannot be read as YAML: line 1: expected a new key, got a merge"),
        ("[" * 3_000, "cannot be read as YAML: line 1: more than 32 levels"),
        ('sources: ["\\uD800"]', r"sources\.0: Input should be a valid string"),
        ("- a/b", "Input should be"),
        ("models: [a/b]", "models: Extra inputs"),
        ("sources: a/b", "sources: Input should be a valid tuple"),
        ("sources: [[1]]", r"sources\.0: Input should be a valid string"),
        ("sources: ['']", r"sources\.0: String should have at least 1"),
    ],
)
def test_what_is_no_zoo_file(tmp_path: Path, text: str | None, reason: str) -> None:
    file = tmp_path / "zoo.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UsageError, match=rf"zoo.yaml: (cannot read it as a zoo file: )?{reason}.*\(write `sources:`"):
        read_zoo_file(file)
    file.write_text("sources: []")
    with pytest.raises(UsageError, match=r"zoo.yaml: names no model"):
        read_zoo_file(file)
