"""Every check of a star passes on a sound one, and each fails by itself where its own thing is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from starzoo.cli.main import main
from starzoo.errors import UntrustedInputError
from starzoo.models import spec_cache
from starzoo.star.run.local_paths import LocalPaths
from starzoo.workflows.verify import CheckResult, verify_star
from tests.conftest import MakeMember
from tests.hub.fakehub import FakeHub
from tests.stars import make_star

FILES = ("config.json", "model.safetensors", "permutations.safetensors")


@pytest.fixture
def star(make_member: MakeMember, tmp_path: Path) -> Path:
    return make_star(tmp_path / "star", [make_member(f"seed-{seed}", seed=seed) for seed in range(2)])


def outcome(checks: list[CheckResult], passed: bool | None) -> list[str]:
    """The checks of one outcome, in words."""
    return [f"{check.subject}: {check.what}: {check.detail}" for check in checks if check.passed is passed]


def test_a_sound_star_passes_every_check(star: Path) -> None:
    checks = verify_star(star)
    assert outcome(checks, False) == outcome(checks, None) == []
    hashes = [(name, "has the hash that star.json names") for name in FILES]
    source = ["has a permutation of every group", "has the files that star.json names"]
    assert [(check.subject, check.what) for check in checks] == [
        *hashes,
        ("star", "computes the same logits in plain timm"),
        *((f"seed-{n}", what) for n in range(2) for what in (*source, "computes the same when it is permuted")),
    ]
    assert "; 0 positions moved" not in checks[-1].detail  # else the last check shows nothing


def test_hashes_are_those_of_the_files(star: Path) -> None:
    weights = star / "model.safetensors"
    state = load_file(weights)
    state["fc.bias"][0] += 1
    save_file(state, weights, metadata={"format": "pt"})
    [failed] = outcome(verify_star(star), False)
    assert failed.startswith("model.safetensors: has the hash that star.json names: ")


@pytest.mark.parametrize("gone", [FILES, FILES[1:2]])
def test_h08_a_star_without_hashes_fails(star: Path, gone: Sequence[str]) -> None:
    manifest = json.loads((star / "star.json").read_text())
    for name in gone:
        del manifest["files"][name]
    (star / "star.json").write_text(json.dumps(manifest))
    checks = verify_star(star)
    expected = [f"{name}: has the hash that star.json names: star.json names none" for name in gone]
    assert outcome(checks, False) == expected
    assert outcome(checks, None) == []


@pytest.mark.parametrize("where", ["folder", "hub"])
def test_h08_sources_that_do_not_exist_are_no_pass(
    star: Path, where: str, fake_hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((star / "star.json").read_text())
    for source in manifest["sources"]:
        source |= {"repo": "nobody/nothing", "sha": "0" * 40}
    (star / "star.json").write_text(json.dumps(manifest))
    name = str(star)
    if where == "hub":
        name = "them/star"
        fake_hub.commit(name, {file: (star / file).read_bytes() for file in (*FILES, "star.json")})
    assert main(["verify", name, "--json"]) == 9
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert document["passed"] is None
    assert [check["passed"] for check in document["checks"]].count(None) == 2
    assert "2 of 8 checks could not be made, the first one: seed-0 has the files that star.json names: " in shown.err
    assert main(["verify", name, "--quiet"]) == 9
    assert capsys.readouterr().out.count("not checked") == 2
    manifest["files"] = {}
    if where == "folder":  # a fault counts more
        (star / "star.json").write_text(json.dumps(manifest))
        assert main(["verify", name, "--json"]) == 3
        assert json.loads(capsys.readouterr().out)["passed"] is False


def test_permutations_are_those_of_the_groups(star: Path) -> None:
    file = star / "permutations.safetensors"
    indices = load_file(file)
    key = min(name for name in indices if name.startswith("1/"))
    indices[key][0] = indices[key][1]
    save_file(indices, file)
    failed = outcome(verify_star(star), False)
    assert len(failed) == 2
    assert failed[0].startswith("permutations.safetensors: has the hash")
    assert failed[1].startswith("seed-1: has a permutation of every group: permutations.safetensors: group ")


def test_sources_are_the_files_of_the_fit(star: Path) -> None:
    weights = star.parent / "seed-1" / "model.safetensors"
    state = load_file(weights)
    state["fc.bias"][0] += 1
    save_file(state, weights)
    [failed] = outcome(verify_star(star), False)
    assert failed.startswith("seed-1: has the files that star.json names: seed-1: its files are not those")


def test_a_source_that_cannot_be_had_is_not_checked(star: Path) -> None:
    shutil.rmtree(star.parent / "seed-0")
    checks = verify_star(star)
    [missing] = outcome(checks, None)
    assert missing.startswith("seed-0: has the files that star.json names: ")
    assert outcome(checks, False) == []
    (star / "local-paths.json").unlink()
    assert len(outcome(verify_star(star), None)) == 2


def test_a_permutation_that_changes_the_function_is_found(star: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a fault in a rule would, which takes a tensor along that must stay."""
    infer = spec_cache.cached_spec

    def faulty(architecture):
        spec = infer(architecture)
        return replace(spec, axes={**spec.axes, "conv1.0.weight": ()})

    monkeypatch.setattr(spec_cache, "cached_spec", faulty)
    failed = outcome(verify_star(star), False)
    assert [line.split(": relative")[0] for line in failed] == [
        f"seed-{n}: computes the same when it is permuted" for n in range(2)
    ]


def test_timm_must_load_the_same_model(star: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create: Callable[..., torch.nn.Module] = timm.create_model

    def refuse(name: str, **options: object) -> torch.nn.Module:
        if name.startswith("local-dir:"):
            raise RuntimeError("no such model")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", refuse)
    [failed] = outcome(verify_star(star), False)
    assert failed == "star: computes the same logits in plain timm: RuntimeError: no such model"


@pytest.mark.parametrize("change", [{"label_names": ["dog", "cat", "señor"]}, {"model_args": {"layers": [1, 1, 1, 2]}}])
def test_config_json_is_of_the_star(star: Path, change: dict[str, object]) -> None:
    config = json.loads((star / "config.json").read_text())
    (star / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UntrustedInputError, match=r"star: star.json names another architecture than config.json"):
        verify_star(star)


def test_logits_are_compared_bit_for_bit(star: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create: Callable[..., torch.nn.Module] = timm.create_model

    def almost(name: str, **options: object) -> torch.nn.Module:
        model = create(name, **options)
        if name.startswith("local-dir:"):
            with torch.no_grad():
                model.get_parameter("fc.bias")[0] += 1e-3
        return model

    monkeypatch.setattr(timm, "create_model", almost)
    [failed] = outcome(verify_star(star), False)
    assert failed == "star: computes the same logits in plain timm: they differ"


def test_offline_the_hub_is_not_asked(make_member: MakeMember, fake_hub: FakeHub, tmp_path: Path) -> None:
    refs = []
    for seed in range(2):
        member = make_member(f"seed-{seed}", seed=seed)
        refs.append(f"them/member-{seed}")
        fake_hub.commit(refs[-1], {name: (member / name).read_bytes() for name in FILES[:2]})
    star = make_star(tmp_path / "star", refs)
    asked = len(fake_hub.requests)
    checks = verify_star(star, offline=True)
    assert len(fake_hub.requests) == asked
    assert outcome(checks, None) == outcome(checks, False) == []  # all is in the cache
    fake_hub.reset()
    shutil.rmtree(constants.HF_HUB_CACHE)
    offline, gone = verify_star(star, offline=True), verify_star(star)
    assert len(outcome(offline, None)) == len(outcome(gone, None)) == 2
    assert outcome(offline, False) == outcome(gone, False) == []


def test_pinned_sources_are_those_of_the_hub_whatever_lies_in_the_current_folder(
    make_member: MakeMember, fake_hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = []
    for seed in range(2):
        member = make_member(f"seed-{seed}", seed=seed)
        refs.append(f"hf-hub:them/member-{seed}")
        fake_hub.commit(f"them/member-{seed}", {name: (member / name).read_bytes() for name in FILES[:2]})
        make_member(f"member-{seed}", seed=9, parent=tmp_path / "here" / "them")  # another model
    monkeypatch.chdir(tmp_path / "here")
    star = make_star(tmp_path / "star", refs)
    assert LocalPaths.read(star).sources == tuple(refs)
    checks = verify_star(star)
    assert outcome(checks, None) == outcome(checks, False) == []


def test_a_source_that_no_repository_can_be_fails(make_member: MakeMember, tmp_path: Path) -> None:
    star = make_star(tmp_path / "star", [make_member(f"seed-{seed}", seed=seed) for seed in range(2)])
    manifest = json.loads((star / "star.json").read_text())
    manifest["sources"][1] |= {"repo": "../seed-1", "sha": "0" * 40}
    (star / "star.json").write_text(json.dumps(manifest))
    checks = verify_star(star)
    [failed] = outcome(checks, False)
    assert failed.startswith("seed-1: has the files that star.json names: ")
    assert outcome(checks, None) == []


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_ends_with_3_and_its_name(star: Path, name: str) -> None:
    (star / name).unlink()
    with pytest.raises(UntrustedInputError, match=rf"{name}: cannot be read \(No such file") as caught:
        verify_star(star)
    assert caught.value.exit_code == 3


def test_no_star_at_all(tmp_path: Path) -> None:
    with pytest.raises(UntrustedInputError, match=r"star\.json: no manifest of a star"):
        verify_star(tmp_path)
