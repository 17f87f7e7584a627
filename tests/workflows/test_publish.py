"""What is published, and what never is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import ModelCard

from starzoo.errors import IncompatibleError, UsageError
from starzoo.evaluate.results import Evaluation, PredictionScores
from starzoo.star.manifest import read_manifest
from starzoo.star.star import load_star, write_manifest
from starzoo.workflows.publish import publish_star
from tests.cli.conftest import run as run
from tests.conftest import MakeMember
from tests.hub.fakehub import FakeHub
from tests.processes import run_python
from tests.stars import make_star

LOAD_WITH_TIMM = """
import json, sys, timm, torch
model = timm.create_model(sys.argv[1], pretrained=True).eval()
data = timm.data.resolve_model_data_config(model)
logits = model(torch.linspace(-1, 1, 2 * 256).reshape(2, 1, 16, 16))
assert not [name for name in sys.modules if name.startswith("starzoo")]
print(json.dumps({"logits": logits.tolist(), "config": model.pretrained_cfg, "data": data}))
"""


@pytest.fixture
def star(make_member: MakeMember, fake_hub: FakeHub, tmp_path: Path) -> Path:
    """The star of two models of the Hub, and of one in a folder."""
    refs: list[str | Path] = [make_member("local", seed=9)]
    for seed, name in enumerate(("net", "zoo/a")):
        folder = make_member(f"hub-{seed}", seed=seed)
        inside = "a/" if "/" in name else ""
        files = {f"{inside}{path.name}": path.read_bytes() for path in folder.iterdir()}
        fake_hub.commit(f"ann/{name.partition('/')[0]}", {**files, "README.md": b"---\nlicense: mit\n---\n"})
        refs.insert(seed, f"ann/{name}")
    scores = {"accuracy": 0.5, "nll": 1.0, "ece": 0.1}
    quality = PredictionScores(name="star", role="star", split="test", passes=1, **scores)
    return make_star(tmp_path / "star", refs, evaluation=Evaluation(paths=(), qualities=(quality,)))


def with_licenses(star: Path, *licenses: str | None) -> Path:
    manifest = read_manifest(star / "star.json")
    sources = [
        source.model_copy(update={"license": license})
        for source, license in zip(manifest.sources, licenses, strict=True)
    ]
    write_manifest(star, manifest.model_copy(update={"sources": tuple(sources)}))
    return star


def card_of(hub: FakeHub) -> ModelCard:
    return ModelCard(hub.files("me/star")["README.md"].decode())


def test_the_options_of_push_reach_the_hub(star: Path, fake_hub: FakeHub, run) -> None:
    ended = run("push", with_licenses(star, "mit", "mit", None), "me/secret", "--private", "--tag", "v1")
    assert ended.code == 0, ended.err
    secret = fake_hub.repos["me/secret"]
    assert secret.private
    assert secret.tags == {"v1": secret.branches["main"]}
    licenses = with_licenses(star, "cc-by-nc-4.0", "mit", None)
    ended = run("push", licenses, "me/open", "--create-pr", "--accept-license", "cc-by-nc-4.0", "--json")
    assert ended.code == 0, ended.err
    assert "/discussions/" in ended.json["url"]
    assert not fake_hub.repos["me/open"].private
    assert "model.safetensors" not in fake_hub.files("me/open")


def test_the_card_is_what_the_hub_reads(star: Path, fake_hub: FakeHub) -> None:
    publish_star(with_licenses(star, "mit", "apache-2.0", "mit"), "me/star")
    data = card_of(fake_hub).data
    assert (data.license, data.base_model, data.base_model_relation) == ("apache-2.0", ["ann/net", "ann/zoo"], "merge")
    results = data.eval_results
    assert [(each.metric_type, each.metric_value) for each in results] == [
        ("accuracy", 0.5),
        ("nll", 1.0),
        ("ece", 0.1),
    ]
    assert {each.task_type for each in results} == {"image-classification"}
    assert "starzoo" in data.tags


@pytest.mark.parametrize(
    ("licenses", "question"),
    [
        (("mit", None, None), "1 of 2 sources states no license"),
        (("mit", "other", "mit"), "a source has the license 'other', which is not known here"),
        (("cc-by-nc-4.0", "openrail", None), "a source has the license 'openrail', which is not known here"),
        (("mit", "cc-by-nc-4.0", None), r"forbid commercial use \(cc-by-nc-4.0\)"),
    ],
)
def test_c18_a_push_asks_a_person_about_licenses(
    star: Path, fake_hub: FakeHub, licenses: tuple[str | None, ...], question: str
) -> None:
    before = len(fake_hub.requests)
    with pytest.raises(UsageError, match=f"star: .*{question} .*--accept-license"):
        publish_star(with_licenses(star, *licenses), "me/star")
    assert len(fake_hub.requests) == before
    publish_star(star, "me/star", accept_license="cc-by-nc-4.0")
    assert card_of(fake_hub).data.license == "cc-by-nc-4.0"
    publish_star(star, "me/star")  # which remembers it
    assert card_of(fake_hub).data.license == "cc-by-nc-4.0"
    assert read_manifest(star / "star.json").chosen_license == "cc-by-nc-4.0"
    assert "Its publisher states the license" in card_of(fake_hub).content


def test_c18_less_than_the_sources_demand_is_refused(star: Path, fake_hub: FakeHub) -> None:
    with_licenses(star, "mit", "cc-by-nc-4.0", None)
    with pytest.raises(UsageError, match=r"--accept-license: mit: the sources demand cc-by-nc-4.0"):
        publish_star(star, "me/star", accept_license="mit")
    with pytest.raises(UsageError, match=r"--accept-license: lgpl-3.0: the sources demand agpl-3.0"):
        publish_star(with_licenses(star, "agpl-3.0", None, None), "me/star", accept_license="lgpl-3.0")
    with pytest.raises(UsageError, match="expected the identifier of a license, got"):
        publish_star(star, "me/star", accept_license="MIT\nx: y")
    with pytest.raises(IncompatibleError, match=r"cannot be published: gpl-3.0 allows commercial use") as caught:
        publish_star(with_licenses(star, "gpl-3.0", "cc-by-nc-4.0", None), "me/star", accept_license="gpl-3.0")
    assert caught.value.exit_code == 5
    assert "me/star" not in fake_hub.repos


def test_a_star_of_ones_own_models_needs_no_license(make_member: MakeMember, fake_hub: FakeHub, tmp_path: Path) -> None:
    folder = make_star(tmp_path / "star", [make_member(f"m{seed}", seed=seed) for seed in range(2)])
    publish_star(folder, "me/star")
    assert card_of(fake_hub).data.license is None


def test_a_source_of_ones_own_leaves_the_license_to_the_others(star: Path, fake_hub: FakeHub) -> None:
    publish_star(with_licenses(star, "mit", "mit", None), "me/star")
    assert card_of(fake_hub).data.license == "mit"
    assert "The most restrictive license of the sources is `mit`" in card_of(fake_hub).content


def test_a_collection_holds_the_star_and_its_sources_once(star: Path, fake_hub: FakeHub, run) -> None:
    with_licenses(star, "mit", "mit", None)
    for _ in range(2):
        ended = run("push", star, "me/star", "--collection", "Stars of mine", "--json")
        assert ended.code == 0, ended.err
    [held] = fake_hub.collections.values()
    assert held["title"] == "Stars of mine"
    assert [item["id"] for item in held["items"]] == ["me/star", "ann/net", "ann/zoo"]


def test_p06_plain_timm_loads_the_star_at_its_commit(star: Path, fake_hub: FakeHub) -> None:
    pushed = publish_star(with_licenses(star, "mit", "mit", "mit"), "me/star")
    fake_hub.commit("me/star", {"model.safetensors": b"later"})
    ended = run_python("-c", LOAD_WITH_TIMM, f"hf-hub:me/star@{pushed.sha}", forget="starzoo")
    assert ended.code == 0, ended.err
    seen, loaded = json.loads(ended.out), load_star(star)
    expected = loaded.model()(torch.linspace(-1, 1, 2 * 256).reshape(2, 1, 16, 16))
    assert torch.equal(torch.tensor(seen["logits"]), expected)
    assert (seen["data"]["mean"], seen["data"]["std"], seen["data"]["input_size"]) == ([0.25], [0.5], [1, 16, 16])
    assert seen["config"]["label_names"] == ["cat", "dog", "señor"]
    registry = timm.get_pretrained_cfg("test_resnet")  # says something else about other weights
    assert registry is not None
    assert registry.tag
    assert registry.license == "apache-2.0"
    assert ModelCard(fake_hub.files("me/star", pushed.sha)["README.md"].decode()).data.license == "mit"
    assert (seen["config"]["hf_hub_id"], seen["config"]["source"]) == (f"me/star@{pushed.sha}", "hf-hub")
    assert not [key for key in ("license", "tag", "paper_ids", "origin_url") if seen["config"].get(key)]


def test_p01_p02_neither_token_nor_machine_is_in_any_file(
    star: Path, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_CANARY0123456789")
    monkeypatch.setenv("HOME", str(tmp_path / "CANARYHOME"))
    with_licenses(star, "mit", "mit", None)
    ended = run("push", star, "me/star", "--debug")
    assert ended.code == 0
    assert any("hf_CANARY" in request.headers.get("authorization", "") for request in fake_hub.requests)
    private = [
        b"CANARY",
        str(tmp_path).encode(),
        *([os.uname().nodename.encode()] if len(os.uname().nodename) > 4 else []),
    ]
    published = fake_hub.files("me/star")
    assert len(published) > 5
    for name, data in published.items():
        assert [word for word in private if word in data] == [], name
    assert "CANARY" not in ended.out + ended.err
    written = [path for place in (star, Path(os.environ["HF_HOME"])) for path in place.rglob("*") if path.is_file()]
    assert written
    assert [path for path in written if b"hf_CANARY" in path.read_bytes()] == []


def test_p01_the_traceback_of_a_push_shows_no_token(
    star: Path, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch, run
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_CANARY0123456789")
    fake_hub.fail("POST .*/commit/main", 403)
    ended = run("push", with_licenses(star, "mit", "mit", None), "me/star", "--debug", "--json")
    assert ended.code == 4
    assert "Traceback" in ended.err
    assert "CANARY" not in ended.out + ended.err
