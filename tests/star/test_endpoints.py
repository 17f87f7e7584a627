"""The aligned sources, kept ready or permuted for each draw: the same tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from starzoo.models.memory_format import channels_last
from starzoo.star.endpoints import Endpoints
from starzoo.symmetry import Permutation, infer
from tests.align.networks import make


def make_ends(on_device: bool) -> tuple[Endpoints, list[Permutation], list[dict[str, torch.Tensor]]]:
    network = channels_last(make("residual", 0))
    spec = infer(network, torch.zeros(1, 1, 4, 4))
    sources = [make("residual", seed).state_dict() for seed in (1, 2)]
    permutations = [Permutation.random(spec, np.random.default_rng(seed)) for seed in (1, 2)]
    star = {name: nn.Parameter(value) for name, value in network.named_parameters()}
    return Endpoints(sources, star, sources_on="device" if on_device else "host"), permutations, sources


@pytest.mark.parametrize("ahead", [None, 0, 1], ids=["nothing", "the source", "another source"])
@pytest.mark.parametrize("on_device", [True, False])
def test_an_end_is_the_permuted_source(on_device: bool, ahead: int | None) -> None:
    ends, permutations, sources = make_ends(on_device)
    ends.align(permutations)
    for number in (1, 0, 1):
        if ahead is not None:
            ends.prefetch((number + ahead) % 2)
        end, expected = ends.get(number), permutations[number].apply(sources[number])
        for name, tensor in zip(ends.star, end.parameters, strict=True):
            assert torch.equal(tensor, expected.pop(name))
            assert tensor.stride() == ends.star[name].stride()
        assert end.buffers.keys() == expected.keys()
        assert all(torch.equal(end.buffers[name], expected[name]) for name in expected)


def test_what_was_asked_for_in_advance_is_forgotten_at_an_alignment() -> None:
    ends, permutations, sources = make_ends(on_device=False)
    ends.align(permutations)
    ends.prefetch(0)
    ends.align(permutations[::-1])
    expected = permutations[1].apply(sources[0])
    for name, tensor in zip(ends.star, ends.get(0).parameters, strict=True):
        assert torch.equal(tensor, expected[name])


def test_few_small_sources_are_kept_on_the_device() -> None:
    ends, _, _ = make_ends(on_device=True)
    assert Endpoints(ends.sources, ends.star).on_device
