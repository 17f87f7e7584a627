"""The main job, end to end on small real models: fit, resume, publish, load as starzoo and as plain timm."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import starzoo
from starzoo.config import DataConfig, EvalConfig, RunConfig, StarConfig, load_config
from starzoo.data.records import open_data
from starzoo.errors import IncompatibleError, UntrustedInputError, UsageError
from starzoo.star.manifest import RateTrial
from starzoo.star.run.local_paths import LocalPaths, redact_paths, resolve_paths
from starzoo.star.star import load_star
from starzoo.workflows import fit as fitting
from starzoo.workflows.align import align_models
from starzoo.workflows.cards import render_card
from starzoo.workflows.evaluate import evaluate_star
from starzoo.workflows.fit import PublishOptions, StarResult, fit_star
from starzoo.workflows.measure import override_eval_config, validation_is_unseen
from starzoo.workflows.predict import join_star
from starzoo.workflows.publish import publish_star
from starzoo.workflows.verify import verify_star
from tests import blank_plots
from tests.hostile import full_manifest
from tests.hub.fakehub import FakeHub
from tests.ports import free_port, torchrun_variables
from tests.processes import run_python, start_python

CONFIG = RunConfig(
    star=StarConfig(epochs=2, batch_size=128, mu=0.5),
    evaluate=EvalConfig(points=3, source_pairs=1, sources=1, bma_samples=2, batch_norm_images=400),
)
QUICK = RunConfig(
    star=StarConfig(epochs=0),
    evaluate=EvalConfig(points=3, source_pairs=0, sources=0, bma_samples=0, batch_norm_images=400),
)
PUBLISHED = {
    "README.md",
    "config.json",
    "model.safetensors",
    "permutations.safetensors",
    "star.json",
    "metrics/curves.csv",
    "metrics/paths.csv",
    "metrics/qualities.csv",
    "plots/cost-test.png",
    "plots/cost-test.svg",
    "plots/paths-test.png",
    "plots/paths-test.svg",
    "plots/quality-test.png",
    "plots/quality-test.svg",
}


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def contents_of(folder: Path) -> dict[str, bytes]:
    """Every file but the one that tells of the last call."""
    return {name: (folder / name).read_bytes() for name in files_in(folder) - {"status.json"}}


def predict(star: starzoo.Star, images: int) -> torch.Tensor:
    model = star.model()
    torch.manual_seed(0)
    with torch.inference_mode():
        return model(torch.randn(images, 1, 16, 16))


@pytest.fixture(scope="module")
def report(digits_zoo: list[Path], tmp_path_factory: pytest.TempPathFactory) -> StarResult:
    refs = [str(folder) for folder in digits_zoo]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("starzoo.report.plots.save", blank_plots.save)  # with real figures
        return fit_star(refs[:3], refs[3:], CONFIG, tmp_path_factory.mktemp("stars") / "tiny-star")


def test_a_star_folder_holds_what_the_house_says(report: StarResult) -> None:
    private = {name for name in files_in(report.folder) if name.startswith("checkpoints/")}
    local = {".lock", "run.yaml", "local-paths.json", "status.json", "training.log"}
    assert files_in(report.folder) - private == PUBLISHED | local
    manifest = json.loads((report.folder / "star.json").read_text())
    assert manifest["schema_version"] == 1
    assert [source["name"] for source in manifest["sources"]] == ["seed-0", "seed-1", "seed-2"]
    assert manifest["holdouts"][0]["files"]["model.safetensors"]
    assert manifest["steps"] > 0
    assert "in fits of this star" in (report.folder / "README.md").read_text(encoding="utf-8")
    indices = load_file(report.folder / "permutations.safetensors")
    assert all(tensor.dtype == torch.int32 for tensor in indices.values())
    assert {name.partition("/")[0] for name in indices} == {"0", "1", "2"}


def test_the_saved_configuration_replays_the_run(report: StarResult) -> None:
    found = CONFIG.evaluate.model_copy(update={"batch_norm_augment": "none"})
    assert load_config(report.folder / "run.yaml") == CONFIG.model_copy(update={"evaluate": found})


def test_plain_timm_gives_bit_equal_logits_without_starzoo(report: StarResult) -> None:
    program = f"""
import sys, timm, torch
model = timm.create_model("local-dir:{report.folder}", pretrained=True).eval()
torch.manual_seed(0)
with torch.inference_mode():
    logits = model(torch.randn(5, *model.pretrained_cfg["input_size"]))
assert not any(name.startswith("starzoo") for name in sys.modules)
torch.save((logits, model.pretrained_cfg["mean"], model.pretrained_cfg["label_names"]), sys.argv[1])
"""
    out = report.folder.parent / "logits.pt"
    assert run_python("-c", program, out, forget="starzoo").code == 0
    logits, mean, labels = torch.load(out)
    star = load_star(report.folder)
    ours = predict(star, 5)
    assert torch.equal(logits, ours)
    assert tuple(mean) == star.manifest.architecture.preprocessing.mean
    assert list(labels) == [str(digit) for digit in range(10)]


def test_permutations_bring_every_source_to_where_it_was_when_the_star_was_fitted(
    report: StarResult, digits_zoo: list[Path]
) -> None:
    star = load_star(report.folder)
    spec = star.manifest.architecture.spec
    state = starzoo.load_source(digits_zoo[1]).state
    moved = starzoo.Permutation.from_tensors(spec, star.permutations["seed-1"]).apply(state)

    def closeness(a: torch.Tensor) -> float:
        return float((a * star.state["layer2.0.conv2.weight"]).sum())

    assert closeness(moved["layer2.0.conv2.weight"]) > closeness(state["layer2.0.conv2.weight"])


@pytest.mark.usefixtures("real_plots")
def test_running_again_computes_nothing_and_changes_nothing(report: StarResult, digits_zoo: list[Path]) -> None:
    before = contents_of(report.folder)
    stages: list[str] = []
    refs = [str(folder) for folder in digits_zoo]
    again = fit_star(
        refs[:3], refs[3:], CONFIG, report.folder, progress=lambda stage, done, total, **_: stages.append(stage)
    )
    assert again.manifest == report.manifest
    assert set(stages) == {"loading models", "opening images", "checking models"}  # which are found in the cache
    assert before == contents_of(report.folder)


def test_another_configuration_in_the_same_folder_is_refused(report: StarResult, digits_zoo: list[Path]) -> None:
    refs = [str(folder) for folder in digits_zoo]
    before = contents_of(report.folder)
    other = CONFIG.model_copy(update={"star": StarConfig(epochs=2, batch_size=128, mu=0.25)})
    with pytest.raises(UsageError, match=r"config\.star\.mu was 0\.5, now 0\.25"):
        fit_star(refs[:3], refs[3:], other, report.folder)
    with pytest.raises(UsageError, match=r"sources\.0\..* was .*, now"):
        fit_star([refs[1], refs[0], refs[2]], refs[3:], CONFIG, report.folder)
    assert before == contents_of(report.folder)


def test_a_model_is_never_overwritten(digits_zoo: list[Path], tmp_path: Path) -> None:
    zoo = [shutil.copytree(folder, tmp_path / folder.name) for folder in digits_zoo[:3]]
    refs, before = [str(folder) for folder in zoo], [(folder / "model.safetensors").read_bytes() for folder in zoo]
    (zoo[2] / "checkpoints" / "of-theirs").mkdir(parents=True)
    (zoo[2] / "checkpoints" / "of-theirs" / "manifest.json").write_text("{}")  # makes it no folder of a run of ours
    for write in (
        lambda: fit_star(refs[:2], [], CONFIG, zoo[0]),
        lambda: fit_star(refs[:2], [], CONFIG, zoo[2]),
        lambda: align_models(refs[0], refs[1:2], tmp_path, CONFIG.align, data=CONFIG.data),
    ):
        with pytest.raises(UsageError, match="holds another model, which would be overwritten"):
            write()
    assert [(folder / "model.safetensors").read_bytes() for folder in zoo] == before


@pytest.mark.parametrize(
    "name", ["README.md", "run.yaml", "status.json", "training.log", "plots/mine.png", "metrics/paths.csv"]
)
def test_a_folder_with_files_of_somebody_is_never_a_stars(name: str, digits_zoo: list[Path], tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('{"state": "mine"}')
    (tmp_path / "checkpoints").mkdir()  # of another project
    with pytest.raises(UsageError, match=f"holds {Path(name).parts[0]}, which would be overwritten"):
        fit_star([str(folder) for folder in digits_zoo[:2]], [], CONFIG, tmp_path)
    assert files_in(tmp_path) == {name}


def test_a_run_goes_on_where_an_earlier_one_left_its_files(digits_zoo: list[Path], tmp_path: Path) -> None:
    refs = [str(folder) for folder in digits_zoo[:2]]
    other = CONFIG.model_copy(update={"data": DataConfig(dataset="no-such-data")})
    with pytest.raises(UsageError, match="no-such-data: no such folder"):  # nothing but its status is left
        fit_star(refs, [], other, tmp_path)
    assert files_in(tmp_path) == {"status.json"}

    def stop(stage: str, done: int, total: int, **_: float) -> None:
        if stage == "fitting the star":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_star(refs, [], CONFIG, tmp_path, progress=stop)
    (tmp_path / "README.md").write_text("my notes on this run")
    with pytest.raises(KeyboardInterrupt):
        fit_star(refs, [], CONFIG, tmp_path, progress=stop)
    for name in ("config.json", "model.safetensors"):  # as if it had ended just before star.json
        shutil.copy(digits_zoo[0] / name, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fit_star(refs, [], CONFIG, tmp_path, progress=stop)


def test_a_second_run_in_a_folder_is_refused_while_the_first_is_at_work(digits_zoo: list[Path], tmp_path: Path) -> None:
    refs, refused = [str(folder) for folder in digits_zoo[:2]], []

    def try_again(stage: str, done: int, total: int, **_: float) -> None:
        if stage == "fitting the star":
            before = (tmp_path / "status.json").read_bytes()
            with pytest.raises(UsageError, match=f"{tmp_path}: another run is at work in it") as caught:
                fit_star(refs, [], CONFIG, tmp_path)
            refused.append(caught.value.exit_code)
            assert (tmp_path / "status.json").read_bytes() == before
            raise KeyboardInterrupt

    for _ in range(2):  # the first run gives the folder back however it ends
        with pytest.raises(KeyboardInterrupt):
            fit_star(refs, [], CONFIG, tmp_path, progress=try_again)
        assert set(refused) == {2}
        refused.clear()


def test_a_star_is_never_overwritten_by_an_aligned_model(
    report: StarResult, digits_zoo: list[Path], tmp_path: Path
) -> None:
    star = shutil.copytree(report.folder, tmp_path / digits_zoo[1].name)
    before = contents_of(star)
    with pytest.raises(UsageError, match="holds a star, which would be overwritten"):
        align_models(str(digits_zoo[0]), [str(digits_zoo[1])], tmp_path, CONFIG.align, data=CONFIG.data)
    assert contents_of(star) == before


def test_the_configuration_of_a_run_is_read_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "others").mkdir()
    monkeypatch.chdir(tmp_path)
    data, ood = DataConfig(dataset="images"), DataConfig(dataset="./others", test_size=7)
    config = RunConfig(data=data, evaluate=EvalConfig(ood=(ood,)))
    resolved = resolve_paths(config)
    assert resolved.data.dataset == str(tmp_path / "images")
    assert resolved.evaluate.ood == (ood.model_copy(update={"dataset": str(tmp_path / "others")}),)
    published = redact_paths(full_manifest().model_copy(update={"config": resolved})).config
    assert published.data.dataset == "./images"
    assert published.evaluate.ood == (ood,)
    assert LocalPaths.from_run([], [], resolved).restore(published) == resolved
    assert LocalPaths().restore(CONFIG) == CONFIG
    # A folder that a user names is the one that lies here, whatever the star knows by that name.
    known = LocalPaths(ood=("/else/others",))
    assert known.updated([], resolved.evaluate.ood).ood == (str(tmp_path / "others"),)


def test_single_values_of_other_data_change_that_data() -> None:
    known = EvalConfig(ood=(DataConfig(dataset="user/images", test_split="valid"),))
    ood = override_eval_config(known, {"ood": {"test_size": 7}}).ood
    assert ood == (DataConfig(dataset="user/images", test_split="valid", test_size=7),)
    assert override_eval_config(known, {"ood": {"dataset": "digits"}}).ood == (DataConfig(dataset="digits"),)
    assert override_eval_config(known, {"points": 3}).ood == known.ood


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"test_size": 7}, True),
        ({"train_size": 99}, False),
        ({"revision": "main"}, False),
        ({"dataset": "user/others"}, True),
        ({"dataset": "./copy"}, False),
    ],
)
def test_images_validate_only_where_no_fit_may_have_seen_them(
    changes: dict[str, object], kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "copy").mkdir()
    of = DataConfig(dataset="user/images", train_size=100)
    assert validation_is_unseen(of.model_copy(update=changes), of) is kept


def test_k14_a_branch_that_moved_is_named_with_its_commit(tmp_path: Path) -> None:
    (tmp_path / "a@b").mkdir()
    local, changed = (LocalPaths.from_run([str(tmp_path / "a@b")], [], CONFIG, [digest]) for digest in "12")
    with pytest.raises(UntrustedInputError, match="a@b: its files are not those"):
        local.check_unchanged(changed)
    then = LocalPaths.from_run(["hf-hub:ann/net@" + "a" * 40], [], CONFIG, ["1"])
    then.check_unchanged(then)
    moved = LocalPaths.from_run(["hf-hub:ann/net@" + "b" * 40], [], CONFIG, ["2"])
    with pytest.raises(UsageError, match=f"ann/net: is at another commit .*name that one: ann/net@{'a' * 40}"):
        then.check_unchanged(moved)


def test_k14_a_source_that_changed_is_refused(digits_zoo: list[Path], tmp_path: Path) -> None:
    zoo = [shutil.copytree(folder, tmp_path / folder.name) for folder in digits_zoo[:2]]
    fit_star([str(folder) for folder in zoo], [], CONFIG, tmp_path / "star")
    shutil.copy(digits_zoo[3] / "model.safetensors", zoo[1])
    before = contents_of(tmp_path / "star")
    for again in (
        lambda: evaluate_star(str(tmp_path / "star")),
        lambda: fit_star([str(folder) for folder in zoo], [], CONFIG, tmp_path / "star"),
    ):
        with pytest.raises(UntrustedInputError, match="seed-1: its files are not those that the star was made with"):
            again()
    assert contents_of(tmp_path / "star") == before


def test_k14_a_source_that_changed_during_an_interrupted_run(digits_zoo: list[Path], tmp_path: Path) -> None:
    zoo = [shutil.copytree(folder, tmp_path / folder.name) for folder in digits_zoo[:2]]

    def stop(stage: str, done: int, total: int, **_: float) -> None:
        if stage == "fitting the star":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_star([str(folder) for folder in zoo], [], CONFIG, tmp_path / "star", progress=stop)
    shutil.copy(digits_zoo[3] / "model.safetensors", zoo[1])
    with pytest.raises(UntrustedInputError, match="seed-1: its files are not those that the star was made with"):
        fit_star([str(folder) for folder in zoo], [], CONFIG, tmp_path / "star")


def test_a_refused_call_leaves_the_status_of_a_finished_run(report: StarResult, digits_zoo: list[Path]) -> None:
    refs, before = [str(folder) for folder in digits_zoo], (report.folder / "status.json").read_bytes()
    assert b'"done"' in before
    other = CONFIG.model_copy(update={"star": StarConfig(epochs=2, batch_size=128, mu=0.25)})
    with pytest.raises(UsageError, match=r"config\.star\.mu was"):
        fit_star(refs[:3], refs[3:], other, report.folder)
    assert (report.folder / "status.json").read_bytes() == before


def test_p02_nothing_of_this_machine_is_in_what_is_published(report: StarResult, digits_zoo: list[Path]) -> None:
    for name in PUBLISHED:
        content = (report.folder / name).read_bytes()
        assert str(digits_zoo[0].parent).encode() not in content
        assert str(report.folder.parent).encode() not in content


def test_images_that_the_star_was_fitted_on_validate_nothing(report: StarResult, tmp_path: Path) -> None:
    folder = shutil.copytree(report.folder, tmp_path / "star")
    few = {"points": 3, "source_pairs": 0, "sources": 1, "bma_samples": 0}
    again = evaluate_star(str(folder), data={"train_size": 300}, evaluate=few).manifest.evaluation
    assert again is not None
    assert again.validation_images == 0  # the other 1,137 are those of the fit
    assert all(quality.tempered is None for quality in again.qualities)


def test_push_then_load_as_star_and_as_timm_model(report: StarResult, fake_hub: FakeHub, tmp_path: Path) -> None:
    folder = shutil.copytree(report.folder, tmp_path / "star")
    pushed = publish_star(folder, "me/tiny-star")
    assert set(fake_hub.files("me/tiny-star")) - {".gitattributes"} == PUBLISHED
    star = starzoo.load_star("me/tiny-star")
    assert star.manifest == report.manifest.model_copy(update={"repo": "me/tiny-star"})
    card = fake_hub.files("me/tiny-star")["README.md"].decode()
    assert 'timm.create_model("hf-hub:me/tiny-star", pretrained=True)' in card
    assert 'starzoo.load_star("me/tiny-star")' in card
    assert all(torch.equal(star.state[name], tensor) for name, tensor in load_star(report.folder).state.items())
    program = """
import sys, timm, torch
model = timm.create_model("hf-hub:me/tiny-star", pretrained=True).eval()
torch.manual_seed(0)
with torch.inference_mode():
    torch.save(model(torch.randn(3, 1, 16, 16)), sys.argv[1])
"""
    out = report.folder.parent / "hub-logits.pt"
    assert run_python("-c", program, out, forget="starzoo").code == 0
    assert torch.equal(torch.load(out), predict(star, 3))
    assert publish_star(folder, "me/tiny-star").changed is False
    assert pushed.changed


def test_a_star_is_fitted_on_models_of_the_hub_pinned_to_their_commits(
    digits_zoo: list[Path], fake_hub: FakeHub, tmp_path: Path
) -> None:
    for number, (folder, license) in enumerate(zip(digits_zoo, ("mit", "cc-by-nc-4.0", "mit"), strict=False)):
        files = {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}
        fake_hub.commit(f"them/member-{number}", {**files, "README.md": f"---\nlicense: {license}\n---\n".encode()})
    refs = [f"them/member-{number}" for number in range(3)]
    config = CONFIG.model_copy(update={"star": StarConfig(epochs=1, batch_size=256)})
    fit = partial(fit_star, refs[:2], refs[2:], config, tmp_path / "star")
    push = PublishOptions(push_to="me/their-star")
    with pytest.raises(UsageError, match=r"forbid commercial use .*--accept-license LICENSE"):
        fit(publish=push)
    assert not (tmp_path / "star").exists()  # asked before anything is spent
    found = fit(publish=replace(push, accept_license="cc-by-nc-4.0"))
    record = found.manifest.sources[0]
    assert (record.repo, record.license) == ("them/member-0", "mit")
    assert len(record.sha or "") == 40
    card = fake_hub.files("me/their-star")["README.md"].decode()
    matter = yaml.safe_load(card.split("---")[1])
    assert matter["base_model"] == ["them/member-0", "them/member-1"]
    assert (matter["base_model_relation"], matter["library_name"]) == ("merge", "timm")
    assert matter["license"] == "cc-by-nc-4.0"
    # A star of the Hub is evaluated on its pinned sources, without any folder of the machine that made it.
    again = evaluate_star("me/their-star", evaluate={"points": 3, "source_pairs": 0})
    assert again.manifest.evaluation is not None
    ours = found.manifest.evaluation
    assert ours is not None
    assert again.manifest.evaluation.paths_of("star-heldout") == ours.paths_of("star-heldout")


def test_two_ranks_fit_one_star_and_push_it_once(digits_zoo: list[Path], fake_hub: FakeHub, tmp_path: Path) -> None:
    options = ["--epochs", "1", "--points", "3", "--source-pairs", "0", "--push-to", "me/wide-star", "--json"]
    options += ["--train-size", "300", "--set", "evaluate.bma_samples=2", "--set", "evaluate.validation_images=50"]
    command = ["-m", "starzoo.cli", "fit-star", *digits_zoo[:2], "--out", tmp_path / "star", *options]
    port = free_port()
    ranks = [start_python(*command, env={**os.environ, **torchrun_variables(rank, 2, port)}) for rank in range(2)]
    first, second = [process.wait() for process in ranks]
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert json.loads(first.out)["manifest"]["repo"] == "me/wide-star"
    assert second.out == ""
    assert len([line for line in fake_hub.asked("POST") if "/commit/" in line]) == 1
    assert load_star(tmp_path / "star").manifest.history


def test_evaluate_again_with_other_points(report: StarResult, digits_zoo: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(report.folder, folder)
    again = evaluate_star(str(folder), evaluate={"points": 5})
    assert again.manifest.evaluation is not None
    assert len(again.manifest.evaluation.paths[0].t) == 5
    assert load_star(folder).manifest == again.manifest
    assert "5 evenly spaced points" in (folder / "README.md").read_text()
    # Other images say nothing about those that the star was fitted on.
    smaller = evaluate_star(str(folder), data={"test_size": 50}, evaluate={"points": 3})
    assert smaller.manifest.config.data == CONFIG.data
    assert smaller.manifest.evaluation is not None
    assert smaller.manifest.evaluation.images == {"test": 50}
    assert "a class-balanced subset of 50 images" in (folder / "README.md").read_text()
    # New held-outs are those of the next evaluation too.
    refs = [str(path) for path in digits_zoo]
    extra = shutil.copytree(digits_zoo[2], tmp_path / "extra")
    assert refs
    state = load_file(extra / "model.safetensors")
    save_file(
        {name: tensor * 1.01 if tensor.ndim > 1 else tensor for name, tensor in state.items()},
        extra / "model.safetensors",
    )
    for holdouts in ([str(extra), refs[3]], []):
        found = evaluate_star(str(folder), holdouts=holdouts, evaluate={"points": 3, "source_pairs": 0})
        assert [model.name for model in found.manifest.holdouts] == ["extra", "seed-3"]


def test_a_card_is_rendered_again_from_the_manifest_alone(report: StarResult, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    shutil.copy(report.folder / "star.json", folder)
    here, there = "the star's folder (there are no weights beside this card)", "the folder of this file"
    assert render_card(folder).read_text().replace(here, there) == (report.folder / "README.md").read_text()
    assert here in (folder / "README.md").read_text()
    assert {name for name in PUBLISHED if "/" in name} <= files_in(folder)


def test_align_writes_folders_that_compute_the_same_function(digits_zoo: list[Path], tmp_path: Path) -> None:
    refs = [str(folder) for folder in digits_zoo]
    reports = align_models(refs[0], refs[1:3], tmp_path, CONFIG.align, data=CONFIG.data)
    assert [found.name for found in reports] == ["seed-1", "seed-2"]
    images = torch.randn(4, 1, 16, 16)
    for found, ref in zip(reports, refs[1:3], strict=True):
        assert found.distance_after < found.distance_before
        before, after = starzoo.load_source(ref), starzoo.load_source(found.folder)
        assert not torch.equal(before.state["conv1.weight"], after.state["conv1.weight"])
        with torch.inference_mode():
            torch.testing.assert_close(before.model()(images), after.model()(images), rtol=1e-4, atol=1e-4)
        assert (found.folder / "permutations.safetensors").is_file()


def with_classes(folder: Path, count: int) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["num_classes"] = config["pretrained_cfg"]["num_classes"] = count
    config["label_names"] = config["label_names"][:count]
    (folder / "config.json").write_text(json.dumps(config))
    state = load_file(folder / "model.safetensors")
    save_file(state | {n: state[n][:count].clone() for n in ("fc.weight", "fc.bias")}, folder / "model.safetensors")


def rename_classes(folder: Path, order: list[int] | None, *, move: bool = False) -> None:
    """Write label names in another order, or none; with `move` the outputs go with their names."""
    config = json.loads((folder / "config.json").read_text())
    names = config.pop("label_names", None)
    if order is not None:
        config["label_names"] = [names[place] for place in order]
    (folder / "config.json").write_text(json.dumps(config))
    if move:
        move_outputs(folder, order)


def move_outputs(folder: Path, order: list[int]) -> None:
    """Permute the outputs of a model."""
    state = load_file(folder / "model.safetensors")
    moved = {name: state[name][order].clone() for name in ("fc.weight", "fc.bias")}
    save_file(state | moved, folder / "model.safetensors")


TURNED = [3, 4, 5, 6, 7, 8, 9, 0, 1, 2]


def test_t03_a_star_of_models_with_the_same_classes_in_other_orders(digits_zoo: list[Path], tmp_path: Path) -> None:
    config = QUICK
    refs = [str(shutil.copytree(folder, tmp_path / folder.name)) for folder in digits_zoo[:3]]
    expected = fit_star(refs[:2], refs[2:], config, tmp_path / "expected")
    for ref in refs[1:]:
        rename_classes(Path(ref), TURNED, move=True)
    found = fit_star(refs[:2], refs[2:], config, tmp_path / "star")
    ours, theirs = (load_star(report.folder).state for report in (found, expected))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert found.manifest.evaluation == expected.manifest.evaluation
    assert found.manifest.sources[1].files != expected.manifest.sources[1].files  # those of the file as it lies there
    assert [model.label_names and model.label_names[0] for model in found.manifest.sources] == [None, "3"]
    assert "matched by name; 2 of 3 models had another order" in (found.folder / "README.md").read_text()
    # Whoever rebuilds the star domain from the files as they lie there gets the same models.
    domains = [load_star(found.folder).domain(), load_star(expected.folder).domain(digits_zoo[:2])]
    for name, state in domains[0].sources.items():
        assert all(torch.equal(tensor, domains[1].sources[name][key]) for key, tensor in state.items())
    checks = verify_star(found.folder)
    assert checks
    assert [check for check in checks if check.passed is not True] == []
    # Measured again, with the same held-out or as a new one, it is the same.
    assert evaluate_star(str(found.folder)).manifest.evaluation == expected.manifest.evaluation
    again = evaluate_star(str(found.folder), holdouts=refs[2:]).manifest
    assert again.holdouts[0].label_names is not None
    assert again.evaluation == expected.manifest.evaluation


def test_t03_the_names_of_any_model_count(digits_zoo: list[Path], tmp_path: Path) -> None:
    refs = [str(shutil.copytree(folder, tmp_path / folder.name)) for folder in digits_zoo[:2]]
    rename_classes(Path(refs[0]), None)
    rename_classes(Path(refs[1]), TURNED, move=True)
    found = fit_star(refs, [], QUICK, tmp_path / "star").manifest
    assert found.architecture.label_names == tuple("3456789012")
    assert found.data_label_names == tuple("0123456789")
    # The first has no names, and shows by its accuracy that it has the classes in the order of the data set.
    assert [model.label_names for model in found.sources] == [tuple("0123456789"), None]
    assert found.evaluation is not None
    assert all(quality.accuracy > 0.8 for quality in found.evaluation.qualities_of("source"))


NATURAL = tuple(map(str, range(1, 11)))  # as timm sorts class folders
TEXT = tuple(sorted(NATURAL))  # 1, 10, 2 …: as torchvision and `datasets` sort them
FROM_TEXT = [NATURAL.index(name) for name in TEXT]


@pytest.fixture(scope="module")
def digit_folders(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """The digits as class folders with the names 1 to 10."""
    root = tmp_path_factory.mktemp("data") / "digits"
    stored = open_data(DataConfig(train_size=300, test_size=100))
    for split, records in (("train", stored.train), ("test", stored.test)):
        for number, (label, file) in enumerate(zip(records.labels, records.files(range(len(records))), strict=True)):
            path = root / split / NATURAL[label] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.content)
    return DataConfig(dataset=str(root))


def with_label_names(folder: Path, names: tuple[str, ...]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"label_names": names}))


def test_t04_the_data_set_is_brought_into_the_order_of_the_models(
    digits_zoo: list[Path], digit_folders: DataConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refs = [str(shutil.copytree(folder, tmp_path / folder.name)) for folder in digits_zoo[:4]]
    for ref in refs:
        with_label_names(Path(ref), NATURAL)
    config = QUICK.model_copy(update={"data": digit_folders})
    star = fit_star(refs[:2], refs[2:3], config, tmp_path / "star")
    found = star.manifest
    assert found.architecture.label_names == NATURAL
    assert found.data_label_names == TEXT
    assert found.data_fingerprint == open_data(digit_folders).fingerprint
    assert "its classes are in another order than those of the models, and matched by name" in caplog.text
    assert "Classes of the data set: matched by name" in (star.folder / "README.md").read_text()
    assert found.evaluation is not None
    assert all(quality.accuracy > 0.8 for quality in found.evaluation.qualities_of("source"))
    # All that opens the images again agrees.
    assert evaluate_star(str(star.folder)).manifest.evaluation == found.evaluation
    assert load_star(star.folder).manifest.config.data == digit_folders
    published = (star.folder / "star.json").read_text()
    assert '"dataset": "./digits"' in published
    assert str(Path(digit_folders.dataset).parent) not in published
    assert all(path.accuracy[-1] > 0.8 for path in join_star(star.folder, refs[3]).paths)
    aligned = align_models(refs[0], refs[1:2], tmp_path / "aligned", config.align, data=digit_folders)
    assert aligned[0].midpoint_loss_before is not None
    with_label_names(Path(refs[3]), TEXT)  # which is wrong for this model
    assert all(path.accuracy[-1] < 0.5 for path in join_star(star.folder, refs[3]).paths)


def test_t05_the_order_of_models_without_names_is_that_in_which_they_are_right(
    digits_zoo: list[Path], digit_folders: DataConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refs = [str(shutil.copytree(folder, tmp_path / folder.name)) for folder in digits_zoo[:4]]
    for ref in refs:
        rename_classes(Path(ref), None)
    move_outputs(Path(refs[1]), FROM_TEXT)
    config = QUICK.model_copy(update={"data": digit_folders})
    star = fit_star(refs[:2], refs[2:3], config, tmp_path / "star")
    found = star.manifest
    assert (found.architecture.label_names, found.data_label_names) == (NATURAL, TEXT)
    assert [model.label_names for model in (*found.sources, *found.holdouts)] == [None, TEXT, None]
    assert "2 of 3 models without label names (seed-0, seed-2) are right on " in caplog.text
    assert " with its classes in another order (1, 2, 3, …)" in caplog.text
    assert found.evaluation is not None
    assert all(quality.accuracy > 0.8 for quality in found.evaluation.qualities_of("source"))
    # What was found out is recorded: it is not found out again, and the same models are loaded.
    assert evaluate_star(str(star.folder)).manifest.evaluation == found.evaluation
    assert [check for check in verify_star(star.folder) if check.passed is not True] == []
    assert all(path.accuracy[-1] > 0.8 for path in join_star(star.folder, refs[3]).paths)
    again = evaluate_star(str(star.folder), holdouts=refs[3:]).manifest.evaluation
    assert again is not None
    assert all(quality.accuracy > 0.8 for quality in again.qualities_of("source"))
    reports = align_models(refs[0], refs[1:3], tmp_path / "aligned", config.align, data=digit_folders)
    assert all(report.midpoint_loss_after < 2 for report in reports if report.midpoint_loss_after is not None)
    # Models that all learned the order of the folders as text leave the data set as it is.
    move_outputs(Path(refs[0]), FROM_TEXT)
    plain = fit_star(refs[:2], [], config, tmp_path / "plain").manifest
    assert (plain.architecture.label_names, plain.data_label_names) == (TEXT, None)


def test_t05_models_without_label_names_must_be_better_than_chance(digits_zoo: list[Path], tmp_path: Path) -> None:
    config = QUICK
    refs = [str(shutil.copytree(folder, tmp_path / folder.name)) for folder in digits_zoo[:3]]
    for ref in refs:
        rename_classes(Path(ref), None)
    move_outputs(Path(refs[2]), TURNED)
    message = (
        r"seed-2: is right on \d+ of 1024 training images of digits, no better than chance, and has no label names"
    )
    for sources, holdouts in ((refs, []), (refs[:2], refs[2:])):
        with pytest.raises(IncompatibleError, match=message) as caught:
            fit_star(sources, holdouts, config, tmp_path / "star")
        assert (caught.value.exit_code, caught.value.subject) == (5, "seed-2")
        assert "label_names in its config.json" in caught.value.hint
        assert not (tmp_path / "star").exists()
    report = fit_star(refs[:2], [], config, tmp_path / "star")
    before = (report.folder / "star.json").read_bytes()
    with pytest.raises(IncompatibleError, match=message):
        evaluate_star(str(report.folder), holdouts=refs[2:])
    assert (report.folder / "star.json").read_bytes() == before


def test_a_repaired_evaluation_says_so(report: StarResult, tmp_path: Path) -> None:
    folder = shutil.copytree(report.folder, tmp_path / "copy")
    plain, found = report.manifest.evaluation, evaluate_star(str(folder), evaluate={"repair": True}).manifest
    assert plain is not None
    assert found.evaluation is not None
    assert (plain.repaired, found.evaluation.repaired, found.config.evaluate.repair) == (False, True, True)
    for before, after in zip(plain.paths, found.evaluation.paths, strict=True):
        assert before.loss == pytest.approx(after.loss)  # batch norms have repaired all that there is already
    assert "The paths are repaired" in (folder / "README.md").read_text()
    assert "repaired" not in (report.folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("missing folder", UsageError, r"no-such-folder"),
        ("one source", UsageError, r"at least two sources"),
        ("other classes", IncompatibleError, r"class counts are 10 and 7"),
        ("unknown data", UsageError, r"no-such-data"),
        ("nan", UntrustedInputError, r"conv1\.weight.*NaN"),
        ("batch size", UsageError, r"batch of 5000 images"),
        ("repository", UsageError, r"expected the name of a repository"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(
    fault: str, error: type[starzoo.StarzooError], message: str, digits_zoo: list[Path], tmp_path: Path
) -> None:
    first, second = (shutil.copytree(folder, tmp_path / folder.name) for folder in digits_zoo[:2])
    refs, config = [str(first), str(second)], CONFIG
    match fault:
        case "missing folder":
            refs[1] = str(tmp_path / "no-such-folder")
        case "one source":
            del refs[1]
        case "other classes":
            with_classes(second, 7)
        case "unknown data":
            config = CONFIG.model_copy(update={"data": DataConfig(dataset="./no-such-data")})
        case "nan":
            state = load_file(second / "model.safetensors")
            state["conv1.weight"][0, 0, 0, 0] = float("nan")
            save_file(state, second / "model.safetensors")
        case "batch size":
            config = CONFIG.model_copy(update={"star": StarConfig(batch_size=5000)})
    push_to = "nowhere" if fault == "repository" else None
    with pytest.raises(error, match=message) as caught:
        fit_star(refs, [], config, tmp_path / "star", publish=PublishOptions(push_to=push_to))
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    assert not (tmp_path / "star").exists()


def test_a_rate_that_is_left_open_is_chosen_once_and_recorded(
    digits_zoo: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[object]()

    def choose(*run: object, **_: object) -> list[RateTrial]:
        asked.append(run)
        return [RateTrial(lr=lr, share=0.5, midpoint_loss=loss) for lr, loss in ((0.01, 2.0), (0.04, 1.0), (0.2, 3.0))]

    monkeypatch.setattr(fitting, "try_rates", choose)
    star = CONFIG.star.model_copy(update={"lr": "auto"})
    config = CONFIG.model_copy(update={"star": star})
    refs = [str(folder) for folder in digits_zoo[:3]]
    result = fit_star(refs[:2], refs[2:], config, tmp_path / "star")
    assert (result.manifest.rate, result.manifest.config.star.lr) == (0.08, "auto")
    assert result.manifest.fitted_config.peak_lr == 0.08
    assert "learning rate 0.08 (by 3 short trials)" in (result.folder / "README.md").read_text().replace("\n", " ")
    given = config.model_copy(update={"star": star.model_copy(update={"lr": 0.08})})
    same = fit_star(refs[:2], refs[2:], given, tmp_path / "given")
    weights = [(each.folder / "model.safetensors").read_bytes() for each in (result, same)]
    assert weights[0] == weights[1]
    assert fit_star(refs[:2], refs[2:], config, tmp_path / "star").manifest == result.manifest
    assert len(asked) == 1
