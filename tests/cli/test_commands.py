"""Every command, for real, on a zoo of four tiny networks."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import pytest
import timm
import torch
from PIL import Image

from starzoo.models.spec_cache import cached_spec
from starzoo.symmetry.terms import Pinned
from starzoo.workflows import inspect as inspection
from tests.cli.conftest import FEW_IMAGES, TINY


def test_train_makes_members_that_plain_timm_loads(zoo):
    model = timm.create_model(f"local-dir:{zoo / 'seed-0'}", pretrained=True).eval()
    with torch.inference_mode():
        assert model(torch.zeros(1, 1, 16, 16)).shape == (1, 10)


def test_train_again_trains_nothing(run, zoo):
    ended = run("train", "resnet18", "--out", zoo, "--seeds", "0-3", "--epochs", "2", "--json", *TINY, *FEW_IMAGES)
    assert ended.code == 0
    members = ended.json["members"]
    assert [(member["seed"], member["trained"]) for member in members] == [(seed, False) for seed in range(4)]
    assert 0 <= members[0]["test_accuracy"] <= 1


def test_the_configuration_of_a_data_set_can_be_named(run, tmp_path):
    (tmp_path / "images/train/cat").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "images/train/cat/0.png")
    options = ["--dataset", tmp_path / "images", "--data-revision", "main", "--out", tmp_path / "zoo"]
    ended = run("train", "resnet18", "--data-name", "small", *options)
    assert (ended.code, "'small' not found" in ended.err) == (2, True), ended.err
    (tmp_path / "run.yaml").write_text("data: {test_split: validation}\n")
    ended = run("train", "resnet18", "--config", tmp_path / "run.yaml", *options)
    assert (ended.code, '"validation"' in ended.err) == (2, True), ended.err


def test_train_another_recipe_into_the_same_folder_is_refused(run, zoo):
    ended = run("train", "resnet18", "--out", zoo, "--seeds", "0", "--epochs", "3", *TINY, *FEW_IMAGES)
    assert ended.code == 2
    assert "train.epochs was 2, now 3" in ended.err


def test_inspect_verifies(run):
    ended = run("inspect", "test_resnet", "--verify", "--json")
    assert ended.code == 0, ended.err
    found = ended.json
    assert found["architecture"] == "test_resnet"
    assert found["groups"] == len(found["table"]) > 0
    assert 0.9 < found["coverage"] <= 1
    assert found["unsupported_operators"] == []
    proof = found["verify"]
    assert proof["relative_error"] < 1e-9
    assert proof["weights_changed"] is True
    assert proof["negative_control_passed"] == proof["negative_control_tried"] > 0


def test_inspect_for_a_person(run):
    ended = run("inspect", "test_resnet", "--verify", "--groups")
    line, *table = ended.out.splitlines()
    assert line.startswith("test_resnet: ")
    assert "groups (0 wreath)" in line
    assert "operators without a rule: none" in line
    assert "negative control" in line
    assert "pinned: " in line
    groups = int(line.split()[1])
    assert len([row for row in table if row.split() and row.split()[-1].isdecimal()]) == groups


def test_a_check_that_fails_is_printed_and_ends_with_6(run, monkeypatch):
    def broken(architecture, **options):
        spec = cached_spec(architecture, **options)
        return replace(spec, axes={**spec.axes, "bn1.bias": (Pinned(64, ""),)})

    monkeypatch.setattr(inspection, "cached_spec", broken)
    ended = run("inspect", "resnet18", "--verify", "--json", *TINY)
    assert ended.code == 6
    assert ended.json["verify"]["passed"] is False  # one document, as ever
    reason = r"groups \S+ change the output \(\d\.\de[+-]\d\d, above 1e-09\)"
    assert re.search(rf"^error: resnet18: the check FAILED: {reason} \(hint: ", ended.err)


def test_a_network_without_symmetry_has_nothing_to_check(run, monkeypatch):
    monkeypatch.setattr(
        inspection,
        "cached_spec",
        lambda architecture, **options: replace(cached_spec(architecture), groups={}, axes={}),
    )
    ended = run("inspect", "resnet18", "--verify", *TINY)
    assert ended.code == 0
    assert "0 groups" in ended.out
    assert "nothing to check" in ended.out


def test_inspect_explains_an_axis(run):
    ended = run("inspect", "test_vit", "--why", "blocks.0.attn.qkv.weight:0", "--json")
    why = ended.json["why"]
    assert why["structure"] == "A (2) × B (32) | A (2) × B (32) | A (2) × C (32)"
    assert [group["size"] for group in why["groups"]] == [2, 32, 32]
    assert why["groups"][2]["others"] == ["blocks.0.attn.qkv.bias:0", "blocks.0.attn.proj.weight:1"]
    assert why["pinned"] == []
    words = run("inspect", "test_vit", "--why", "pos_embed:1").out
    assert "101 positions kept in place (space): it is an axis of space" in words


@pytest.mark.parametrize(
    ("place", "hint"),
    [
        ("pos_embed:7", "pos_embed has the axes 0 to 2: write pos_embed:0"),
        ("embed.weight:0", "write TENSOR:AXIS, for example cls_token:0"),
        ("pos_embed", "pos_embed has the axes 0 to 2: write pos_embed:0"),
    ],
)
def test_an_axis_that_is_not_there_is_refused(place, hint, run):
    ended = run("inspect", "test_vit", "--why", place)
    assert ended.code == 2
    assert f"test_vit: no axis '{place}'" in ended.err
    assert hint in ended.err


def test_a_free_output_is_asked_for(run):
    pinned, free = (run("inspect", "test_vit", "--json", *more).json for more in ([], ["--free-output"]))
    assert free["groups"] == pinned["groups"] + 1
    assert free["coverage"] == 1.0 > pinned["coverage"]


def test_inspect_a_folder(run, zoo):
    ended = run("inspect", zoo / "seed-0", "--quiet")
    assert ended.code == 0
    assert int(ended.out) > 0


def test_align(run, zoo, tmp_path):
    ended = run("align", zoo / "seed-0", zoo / "seed-1", zoo / "seed-2", "--out", tmp_path / "aligned", "--json")
    assert ended.code == 0, ended.err
    first, second = ended.json["aligned"]
    assert (first["name"], second["name"]) == ("seed-1", "seed-2")
    assert (first["method"], first["midpoint_loss_after"]) == ("balanced-weights", None)
    assert first["distance_after"] < first["distance_before"]
    images = torch.randn(4, 1, 16, 16)
    before, after = (
        timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        for folder in (zoo / "seed-1", tmp_path / "aligned" / "seed-1")
    )
    with torch.inference_mode():
        torch.testing.assert_close(before(images), after(images), rtol=1e-4, atol=1e-5)
    assert not torch.equal(before.conv1.weight, after.conv1.weight)


def test_align_on_a_data_set(run, zoo, tmp_path):
    ended = run("align", zoo / "seed-0", zoo / "seed-1", "--dataset", "digits", "--out", tmp_path / "a", "--json")
    assert ended.code == 0, ended.err
    [report] = ended.json["aligned"]
    assert report["method"] == "activations-gradients"
    assert report["midpoint_loss_after"] < report["midpoint_loss_before"]
    options = ["--dataset", "digits", "--method", "activations"]
    chosen = run("align", zoo / "seed-0", zoo / "seed-1", *options, "--out", tmp_path / "a")
    assert chosen.code == 0, chosen.err
    assert "matched by activations" in " ".join(chosen.out.split())
    assert "midpoint" in chosen.out


def test_align_takes_its_data_set_from_wherever_it_is_named(run, zoo, tmp_path):
    method_only, whole = tmp_path / "method.yaml", tmp_path / "whole.yaml"
    method_only.write_text("align: {restarts: 2}\n")
    whole.write_text("data: {dataset: digits}\n")
    methods = {}
    for place, arguments in {
        "nowhere": ["--config", method_only],
        "file": ["--config", whole],
        "assignment": ["--set", "data.dataset=digits"],
        "method named": ["--config", method_only, "--set", "align.method=weights"],
    }.items():
        ended = run("align", zoo / "seed-0", zoo / "seed-1", *arguments, "--out", tmp_path / "a", "--json")
        assert ended.code == 0, ended.err
        [report] = ended.json["aligned"]
        methods[place] = (report["method"], report["midpoint_loss_after"] is not None)
    assert methods == {
        "nowhere": ("balanced-weights", False),
        "file": ("activations-gradients", True),
        "assignment": ("activations-gradients", True),
        "method named": ("weights", False),
    }


def test_align_without_the_images_that_a_method_needs(run, zoo, tmp_path):
    ended = run("align", zoo / "seed-0", zoo / "seed-1", "--method", "activations", "--out", tmp_path / "aligned")
    assert ended.code == 2
    assert ended.err.splitlines()[-1] == (
        "error: alignment by activations: runs the models on images, and there are none "
        "(hint: name a data set, or choose another method)"
    )
    assert not (tmp_path / "aligned").exists()


def test_align_for_a_person(run, zoo, tmp_path):
    ended = run("align", zoo / "seed-0", zoo / "seed-1", "--out", tmp_path / "aligned", "--method", "weights")
    assert ended.code == 0
    assert "seed-1" in ended.out
    assert ended.out.splitlines()[-1] == f"aligned models: {tmp_path / 'aligned'}"


def test_fit_star_writes_the_star(star):
    names = {path.name for path in star.iterdir()}
    assert {"config.json", "model.safetensors", "star.json", "permutations.safetensors", "README.md"} <= names
    manifest = json.loads((star / "star.json").read_text())
    assert manifest["name"] == "Tiny"
    assert [source["name"] for source in manifest["sources"]] == ["seed-0", "seed-1", "seed-2"]
    assert [holdout["name"] for holdout in manifest["holdouts"]] == ["seed-3"]
    config = manifest["config"]
    assert (config["star"]["epochs"], config["star"]["batch_size"], config["evaluate"]["points"]) == (1, 50, 3)
    assert (config["star"]["seed"], config["align"]["seed"], config["evaluate"]["seed"]) == (3, 3, 3)


def test_evaluate_again(run, star, tmp_path):
    folder = shutil.copytree(star, tmp_path / "star")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    ended = run("evaluate", folder, "--points", "5", "--split", "train", "--set", "evaluate.seed=9", "--json")
    assert ended.code == 0, ended.err
    assert ended.json["manifest"]["config"]["evaluate"]["seed"] == 9
    summary = ended.json["summary"]
    assert list(summary) == ["train"]
    assert summary["train"]["connectivity"]["star-source"]["barrier"]["count"] == 3
    assert {len(path["t"]) for path in ended.json["manifest"]["evaluation"]["paths"]} == {5}


def test_repaired_paths_are_set_and_named(run, star, tmp_path):
    folder = shutil.copytree(star, tmp_path / "star", ignore=shutil.ignore_patterns("checkpoints"))
    ended = run("evaluate", folder, "--set", "evaluate.repair=true")
    assert ended.code == 0, ended.err
    assert "Connectivity on the test split: losses in nats, means over n repaired paths" in ended.out
    assert json.loads((folder / "star.json").read_text())["evaluation"]["repaired"] is True
    again = run("evaluate", folder, "--set", "evaluate.repair=false")
    assert "repaired paths" not in again.out


def test_t03_classes_are_matched_by_name(run, star, zoo, tmp_path):
    folder = shutil.copytree(star, tmp_path / "star", ignore=shutil.ignore_patterns("checkpoints"))
    other = shutil.copytree(zoo / "seed-3", tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["label_names"] = config["label_names"][::-1]
    (other / "config.json").write_text(json.dumps(config))
    ended = run("evaluate", folder, "--holdout", other)
    assert ended.code == 0, ended.err
    assert "warning: classes are matched by name: 1 of 1 models had another order (other)" in ended.err.splitlines()


def test_evaluate_with_a_wrong_value(run, star):
    ended = run("evaluate", star, "--points", "1")
    assert ended.code == 2, ended.err
    assert "points" in ended.err


def test_card_is_written_again(run, star):
    before = (star / "README.md").read_text()
    (star / "README.md").unlink()
    ended = run("card", star, "--quiet")
    assert (ended.code, ended.out) == (0, f"{star / 'README.md'}\n")
    assert (star / "README.md").read_text() == before


def test_the_card_is_a_page_too_on_request(run, star):
    ended = run("card", star, "--html", "--json")
    assert ended.code == 0, ended.err
    assert ended.json == {"card": str(star / "README.md"), "report": str(star / "report.html")}
    assert "data:image/png" in (star / "report.html").read_text(encoding="utf-8")
    (star / "report.html").unlink()


def test_a_card_of_no_star_is_refused(run, tmp_path):
    ended = run("card", tmp_path, "--html")
    assert ended.code == 3, ended.err
    assert "star.json" in ended.err


def test_push_then_pull(run, fake_hub, star):
    pushed = run("push", star, "me/tiny-star", "--json")
    assert pushed.code == 0, pushed.err
    assert pushed.json["changed"] is True
    again = run("push", star, "me/tiny-star")
    assert again.out.startswith("nothing to change: http")
    pulled = run("pull", "me/tiny-star", "--json")
    assert pulled.code == 0, pulled.err
    [model] = pulled.json["models"]
    assert (model["repo"], model["sha"]) == ("me/tiny-star", pushed.json["sha"])
    assert {"config.json", "model.safetensors"} <= set(model["files"])


def test_n04_pull_of_a_repository_that_is_not_there(run, fake_hub):
    ended = run("pull", "me/nothing")
    assert (ended.code, ended.out) == (4, "")
    assert ended.err.startswith("error: me/nothing: ")
    assert ended.err.count("\n") == 1
