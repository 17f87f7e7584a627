"""Using a star: predict, join and verify."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform


@pytest.fixture
def images(tmp_path):
    """Two pictures that are no digits, of other sizes than the star takes."""
    files = [tmp_path / "noise.png", tmp_path / "photo.jpg"]
    for seed, file in enumerate(files):
        pixels = np.random.default_rng(seed).integers(0, 256, (20 + seed, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
    return files


def by_timm(star, file):
    """The probabilities of plain timm, with the transform that it makes of the star's configuration."""
    model = timm.create_model(f"local-dir:{star}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(model)
    image = create_transform(**config)(Image.open(file).convert("L"))
    with torch.inference_mode():
        return model(image[None]).softmax(1)[0]


def test_predict_is_what_plain_timm_says(run, star, images):
    ended = run("predict", star, *images, "--json", "--top", "10")
    assert ended.code == 0, ended.err
    assert ended.json["samples"] == 1
    for file, found in zip(images, ended.json["images"], strict=True):
        expected = by_timm(star, file)
        assert found["file"] == str(file)
        said = {answer["index"]: answer["probability"] for answer in found["top_classes"]}
        assert said == pytest.approx(dict(enumerate(expected.tolist())), abs=1e-5)
        probabilities = [answer["probability"] for answer in found["top_classes"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert all(answer["label"] == str(answer["index"]) for answer in found["top_classes"])
        assert found["entropy"] == pytest.approx(-sum(p * math.log(p) for p in probabilities if p), abs=1e-4)
        assert found["mutual_information"] is None


def test_predict_for_a_script_and_a_person(run, star, images):
    best = [str(int(by_timm(star, file).argmax())) for file in images]
    assert run("predict", star, *images, "--quiet").out.split() == best
    shown = run("predict", star, *images, "--top", "2").out
    assert "Predictions of the star" in shown
    rows = [line.split() for line in shown.splitlines() if "%" in line]
    assert [len(row) for row in rows] == [5, 3, 5, 3]  # a second class has neither its file nor the entropy beside it
    assert [rows[0][:2], rows[2][:2]] == [[str(file), label] for file, label in zip(images, best, strict=True)]


def test_predict_averages_the_star_domain(run, star, images):
    ended = run("predict", star, *images, "--samples", "4", "--json", "--top", "10")
    assert ended.code == 0, ended.err
    other = run("predict", star, *images, "--samples", "4", "--json", "--top", "10", "--seed", "1")
    alone = run("predict", star, *images, "--json", "--top", "10")
    assert ended.json != other.json
    for found, single in zip(ended.json["images"], alone.json["images"], strict=True):
        assert sum(answer["probability"] for answer in found["top_classes"]) == pytest.approx(1, abs=1e-5)
        assert found["top_classes"] != single["top_classes"]
        assert 0 < found["mutual_information"] < found["entropy"]
    shown = run("predict", star, images[0], "--samples", "4").out
    assert "Predictions of 4 models of the star domain" in shown
    assert "disagreement" in shown


def test_predict_with_what_is_not_there(run, star, images, tmp_path):
    missing = run("predict", star, tmp_path / "nothing.png")
    assert (missing.code, "nothing.png: no such file" in missing.err) == (2, True)
    (tmp_path / "text.png").write_text("text")
    assert run("predict", star, tmp_path / "text.png").code == 3
    elsewhere = shutil.copytree(star, tmp_path / "star", ignore=shutil.ignore_patterns("local-paths.json"))
    assert run("predict", elsewhere, images[0]).code == 0  # the star itself needs no source
    ended = run("predict", elsewhere, images[0], "--samples", "2")
    assert (ended.code, "seed-0: was a local folder of another machine" in ended.err) == (2, True)
    ended = run("predict", star, images[0], "--samples", "2", "--dataset", tmp_path / "no-data")
    assert (ended.code, "no-data" in ended.err) == (2, True)


def test_join_measures_a_held_out_as_the_star_was_published_with(run, star, zoo):
    ended = run("join", star, zoo / "seed-3", "--json")
    assert ended.code == 0, ended.err
    [path] = ended.json["paths"]
    published = json.loads((star / "star.json").read_text())["evaluation"]["paths"]
    [expected] = [each for each in published if each["kind"] == "star-heldout" and each["b"] == "seed-3"]
    for measure in ("barrier", "excess", "highest_loss", "worst_accuracy"):
        assert path[measure] == pytest.approx(expected[measure], abs=1e-4)
    assert ended.json["distance_after"] < ended.json["distance_before"]
    shown = run("join", star, zoo / "seed-3", "--dataset", "digits").out
    rows = [line.split() for line in shown.splitlines() if "star to" in line]
    mine, theirs = ([float(number) for number in row[-5:-2]] for row in rows)
    assert mine == pytest.approx(theirs, abs=2e-4)  # its only held-out is the same model
    assert mine[2] == pytest.approx(path["highest_loss"], abs=1e-3)
    [barrier] = run("join", star, zoo / "seed-3", "--quiet").out.split()
    assert float(barrier) == pytest.approx(path["barrier"], abs=1e-4)


def test_join_refuses_what_does_not_belong(run, star, zoo, make_member):
    ended = run("join", star, make_member("stranger"), "--dataset", "digits")
    assert (ended.code, ended.out) == (5, "")
    assert "the star and stranger: cannot be combined" in ended.err
    ended = run("join", star, zoo / "seed-0")
    assert (ended.code, "is its source seed-0" in ended.err) == (2, True)


def test_verify_a_sound_star(run, star):
    ended = run("verify", star, "--json")
    assert ended.code == 0, ended.err
    assert ended.json["passed"] is True
    assert len(ended.json["checks"]) == 4 + 3 * 3
    assert {check["passed"] for check in ended.json["checks"]} == {True}
    assert run("verify", star, "--quiet").out == ""
    shown = run("verify", star, "--offline").out
    assert shown.count(" passed ") + shown.count(" passed\n") == 13


def test_verify_ends_with_3_where_a_check_fails(run, star, tmp_path):
    folder = shutil.copytree(star, tmp_path / "star", ignore=shutil.ignore_patterns("checkpoints", "local-paths.json"))
    state = load_file(folder / "model.safetensors")
    state["fc.bias"][0] += 1
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    ended = run("verify", folder, "--json")
    assert (ended.code, ended.json["passed"]) == (3, False)
    [failed] = [check for check in ended.json["checks"] if check["passed"] is False]
    assert failed["subject"] == "model.safetensors"
    assert len([check for check in ended.json["checks"] if check["passed"] is None]) == 3  # its sources are elsewhere
    assert "1 of 10 checks failed, the first one: model.safetensors has the hash that star.json names" in ended.err
    shown = run("verify", folder)
    assert (shown.code, "FAILED" in shown.out, shown.out.count("not checked")) == (3, True, 3)
    assert run("verify", folder, "--quiet").out.startswith("model.safetensors: has the hash")
