"""The cheap step against the paper's formula, differentiated by autograd."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from starzoo.star.objective import StarlightLoss
from tests.align.networks import make


def by_the_book(
    model: nn.Module, star: list[nn.Parameter], source: list[torch.Tensor], t: float, mu: float, batch: tuple
) -> tuple[torch.Tensor, ...]:
    """∇ [CE((1 − t)·θ* + t·θ_n) + μ·CE(θ*)] / (1 + μ), with the interpolation inside the graph."""
    names = [name for name, _ in model.named_parameters()]
    images, labels = batch

    def loss_at(weights: list[torch.Tensor]) -> torch.Tensor:
        return cross_entropy(functional_call(model, dict(zip(names, weights, strict=True)), (images,)), labels)

    line = [(1 - t) * s + t * n for s, n in zip(star, source, strict=True)]
    return torch.autograd.grad((loss_at(line) + mu * loss_at(list(star))) / (1 + mu), star)


@pytest.mark.parametrize("mu", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_gradient_is_that_of_the_paper(t: float, mu: float) -> None:
    torch.manual_seed(0)
    model = make("residual", 0).double().train()
    star = [nn.Parameter(p.detach().clone()) for p in make("residual", 1).double().parameters()]
    source = [p.detach() for p in make("residual", 2).double().parameters()]
    batch = torch.randn(16, 1, 4, 4, dtype=torch.float64), torch.randint(0, 3, (16,))
    expected = by_the_book(copy.deepcopy(model), star, source, t, mu, batch)
    loss = StarlightLoss(star, model, mu=mu)
    for _ in range(2):  # a second step must not see the first one's gradients
        loss.accumulate(source, t, *batch)
    for parameter, gradient in zip(star, expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)


def test_losses_are_those_at_the_path_and_at_the_star() -> None:
    model = make("residual", 0).train()
    star = [nn.Parameter(p.detach().clone()) for p in make("residual", 1).parameters()]
    source = [p.detach() for p in make("residual", 2).parameters()]
    images, labels = torch.randn(16, 1, 4, 4), torch.randint(0, 3, (16,))
    losses = StarlightLoss(star, model, mu=1.0).accumulate(source, 1.0, images, labels)
    at_source, at_star = make("residual", 2).train(), make("residual", 1).train()
    torch.testing.assert_close(losses.path, cross_entropy(at_source(images), labels).detach())
    assert losses.own is not None
    torch.testing.assert_close(losses.own, cross_entropy(at_star(images), labels).detach())
    assert StarlightLoss(star, model).accumulate(source, 0.5, images, labels).own is None


def test_the_source_is_left_alone() -> None:
    model = make("residual", 0).train()
    star = [nn.Parameter(p.detach().clone()) for p in make("residual", 1).parameters()]
    source = [p.detach().clone() for p in make("residual", 2).parameters()]
    before = [p.clone() for p in source]
    StarlightLoss(star, model, mu=1.0).accumulate(source, 0.7, torch.randn(8, 1, 4, 4), torch.randint(0, 3, (8,)))
    assert all(torch.equal(p, q) for p, q in zip(source, before, strict=True))
