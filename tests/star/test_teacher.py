"""A network that is lent the weights of one source after the other predicts what each of them does."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from starzoo.star.endpoints import Endpoints
from starzoo.star.teacher import Teacher
from starzoo.symmetry import Permutation, infer

NETWORKS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "batch norm": ("resnet18", 32, {"layers": (1, 1, 0, 0), "channels": (8, 16, 16, 16)}),
    "keeps its biases": (
        "levit_128s",
        64,
        {"img_size": 64, "embed_dim": (16, 32), "key_dim": 4, "depth": (1, 1), "num_heads": (2, 2)},
    ),
    "ties its weights": (
        "coat_lite_tiny",
        64,
        {"img_size": 64, "embed_dims": (16, 16, 16, 16), "serial_depths": (1, 1, 1, 1), "num_heads": 8},
    ),
}


def make(kind: str, seed: int) -> nn.Module:
    name, _, arguments = NETWORKS[kind]
    torch.manual_seed(seed)
    network = timm.create_model(name, num_classes=3, **arguments).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize("kind", NETWORKS)
def test_each_source_is_predicted_in_turn(kind: str) -> None:
    images = torch.randn(2, 3, NETWORKS[kind][1], NETWORKS[kind][1])
    networks = [make(kind, seed) for seed in (1, 2)]
    star = {name: nn.Parameter(value.detach().clone()) for name, value in networks[0].named_parameters()}
    sources = [{name: value.clone() for name, value in network.state_dict().items()} for network in networks]
    spec = infer(networks[0], images[:1])
    ends = Endpoints(sources, star, sources_on="device")
    ends.align([Permutation.random(spec, np.random.default_rng(seed)) for seed in (1, 2)])
    teacher = Teacher(make(kind, 3), star, nullcontext)
    with torch.no_grad():
        expected = [network(images).softmax(1) for network in networks]
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    for number in (0, 1, 0):
        predicted = teacher.predict([ends.get(number)], images)
        torch.testing.assert_close(predicted, expected[number], atol=1e-5, rtol=1e-4)
    both = teacher.predict(map(ends.get, range(len(ends))), images)
    torch.testing.assert_close(both, (expected[0] + expected[1]) / 2, atol=1e-5, rtol=1e-4)
