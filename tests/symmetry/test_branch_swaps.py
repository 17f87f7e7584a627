"""Parallel branches that change places: which are found, and that nothing but their sum notices."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import timm
import torch
from torch import nn

from starzoo.symmetry import Permutation, infer, verify
from starzoo.symmetry.spec import PermutationSpec


class Parallel(nn.Module):
    """A stem, some branches that are added up, and a head."""

    def __init__(self, branches, combine):
        super().__init__()
        self.stem, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.branches = nn.ModuleList(branches)
        self.combine = combine

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.combine(x, self.branches))


def hidden(width=5):
    return nn.Sequential(nn.Linear(6, width), nn.GELU(), nn.Linear(width, 6))


def add_up(x, branches):
    return x + sum(branch(x) for branch in branches)


def stack_up(x, branches):
    return x + torch.stack([branch(x) for branch in branches]).sum(dim=0)


def in_place(x, branches):
    out = branches[0](x)
    for branch in branches[1:]:
        out += branch(x)
    return out + x


def checked(model):
    example = torch.zeros(2, 4)
    spec = infer(model, example)
    result = verify(model, example, spec)
    assert result.passed, result
    return spec


@pytest.mark.parametrize("combine", [add_up, stack_up, in_place])
def test_branches_of_one_form_change_places(combine):
    spec = checked(Parallel([hidden(), hidden(), hidden()], combine))
    [exchange] = spec.exchanges
    assert exchange.name == "branches.{0,1,2}"
    assert exchange.members == tuple(
        tuple(f"branches.{branch}.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias"))
        for branch in range(3)
    )
    assert exchange.groups == tuple((f"branches.{branch}.0.weight:0",) for branch in range(3))


def test_branches_of_other_forms_stay():
    spec = checked(Parallel([hidden(5), hidden(7), nn.Linear(6, 6), hidden(5)], add_up))
    assert [exchange.name for exchange in spec.exchanges] == ["branches.{0,3}"]


def test_branches_that_share_a_layer_change_places_without_it():
    first, second = hidden(), hidden()
    second[2] = first[2]
    [exchange] = checked(Parallel([first, second], add_up)).exchanges
    assert exchange.members == tuple((f"branches.{at}.0.weight", f"branches.{at}.0.bias") for at in range(2))
    assert exchange.groups == ((), ())  # the shared layer ties the hidden units of both


class Peeking(Parallel):
    def forward(self, x):
        return super().forward(x) + self.branches[0](self.stem(x))[..., :3]


class Looking(Parallel):
    def forward(self, x):
        return super().forward(x) + self.branches[1][0].weight.sum()


@pytest.mark.parametrize(
    "model",
    [
        Peeking([hidden(), hidden()], add_up),
        Looking([hidden(), hidden()], add_up),
        Parallel([hidden(), hidden()], lambda x, branches: branches[0](x) + 2 * branches[1](x)),
        Parallel([hidden(), hidden()], lambda x, branches: torch.add(branches[0](x), branches[1](x), alpha=2)),
        Parallel([hidden(), hidden()], lambda x, branches: branches[0](x) - branches[1](x)),
        Parallel([hidden(), hidden()], lambda x, branches: branches[0](x) + branches[1](branches[0](x))),
        Parallel([hidden(), hidden()], lambda x, branches: branches[0](x) + branches[1](x.relu())),
        Parallel([nn.Linear(6, 6), nn.Linear(6, 6)], lambda x, b: (b[0](x) + b[1](x)) * b[0].weight.sum()),
    ],
    ids=["also read", "weight also read", "twice", "alpha", "minus", "in a row", "other input", "outside"],
)
def test_branches_that_differ_in_any_other_way_stay(model):
    assert checked(model).exchanges == ()


def test_a_write_through_a_view_hides_what_a_branch_reads():
    def combine(x, branches):
        first, second = (branch(x) for branch in branches)
        first[:, :2].mul_(3)
        return first + second

    assert checked(Parallel([hidden(), hidden()], combine)).exchanges == ()


def test_of_branches_inside_of_branches_the_outer_ones_change_places():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            return (self.left(x) + self.right(x)).tanh()

    spec = checked(Parallel([Pair(), Pair()], add_up))
    assert [exchange.name for exchange in spec.exchanges] == ["branches.{0,1}"]
    assert len(spec.exchanges[0].members[0]) == 4


@pytest.mark.parametrize(
    ("name", "model_args", "branches"),
    [
        ("mobileone_s0", {}, 4),
        ("vit_small_patch16_18x2_224", {"embed_dim": 24, "depth": 2, "img_size": 32}, 2),
        ("levit_128s", {}, 2),
    ],
)
def test_exchanges_in_timm(name, model_args, branches):
    model = timm.create_model(name, num_classes=7, **model_args)
    size = model_args.get("img_size", 64 if name == "mobileone_s0" else 224)
    example = torch.zeros(1, 3, size, size)
    spec = infer(model, example)
    assert spec.exchanges
    assert {exchange.size for exchange in spec.exchanges} == {branches}
    assert verify(model, example, spec).passed
    assert PermutationSpec.from_json(spec.to_json()) == spec


@pytest.fixture
def parallel_attention():
    model = timm.create_model("vit_small_patch16_18x2_224", embed_dim=24, depth=1, num_heads=3, img_size=32)
    spec = infer(model, torch.zeros(1, 3, 32, 32))
    return spec, dict(model.state_dict())


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def test_exchanges_compose_and_invert(parallel_attention):
    spec, state = parallel_attention
    rng = np.random.default_rng(0)
    for _ in range(8):
        first, second = Permutation.random(spec, rng), Permutation.random(spec, rng)
        assert same(second.compose(first).apply(state), second.apply(first.apply(state)))
        assert same(first.inverse().apply(first.apply(state)), state)
        assert same(first.apply(first.inverse().apply(state)), state)
        assert first.compose(first.inverse()).moved(Permutation.identity(spec)) == 0


def test_an_exchange_moves_whole_tensors(parallel_attention):
    spec, state = parallel_attention
    still = Permutation.identity(spec)
    exchange = spec.exchanges[0]
    swapped = Permutation(spec, {**still.indices, exchange.name: np.array([1, 0])}).apply(state)
    for left, right in zip(*exchange.members, strict=True):
        assert torch.equal(swapped[left], state[right])
        assert torch.equal(swapped[right], state[left])
    assert any(not torch.equal(swapped[name], state[name]) for name in exchange.members[0])


def test_an_exchange_is_stored_with_the_groups(parallel_attention):
    spec, _ = parallel_attention
    element = Permutation.random(spec, np.random.default_rng(1))
    assert Permutation.from_tensors(spec, element.tensors()).moved(element) == 0
    assert set(element.tensors()) == {*spec.groups, *(exchange.name for exchange in spec.exchanges)}


def test_an_exchange_that_does_not_hold_is_guilty():
    model = Parallel([hidden(), hidden()], add_up)
    spec = infer(model, torch.zeros(1, 4))
    other = Parallel([hidden(), hidden()], lambda x, branches: branches[0](x) + 2 * branches[1](x))
    seeds = (verify(other, torch.zeros(1, 4), spec, seed=seed) for seed in range(8))
    result = next(result for result in seeds if not result.passed)
    assert result.failing_groups == ("branches.{0,1}",)


def test_weights_outside_of_the_branches_are_named_by_none_of_them():
    spec = infer(Parallel([hidden(), hidden()], add_up), torch.zeros(1, 4))
    [exchange] = spec.exchanges
    assert not {"stem.weight", "head.weight"} & {name for member in exchange.members for name in member}
    assert dataclasses.replace(spec, exchanges=()).groups == spec.groups
