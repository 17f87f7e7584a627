"""The folder of a star may come from a stranger: nothing is built but what its config.json is let through for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm

from starzoo.errors import UntrustedInputError
from starzoo.star import manifest, star
from starzoo.star.star import load_star
from starzoo.workflows.verify import verify_star
from tests.conftest import MakeMember
from tests.hub.fakehub import FakeHub
from tests.stars import make_star


@pytest.fixture
def folder(make_member: MakeMember, tmp_path: Path) -> Path:
    return make_star(tmp_path / "star", [make_member(f"seed-{seed}", seed=seed) for seed in range(2)])


@pytest.mark.parametrize(
    "change",
    [
        {"model_args": {"in_chans": 1, "layers": [1, 1, 1, 1], "checkpoint_path": "evil.pth"}},
        {"name": "hf-hub:evil/other"},
        {"model_args": {"in_chans": 1, "layers": [1] * 1_000}},
        {"label_names": ["cat"]},
    ],
    ids=["a file to load", "another repository", "many layers", "fewer names than outputs"],
)
def test_star_json_names_no_other_architecture_than_config_json(
    folder: Path, fake_hub: FakeHub, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stated = json.loads((folder / "star.json").read_text())
    stated["architecture"] |= change
    (folder / "star.json").write_text(json.dumps(stated))
    built, entrypoint = [], timm.models.model_entrypoint

    def note(name: str) -> Any:
        def create(**arguments: Any) -> Any:
            built.append((name, arguments))
            return entrypoint(name)(**arguments)

        return create

    monkeypatch.setattr(timm.models, "model_entrypoint", note)
    for read in (load_star, verify_star):
        with pytest.raises(
            UntrustedInputError, match=r"star: star.json names another architecture than config.json"
        ) as caught:
            read(folder)
        assert caught.value.exit_code == 3
    assert {name for name, _ in built} == {"test_resnet"}
    assert all(arguments.get("layers") in (None, [1, 1, 1, 1]) for _, arguments in built)
    assert not any("checkpoint_path" in arguments for _, arguments in built)
    assert not fake_hub.requests


def test_config_json_is_held_to_its_allow_list(folder: Path) -> None:
    for name, section in (("config.json", "model_args"), ("star.json", "architecture")):
        stated = json.loads((folder / name).read_text())
        (stated[section] if name == "config.json" else stated[section]["model_args"])["checkpoint_path"] = "evil.pth"
        (folder / name).write_text(json.dumps(stated))
    with pytest.raises(UntrustedInputError, match=r"star: config.json: model_args.checkpoint_path is not allowed"):
        load_star(folder)


def test_files_that_are_too_large_are_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(star, "_PERMUTATIONS_LIMIT", 100)
    with pytest.raises(UntrustedInputError, match=r"permutations.safetensors: is larger than 100 bytes"):
        load_star(folder)
    with (folder / "star.json").open("ab") as file:
        file.write(b" " * manifest._LIMIT)
    with pytest.raises(UntrustedInputError, match=r"star.json: expected at most 10,000,000 bytes"):
        load_star(folder)


def test_permutations_have_a_sound_header(folder: Path) -> None:
    file = folder / "permutations.safetensors"
    file.write_bytes((2**40).to_bytes(8, "little") + b"{}")
    with pytest.raises(UntrustedInputError, match=r"permutations.safetensors: claims a header of 1,099,511,627,776"):
        load_star(folder)


@pytest.mark.parametrize("name", ["star", "naive mean", "aligned mean"])
def test_no_source_has_a_name_of_the_evaluation(folder: Path, name: str) -> None:
    stated = json.loads((folder / "star.json").read_text())
    stated["sources"][1]["name"] = name
    (folder / "star.json").write_text(json.dumps(stated))
    with pytest.raises(UntrustedInputError, match=rf"star\.json: .* a model has the name '{name}'") as caught:
        load_star(folder)
    assert caught.value.exit_code == 3
