"""The specification as a value: JSON, sizes, occurrences."""

from __future__ import annotations

import json

import pytest
import timm
import torch

from starzoo.errors import UsageError
from starzoo.symmetry import PermutationSpec, infer
from starzoo.symmetry.terms import Leaf


@pytest.fixture(scope="module")
def spec():
    model = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=24, depth=2)
    return infer(model, torch.zeros(1, 3, 16, 16))


def test_json_round_trip(spec):
    again = PermutationSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert list(again.groups) == list(spec.groups)


def test_damaged_json_is_refused(spec):
    value = spec.to_json()
    value["axes"]["cls_token"] = [{"sum": []}]
    with pytest.raises(UsageError, match="permutation specification: expected a term, got"):
        PermutationSpec.from_json(value)


def test_occurrences_point_at_axes_that_carry_the_group(spec):
    stream = next(iter(spec.groups))
    assert spec.occurrences[stream][0] == ("cls_token", 2)
    assert ("head.weight", 1) in spec.occurrences[stream]
    assert spec.axes["head.weight"][1] == Leaf(stream, 24)


def test_outer_groups_come_first_and_know_their_inner_groups(spec):
    names = list(spec.groups)
    for group in spec.groups.values():
        if group.within is not None:
            assert names.index(group.within) < names.index(group.name)
            assert group.name in spec.inner_groups[group.within]
    assert spec.wreath_groups == 4


def test_coverage_counts_parameters_of_tensors_that_move(spec):
    assert spec.coverage({"head.weight": 30, "head.bias": 10}) == 0.75
    assert spec.coverage({}) == 0.0
