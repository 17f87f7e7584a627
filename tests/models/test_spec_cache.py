"""The cache of specifications: found once, and never out of date."""

from __future__ import annotations

import json

import pytest

from starzoo.models import spec_cache as specs
from starzoo.models.architecture import Architecture
from starzoo.models.spec_cache import cached_spec

SMALL = Architecture.from_registry("test_resnet")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ASSETS_CACHE", str(tmp_path))
    return tmp_path / "starzoo" / "specs"


@pytest.fixture
def traces(monkeypatch):
    """The architectures that were traced."""
    seen = []
    trace = specs.infer
    monkeypatch.setattr(specs, "infer", lambda *inputs, **options: seen.append(inputs[0]) or trace(*inputs, **options))
    return seen


def test_a_second_use_traces_nothing_and_is_equal(traces, cache):
    first = cached_spec(SMALL)
    assert cached_spec(SMALL) == first
    assert len(traces) == 1
    assert [path.name.startswith("test_resnet-") for path in cache.iterdir()] == [True]


@pytest.mark.parametrize(
    "other",
    [
        Architecture.from_registry("test_resnet", image_size=96),
        Architecture.from_registry("test_resnet", model_args={"in_chans": 1}),
        SMALL.model_copy(update={"num_classes": 7}),
        Architecture.from_registry("test_vit"),
    ],
    ids=["size", "arguments", "classes", "name"],
)
def test_whatever_decides_a_specification_has_a_file_of_its_own(other, traces, cache):
    cached_spec(SMALL)
    cached_spec(other)
    assert len(traces) == len(list(cache.iterdir())) == 2


def test_a_free_output_has_a_file_of_its_own(traces):
    assert len(cached_spec(SMALL, pin_output=False).groups) == len(cached_spec(SMALL).groups) + 1
    assert len(traces) == 2


def test_other_rules_find_anew(traces, monkeypatch):
    cached_spec(SMALL)
    monkeypatch.setattr(specs, "spec_cache_version", lambda: "timm 2")
    cached_spec(SMALL)
    assert len(traces) == 2


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"groups": 1}',
        "[" * 200_000,
        '{"groups": [], "axes": [], "reasons": {}, "outputs": []}',
        '{"groups": [], "axes": {}, "reasons": {}, "outputs": []}',
        lambda text: json.dumps({**json.loads(text), "groups": [["stem", "x", None]]}),
        lambda text: json.dumps({**json.loads(text), "groups": []}),
        lambda text: json.dumps({**json.loads(text), "axes": {}}),
    ],
)
def test_a_damaged_file_is_written_again(damage, traces, cache):
    spec = cached_spec(SMALL)
    [path] = cache.iterdir()
    path.write_text(damage(path.read_text()) if callable(damage) else damage)
    assert cached_spec(SMALL).groups == spec.groups
    assert len(traces) == 2
    assert json.loads(path.read_text())["groups"]


def test_a_cache_that_cannot_be_written_costs_a_trace_and_nothing_else(tmp_path, traces, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_ASSETS_CACHE", str(tmp_path / "file"))
    assert cached_spec(SMALL).groups
    assert cached_spec(SMALL).groups
    assert len(traces) == 2
