"""Networks that are not timm's: torchvision's, and plain modules with what people write in them."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from starzoo.errors import IncompatibleError
from starzoo.symmetry import infer, verify


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


def test_a_recurrent_network():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.cell(x)[0][:, -1])

    spec = check(Recurrent(), torch.zeros(1, 3, 4))
    assert [group.size for group in spec.groups.values()] == [6]


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
    assert "decides by numbers" in caught.value.hint
