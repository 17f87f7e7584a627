"""The images that a stranger's star names: what everybody has, never a folder of this machine."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from starzoo.cli.main import main
from starzoo.config import AlignConfig, DataConfig, EvalConfig, RunConfig, RuntimeConfig, validate
from starzoo.errors import UntrustedInputError, UsageError
from starzoo.star.inputs import reload_data
from starzoo.star.manifest import StarManifest, read_manifest
from starzoo.star.run.local_paths import LocalPaths
from starzoo.star.star import Star
from tests.conftest import MakeMember
from tests.hub.fakehub import FakeHub
from tests.star.test_strangers_star import watched
from tests.stars import make_star

FILES = ("config.json", "model.safetensors", "permutations.safetensors", "star.json")
WHERE = pytest.mark.parametrize("where", ["folder", "hub"])
QUICK = ["--set", "evaluate.source_pairs=0", "--no-cache"]


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures of the user's in the current folder, under several names that a star could guess."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cat", "dog", "señor"):
            folder = tmp_path / "me" / "private" / split / name
            folder.mkdir(parents=True)
            for number in range(4):
                Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(folder / f"{number}.png")
    (tmp_path / "private").symlink_to(tmp_path / "me" / "private")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / "me" / "private"


@pytest.fixture
def star(make_member: MakeMember, tmp_path: Path, fake_hub: FakeHub) -> Path:
    """A stranger's star on the Hub's models, without places."""
    refs = []
    for seed in range(2):
        member = make_member(f"seed-{seed}", seed=seed)
        refs.append(f"hf-hub:them/member-{seed}")
        files = {name: (member / name).read_bytes() for name in FILES[:2]}
        fake_hub.commit(f"them/member-{seed}", files)
    folder = make_star(tmp_path / "star", refs)
    (folder / "local-paths.json").unlink()
    make_member("new", seed=9)
    return folder


def names(star: Path, where: str, fake_hub: FakeHub, **data: object) -> str:
    """Let the star name some data, and say how it is given to a command."""
    manifest = json.loads((star / "star.json").read_text())
    ood = data.pop("ood", None)
    manifest["config"]["data"] |= data
    manifest["config"]["evaluate"]["ood"] = ood and {"dataset": ood}
    (star / "star.json").write_text(json.dumps(manifest))
    if where == "folder":
        return str(star)
    fake_hub.commit("them/star", {name: (star / name).read_bytes() for name in FILES})
    return "hf-hub:them/star"


def reads(private: Path, *arguments: str) -> tuple[int, list[str]]:
    """Run a command, and list what it opens of the pictures."""
    with watched() as opened:
        code = main(list(arguments))
    return code, [path for path in opened if os.path.realpath(path).startswith(f"{private}{os.sep}")]


@pytest.fixture
def commands(tmp_path: Path) -> list[list[str]]:
    return [["join", "STAR", str(tmp_path / "new")], ["evaluate", "STAR", *QUICK]]


@WHERE
@pytest.mark.parametrize("dataset", ["./private", "private", "~/private", "../private", "/ABSOLUTE"])
def test_h04_a_folder_that_a_star_names_is_not_read(
    star: Path, private: Path, where: str, dataset: str, fake_hub: FakeHub, commands: list[list[str]], capsys
) -> None:
    name = names(star, where, fake_hub, dataset=str(private) if dataset == "/ABSOLUTE" else dataset)
    for command, _, *rest in commands:
        assert reads(private, command, name, *rest) == (3, [])
        shown = capsys.readouterr().err.splitlines()
        assert "a folder of another machine (hint: name the images here: --dataset DATASET)" in shown[-1]


@WHERE
def test_h04_nor_one_that_is_called_as_a_data_set_of_the_hub(
    star: Path, private: Path, where: str, fake_hub: FakeHub, commands: list[list[str]], capsys
) -> None:
    name = names(star, where, fake_hub, dataset="me/private")
    for command, _, *rest in commands:
        assert reads(private, command, name, *rest) == (2, [])
        assert "'me/private' of the Hub, and a folder here is called so too" in capsys.readouterr().err


@WHERE
def test_h04_nor_images_of_another_task(star: Path, private: Path, where: str, fake_hub: FakeHub, capsys) -> None:
    for ood, code in (("./private", 3), (str(private), 3), ("me/private", 2)):
        name = names(star, where, fake_hub, ood=ood)
        given = ["--dataset", str(private), *QUICK]
        with watched() as opened:
            assert main(["evaluate", name, *given]) == code
        assert "--ood" in capsys.readouterr().err.splitlines()[-1]
        assert opened  # the images that the user names are read


def test_h04_places_that_another_machine_wrote_are_not_believed(
    star: Path, private: Path, commands: list[list[str]], capsys
) -> None:
    names(star, "folder", FakeHub, dataset="./private")
    places = LocalPaths(dataset=str(private), sources=(str(private), str(private)))
    for forged in (places.model_dump(), places.model_dump(exclude={"seal"}), {**places.model_dump(), "seal": "0" * 64}):
        (star / "local-paths.json").write_text(json.dumps(forged))
        for command, _, *rest in commands:
            assert reads(private, command, str(star), *rest) == (3, [])
    places.write(star)  # as a run here does
    assert LocalPaths.read(star) == places
    text = (star / "local-paths.json").read_text()
    (star / "local-paths.json").write_text(text.replace("me/private", "me/secrets"))
    assert LocalPaths.read(star) == LocalPaths()
    places.write(private)
    (star / "local-paths.json").unlink()
    (star / "local-paths.json").symlink_to(private / "local-paths.json")
    with pytest.raises(UntrustedInputError, match="expected a file in"):
        LocalPaths.read(star)


def test_h04_images_that_a_user_names_are_read(
    star: Path, private: Path, fake_hub: FakeHub, commands: list[list[str]]
) -> None:
    name = names(star, "hub", fake_hub, dataset="./private")
    command, _, *rest = commands[0]
    code, opened = reads(private, command, name, *rest, "--dataset", "me/private")
    assert code == 0
    assert opened


def test_h04_what_the_hub_is_asked_for_with_the_token_is_said(
    star: Path, fake_hub: FakeHub, commands: list[list[str]], capsys
) -> None:
    name = names(star, "hub", fake_hub, dataset="victim/private")
    command, _, *rest = commands[0]
    assert main([command, name, *rest]) == 4  # there is none
    said, *_ = capsys.readouterr().err.splitlines()
    assert said.endswith("its star.json names the images 'victim/private'; the Hub is asked for them with your token")
    asked = len(fake_hub.requests)
    assert main([command, name, *rest, "--offline"]) == 4
    assert len(fake_hub.requests) == asked


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        (EvalConfig, key)
        for key in ("points", "source_pairs", "batch_size", "bma_samples", "batch_norm_images", "loss_plane_points")
    ]
    + [(AlignConfig, key) for key in ("restarts", "max_sweeps", "images")]
    + [(RuntimeConfig, "workers")],
)
def test_h04_settings_have_bounds(kind: type, key: str) -> None:
    with pytest.raises(UsageError, match=f"configuration {key}: Input should be less than or equal to"):
        validate(kind, {key: 2_000_000_000})


def test_h04_a_star_asks_for_no_more_memory_than_there_may_be(star: Path) -> None:
    manifest = read_manifest(star / "star.json")
    large = manifest.architecture.preprocessing.model_copy(update={"input_size": (3, 1024, 1024)})
    for config, key in (
        (RunConfig(align=AlignConfig(images=100_000)), "align.images"),
        (RunConfig(align=AlignConfig(images=2), evaluate=EvalConfig(batch_size=10_000)), "evaluate.batch_size"),
    ):
        document = manifest.model_dump(mode="json") | {"config": config.model_dump(mode="json")}
        document["architecture"]["preprocessing"] = large.model_dump(mode="json")
        greedy = StarManifest.model_validate(document)
        with pytest.raises(UntrustedInputError, match=f"has {key} = "):
            reload_data(Star(manifest=greedy, state={}, permutations={}), {"dataset": "digits"})


def test_h04_a_data_set_of_the_user_is_theirs() -> None:
    """A configuration that a user gives names whatever they like."""
    assert validate(DataConfig, {"dataset": "./private"}).dataset == "./private"


@pytest.mark.parametrize("value", [{"name": "../../secrets"}, {"name": ".."}, {"revision": "../main"}])
def test_h04_a_star_names_no_path_beside_a_data_set(
    star: Path, value: dict[str, str], fake_hub: FakeHub, commands: list[list[str]], capsys
) -> None:
    name = names(star, "folder", fake_hub, dataset="them/pictures", **value)
    asked = len(fake_hub.requests)
    command, _, *rest = commands[0]
    assert main([command, name, *rest]) == 3
    assert "which cannot be (hint: name the images yourself: --dataset DATASET)" in capsys.readouterr().err
    assert len(fake_hub.requests) == asked
