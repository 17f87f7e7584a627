"""Points of a path: interpolation, and batch-norm statistics that are those of the images."""

from __future__ import annotations

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from starzoo.models.batch_norm import has_batch_norm, reestimate_batch_norm
from starzoo.models.weights import interpolate
from tests.align.networks import make


def test_ends_and_middle() -> None:
    a, b = make("residual", 0).state_dict(), make("residual", 1).state_dict()
    assert all(torch.equal(tensor, a[name]) for name, tensor in interpolate(a, b, 0.0).items())
    assert all(
        torch.equal(tensor, b[name]) for name, tensor in interpolate(a, b, 1.0).items() if tensor.is_floating_point()
    )
    middle = interpolate(a, b, 0.25)
    torch.testing.assert_close(middle["conv1.weight"], 0.75 * a["conv1.weight"] + 0.25 * b["conv1.weight"])
    assert middle["norm.num_batches_tracked"].dtype == torch.int64


def test_statistics_are_the_mean_over_batches_whatever_was_there_before() -> None:
    layer = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.9))
    layer[0].running_mean.fill_(1e6)
    batches = [torch.randn(10, 3, 4, 4) * scale + scale for scale in (1.0, 2.0, 5.0)]
    reestimate_batch_norm(layer, batches)
    means = torch.stack([batch.mean((0, 2, 3)) for batch in batches]).mean(0)
    variances = torch.stack([batch.var((0, 2, 3), unbiased=True) for batch in batches]).mean(0)
    torch.testing.assert_close(layer[0].running_mean, means)
    torch.testing.assert_close(layer[0].running_var, variances)
    assert layer[0].momentum == pytest.approx(0.1)
    assert not any(module.training for module in layer.modules())


def test_what_a_batch_norm_of_timm_holds_stays_in_evaluation_mode() -> None:
    layer = BatchNormAct2d(3, act_layer=lambda inplace: nn.Dropout(0.9, inplace=inplace))
    modes = []
    layer.act.register_forward_hook(lambda module, *_: modes.append(module.training))
    reestimate_batch_norm(layer, [torch.randn(10, 3, 4, 4)])
    assert modes == [False]
    assert layer.running_mean.count_nonzero() == 3
    assert not layer.training


def test_momentum_comes_back_when_a_batch_fails() -> None:
    layer = nn.Sequential(nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match="expected 4D input"):
        reestimate_batch_norm(layer, [torch.zeros(2, 3)])
    assert layer[0].momentum == pytest.approx(0.1)


def test_only_tracked_statistics_count() -> None:
    assert has_batch_norm(make("residual", 0))
    assert not has_batch_norm(make("attention", 0))
    assert not has_batch_norm(nn.BatchNorm1d(3, track_running_stats=False))
