"""One small network per kind of structure: what its groups are, and that the outputs stay."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from starzoo.errors import IncompatibleError
from starzoo.symmetry import infer, verify
from starzoo.symmetry.rules import registry, rule
from starzoo.symmetry.terms import Concat, Leaf, Pinned, Product, pin, unify


def check(model, *shape, **options):
    """The specification of a network whose outputs stay, and only with all of its tensors permuted."""
    spec = infer(model, torch.zeros(1, *shape), **options)
    result = verify(model, torch.zeros(2, *shape), spec)
    assert result.passed, result
    return spec


def sizes(spec):
    return [group.size for group in spec.groups.values()]


class Network(nn.Module):
    """A network from a forward function and its layers."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            if isinstance(layer, nn.Parameter):
                self.register_parameter(name, layer)
            else:
                setattr(self, name, layer)

    def forward(self, x):
        return self.function(self, x)


def test_a_chain_names_groups_after_the_first_tensor_that_carries_them():
    model = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    spec = check(model, 4)
    assert list(spec.groups) == ["0.weight:0", "2.weight:0"]
    assert spec.axes["2.weight"] == (Leaf("2.weight:0", 5), Leaf("0.weight:0", 6))
    assert spec.axes["4.bias"] == (Pinned(3, "output"),)
    assert spec.axes["0.weight"][1] == Pinned(4, "input")


def test_a_residual_stream_is_one_group():
    model = Network(
        lambda m, x: m.head(m.stem(x) + m.down(functional.relu(m.up(m.stem(x))))),
        stem=nn.Linear(4, 6), up=nn.Linear(6, 9), down=nn.Linear(9, 6), head=nn.Linear(6, 2),
    )  # fmt: skip
    assert sizes(check(model, 4)) == [6, 9]


def test_concatenated_features_keep_their_own_groups():
    model = Network(
        lambda m, x: m.head(functional.relu(m.norm(torch.cat([m.first(x), m.second(x)], 1)))),
        first=nn.Linear(4, 6), second=nn.Linear(4, 3), norm=nn.BatchNorm1d(9), head=nn.Linear(9, 2),
    )  # fmt: skip
    spec = check(model, 4)
    assert spec.axes["norm.running_var"] == (Concat((Leaf("first.weight:0", 6), Leaf("second.weight:0", 3))),)


def test_split_features_are_cut_at_the_common_points():
    def forward(m, x):
        gate, value = m.up(x).split([3, 5], dim=1)
        return m.head(torch.cat([gate, value], 1)) * m.scale(torch.sigmoid(gate))

    model = Network(forward, up=nn.Linear(4, 8), head=nn.Linear(8, 2), scale=nn.Linear(3, 2))
    assert sizes(check(model, 4)) == [3, 5]


def test_flattened_channels_are_a_product_with_their_places():
    model = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(5 * 9, 3))
    spec = check(model, 1, 8, 8)
    assert spec.axes["4.weight"][1] == Product((Leaf("0.weight:0", 5), Pinned(9, "space")))


def test_depthwise_convolution_passes_the_channels_through():
    model = nn.Sequential(nn.Conv2d(2, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 3, 1), nn.Flatten())
    assert sizes(check(model, 2, 5, 5)) == [6]


def test_grouped_convolution_permutes_groups_and_the_outputs_of_each_group():
    model = nn.Sequential(
        nn.Conv2d(2, 6, 1), nn.ReLU(), nn.Conv2d(6, 12, 3, groups=3), nn.Conv2d(12, 3, 1), nn.Flatten()
    )
    spec = check(model, 2, 5, 5)
    # The weight (12, 2, 3, 3) has the inputs of a group on an axis of their own: they must move alike in all groups.
    assert [(group.size, group.within) for group in spec.groups.values()] == [
        (3, None),
        (2, None),
        (4, "0.weight:0"),
    ]


def test_transposed_convolution():
    model = nn.Sequential(
        nn.Conv2d(2, 6, 1), nn.ConvTranspose2d(6, 4, 2, groups=2, stride=2), nn.Conv2d(4, 3, 1), nn.Flatten()
    )
    assert sizes(check(model, 2, 3, 3)) == [2, 3, 2]


class Attention(nn.Module):
    """Self-attention with packed q, k and v, as in timm."""

    def __init__(self, dim=12, heads=3, qk_norm=False):
        super().__init__()
        self.stem, self.qkv, self.proj, self.head = (
            nn.Linear(4, dim),
            nn.Linear(dim, 3 * dim),
            nn.Linear(dim, dim),
            nn.Linear(dim, 2),
        )
        self.q_norm = nn.LayerNorm(dim // heads) if qk_norm else nn.Identity()
        self.heads = heads

    def forward(self, x):
        x = self.stem(x)
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        attended = functional.scaled_dot_product_attention(self.q_norm(q), k, v)
        return self.head(x + self.proj(attended.transpose(1, 2).reshape(x.shape))).mean(1)


def test_attention_permutes_heads_and_the_dimensions_of_each_head():
    spec = check(Attention(), 5, 4)
    stream, heads, qk, v = spec.groups.values()
    assert (stream.size, heads.size, qk.size, v.size) == (12, 3, 4, 4)
    assert (heads.within, qk.within, v.within) == (None, heads.name, heads.name)
    packed = Concat(
        tuple(Product((Leaf(heads.name, heads.size), Leaf(inner.name, inner.size))) for inner in (qk, qk, v))
    )
    assert spec.axes["qkv.weight"] == (packed, Leaf(stream.name, stream.size))
    assert [heads.name, qk.name, v.name] == ["qkv.weight:0", "qkv.weight:0.1", "qkv.weight:0.2"]


def test_a_norm_shared_by_all_heads_ties_their_dimensions():
    spec = check(Attention(qk_norm=True), 5, 4)
    _, heads, qk, v = spec.groups.values()
    assert (qk.within, v.within) == (None, heads.name)


def test_torch_multi_head_attention():
    layer = nn.TransformerEncoderLayer(12, 3, 10, batch_first=True)
    model = nn.Sequential(nn.Linear(4, 12), layer, nn.Linear(12, 2))
    spec = check(model, 5, 4)
    assert sorted(sizes(spec)) == [3, 4, 4, 10, 12]
    assert spec.wreath_groups == 2


def test_tied_weights_move_together():
    shared = nn.Linear(6, 6)
    model = nn.Sequential(nn.Linear(4, 6), shared, nn.ReLU(), shared, nn.Linear(6, 2))
    spec = check(model, 4)
    assert sizes(spec) == [6]
    assert spec.axes["1.weight"] == spec.axes["3.weight"] == (Leaf("0.weight:0", 6), Leaf("0.weight:0", 6))


def test_a_parameter_that_is_never_read_stays():
    model = Network(
        lambda m, x: m.head(functional.relu(m.stem(x))),
        stem=nn.Linear(4, 6),
        head=nn.Linear(6, 2),
        idle=nn.Linear(6, 6),
    )
    spec = check(model, 4)
    assert spec.axes["idle.weight"] == (Pinned(6, "never read"), Pinned(6, "never read"))


def test_a_constant_buffer_ties_nothing_and_others_pin():
    def model(buffer):
        network = Network(lambda m, x: m.head(m.stem(x) * m.scale), stem=nn.Linear(4, 6), head=nn.Linear(6, 2))
        network.register_buffer("scale", buffer, persistent=False)
        return network

    assert sizes(check(model(torch.full((6,), 0.5)), 4)) == [6]
    assert infer(model(torch.arange(6.0)), torch.zeros(1, 4)).groups == {}


def test_writing_into_a_constant_buffer_is_noticed_by_its_other_views():
    def forward(m, x):
        m.ones[:3].mul_(torch.arange(2.0, 5.0, device=x.device))
        return m.head(m.stem(x) * m.ones)

    model = Network(forward, stem=nn.Linear(4, 6), head=nn.Linear(6, 2))
    model.register_buffer("ones", torch.ones(6), persistent=False)
    assert infer(model, torch.zeros(1, 4)).groups == {}
    assert torch.equal(model.ones, torch.ones(6))


def test_an_operator_without_a_rule_is_reported_and_pins_what_it_touches():
    model = Network(
        lambda m, x: m.head(torch.tril(functional.relu(m.up(m.stem(x))))),
        stem=nn.Linear(4, 6), up=nn.Linear(6, 5), head=nn.Linear(5, 2),
    )  # fmt: skip
    spec = check(model, 3, 4)
    assert spec.unsupported_operators == ("aten::tril",)
    assert sizes(spec) == [6]
    assert spec.axes["up.bias"] == (Pinned(5, "no rule for aten::tril"),)


@pytest.mark.parametrize(
    "operate",
    [
        lambda x: functional.pad(x, (2, 3)).roll(1, -1)[..., 2:9],
        lambda x: x.flip(-1),
        lambda x: x.cumsum(-1),
        lambda x: x[..., torch.tensor([3, 1, 2, 0, 4, 6, 5])],
        lambda x: x[..., ::2].repeat(1, 1, 3)[..., :7],
        lambda x: functional.avg_pool1d(x, 3, 1, 1),
        lambda x: functional.interpolate(x, 7, mode="linear"),
        lambda x: x + x.argmax(-1, keepdim=True),
        lambda x: x + x.max(-1, keepdim=True).values,
        lambda x: x * torch.arange(7, device=x.device),
        lambda x: torch.cat([x[..., :3].flip(-1), x[..., 3:]], -1),
    ],
    ids=["roll", "flip", "cumsum", "index", "stride", "pool", "resize", "argmax", "max", "arange", "flipped part"],
)
def test_where_the_place_matters_the_axis_stays(operate):
    model = Network(
        lambda m, x: m.head(operate(m.stem(x))).mean(1), stem=nn.Linear(4, 7), head=nn.Linear(7, 2),
    )  # fmt: skip
    example = torch.zeros(1, 3, 4)
    spec = infer(model, example)
    result = verify(model, example, spec)
    assert result.relative_error < 1e-9
    assert not any(group.size == 7 for group in spec.groups.values())
    if spec.groups:
        assert result.weights_changed


@pytest.mark.parametrize(
    "operate",
    [
        lambda x: functional.pad(x, (2, 3))[..., 2:9],
        lambda x: x.expand(2, 3, 7).sum(0, keepdim=True),
        lambda x: x.repeat(1, 2, 1).amax(1, keepdim=True),
        lambda x: torch.stack([x, x * 2], 1).mean(1),
        lambda x: x.sort(1).values,
        lambda x: x.softmax(-1) * x.var(-1, keepdim=True),
        lambda x: functional.layer_norm(x, (7,)) + functional.rms_norm(x, (7,)),
        lambda x: x.unsqueeze(1).squeeze(1).flatten(0, 1).unflatten(0, (1, -1)),
        lambda x: torch.einsum("bnc,bmc->bnm", x, x) @ x,
        lambda x: torch.where(x > 0, x, x.exp()),
        lambda x: torch.zeros_like(x).copy_(x),
        lambda x: functional.normalize(x, dim=-1),
        lambda x: torch.addcmul(x, x, x),
        lambda x: x.max() + x.amax(-1, keepdim=True) + x,
        lambda x: x.mT.contiguous().mT,
        lambda x: torch.floor_divide(x, 0.1) + x,
        lambda x: torch._assert_async(torch.isfinite(x.sum())) or x,
    ],
)
def test_where_the_place_does_not_matter_the_axis_is_free(operate):
    model = Network(lambda m, x: m.head(operate(m.stem(x))).mean(1), stem=nn.Linear(4, 7), head=nn.Linear(7, 2))
    spec = infer(model, torch.zeros(1, 3, 4))
    result = verify(model, torch.zeros(1, 3, 4), spec)
    assert spec.unsupported_operators == ()
    assert sizes(spec) == [7]
    assert result.passed


def test_pixel_shuffle_keeps_the_channels():
    model = nn.Sequential(
        nn.Conv2d(2, 12, 1), nn.PixelShuffle(2), nn.Conv2d(3, 2, 1), nn.PixelUnshuffle(2), nn.Flatten()
    )
    spec = check(model, 2, 4, 4)
    assert sizes(spec) == [3]


def test_windows_that_are_unfolded_keep_their_channels():
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Conv2d(2, 5, 1), nn.Conv2d(5, 3, 1)
            self.mix = nn.Linear(4, 4)

        def forward(self, x):
            columns = functional.unfold(self.stem(x), 2, padding=1, stride=2)  # (batch, 5 · 4, windows)
            mixed = self.mix(columns.reshape(len(x), 5, 4, -1).mT).mT
            folded = functional.fold(mixed.reshape(columns.shape), x.shape[2:], 2, padding=1, stride=2)
            windows = folded.unfold(2, 2, 1).unfold(3, 2, 1).amax((4, 5))
            return self.head(windows).flatten(1)

    spec = check(Windows(), 2, 6, 6)
    assert spec.unsupported_operators == ()
    assert sizes(spec) == [5]
    assert spec.axes["mix.weight"] == (Pinned(4, "space"), Pinned(4, "space"))


def test_a_kernel_of_one_position_lets_its_space_be_permuted():
    """As in CoaT, where a convolution over three scales runs along the channels of each token."""
    model = Network(
        lambda m, x: m.head(m.mix(torch.stack([m.first(x), m.second(x)], 1)).squeeze(1)),
        first=nn.Linear(4, 7), second=nn.Linear(4, 7), mix=nn.Conv1d(2, 1, 1), head=nn.Linear(7, 2),
    )  # fmt: skip
    assert sizes(check(model, 4)) == [7]


@pytest.mark.parametrize(
    "mix",
    [
        nn.Conv1d(1, 1, 3, padding=1),
        nn.Conv1d(1, 1, 1, padding=1),
        nn.Conv1d(1, 1, 1, stride=2),
        nn.ConvTranspose1d(1, 1, 1, stride=2),
        nn.Conv1d(1, 1, 1, stride=2, padding=3),
    ],
    ids=["wide", "padded", "strided", "transposed", "as long as before"],
)
def test_a_kernel_that_moves_along_an_axis_keeps_it_in_place(mix):
    model = Network(
        lambda m, x: m.mix(m.stem(x)[:, None]).mean(1) @ m.head[: m.mix(m.stem(x)[:, None]).shape[-1]],
        stem=nn.Linear(4, 7), mix=mix, head=nn.Parameter(torch.randn(20, 2)),
    )  # fmt: skip
    spec = infer(model, torch.zeros(1, 4))
    assert spec.axes["stem.bias"] == (Pinned(7, "space"),)
    assert not spec.is_permuted("stem.weight")


def test_embedding_tables_are_read_by_row():
    model = Network(
        lambda m, x: m.head(m.stem(x) + m.table(torch.arange(3, device=x.device))).mean(1),
        stem=nn.Linear(4, 7), table=nn.Embedding(3, 7), head=nn.Linear(7, 2),
    )  # fmt: skip
    spec = check(model, 3, 4)
    assert spec.axes["table.weight"] == (Pinned(3, "indexed"), Leaf("stem.weight:0", 7))


def test_the_output_may_be_left_free():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5))
    assert sizes(infer(model, torch.zeros(1, 4), pin_output=False)) == [6, 5]


def test_control_flow_that_depends_on_data_is_refused():
    model = Network(lambda m, x: m.stem(x) if x.sum() > 0 else m.stem(-x), stem=nn.Linear(4, 2))
    with pytest.raises(
        IncompatibleError, match=r"Network: cannot follow the forward pass on shape \(1, 4\).*does not branch on values"
    ):
        infer(model, torch.zeros(1, 4))


def test_an_input_that_does_not_fit_is_refused():
    with pytest.raises(IncompatibleError, match=r"Linear: cannot follow.*\(1, 5\).*give an input that suits"):
        infer(nn.Linear(4, 2), torch.zeros(1, 5))


def test_a_network_without_values_cannot_be_verified():
    with torch.device("meta"):
        model = nn.Linear(4, 2)
    with pytest.raises(IncompatibleError, match="Linear: cannot run a network on the meta device"):
        verify(model, torch.zeros(1, 4), infer(model, torch.zeros(1, 4)))


class HeadBias(Attention):
    """A query bias with heads and head dimensions on axes of their own, as in models with relative positions."""

    def __init__(self):
        super().__init__()
        self.q_norm = Network(lambda m, q: q + m.bias, bias=nn.Parameter(torch.zeros(3, 1, 4)))


def test_heads_and_dimensions_on_separate_axes_are_shared():
    spec = check(HeadBias(), 5, 4)
    _, heads, qk, v = spec.groups.values()
    assert spec.axes["q_norm.bias"] == (Leaf(heads.name, heads.size), Pinned(1), Leaf(qk.name, qk.size))
    assert (heads.size, qk.size, qk.within, v.within) == (3, 4, None, heads.name)


def test_dimensions_that_stand_before_their_heads_are_permuted_in_each_head():
    def forward(m, x):
        q, k = (layer(x).unflatten(-1, (4, 3)).transpose(1, 3) for layer in (m.q, m.k))  # (batch, head, dim, token)
        return m.head((q.mT @ k).relu().mean((2, 3)))

    model = Network(forward, q=nn.Linear(4, 12), k=nn.Linear(4, 12), head=nn.Linear(3, 2))
    spec = check(model, 5, 4)
    heads, dimensions = spec.groups.values()  # an outer group comes first
    assert (heads.size, heads.within) == (3, None)
    assert (dimensions.size, dimensions.within) == (4, heads.name)
    assert spec.axes["q.bias"] == (Product((Leaf(dimensions.name, dimensions.size), Leaf(heads.name, heads.size))),)


def test_heads_of_several_kinds_have_dimensions_of_their_own():
    """As in CoaT: two heads go through one depthwise convolution and three through another; all have 3 dimensions."""

    def forward(m, x):
        q, k, v = m.qkv(x).reshape(*x.shape[:2], 3, 5, 3).permute(2, 0, 3, 1, 4)
        attended = q @ (k.softmax(2).mT @ v)  # the product of keys and values has the dimensions of a head on two axes
        first, second = v.mT.reshape(len(x), 15, -1).split([6, 9], dim=1)
        position = torch.cat([m.near(first), m.far(second)], 1).reshape(len(x), 5, 3, -1).mT
        return m.head((attended + q * position).transpose(1, 2).reshape(*x.shape[:2], 15)).mean(1)

    model = Network(
        forward, qkv=nn.Linear(4, 45), head=nn.Linear(15, 2),
        near=nn.Conv1d(6, 6, 3, padding=1, groups=6), far=nn.Conv1d(9, 9, 5, padding=2, groups=9),
    )  # fmt: skip
    spec = check(model, 7, 4)
    found = [(group.size, group.within and spec.groups[group.within].size) for group in spec.groups.values()]
    assert sorted(found, key=str) == [(2, None), (3, 2), (3, 3), (3, None)]


def test_channels_that_double_twice_under_streams_of_two_kinds():
    """As in EdgeNeXt: channels (a | b) × 2, then (a | b) × 2 × 2; the inner factors of a and b are split everywhere."""

    def forward(m, x):
        first, second = m.stem(x).split([2, 3], dim=1)
        x = m.grow(torch.cat([m.mix(first), second], 1))
        return m.head(m.again(x).relu() + m.bias).flatten(1)

    model = Network(
        forward, stem=nn.Conv2d(2, 5, 1), mix=nn.Conv2d(2, 2, 3, padding=1, groups=2),
        grow=nn.Conv2d(5, 10, 3, padding=1, groups=5), again=nn.Conv2d(10, 20, 3, padding=1, groups=10),
        head=nn.Conv2d(20, 2, 1), bias=nn.Parameter(torch.zeros(20, 1, 1)),
    )  # fmt: skip
    spec = check(model, 2, 4, 4)
    assert sorted(sizes(spec)) == [2, 2, 2, 2, 3]
    assert spec.wreath_groups >= 2


def test_channels_that_are_also_heads_are_permuted_blockwise_although_weights_have_them_twice():
    """As in GC ViT, where queries come from the stream itself: a weight from stream to stream has heads twice."""

    def forward(m, x):
        x = m.stem(x)
        x = x + m.mix(x).relu()
        q, k, v = (each.unflatten(-1, (3, 4)).transpose(1, 2) for each in (x, m.k(x), m.v(x)))
        return m.head(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)).mean(1)

    square = {name: nn.Linear(12, 12) for name in ("mix", "k", "v")}
    spec = check(Network(forward, stem=nn.Linear(4, 12), head=nn.Linear(12, 2), **square), 5, 4)
    assert [(group.size, group.within) for group in spec.groups.values()] == [
        (3, None), (4, "stem.weight:0"), (4, "stem.weight:0"),
    ]  # fmt: skip


def test_blocks_of_a_strided_slice_change_places():
    """As rotary embeddings do with pairs of neighbors."""
    model = Network(
        lambda m, x: m.head(torch.stack([-m.stem(x)[..., 1::2], m.stem(x)[..., ::2]], -1).flatten(-2)).mean(1),
        stem=nn.Linear(4, 8), head=nn.Linear(8, 2),
    )  # fmt: skip
    spec = check(model, 3, 4)
    assert sizes(spec) == [4]
    assert spec.axes["head.weight"][1] == Product((Leaf("stem.weight:0", 4), Pinned(2, "stack")))


@torch.library.custom_op("invented::leaky_scan", mutates_args=())
def leaky_scan(x: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
    """The operator of docs/add-an-operator.md: out[:, t] = x[:, t] + decay · out[:, t − 1]."""
    out = x.clone()
    for t in range(1, x.shape[1]):
        out[:, t] += decay * out[:, t - 1]
    return out


@leaky_scan.register_fake
def _(x, decay):
    return torch.empty_like(x)


def scan_rule(x, decay):
    pin(x[1], "order of steps")
    return x.replace(2, unify(x[2], decay[0]))


def scan_rule_without_order(x, decay):
    return x.replace(2, unify(x[2], decay[0]))


def scan_rule_without_decay(x):
    return x


def test_an_operator_of_another_library_gets_a_rule_which_the_verifier_proves_or_refutes(monkeypatch):
    model = Network(
        lambda m, x: m.down(leaky_scan(torch.relu(m.mix(m.up(x).mT).mT), m.decay).mean(1)),
        up=nn.Linear(4, 8), mix=nn.Linear(5, 6), decay=nn.Parameter(torch.rand(8)), down=nn.Linear(8, 3),
    )  # fmt: skip
    assert infer(model, torch.zeros(1, 5, 4)).unsupported_operators == ("invented::leaky_scan",)
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))
    rule("invented::leaky_scan")(scan_rule)
    spec = check(model, 5, 4)
    assert (sizes(spec), spec.unsupported_operators) == ([8], ())
    for wrong in (scan_rule_without_order, scan_rule_without_decay):
        rule("invented::leaky_scan")(wrong)
        spec = infer(model, torch.zeros(1, 5, 4))
        found = verify(model, torch.zeros(2, 5, 4), spec)
        assert not found.passed
        assert found.failing_groups
