from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import time

import pytest

from starzoo import errors
from starzoo.cli.main import explain
from tests.cli.conftest import FEW_IMAGES, TINY
from tests.processes import start_python

KINDS = [
    kind for kind in map(vars(errors).get, errors.__all__) if isinstance(kind, type) and kind is not errors.StarzooError
]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_of_starzoo_keeps_its_words_and_its_exit_code(kind):
    failure = explain(kind("x", "wrong", hint="do y"))
    assert (type(failure), failure.message, failure.hint, failure.subject) == (kind, "x: wrong", "do y", "x")
    assert failure.exit_code == kind.exit_code


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "out/file"), 8, "out/file: the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 8, "the disk is full: [Errno 122] Disk quota exceeded"),
        (MemoryError(), 8, "out of memory: MemoryError"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 8, "out of memory: Default"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "file/x"), 2, "file/x: Not a directory"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError("division by zero"), 1, "internal error: ZeroDivisionError: division by zero"),
    ],
)
def test_other_errors(error, code, message):
    failure = explain(error)
    assert failure.exit_code == code
    assert failure.message.startswith(message)
    assert failure.hint


BAD_INPUT = {
    "no such folder": ["align", "./missing/a", "./missing/b", "--out", "out"],
    "no such star": ["evaluate", "./missing"],
    "folder as a repository": ["push", "./missing", "me/star"],
    "repository name": ["pull", "no-slash"],
    "unknown data set": ["train", "resnet18", "--dataset", "nowhere", "--out", "out"],
    "unknown architecture": ["train", "resnet1808", "--out", "out"],
    "unknown architecture to inspect": ["inspect", "resnet1808"],
    "seeds": ["train", "resnet18", "--seeds", "x", "--out", "out"],
    "model args": ["train", "resnet18", "--model-args", "{", "--out", "out"],
    "model args that timm refuses": ["train", "resnet18", "--model-args", '{"no_such": 1}', "--out", "out"],
    "jobs": ["train", "resnet18", "--jobs", "0", "--out", "out"],
    "epochs": ["train", "resnet18", "--epochs", "0", "--out", "out"],
    "configuration file is missing": ["fit-star", "a/b", "c/d", "--config", "missing.yaml", "--out", "out"],
    "configuration file": ["fit-star", "a/b", "c/d", "--config", "bad.yaml", "--out", "out"],
    "configuration key": ["fit-star", "a/b", "c/d", "--config", "unknown.yaml", "--out", "out"],
    "section": ["fit-star", "a/b", "c/d", "--config", "section.yaml", "--epochs", "1", "--out", "out"],
    "assignment": ["fit-star", "a/b", "c/d", "--set", "star.epochs", "--out", "out"],
    "assigned key": ["fit-star", "a/b", "c/d", "--set", "star.epoch=3", "--out", "out"],
    "assigned value": ["fit-star", "a/b", "c/d", "--set", "star.epochs=[", "--out", "out"],
    "value": ["fit-star", "a/b", "c/d", "--lr", "-1", "--out", "out"],
    "seed": ["fit-star", "a/b", "c/d", "--seed", "-1", "--out", "out"],
    "great seed": ["fit-star", "a/b", "c/d", "--seed", str(2**63), "--out", "out"],
    "seed of the quickstart": ["quickstart", "--seed", "-1", "--out", "out"],
    "great seed of the quickstart": ["quickstart", "--seed", str(2**32), "--out", "out"],
    "range of t": ["fit-star", "a/b", "c/d", "--set", "star.t={kind: uniform, low: .8, high: .2}", "--out", "out"],
    "image size": ["train", "resnet18", "--image-size", "-3", "--out", "out"],
    "image size of zero": ["train", "resnet18", "--image-size", "0", "--out", "out"],
    "image size to inspect": ["inspect", "resnet18", "--image-size", "-3"],
    "image size of zero to inspect": ["inspect", "resnet18", "--image-size", "0"],
    "assigned value of a zoo": ["train", "resnet18", "--set", "train.lr=-1", "--out", "out"],
    "section that evaluate does not change": ["evaluate", "./missing", "--set", "star.lr=1"],
    "section as a value": ["evaluate", "./missing", "--set", "data=1"],
    "type of a value": ["fit-star", "a/b", "c/d", "--lr", "fast", "--out", "out"],
    "choice": ["align", "a/b", "c/d", "--method", "magic", "--out", "out"],
    "one source": ["fit-star", "./missing", "--out", "out"],
    "unknown option": ["pull", "a/b", "--fast"],
    "missing argument": ["pull"],
    "missing option": ["train", "resnet18"],
    "extra argument": ["card", "a", "b"],
    "unknown command": ["fit-stars"],
    "no command": ["--json"],
}


@pytest.mark.parametrize("arguments", BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_one_line_with_exit_code_2_and_leaves_nothing(arguments, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text("star: [\n")
    (tmp_path / "unknown.yaml").write_text("stars: {}\n")
    (tmp_path / "section.yaml").write_text("star: 3\n")
    before = sorted(tmp_path.iterdir())
    ended = run(*arguments, "--json")
    assert ended.code == 2, ended.err
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert "(hint: " in ended.err
    failure = ended.json["error"]
    assert failure["exit_code"] == 2
    assert failure["message"] in ended.err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"pretrained_cfg": {"input_size": [1, 24, 24]}}, ["input_size", "16", "24"], id="t06-size"),
        pytest.param({"pretrained_cfg": {"mean": [0.1]}}, ["mean of the preprocessing", "0.1"], id="t06-mean"),
        pytest.param({"pretrained_cfg": {"std": [0.1]}}, ["std of the preprocessing", "0.1"], id="t06-std"),
    ],
)
@pytest.mark.parametrize("command", ["fit-star", "align"])
def test_t06_models_that_do_not_fit_are_one_line_with_exit_code_5(command, change, words, run, zoo, tmp_path):
    other = shutil.copytree(zoo / "seed-1", tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["pretrained_cfg"] |= change.get("pretrained_cfg", {})
    config |= {key: value for key, value in change.items() if key != "pretrained_cfg"}
    (other / "config.json").write_text(json.dumps(config))
    ended = run(command, zoo / "seed-0", other, "--out", tmp_path / "out")
    assert ended.code == 5, ended.err
    lines = [line for line in ended.err.splitlines() if not line.startswith("loading models")]
    assert len(lines) == 1
    assert lines[0].startswith("error: seed-0 and other: cannot be combined: ")
    assert all(word in lines[0] for word in [*words, "(hint: "])
    assert sorted(tmp_path.iterdir()) == [other]


@pytest.mark.parametrize("command", ["fit-star", "align"])
def test_t03_models_of_other_classes_are_one_line_with_exit_code_5(command, run, zoo, tmp_path):
    other = shutil.copytree(zoo / "seed-1", tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"label_names": [*"012345678", "ten"]}))
    ended = run(command, zoo / "seed-0", other, "--out", tmp_path / "out", "--quiet")
    assert ended.code == 5, ended.err
    assert ended.err.startswith(
        "error: other: expected the classes of seed-0, got others: 1 missing (9), 1 unknown (ten) (hint: "
    )
    assert ended.err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == [other]


def test_t05_a_model_without_label_names_that_guesses_ends_with_5(run, zoo, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    other = shutil.copytree(zoo / "seed-1", tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    del config["label_names"]
    (other / "config.json").write_text(json.dumps(config))
    state = load_file(other / "model.safetensors")
    save_file(state | {"fc.weight": torch.zeros_like(state["fc.weight"])}, other / "model.safetensors")
    ended = run("fit-star", zoo / "seed-0", other, "--out", tmp_path / "out", *FEW_IMAGES)
    assert ended.code == 5, ended.err
    assert "error: other: is right on 10 of 100 training images of digits, no better than chance" in ended.err
    assert "Traceback" not in ended.err
    assert sorted(tmp_path.iterdir()) == [other]


def test_what_is_wrong_is_named(run):
    assert "--fast" in run("pull", "a/b", "--fast").err
    assert "see starzoo pull --help" in run("pull", "a/b", "--fast").err
    assert "'x'" in run("train", "resnet18", "--seeds", "x", "--out", "out").err
    assert "missing.yaml" in run("fit-star", "a/b", "c/d", "--config", "missing.yaml", "--out", "out").err
    assert (
        "expected data.KEY=VALUE or evaluate.KEY=VALUE, got star"
        in run("evaluate", "./missing", "--set", "star.lr=1").err
    )
    assert "star.epoch" in run("fit-star", "a/b", "c/d", "--set", "star.epoch=3", "--out", "out").err


def test_errors_without_json_leave_stdout_empty(run):
    ended = run("pull", "no-slash")
    assert (ended.code, ended.out) == (2, "")
    assert "Traceback" not in ended.err


def test_debug_shows_where_an_error_comes_from(run):
    ended = run("pull", "no-slash", "--debug")
    assert "Traceback" in ended.err
    assert ended.err.splitlines()[-1].startswith("error: no-slash: ")


@pytest.mark.parametrize("out", ["file", "file/deeper"])
@pytest.mark.parametrize("command", ["align", "train"])
def test_an_output_path_that_is_or_lies_in_a_file(command, out, run, tmp_path, zoo):
    (tmp_path / "file").touch()
    inputs = {
        "align": [zoo / "seed-0", zoo / "seed-1"],
        "train": ["resnet18", "--seeds", "0", "--jobs", "1", *TINY, *FEW_IMAGES],
    }
    ended = run(command, *inputs[command], "--out", tmp_path / out)
    assert ended.code == 2, ended.err
    assert ended.err.splitlines()[-1].startswith(f"error: {tmp_path / out}")
    assert (tmp_path / "file").read_bytes() == b""


def test_d04_interrupt_ends_with_130_and_one_line(tmp_path):
    out = tmp_path / "zoo"
    arguments = ["train", "resnet18", "--image-size", "16", "--epochs", "500", "--seeds", "0-1", "--out", str(out)]
    process = start_python("-m", "starzoo.cli", *arguments, before=os.setsid)
    deadline = time.monotonic() + 60
    while not out.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(2)
    os.killpg(process.pid, signal.SIGINT)
    ended = process.wait(30)
    assert ended.code == 130
    assert ended.err == "error: interrupted (hint: run the same command again)\n"
    assert not out.exists()
