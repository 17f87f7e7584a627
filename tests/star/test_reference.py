"""The star of a plain loop: what Starlight does, written out with autograd, step by step."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy, one_hot

from starzoo.align.align import align
from starzoo.config import AlignConfig, RunConfig, StarConfig
from starzoo.data.task import load_data
from starzoo.models.sources import load_sources
from starzoo.star.fit import fit
from starzoo.star.sampling import SourceSampler


@pytest.mark.parametrize("kappa", [0.0, 2.0])
def test_the_star_is_that_of_a_plain_loop(kappa: float, digits_zoo: list[Path]) -> None:
    models = load_sources(digits_zoo[:2])
    architecture, states = models[0].architecture, [model.state for model in models]
    matched = AlignConfig(method="weights")
    star = StarConfig(epochs=1, batch_size=128, lr=0.1, warmup=0.2, mu=0.5, kappa=kappa, init="source", realign_every=0)
    config = RunConfig(star=star, align=matched)
    data = load_data(config.data, architecture.preprocessing)
    found = fit(models, data, config).state

    ends = [each.state for each in align(architecture.spec, states[0], states, matched)]  # each brought to the start
    teachers = [model.model() for model in models]
    network = architecture.build().train()
    weights = {name: states[0][name].clone().requires_grad_() for name, _ in network.named_parameters()}
    optimizer = torch.optim.SGD(weights.values(), momentum=0.9, nesterov=True, weight_decay=star.weight_decay)
    sampler, drawn = SourceSampler(star, 2), set()
    batches = list(data.train.loader(128, epoch=0, seed=star.seed))
    for step, (images, labels) in enumerate(batches):
        rising, steps = 0.2 * len(batches), len(batches)
        falling = 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))
        optimizer.param_groups[0]["lr"] = 0.1 * ((step + 1) / (rising + 1) if step < rising else falling)
        draw = sampler.draw(step)
        drawn.add((draw.source, draw.at_star))
        point = {name: (1 - draw.t) * weight + draw.t * ends[draw.source][name] for name, weight in weights.items()}
        truth = one_hot(labels, 10).float()
        with torch.no_grad():
            taught = teachers[draw.source](images).softmax(1)
        target = (truth + kappa * taught) / (1 + kappa)
        loss = cross_entropy(functional_call(network, point, (images,)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert len(drawn) >= 3  # both sources, and the star itself
    for name, weight in weights.items():
        expected = weight.detach()
        moved = (expected - states[0][name]).abs().max()
        torch.testing.assert_close(found[name], expected, atol=2e-3 * float(moved) + 1e-6, rtol=1e-3)
