"""Networks without written weights: buffers as they should be, and no memory for the rest."""

from __future__ import annotations

import pytest
import timm
import torch

from starzoo.models.architecture import Architecture
from starzoo.models.skip_init import SkipInit
from starzoo.symmetry import infer, verify
from tests.processes import run_python


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "beit_base_patch16_224"])
def test_a_blank_network_has_its_buffers_and_gives_the_same_specification(name):
    whole, blank = timm.create_model(name), Architecture.from_registry(name).build_uninitialized()
    buffers = dict(whole.named_buffers())
    assert [(key, value.shape) for key, value in blank.state_dict().items()] == [
        (key, value.shape) for key, value in whole.state_dict().items()
    ]
    assert all(torch.equal(value, buffers[key]) for key, value in blank.named_buffers())
    example = Architecture.from_registry(name).example_input()
    assert infer(blank, example).axes == infer(whole, example).axes


def test_weights_are_left_as_they_are_and_all_else_is_written():
    with SkipInit():
        layer = torch.nn.Linear(4, 3)
        kept = layer.weight.detach().clone()
        torch.nn.init.ones_(layer.weight)
        layer.weight.data.mul_(2)
        other = torch.zeros(3).add_(1)
    assert torch.equal(layer.weight, kept)
    assert torch.equal(other, torch.ones(3))
    torch.nn.init.ones_(layer.weight)
    assert torch.equal(layer.weight, torch.ones(3, 4))
    assert torch.nn.Linear(4, 3).weight.abs().sum() > 0  # nothing lasts


def test_a_blank_network_can_be_verified():
    architecture = Architecture.from_registry("test_resnet", image_size=64)
    model, example = architecture.build_uninitialized(), architecture.example_input()
    assert verify(model, example, infer(model, example)).passed


def test_a_network_of_five_billion_parameters_takes_little_memory():
    """In a process of its own, whose peak the operating system measures."""
    code = """
import resource
from pathlib import Path
from starzoo.models.architecture import Architecture
from starzoo.symmetry import infer
small = Architecture.from_registry("test_vit")
infer(small.build_uninitialized(), small.example_input())  # what is imported on first use
def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if field in line) / 1e3
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
large = Architecture.from_registry("vit_5b_patch16_sapiens2")
model = large.build_uninitialized()
spec = infer(model, large.example_input())
assert sum(parameter.numel() for parameter in model.parameters()) > 5e9
assert len(spec.groups) > 100, len(spec.groups)
extra = memory("VmHWM") - before
assert extra < 100, extra
"""
    ended = run_python("-c", code)
    assert ended.code == 0, ended.err
