"""What `starzoo plan` tells before anything is spent, held to what is spent then."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from starzoo.config import DataConfig, EvalConfig, RunConfig, RuntimeConfig, StarConfig
from starzoo.data.preprocessing import Preprocessing
from starzoo.errors import HubError, IncompatibleError, ResourceError, UntrustedInputError, UsageError
from starzoo.hub.offline import offline_mode
from starzoo.models.pull import pull_all
from starzoo.workflows.plan import plan_star
from starzoo.workflows.trial import measure_trial
from tests.cli.conftest import run as run
from tests.conftest import MakeMember
from tests.hub.fakehub import FakeHub, Request

CONFIG = RunConfig(data=DataConfig(dataset="digits"), star=StarConfig(epochs=3, batch_size=100))
REFS = ["ann/zoo/a", "ann/zoo/b", "bob/net"]


@pytest.fixture
def hub(make_member: MakeMember, fake_hub: FakeHub) -> FakeHub:
    """Two members in folders of one repository, and one in another; each with a license."""

    def files(name: str, seed: int) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in make_member(name, seed=seed).iterdir()}

    inside = {f"{name}/{file}": data for seed, name in enumerate("ab") for file, data in files(name, seed).items()}
    fake_hub.commit("ann/zoo", {**inside, "README.md": b"---\nlicense: mit\n---\n"})
    fake_hub.commit("bob/net", {**files("net", 5), "README.md": b"---\nlicense: apache-2.0\n---\n"})
    return fake_hub


def sent(hub: FakeHub, since: int) -> list[Request]:
    return [request for request in hub.requests[since:] if request.method == "GET" and "/resolve/" in request.path]


def size(hub: FakeHub, request: Request) -> int:
    _, user, repo, _, sha, path = request.path.split("/", 5)
    return len(hub.files(f"{user}/{repo}", sha)[path])


def test_no_weight_is_asked_for_and_the_bytes_are_those_that_are_downloaded_then(hub: FakeHub) -> None:
    plan = plan_star(REFS[:2], REFS[2:], CONFIG)
    for request in sent(hub, 0):
        if request.path.endswith(".safetensors"):
            data = hub.files("bob/net" if "bob" in request.path else "ann/zoo", request.path.split("/")[4])
            weights = data["model.safetensors" if "bob" in request.path else request.path.split("/", 5)[5]]
            last = int(request.headers["range"].rpartition("-")[2])
            assert last < 8 + int.from_bytes(weights[:8], "little"), "a byte after the header"
    before = len(hub.requests)
    pull_all(REFS)
    downloaded = [request for request in sent(hub, before) if "range" not in request.headers]
    assert plan.to_download == sum(size(hub, request) for request in downloaded) > 0
    again = plan_star(REFS[:2], REFS[2:], CONFIG)
    assert again.to_download == 0
    assert [model.size for model in again.models] == [model.size for model in plan.models]


def test_what_is_known_of_the_models(hub: FakeHub, make_member: MakeMember) -> None:
    plan = plan_star(REFS[:2], [REFS[2], str(make_member("local", seed=9))], CONFIG)
    assert [(model.name, model.role, model.license, model.dtype) for model in plan.models] == [
        ("ann/zoo/a", "source", "mit", "float32"),
        ("ann/zoo/b", "source", "mit", "float32"),
        ("bob/net", "held-out", "apache-2.0", "float32"),
        ("local", "held-out", None, "float32"),
    ]
    assert (plan.licensing.license, plan.licensing.needs_decision) == ("mit", "")
    assert plan.memory == 4 * plan.parameters * (4 + 4)
    assert (plan.images, plan.steps) == (1437, 3 * 14)


def test_the_steps_are_those_that_are_taken(digits_zoo: list[Path]) -> None:
    from starzoo.data.task import load_data

    plan = plan_star([str(folder) for folder in digits_zoo[:2]], [], CONFIG)
    data = load_data(CONFIG.data, plan.models[0].architecture.preprocessing)
    assert plan.steps == CONFIG.star.epochs * len(data.train.loader(CONFIG.star.batch_size, epoch=0, seed=0))
    hub_data = RunConfig(data=DataConfig(dataset="uoft-cs/cifar10"))
    assert plan_star([str(folder) for folder in digits_zoo[:2]], [], hub_data).steps is None


def test_what_cannot_be_combined_is_refused_without_a_weight(hub: FakeHub, make_member: MakeMember) -> None:
    other = Preprocessing(input_size=(1, 16, 16), mean=(0.5,), std=(0.5,))
    folder = make_member("other", preprocessing=other)
    with pytest.raises(IncompatibleError, match="ann/zoo/a and other: cannot be combined: mean of the prep"):
        plan_star([REFS[0], str(folder)], [], CONFIG)
    assert not [
        request for request in sent(hub, 0) if ".safetensors" in request.path and "range" not in request.headers
    ]


def test_n15_the_disk_is_looked_at_before_anything_is_spent(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ResourceError, match="bytes are to be downloaded, but only 1,000 are free") as caught:
        plan_star(REFS[:2], [], CONFIG)
    assert caught.value.exit_code == 8


def test_what_a_plan_refuses(hub: FakeHub) -> None:
    with pytest.raises(UsageError, match="at least two sources"):
        plan_star(REFS[:1], REFS[1:], CONFIG)
    hub.commit("ann/old", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    with pytest.raises(UntrustedInputError, match=r"ann/old: holds its weights only as pytorch_model.bin"):
        plan_star([REFS[0], "ann/old"], [], CONFIG)
    with offline_mode(), pytest.raises(HubError, match="offline"):
        plan_star(REFS[:2], [], CONFIG)


def test_c15_a_plan_names_the_files_of_a_folder_without_weights(make_member: MakeMember) -> None:
    folder = make_member()
    (folder / "model.safetensors").rename(folder / "model.onnx")
    with pytest.raises(UntrustedInputError, match=r"has no model\.safetensors among its files \(model\.onnx"):
        plan_star([str(folder), str(make_member("seed-1"))], [], CONFIG)


def test_c18_the_plan_shows_licenses_that_a_person_must_look_at(hub: FakeHub, run) -> None:
    hub.commit("bob/net", {"README.md": b"---\nlicense: cc-by-nc-4.0\n---\n"})
    ended = run("plan", *REFS, "--dataset", "digits")
    assert ended.code == 0
    assert "the sources forbid commercial use (cc-by-nc-4.0): publishing it will take --accept-license" in ended.out
    hub.commit("bob/net", {"README.md": b""})
    document = run("plan", *REFS, "--dataset", "digits", "--json").json
    assert document["licensing"] == {
        "license": None,
        "needs_decision": "1 of 3 sources states no license",
        "conflict": "",
        "minimum": "mit",
    }
    assert document["models"][2]["license"] is None
    assert document["to_download"] == int(run("plan", *REFS, "--quiet").out)


def test_an_inspection_asks_for_no_weight(hub: FakeHub, run) -> None:
    ended = run("inspect", "bob/net", "--json")
    assert ended.code == 0, ended.err
    assert ended.json["groups"] > 0
    assert [request.path.rpartition("/")[2] for request in sent(hub, 0)] == ["config.json"]


def test_a_dry_run_of_fit_star_is_a_plan(hub: FakeHub, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")  # held still: other processes write to the disk between the two calls
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    out = tmp_path / "star"
    dry = run("fit-star", *REFS, "--out", out, "--dry-run", "--json")
    assert dry.json == run("plan", *REFS, "--json").json
    assert not out.exists()


def test_a_dry_run_takes_what_the_run_takes(run, make_member: MakeMember, tmp_path: Path) -> None:
    models = [make_member("a", seed=1), make_member("b", seed=2, label_names=("dog", "cat", "señor"))]
    words = ["fit-star", *models, "--out", tmp_path / "star", "--dry-run"]
    assert run(*words).code == run("plan", *models).code == 0  # the same classes in another order
    refused = run(*words, make_member("c", seed=3, label_names=("dog", "cow", "señor")))
    assert refused.code == 5
    assert "1 missing (cat), 1 unknown (cow)" in refused.err


def test_the_size_of_an_evaluation_is_that_of_its_cache(digits_zoo: list[Path], tmp_path: Path) -> None:
    refs = [str(folder) for folder in digits_zoo]
    config = RunConfig(star=StarConfig(epochs=1), evaluate=EvalConfig(points=3, source_pairs=1, bma_samples=2))
    plan = plan_star(refs[:2], refs[2:3], config)
    assert (plan.ranks, plan.images_per_step) == (1, 64)
    assert plan.pixels == (1437 + 360) * 16 * 16
    assert plan.predictions == (4 + 2 + 4 + 2) * 360 * 10 * 4  # models, means, ends of paths, averages
    two = plan_star(refs[:2], refs[2:3], config.model_copy(update={"runtime": RuntimeConfig(num_processes=2)}))
    assert (two.ranks, two.images_per_step) == (2, 32)
    assert two.memory_per_rank == plan.memory + plan.alignment_memory


def test_a_trial_takes_an_epoch_and_leaves_nothing(
    digits_zoo: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refs = [str(folder) for folder in digits_zoo]
    config = RunConfig(data=DataConfig(train_size=640), star=StarConfig(epochs=200))
    trial = measure_trial(refs[:2], refs[2:3], config)
    assert 2000 * 64 / trial.used_per_second == pytest.approx(trial.fit_seconds - trial.start_seconds, abs=1)
    assert 0 <= trial.start_seconds < trial.fit_seconds
    assert trial.loaded_per_second > 0
    assert trial.evaluation_seconds > 0
    assert 2e8 < trial.peak_memory < 2e10
    assert list(tmp_path.iterdir()) == []


def test_a_plan_shows_a_trial_if_asked(run, digits_zoo: list[Path]) -> None:
    refs = [str(folder) for folder in digits_zoo[:2]]
    ended = run("plan", *refs, "--epochs", "2", "--measure")
    assert ended.code == 0, ended.err
    assert "images/s are used" in ended.out
    assert "estimated time:" in ended.out
    assert "on the disk:" in ended.out
