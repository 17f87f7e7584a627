"""Weight rows whose scale a batch norm takes away."""

from __future__ import annotations

import dataclasses

import pytest
import timm
import torch
from torch import nn

from starzoo.symmetry import infer, verify
from starzoo.symmetry.rescaling import rescale
from starzoo.symmetry.spec import PermutationSpec, RescalableRows


def convolutions(*more, bias=True):
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=bias), nn.BatchNorm2d(6), nn.ReLU(), *more, nn.Conv2d(6, 4, 3), nn.Flatten()
    )


def test_the_rows_before_a_batch_norm_are_found_with_its_statistics():
    model, example = convolutions(), torch.zeros(2, 3, 8, 8)
    spec = infer(model, example)
    assert spec.rescalable == (RescalableRows(("0.weight", "0.bias"), "1.running_mean", "1.running_var", 1e-5),)
    assert verify(model, example, spec).rescaling_error < 1e-12
    assert PermutationSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("bias", [True, False])
def test_the_rows_of_a_linear_layer(bias):
    model, example = (
        nn.Sequential(nn.Linear(4, 6, bias=bias), nn.BatchNorm1d(6), nn.GELU(), nn.Linear(6, 2)),
        torch.zeros(2, 4),
    )
    spec = infer(model, example)
    assert [each.rows for each in spec.rescalable] == [("0.weight", "0.bias") if bias else ("0.weight",)]
    assert verify(model, example, spec).passed


def test_rescaling_changes_weights_and_not_the_function():
    model = convolutions().eval().double()
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64)
    before = model(example)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    scaled = rescale(state, infer(model, example).rescalable, generator)
    changed = {name for name in state if not torch.equal(state[name], scaled[name])}
    assert changed == {"0.weight", "0.bias", "1.running_var"}  # the running mean is zero still
    model.load_state_dict(scaled)
    assert torch.allclose(model(example), before, rtol=1e-12, atol=1e-12)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x = self.conv(x)
        return self.head(self.norm(x) + x).flatten(1)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        return self.head(self.norm(self.conv(self.conv(torch.cat([x, x], 1))))).flatten(1)


@pytest.mark.parametrize(
    "model",
    [
        Branching(),
        Tied(),
        nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.BatchNorm2d(6), nn.Flatten()),
        nn.Sequential(nn.Conv2d(3, 6, 1), nn.GroupNorm(2, 6), nn.Flatten()),
        nn.Sequential(nn.ConvTranspose2d(3, 6, 1), nn.BatchNorm2d(6), nn.Flatten()),
        nn.Sequential(nn.Linear(8, 8), nn.BatchNorm2d(3), nn.Flatten()),
    ],
    ids=["read twice", "used twice", "after relu", "group norm", "transposed", "another axis"],
)
def test_rows_whose_scale_matters_are_not_found(model):
    assert infer(model, torch.zeros(1, 3, 8, 8)).rescalable == ()


def test_rows_that_may_not_be_rescaled_fail_the_check():
    model, example = Branching(), torch.zeros(2, 3, 8, 8)
    spec = infer(model, example)
    wrong = RescalableRows(("conv.weight", "conv.bias"), "norm.running_mean", "norm.running_var", 1e-5)
    result = verify(model, example, dataclasses.replace(spec, rescalable=(wrong,)))
    assert result.rescaling_error > 1e-3
    assert result.relative_error < 1e-9
    assert not result.passed


@pytest.mark.parametrize(
    ("name", "size", "norms"), [("resnet18", 64, 20), ("levit_128s", 224, 50), ("test_vit", 32, 0)]
)
def test_batch_norms_of_timm(name, size, norms):
    model = timm.create_model(name, **({"img_size": 32} if name == "test_vit" else {}))
    example = torch.zeros(1, 3, size, size)
    spec = infer(model, example)
    assert len(spec.rescalable) == norms
    assert verify(model, example, spec).rescaling_error < 1e-9
