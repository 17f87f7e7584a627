"""Networks that are not timm's: torchvision's, and plain modules with what people write in them."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from starzoo.errors import IncompatibleError
from starzoo.symmetry import infer, verify
from starzoo.symmetry.terms import Leaf, Pinned, Product


def check(model, example):
    spec = infer(model, example)
    result = verify(model, example, spec)
    assert result.passed, result
    assert spec.unsupported_operators == ()
    return spec


IMAGES = torch.zeros(1, 3, 64, 64)


@pytest.mark.parametrize(
    ("build", "groups"),
    [
        (torchvision.models.resnet18, 12),
        (torchvision.models.squeezenet1_1, 25),  # the stem, and three in each of eight fires
        # Stem, last convolution and classifier; ten expansions, nine squeezes, outputs of five widths.
        (torchvision.models.mobilenet_v3_small, 27),
    ],
    ids=lambda build: getattr(build, "__name__", None),
)
def test_networks_of_torchvision(build, groups):
    assert len(check(build(num_classes=7), IMAGES).groups) == groups


def test_a_vision_transformer_of_torchvision():
    """Its attention is torch's own, with packed weights: a stream, and per block heads, q·k, v and the hidden layer."""
    model = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=3, hidden_dim=24, mlp_dim=40, num_classes=7
    )
    nn.init.normal_(model.heads.head.weight)  # zero at first
    spec = check(model, torch.zeros(1, 3, 32, 32))
    assert (len(spec.groups), spec.wreath_groups) == (9, 4)


class Recurrent(nn.Module):
    """An LSTM between its input and a head, which reads some of what the LSTM returns."""

    def __init__(self, read, state=None, **options):
        super().__init__()
        self.cell = nn.LSTM(4, 6, **options)
        width = 6 * (2 if options.get("bidirectional") else 1)
        self.head, self.last = nn.Linear(width, 2), nn.Linear(6, 2)
        self.state = None if state is None else nn.Parameter(torch.randn(state, 1, 6))
        self.read = read

    def forward(self, x):
        state = None if self.state is None else (self.state, self.state.tanh())
        return self.read(self, *self.cell(x, state))


def output(m, out, states):
    return m.head(out).mean(1)


def last_states(m, out, states):
    return m.head(out).mean(1) + m.last(states[0]).sum(0) + m.last(states[1]).sum(0)


@pytest.mark.parametrize(
    ("model", "hidden"),
    [
        (Recurrent(output, batch_first=True), [6]),
        (Recurrent(last_states, batch_first=True), [6]),
        (Recurrent(output, batch_first=True, bias=False), [6]),
        (Recurrent(output, batch_first=True, num_layers=2), [6, 6]),
        (Recurrent(output, batch_first=True, bidirectional=True), [6, 6]),
        (Recurrent(output, batch_first=True, num_layers=2, bidirectional=True), [6, 6, 6, 6]),
        # What stands in one tensor moves alike: last states that are read, first states that are weights.
        (Recurrent(last_states, batch_first=True, bidirectional=True), [6]),
        (Recurrent(output, state=2, batch_first=True, bidirectional=True), [6]),
        (Recurrent(output, state=1, batch_first=True), [6]),
    ],
    ids=[
        "one",
        "last states",
        "no bias",
        "two layers",
        "two directions",
        "both",
        "tied by last",
        "tied by first",
        "first",
    ],
)
def test_a_recurrent_network(model, hidden):
    spec = infer(model, torch.zeros(1, 5, 4))
    result = verify(model, torch.zeros(1, 5, 4), spec)
    assert result.passed, result
    assert [group.size for group in spec.groups.values()] == hidden
    assert spec.unsupported_operators == ()


def test_a_recurrent_network_that_puts_time_first():
    model = Recurrent(lambda m, out, states: m.head(out).mean(0))
    spec = infer(model, torch.zeros(5, 1, 4))  # the first item is the first step in time
    assert [group.size for group in spec.groups.values()] == [6]
    assert spec.axes["cell.weight_ih_l0"] == (
        Product((Pinned(4, "gate"), Leaf("cell.weight_ih_l0:0", 6))), Pinned(4, "input"),
    )  # fmt: skip


def test_a_recurrent_network_with_projections_goes_step_by_step():
    model = Recurrent(lambda m, out, states: out.mean(1), batch_first=True, proj_size=3)
    assert [group.size for group in check(model, torch.zeros(1, 5, 4)).groups.values()] == [6]


def test_a_network_that_takes_whole_numbers():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.layer, self.head = nn.Embedding(9, 6), nn.Linear(6, 5), nn.Linear(5, 2)

        def forward(self, words):
            return self.head(self.layer(self.table(words)).tanh().mean(1))

    spec = check(Words(), torch.zeros(1, 4, dtype=torch.long))
    assert [group.size for group in spec.groups.values()] == [6, 5]


def test_several_outputs_are_all_pinned():
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3)

        def forward(self, x):
            x = self.first(x)
            return {"fine": x, "coarse": [self.second(x)]}

    model = Pyramid()
    assert infer(model, IMAGES).groups == {}
    free = infer(model, IMAGES, pin_output=False)
    assert [group.size for group in free.groups.values()] == [6, 5]
    assert verify(model, IMAGES, free).passed


class Gated(nn.Module):
    """Decides by its data."""

    def __init__(self, decide):
        super().__init__()
        self.layer, self.decide = nn.Linear(4, 2), decide

    def forward(self, x):
        return self.layer(x) if self.decide(x) else self.layer(-x)


@pytest.mark.parametrize(
    "decide",
    [
        lambda x: x.sum() > 0,
        lambda x: x.max().item() > 0,
        lambda x: len(x[x > 0]) > 2,
        lambda x: x.tolist()[0][0] > 0,
        lambda x: float(x.mean()) > 0,
    ],
    ids=["bool", "item", "mask", "tolist", "float"],
)
def test_control_flow_that_depends_on_data_is_refused(decide):
    with pytest.raises(IncompatibleError, match=r"Gated: cannot follow the forward pass on shape \(1, 4\)") as caught:
        infer(Gated(decide), torch.zeros(1, 4))
    assert "does not branch on values" in caught.value.hint
