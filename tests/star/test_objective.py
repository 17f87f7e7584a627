"""The cheap step against the paper's formula, differentiated by autograd."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from starzoo.star.objective import StarlightLoss
from tests.align.networks import make


def by_the_book(
    model: nn.Module, star: list[nn.Parameter], source: list[torch.Tensor], t: float, kappa: float, batch: tuple
) -> tuple[torch.Tensor, ...]:
    """∇ [CE(y, (1 − t)·θ* + t·θ_n) + κ·CE(p, (1 − t)·θ* + t·θ_n)] / (1 + κ), the interpolation inside the graph."""
    names = [name for name, _ in model.named_parameters()]
    images, labels, prediction = batch
    line = [(1 - t) * s + t * n for s, n in zip(star, source, strict=True)]
    logits = functional_call(model, dict(zip(names, line, strict=True)), (images,))
    loss = (cross_entropy(logits, labels) + kappa * cross_entropy(logits, prediction)) / (1 + kappa)
    return torch.autograd.grad(loss, star)


@pytest.mark.parametrize("kappa", [0.0, 0.7])
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_gradient_is_that_of_the_paper(t: float, kappa: float) -> None:
    torch.manual_seed(0)
    model = make("residual", 0).double().train()
    star = [nn.Parameter(p.detach().clone()) for p in make("residual", 1).double().parameters()]
    source = [p.detach() for p in make("residual", 2).double().parameters()]
    prediction = torch.randn(16, 3, dtype=torch.float64).softmax(1)
    batch = torch.randn(16, 1, 4, 4, dtype=torch.float64), torch.randint(0, 3, (16,)), prediction
    expected = by_the_book(copy.deepcopy(model), star, source, t, kappa, batch)
    loss = StarlightLoss(star, model, kappa=kappa)
    for _ in range(2):  # a second step must not see the first one's gradients
        loss.zero_grad()
        loss.accumulate(source, t, *batch)
    for parameter, gradient in zip(star, expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kappa", [0.0, 0.7])
def test_the_binary_loss_has_the_gradient_of_its_own_formula(kappa: float) -> None:
    torch.manual_seed(0)
    model, t = make("residual", 0).double().train(), 0.3
    star = [nn.Parameter(p.detach().clone()) for p in make("residual", 1).double().parameters()]
    source = [p.detach() for p in make("residual", 2).double().parameters()]
    images, y, p = (torch.rand(16, *shape, dtype=torch.float64) for shape in ((1, 4, 4), (3,), (3,)))
    line = [(1 - t) * s + t * n for s, n in zip(star, source, strict=True)]
    names = [name for name, _ in model.named_parameters()]
    q = functional_call(copy.deepcopy(model), dict(zip(names, line, strict=True)), (images,)).sigmoid()
    target = (y + kappa * p) / (1 + kappa)
    expected = torch.autograd.grad(-(target * q.log() + (1 - target) * (1 - q).log()).mean(), star)
    loss = StarlightLoss(star, model, kappa=kappa, criterion=binary_cross_entropy_with_logits)
    loss.accumulate(source, t, images, y, p if kappa else None)
    for parameter, gradient in zip(star, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kappa", [0.0, 0.7])
def test_the_loss_is_that_of_the_labels_at_the_interpolated_weights(kappa: float) -> None:
    model = make("residual", 0).train()
    star = [nn.Parameter(p.detach().clone()) for p in make("residual", 1).parameters()]
    source = [p.detach() for p in make("residual", 2).parameters()]
    images, labels = torch.randn(16, 1, 4, 4), torch.randint(0, 3, (16,))
    prediction = torch.randn(16, 3).softmax(1) if kappa else None
    loss = StarlightLoss(star, model, kappa=kappa)
    for t, seed in ((1.0, 2), (0.0, 1)):
        expected = cross_entropy(make("residual", seed).train()(images), labels).detach()
        torch.testing.assert_close(loss.accumulate(source, t, images, labels, prediction), expected)


def test_the_source_is_left_alone() -> None:
    model = make("residual", 0).train()
    star = [nn.Parameter(p.detach().clone()) for p in make("residual", 1).parameters()]
    source = [p.detach().clone() for p in make("residual", 2).parameters()]
    before = [p.clone() for p in source]
    StarlightLoss(star, model).accumulate(source, 0.7, torch.randn(8, 1, 4, 4), torch.randint(0, 3, (8,)))
    assert all(torch.equal(p, q) for p, q in zip(source, before, strict=True))


def test_draws_of_a_step_are_averaged() -> None:
    model = make("residual", 0).double().train()
    star = [nn.Parameter(p.detach().clone()) for p in make("residual", 1).double().parameters()]
    sources = [[p.detach() for p in make("residual", seed).double().parameters()] for seed in (2, 3)]
    batches = [(torch.randn(8, 1, 4, 4, dtype=torch.float64), torch.randint(0, 3, (8,))) for _ in sources]
    loss, both = StarlightLoss(star, model), StarlightLoss(star, model, draws=2)
    alone = []
    for source, batch in zip(sources, batches, strict=True):
        loss.zero_grad()
        loss.accumulate(source, 0.4, *batch)
        alone.append([p.grad.clone() for p in star if p.grad is not None])
    both.zero_grad()
    for source, batch in zip(sources, batches, strict=True):
        both.accumulate(source, 0.4, *batch)
    for parameter, one, two in zip(star, *alone, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, (one + two) / 2, rtol=1e-9, atol=1e-12)


def test_the_mean_gradient_of_distillation_is_that_of_the_ensemble() -> None:
    model = make("residual", 0).double().train()
    star = [nn.Parameter(p.detach().clone()) for p in make("residual", 1).double().parameters()]
    images, labels = torch.randn(16, 1, 4, 4, dtype=torch.float64), torch.randint(0, 3, (16,))
    predictions = torch.randn(4, 16, 3, dtype=torch.float64).softmax(2)
    loss = StarlightLoss(star, model, kappa=1.0)

    def gradient(prediction: torch.Tensor) -> torch.Tensor:
        loss.zero_grad()
        loss.accumulate([p.detach() for p in star], 0.0, images, labels, prediction)
        return torch.cat([p.grad.flatten() for p in star if p.grad is not None])

    mean = torch.stack([gradient(prediction) for prediction in predictions]).mean(0)
    torch.testing.assert_close(mean, gradient(predictions.mean(0)), rtol=1e-9, atol=1e-12)


def test_every_point_is_evaluated_with_its_own_weights_in_low_precision() -> None:
    """Inside one autocast region the second point would be evaluated with the low-precision weights of the first."""
    model = make("residual", 0).train()
    star = [nn.Parameter(p.detach().clone()) for p in make("residual", 1).parameters()]
    source = [p.detach() for p in make("residual", 2).parameters()]
    images, labels = torch.randn(64, 1, 4, 4), torch.randint(0, 3, (64,))

    def low() -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, cache_enabled=False)

    loss, exactly = StarlightLoss(star, model, precision=low), StarlightLoss(star, model)
    for t in (0.0, 1.0):
        found, exact = (each.accumulate(source, t, images, labels) for each in (loss, exactly))
        torch.testing.assert_close(found, exact, atol=0.03, rtol=0.02)
    assert not torch.allclose(exactly.accumulate(source, 0.0, images, labels), exact, atol=0.1)
