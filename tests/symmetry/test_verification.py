"""The verifier notices what is wrong: rules broken on purpose, groups that do not exist, weights without influence."""

from __future__ import annotations

import dataclasses
from functools import partial, reduce

import pytest
import timm
import torch
from torch import nn

from starzoo.symmetry import infer, verify
from starzoo.symmetry.axes import Axes
from starzoo.symmetry.rules import registry
from starzoo.symmetry.spec import PermutationGroup
from starzoo.symmetry.terms import Leaf, Pinned, concat, factorize, product, resolve, unify
from starzoo.symmetry.verification import bisect_failing


def mm_without_contraction(x, mat2):
    return Axes.of([x[0], mat2[1]])


def bmm_without_batch(x, mat2, trace):
    trace.contract(unify(x[2], mat2[1]))
    return Axes.of([x[0], x[1], mat2[2]])


def addmm_without_bias(mat1, mat2, trace):
    trace.contract(unify(mat1[1], mat2[0]))
    return Axes.of([mat1[0], mat2[1]])


def batch_norm_without_statistics(x, weight, bias, out):
    channels = reduce(unify, [weight[0], bias[0]], x[1])
    return [x.replace(1, channels), *(Axes.fresh(shape) for shape in out[1:])]


def layer_norm_without_scale(x, out):
    return [Axes.of(x), *(Axes.pinned(shape, "") for shape in out[1:])]


def convolution_that_forgets_groups(x, weight, groups, out):
    unify(factorize(x[1], (groups, x.shape[1] // groups))[1], weight[1])
    return Axes.of([x[0], weight[0], *(Pinned(size, "space") for size in out[2:])])


def convolution_that_forgets_the_input(x, weight, bias, out):
    return Axes.of([x[0], unify(weight[0], bias[0]) if bias else weight[0], *(Pinned(size) for size in out[2:])])


def elementwise_that_ties_nothing(tensors, out):
    largest = max(tensors, key=len)
    return Axes.of(largest) if largest.shape == out else Axes.pinned(out, "")


def reshape_that_swaps_the_product(x, out):
    reshaped = x.reshape(out)
    return Axes.of(
        product(reversed(factors)) if (factors := getattr(resolve(t), "factors", ())) else t for t in reshaped
    )


def cat_in_the_wrong_order(tensors, dim):
    return Axes.of(
        concat(terms[::-1]) if axis == dim else reduce(unify, terms)
        for axis, terms in enumerate(zip(*tensors, strict=True))
    )


def convolution_that_lets_space_move(x, weight, bias, groups, out, trace):
    group, inside = factorize(x[1], (groups, x.shape[1] // groups))
    weight_group, outside = factorize(weight[0], (groups, weight.shape[0] // groups))
    group = unify(group, weight_group)
    trace.contract(group, unify(inside, weight[1]))
    channels = product([group, outside])
    space = [x[axis] if x.shape[axis] == out[axis] else Pinned(out[axis]) for axis in range(2, len(out))]
    return Axes.of([x[0], unify(channels, bias[0]) if bias else channels, *space])


def im2col_that_puts_places_first(x, out):
    places = Pinned(out[-2] // x.shape[-3])
    return Axes.of([x[0], product([places, x[-3]]), Pinned(out[-1])])


def group_norm_without_groups(x, weight, bias, out):
    channels = reduce(unify, [weight[0], bias[0]], x[1])
    return [x.replace(1, channels), *(Axes.pinned(shape, "") for shape in out[1:])]


RESNET = partial(timm.create_model, "resnet18", layers=[1, 1, 0, 0], channels=[16, 24, 24, 24])
VIT = partial(timm.create_model, "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2)
SWIN = partial(
    timm.create_model, "swin_tiny_patch4_window7_224", img_size=32, embed_dim=24, depths=(1, 1), num_heads=(2, 4)
)
CONVNEXT = partial(timm.create_model, "convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))
ECA = partial(
    timm.create_model, "ecaresnet26t", layers=[1, 1, 1, 1], channels=[16, 16, 24, 24], cardinality=1, base_width=16
)


class Columns(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.project, self.head = nn.Conv2d(3, 6, 1), nn.Linear(6 * 4, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.project(nn.functional.unfold(self.stem(x), 2, stride=8).mT).relu().mean(1))


def group_normed():
    layers = nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 3, 1), nn.Flatten()
    return nn.Sequential(*layers)


DENSENET = partial(timm.create_model, "densenet121", growth_rate=8, block_config=(2, 2))


def grouped():
    layers = nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 12, 3, groups=3), nn.ReLU(), nn.Conv2d(12, 3, 1), nn.Flatten()
    return nn.Sequential(*layers)


MUTATIONS = {
    "mm contracts nothing": ("mm", mm_without_contraction, SWIN),
    "bmm forgets the heads": ("bmm", bmm_without_batch, VIT),
    "addmm forgets the bias": ("addmm", addmm_without_bias, VIT),
    "batch norm forgets the statistics": ("native_batch_norm", batch_norm_without_statistics, RESNET),
    "layer norm forgets the scale": ("native_layer_norm", layer_norm_without_scale, CONVNEXT),
    "convolution forgets its groups": ("convolution", convolution_that_forgets_groups, grouped),
    "convolution forgets its input": ("convolution", convolution_that_forgets_the_input, RESNET),
    "cat turns the order round": ("cat", cat_in_the_wrong_order, DENSENET),
    "elementwise operators tie nothing": ("clone", elementwise_that_ties_nothing, RESNET),
    "a convolution over channels lets them move": ("convolution", convolution_that_lets_space_move, ECA),
    "windows put the places first": ("im2col", im2col_that_puts_places_first, Columns),
    "group norm forgets its groups": ("native_group_norm", group_norm_without_groups, group_normed),
    "views swap the factors": ("_unsafe_view", reshape_that_swaps_the_product, VIT),
}


@pytest.mark.parametrize(("operator", "broken", "build"), MUTATIONS.values(), ids=MUTATIONS)
def test_a_broken_rule_is_caught(operator, broken, build, monkeypatch):
    model, example = build(), torch.zeros(1, 3, 32, 32)
    assert verify(model, example, infer(model, example)).relative_error < 1e-9
    monkeypatch.setitem(registry._RULES, f"aten::{operator}", broken)
    spec = infer(model, example)
    result = verify(model, example, spec)
    assert result.relative_error > 1e-6
    assert not result.passed
    assert result.failing_groups
    assert set(result.failing_groups) <= spec.groups.keys()


def network():
    return nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)
    )


def test_only_the_guilty_group_is_named():
    model, example = network(), torch.zeros(1, 4)
    spec = infer(model, example)
    broken = dataclasses.replace(
        spec, axes={**spec.axes, "2.bias": infer(nn.Linear(6, 5), torch.zeros(1, 6)).axes["bias"]}
    )
    result = verify(model, example, broken)
    assert result.failing_groups == ("2.weight:0",)
    assert not result.passed


@pytest.mark.parametrize(
    ("culprits", "found"),
    [
        ([{"c"}], ["c"]),
        ([{"a"}, {"d"}], ["a", "d"]),
        ([{"c", "d"}], ["c", "d"]),
        ([{"b", "c"}], ["a", "b", "c", "d"]),
    ],
)
def test_halving_finds_the_smallest_sets_that_break(culprits, found):
    assert bisect_failing(["a", "b", "c", "d"], lambda groups: any(each <= set(groups) for each in culprits)) == found


def test_blocks_that_must_be_permuted_alike_are_guilty_when_they_are_not():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=1, qk_norm=True)
    example = torch.zeros(1, 3, 32, 32)
    spec = infer(model, example)
    heads, shared = "blocks.0.attn.qkv.weight:0", "blocks.0.attn.qkv.weight:0.1"
    assert spec.groups[shared].within is None
    blockwise = dataclasses.replace(spec.groups[shared], within=heads)
    norms = [name for name in spec.axes if "q_norm" in name or "k_norm" in name]
    broken = dataclasses.replace(
        spec, groups={**spec.groups, shared: blockwise}, axes={**spec.axes, **dict.fromkeys(norms, (Pinned(8),))}
    )
    assert len(norms) == 4
    assert shared in verify(model, example, broken).failing_groups


def test_a_weight_without_influence_fails_the_negative_control():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.idle = nn.Linear(4, 2), nn.Parameter(torch.ones(6, 6))

        def forward(self, x):
            self.idle.sum()
            return self.body(x)

    model, example = Idle(), torch.zeros(1, 4)
    result = verify(model, example, infer(model, example))
    assert result.relative_error < 1e-9
    assert (result.negative_control_passed, result.negative_control_tried) == (0, 2)
    assert not result.passed


def test_a_network_without_groups_does_not_pass():
    model, example = nn.Linear(4, 2), torch.zeros(1, 4)
    result = verify(model, example, infer(model, example))
    assert (result.relative_error, result.weights_changed, result.negative_control_tried) == (0.0, False, 0)
    assert not result.passed


def test_a_free_output_moves_with_its_group():
    model, example = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6)), torch.zeros(1, 4)
    spec = infer(model, example, pin_output=False)
    assert spec.groups["2.weight:0"] == PermutationGroup("2.weight:0", 6)
    assert spec.axes["2.bias"] == (Leaf("2.weight:0", 6),)
    assert spec.outputs == ((Pinned(1), Leaf("2.weight:0", 6)),)
    assert verify(model, example, spec).passed
    still = dataclasses.replace(spec, outputs=((Pinned(1), Pinned(6)),))
    assert verify(model, example, still).failing_groups == ("2.weight:0",)


def test_features_of_a_network_without_a_head_are_free_with_the_whole_stream():
    model = timm.create_model("test_vit", num_classes=0, img_size=32)
    example = torch.zeros(2, 3, 32, 32)
    pinned, free = infer(model, example), infer(model, example, pin_output=False)
    assert not pinned.is_permuted("patch_embed.proj.weight")
    assert free.is_permuted("patch_embed.proj.weight")
    assert len(free.groups) == len(pinned.groups) + 1
    assert verify(model, example, free).passed


def test_rounding_inside_of_a_network_is_found_and_named():
    class Rounded(nn.Module):
        def forward(self, x):
            return x.float().softmax(-1).double()

    model = nn.Sequential(nn.Linear(4, 6), Rounded(), nn.Linear(6, 3))
    result = verify(model, torch.zeros(2, 4), infer(model, torch.zeros(2, 4)))
    assert result.rounded_in == ("Sequential.1",)
    assert result.tolerance == 1e-6
    assert 1e-12 < result.relative_error < 1e-6
    assert result.passed


def test_verification_leaves_the_model_as_it_is():
    model = timm.create_model("test_resnet").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    example = torch.zeros(1, 3, 32, 32)
    verify(model, example, infer(model, example))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert next(model.parameters()).dtype == torch.float32


class Clamped(nn.Module):
    """Cuts its signals at limits that stand in buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)
        self.register_buffer("low", torch.tensor(-float("inf")))
        self.register_buffer("high", torch.tensor(float("inf")))

    def forward(self, x):
        return self.second(self.first(x).clamp(self.low, self.high))


def test_limits_in_buffers_keep_their_values():
    """At random ones, all of them near 1, nothing would come through, and no control would be noticed."""
    module, example = Clamped(), torch.zeros(1, 4)
    result = verify(module, example, infer(module, example))
    assert result.passed
    assert result.negative_control_passed == result.negative_control_tried > 0
