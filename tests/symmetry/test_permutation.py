"""Permutations of a whole network against an element-by-element reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from starzoo.errors import IncompatibleError, UntrustedInputError
from starzoo.symmetry import Permutation, PermutationGroup, PermutationSpec
from starzoo.symmetry.terms import Concat, Leaf, Pinned, Product

HEADS, INNER, STREAM = 3, 4, 5
PACKED = Concat((
    Product((Leaf("heads", HEADS), Leaf("inner", INNER))),
    Product((Leaf("heads", HEADS), Pinned(2, "kernel"), Leaf("inner", INNER))),
    Pinned(2, "constant"),
    Leaf("stream", STREAM),
))


@pytest.fixture
def spec():
    return PermutationSpec(
        groups={
            "heads": PermutationGroup("heads", HEADS),
            "inner": PermutationGroup("inner", INNER, within="heads"),
            "stream": PermutationGroup("stream", STREAM),
        },
        axes={
            "packed": (PACKED, Leaf("stream", STREAM)),
            "proj": (Leaf("stream", STREAM), Product((Leaf("heads", HEADS), Leaf("inner", INNER)))),
            "head": (Pinned(2, "output"), Leaf("stream", STREAM)),
            "count": (),
        },
    )


@pytest.fixture
def state():
    shapes = {"packed": (12 + 24 + 2 + 5, 5), "proj": (5, 12), "head": (2, 5), "count": ()}
    return {name: torch.arange(max(1, np.prod(shape))).reshape(shape).float() for name, shape in shapes.items()}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def packed_index(element):
    """Where each position of the packed axis comes from, one position at a time."""
    heads, inner, stream = (element.indices[name] for name in ("heads", "inner", "stream"))
    sources = []
    for block in range(HEADS):
        for place in range(INNER):
            sources.append(heads[block] * INNER + inner[block][place])
    for block in range(HEADS):
        for kernel in range(2):
            for place in range(INNER):
                sources.append(12 + (heads[block] * 2 + kernel) * INNER + inner[block][place])
    return [*sources, 36, 37, *(38 + position for position in stream)]


def test_blockwise_permutations_match_the_reference(spec, state, rng):
    element = Permutation.random(spec, rng)
    moved = element.apply(state)
    index = packed_index(element)
    assert sorted(index) == list(range(43))
    assert torch.equal(moved["packed"], state["packed"][index][:, element.indices["stream"]])
    assert torch.equal(moved["proj"], state["proj"][element.indices["stream"]][:, index[:12]])
    assert torch.equal(moved["head"], state["head"][:, element.indices["stream"]])
    assert not torch.equal(moved["packed"], state["packed"])
    assert list(moved) == list(state)


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def test_identity_moves_nothing_and_copies_nothing(spec, state):
    moved = Permutation.identity(spec).apply(state)
    assert all(moved[name] is state[name] for name in state)


def test_composition_applies_the_first_and_then_the_second(spec, state, rng):
    first, second = Permutation.random(spec, rng), Permutation.random(spec, rng)
    assert same(second.compose(first).apply(state), second.apply(first.apply(state)))
    assert not same(first.compose(second).apply(state), second.apply(first.apply(state)))


def test_the_inverse_undoes_from_both_sides(spec, state, rng):
    element = Permutation.random(spec, rng)
    assert same(element.inverse().apply(element.apply(state)), state)
    assert same(element.apply(element.inverse().apply(state)), state)
    assert element.compose(element.inverse()).count_moved(Permutation.identity(spec)) == 0


def test_moved_counts_the_positions_that_differ(spec):
    identity = Permutation.identity(spec)
    inner = identity.indices["inner"].copy()
    inner[1, [0, 1]] = [1, 0]
    assert Permutation(spec, {**identity.indices, "inner": inner}).count_moved(identity) == 2


def test_only_some_tensors_are_returned_when_asked(spec, state, rng):
    assert list(Permutation.random(spec, rng).apply(state, only=["head"])) == ["head"]


def test_tensors_round_trip(spec, rng):
    element = Permutation.random(spec, rng)
    tensors = element.to_tensors()
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()} == {
        "heads": (torch.int32, (3,)),
        "inner": (torch.int32, (3, 4)),
        "stream": (torch.int32, (5,)),
    }
    assert Permutation.from_tensors(spec, tensors).count_moved(element) == 0


@pytest.mark.parametrize(
    "damage",
    [
        {"heads": torch.tensor([0, 1, 1])},
        {"heads": torch.tensor([0, 1, 3])},
        {"heads": torch.tensor([0, 1])},
        {"heads": torch.tensor(0)},
        {"heads": torch.tensor([[0, 1, 2]])},
        {"inner": torch.arange(4)},
        {"inner": torch.tensor([[0, 1, 2, 3], [0, 1, 2, 3], [0, 0, 2, 3]])},
        {"heads": torch.tensor([0.0, 1.5, 2.0])},
        {"heads": torch.tensor([0.5, 1.5, 2.5])},
    ],
    ids=["twice", "outside", "short", "number", "rank", "one row", "bad row", "fraction", "all fractions"],
)
def test_what_is_no_permutation_is_refused(spec, damage):
    tensors = {**Permutation.identity(spec).to_tensors(), **damage}
    with pytest.raises(
        UntrustedInputError, match=rf"p\.safetensors: group '{next(iter(damage))}': expected a permutation"
    ):
        Permutation.from_tensors(spec, tensors, subject="p.safetensors")


def test_missing_and_unknown_groups_are_refused(spec):
    tensors = Permutation.identity(spec).to_tensors()
    with pytest.raises(UntrustedInputError, match="unknown group 'other'"):
        Permutation.from_tensors(spec, {**tensors, "other": torch.arange(2)})
    del tensors["stream"]
    with pytest.raises(UntrustedInputError, match="group 'stream': expected a permutation"):
        Permutation.from_tensors(spec, tensors)


def test_tensors_of_another_shape_are_refused(spec, state):
    with pytest.raises(IncompatibleError, match=r"head: expected 5 positions on axis 1, got shape \(2, 6\)"):
        Permutation.identity(spec).apply({**state, "head": torch.zeros(2, 6)})


def test_random_elements_are_uniform(spec, rng):
    counts = {}
    for _ in range(1200):
        key = tuple(Permutation.random(spec, rng).indices["heads"])
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 6
    assert min(counts.values()) > 140
