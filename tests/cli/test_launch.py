"""`starzoo launch`: the command line, and jobs on the fake Hub."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PUBLISHED = ["fit-star", "user/a", "user/b", "--out", "star", "--push-to", "me/star"]
JOB = ["launch", "--on", "hf-jobs", "--package", "git+https://hub.example/starzoo"]
TOKEN = "hf_token_of_the_tests"


@pytest.fixture(autouse=True)
def _nothing_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_dry_run_prints_the_script_as_it_is(run):
    words = ["fit-star", "user/a", "user/b", "--out", "star", "--name", "  two\n\n  lines\t"]
    shown = run("launch", "--on", "slurm", "--gpus", "2", "--dry-run", "--", *words)
    assert shown.code == 0, shown.err
    assert shown.out.startswith("#!/bin/bash\n#SBATCH --job-name=starzoo\n")
    assert shlex.join(words) in shown.out
    assert run("launch", "--on", "slurm", "--gpus", "2", "--dry-run", "--quiet", "--", *words).out == shown.out
    document = run("launch", "--on", "slurm", "--gpus", "2", "--dry-run", "--json", "--", *words).json
    assert document == {"on": "slurm", "script": shown.out, "job": None, "url": None}


def test_the_commands_own_options_are_not_those_of_launch(run):
    shown = run("launch", "--on", "slurm", "--dry-run", "--", "pull", "user/a", "--json", "--quiet")
    assert shown.out.startswith("#!/bin/bash")
    assert "pull user/a --json --quiet" in shown.out


def test_a_job_of_slurm_is_named(run, tmp_path, monkeypatch):
    program = tmp_path / "sbatch"
    program.write_text("#!/bin/sh\ncat > submitted\necho 77\n")
    program.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    words = ["--on", "slurm", "--", "fit-star", "user/a", "user/b", "--out", "star"]
    assert run("launch", *words).out == "job 77\n"
    assert run("launch", "--quiet", *words).out == "77\n"
    document = run("launch", "--json", *words).json
    assert document["job"] == "77"
    assert document["script"] == (tmp_path / "submitted").read_text()


REFUSED = {
    "no command of starzoo": (["slurm"], ["rm", "-rf", "star"], "'rm' is no command that can be launched"),
    "an option first": (["slurm"], ["--version"], "'--version' is no command that can be launched"),
    "a launch": (["slurm"], ["launch", "--on", "slurm", "--", *PUBLISHED], "'launch' is no command"),
    "an option that the command has not": (["slurm"], [*PUBLISHED, "--fast"], "--fast"),
    "an option that it needs": (["slurm"], ["fit-star", "user/a"], "'--out'"),
    "an option of jobs": (["slurm", "--timeout", "2h"], PUBLISHED, "--timeout is no option of --on slurm"),
    "an option of slurm": (["hf-jobs", "--requeue"], PUBLISHED, "--requeue is no option of --on hf-jobs"),
    "no sbatch": (["slurm"], PUBLISHED, "there is no sbatch"),
    "several nodes": (
        ["slurm", "--nodes", "2"],
        ["train", "resnet18", "--out", "zoo"],
        "only fit-star runs on several nodes",
    ),
    "no starzoo in the image": (["hf-jobs"], PUBLISHED, "there is no starzoo in the image python:3.12"),
    "nothing published": (["hf-jobs"], PUBLISHED[:-2], "on the job's disk, which is gone"),
    "a zoo is not published": (["hf-jobs"], ["train", "resnet18", "--out", "zoo"], "on the job's disk"),
    "a bad timeout": (["hf-jobs", "--timeout", "long"], PUBLISHED, "'long' is not written like 90m or 8h"),
    "a bad image": (["hf-jobs", "--image", "a b"], PUBLISHED, "'a b' is not written like python:3.12"),
}


@pytest.mark.parametrize(("options", "words", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_run_is_refused_before_anything_is_asked(options, words, message, run, fake_hub, monkeypatch):
    monkeypatch.setenv("PATH", "")
    ended = run("launch", "--on", *options, "--", *words)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err
    assert "(hint: " in ended.err
    assert ended.err.count("\n") == 1
    assert fake_hub.requests == []


def test_a_job_cannot_publish_what_is_on_this_machine(run):
    ended = run(*JOB, "--dry-run", "--", "push", "star", "me/star")
    assert ended.code == 2
    assert "error: star lies on this machine, where a job cannot read it (hint: run starzoo push here)" in ended.err


@pytest.mark.parametrize(
    ("here", "words"),
    [
        ("user/a", PUBLISHED),
        ("zoo", [*PUBLISHED, "--holdout", "user/c", "--holdout=zoo"]),
        ("images", [*PUBLISHED, "--dataset", "images"]),
        ("images", [*PUBLISHED, "--set", "data.dataset=images"]),
        ("run.yaml", [*PUBLISHED, "--config=run.yaml"]),
        ("./star", ["evaluate", "./star"]),
        ("other", ["evaluate", "me/star", "--other-star", "other"]),
        ("cat.png", ["predict", "me/star", "cat.png"]),
        ("other", [*PUBLISHED, "--ood", "other"]),
        ("other", [*PUBLISHED, "--set", "evaluate.ood=other"]),
        ("resnet18", ["inspect", "resnet18"]),
    ],
)
def test_a_job_cannot_read_what_is_on_this_machine(here, words, run, fake_hub, tmp_path):
    missing = run(*JOB, "--dry-run", "--", *words)
    assert missing.code == (2 if here.startswith(".") else 0), missing.err
    (tmp_path / here).mkdir(parents=True)
    ended = run(*JOB, "--", *words)
    assert ended.code == 2
    assert f"error: {here} lies on this machine, where a job cannot read it (hint: " in ended.err
    assert fake_hub.requests == []


def test_what_only_sounds_like_a_folder_of_this_machine_is_taken(run, tmp_path):
    for name in ("digits", "star", "user/a"):
        (tmp_path / name).mkdir(parents=True)
    words = ["fit-star", "hf-hub:user/a", "user/b", "--dataset", "digits", "--out", "star", "--push-to", "me/star"]
    ended = run(*JOB, "--dry-run", "--", *words)
    assert ended.code == 0, ended.err


def test_a_job_is_started_and_named(run, fake_hub):
    ended = run(*JOB, "--flavor", "l4x1", "--timeout", "2h", "--namespace", "ann", "--", *PUBLISHED)
    assert ended.code == 0, ended.err
    [request] = [request for request in fake_hub.requests if request.path == "/api/jobs/ann"]
    asked = request.json()
    start, install, package, *words = asked["command"][1:]
    assert (asked["command"][0], start, package) == ("bash", "-c", "git+https://hub.example/starzoo")
    assert install.startswith("pip install ")
    assert words == ["python", "-m", "starzoo.cli", *PUBLISHED]
    assert (asked["flavor"], asked["timeoutSeconds"], asked["secrets"]) == ("l4x1", 7200, {"HF_TOKEN": TOKEN})
    url = ended.out.split()[-1]
    assert url.startswith(f"{fake_hub.endpoint}/jobs/ann/")
    assert ended.out == f"job {url.rpartition('/')[2]}: {url}\n"


def test_a_job_for_a_script(run, fake_hub):
    url = run(*JOB, "--quiet", "--", *PUBLISHED).out.strip()
    assert url.startswith(f"{fake_hub.endpoint}/jobs/tester/")
    document = run(*JOB, "--json", "--", *PUBLISHED).json
    assert document["url"].endswith(document["job"])
    assert document["on"] == "hf-jobs"


def test_an_image_that_has_starzoo_installs_nothing(run, fake_hub):
    assert run("launch", "--on", "hf-jobs", "--image", "me/starzoo:1", "--", *PUBLISHED).code == 0
    asked = fake_hub.requests[-1].json()
    assert (asked["dockerImage"], asked["command"]) == ("me/starzoo:1", ["python", "-m", "starzoo.cli", *PUBLISHED])


@pytest.mark.parametrize(
    ("flavor", "words", "program"),
    [
        ("l40sx4", PUBLISHED, ["torchrun", "--standalone", "--nproc_per_node", "4"]),
        ("a10g-largex2", PUBLISHED, ["torchrun", "--standalone", "--nproc_per_node", "2"]),
        ("l4x1", PUBLISHED, ["python"]),
        ("h200", PUBLISHED, ["python"]),
        ("cpu-xl", PUBLISHED, ["python"]),
        ("l40sx4", ["evaluate", "me/star"], ["python"]),
    ],
)
def test_every_gpu_of_a_flavor_gets_a_process(flavor, words, program, run, fake_hub):
    assert run(*JOB, "--flavor", flavor, "--", *words).code == 0
    assert fake_hub.requests[-1].json()["command"][4:] == [*program, "-m", "starzoo.cli", *words]


def test_the_package_is_installed_before_the_command_runs(run, fake_hub, tmp_path):
    """The job's command line, run for real with a stand-in for pip."""
    words = ["fit-star", "user/$(touch owned)", "user/it's", "--out", "a b", "--push-to", "me/star"]
    run(*JOB, "--", *words)
    for name in ("pip", "python"):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word" >> {name}.txt; done\n')
        program.chmod(0o700)
    command = fake_hub.requests[-1].json()["command"]
    subprocess.run(command, check=True, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert (tmp_path / "pip.txt").read_text().splitlines()[-1] == "git+https://hub.example/starzoo"
    assert (tmp_path / "python.txt").read_text().splitlines() == ["-m", "starzoo.cli", *words]
    assert not (tmp_path / "owned").exists()
    (tmp_path / "pip").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python.txt").unlink()
    assert subprocess.run(command, check=False, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}).returncode == 1
    assert not (tmp_path / "python.txt").exists()


def test_the_printed_command_line_asks_for_the_same_job(run, fake_hub):
    """It is given to the Hub's own program."""
    options = [*JOB, "--flavor", "l4x4", "--timeout", "2h", "--namespace", "ann"]
    words = [*PUBLISHED, "--name", "it's $HF_TOKEN", "--set", "star.epochs=3"]
    line = run(*options, "--dry-run", "--", *words).out
    assert fake_hub.requests == []
    run(*options, "--", *words)
    program = Path(sys.executable).with_name("hf")
    environment = {**os.environ, "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    subprocess.run([program, *shlex.split(line)[1:]], check=True, env=environment, capture_output=True)
    ours, theirs = [request.json() for request in fake_hub.requests if request.path == "/api/jobs/ann"]
    assert ours.pop("labels") != theirs.pop("labels")  # names that both make up
    assert ours == theirs


@pytest.mark.parametrize("status", [200, 401, 403, 404, 500])
@pytest.mark.parametrize("more", [[], ["--debug"], ["--json"], ["--dry-run"]])
def test_p01_the_token_is_never_shown(status, more, run, fake_hub):
    if status != 200:
        fake_hub.fail("POST /api/jobs/", status)
    ended = run(*JOB, *more, "--", *PUBLISHED)
    assert ended.code == (0 if status == 200 or "--dry-run" in more else 4)
    assert TOKEN not in ended.out + ended.err
    assert (TOKEN in str(fake_hub.requests[-1:])) == ("--dry-run" not in more)
