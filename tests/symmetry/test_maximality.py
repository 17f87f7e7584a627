"""Nothing is missed: on small networks of most families, gradients and exchanges find no symmetry beyond the groups.

The default run takes a quarter of those that need about a second or less; `pytest -m slow` takes the others.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from starzoo.symmetry import infer
from starzoo.symmetry.spec import PermutationGroup
from starzoo.symmetry.terms import Concat, Leaf, Pinned, Product
from tests.symmetry.maximality import find_missed
from tests.symmetry.maximality.networks import BLOCKWISE, NETWORKS, SLOW, TIED

QUICK = list(NETWORKS)[::4]
LATER = [name for name in NETWORKS | SLOW if name not in QUICK]


@pytest.mark.parametrize("network", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in LATER)])
def test_nothing_is_missed(network):
    build, pixels = (NETWORKS | SLOW)[network]
    torch.manual_seed(0)
    model, example = build(), torch.zeros(1, 3, pixels, pixels)
    report = find_missed(model, example, infer(model, example))
    assert report.missed == report.merged == report.undecided == ()
    assert len(report.tied) == TIED.get(network, (0, ""))[0], report.tied
    assert len(report.blockwise) == BLOCKWISE.get(network, 0), report.blockwise
    assert report.proven + report.excluded > 0 < report.free


# The reference can fail


class Attention(nn.Module):
    """Two heads of self-attention between a stem and a head."""

    def __init__(self):
        super().__init__()
        self.stem, self.qkv, self.proj, self.head = (nn.Linear(*sizes) for sizes in ((4, 6), (6, 24), (8, 6), (6, 3)))

    def forward(self, x):
        x = self.stem(x)
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        x = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(self.proj(x)).mean(1)


def attention():
    torch.manual_seed(0)
    return Attention(), torch.zeros(1, 5, 4)


def chain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3)), torch.zeros(1, 4)


def changed(spec, *, groups=None, **replacements):
    """The specification with other terms for some leaves, by a name of the group with underscores."""

    def replaced(term):
        match term:
            case Leaf(group):
                return replacements.get(group.replace(".", "_").replace(":", "_"), term)
            case Product(children) | Concat(children):
                return type(term)(tuple(map(replaced, children)))
        return term

    axes = {name: tuple(map(replaced, terms)) for name, terms in spec.axes.items()}
    return dataclasses.replace(spec, axes=axes, groups=spec.groups if groups is None else groups)


@pytest.mark.parametrize("network", [chain, attention])
def test_the_small_networks_miss_nothing(network):
    model, example = network()
    report = find_missed(model, example, infer(model, example))
    assert report.missed == report.tied == report.merged == report.undecided == ()
    assert report.share == 1.0


def test_a_pinned_group_is_reported_with_all_that_moves_with_it():
    model, example = chain()
    spec = infer(model, example)
    report = find_missed(model, example, changed(spec, **{"2_weight_0": Pinned(5, "on purpose")}))
    places = ("2.weight[0]", "2.bias[0]", "4.weight[1]")
    assert {part.split()[0] for part in report.missed} == set(places)
    assert report.share == 3 / 6


def test_pinned_factors_of_different_sizes_are_reported_together():
    """A group that is pinned as a factor of one axis, and merged with its neighbor in another."""
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(4 * 3, 3))
    spec = infer(model, torch.zeros(1, 2, 5))
    assert spec.axes["3.weight"][1] == Product((Leaf("0.weight:0", 4), Pinned(3, "space")))
    axes = {name: tuple(Pinned(term.size) for term in terms) for name, terms in spec.axes.items()}
    report = find_missed(model, torch.zeros(1, 2, 5), dataclasses.replace(spec, axes=axes, groups={}))
    assert {part.split()[0] for part in report.missed} == {"0.weight[0]", "0.bias[0]", "3.weight[1]"}
    assert report.undecided == ()


def test_values_tied_to_queries_and_keys_are_reported():
    model, example = attention()
    spec = infer(model, example)
    heads, queries, values = (name for name in spec.groups if name.startswith("qkv"))
    groups = {name: group for name, group in spec.groups.items() if name != values}
    tied = changed(
        spec, groups=groups, **{values.replace(".", "_").replace(":", "_"): Leaf(queries, spec.groups[queries].size)}
    )
    assert spec.groups[queries].within == spec.groups[values].within == heads
    (report,) = find_missed(model, example, tied).tied
    assert [part.split()[0] for part in report.split("; ")] in (
        ["qkv.weight[0]", "qkv.bias[0]", "proj.weight[1]"],
        ["qkv.weight[0]", "qkv.weight[0]", "qkv.bias[0]"],
    )


def test_a_wreath_group_that_is_the_same_in_all_blocks_is_reported():
    model, example = attention()
    spec = infer(model, example)
    wreaths = [name for name, group in spec.groups.items() if group.within]
    groups = {name: dataclasses.replace(group, within=None) for name, group in spec.groups.items()}
    report = find_missed(model, example, dataclasses.replace(spec, groups=groups))
    assert len(wreaths) == len(report.tied) == 2


def test_inputs_of_a_grouped_convolution_could_move_in_each_group_by_themselves():
    model = nn.Sequential(nn.Conv1d(2, 6, 1), nn.GELU(), nn.Conv1d(6, 6, 3, groups=2), nn.GELU(), nn.Conv1d(6, 3, 1))
    example = torch.zeros(1, 2, 5)
    report = find_missed(model, example, infer(model, example))
    assert report.blockwise == ("0.weight:0.1 in 0.weight:0",)
    assert report.tied == report.missed == ()


def test_one_group_that_was_cut_in_two_is_reported():
    model, example = chain()
    spec = infer(model, example)
    halves = {name: PermutationGroup(name, 3) for name in ("first", "second")}
    groups = {"2.weight:0": spec.groups["2.weight:0"], **halves}
    cut = changed(spec, groups=groups, **{"0_weight_0": Concat((Leaf("first", 3), Leaf("second", 3)))})
    assert find_missed(model, example, cut).merged == ("first and second",)


def test_one_group_that_was_seen_as_a_product_is_reported():
    model, example = chain()
    spec = infer(model, example)
    factors = {"outer": PermutationGroup("outer", 2), "inner": PermutationGroup("inner", 3, "outer")}
    groups = {"2.weight:0": spec.groups["2.weight:0"], **factors}
    product = changed(spec, groups=groups, **{"0_weight_0": Product((Leaf("outer", 2), Leaf("inner", 3)))})
    assert find_missed(model, example, product).merged == ("outer and inner",)


def test_a_bias_without_influence_is_no_miss():
    """The keys' bias changes nothing under a softmax; where it is pinned, it is reported as idle."""
    model, example = attention()
    spec = infer(model, example)
    queries, _, values = spec.axes["qkv.bias"][0].parts
    axes = {**spec.axes, "qkv.bias": (Concat((queries, Pinned(8, "on purpose"), values)),)}
    report = find_missed(model, example, dataclasses.replace(spec, axes=axes))
    assert [part.split()[0] for part in report.idle] == ["qkv.bias[0]"]
    assert report.missed == report.tied == report.undecided == ()
