"""Models that are trained only to be compared with a star: SWA and a distilled student, each against a plain loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from starzoo.config import AlignConfig, EvalConfig, StarConfig
from starzoo.data import ImageData
from starzoo.errors import NumericalError
from starzoo.evaluate import measurement
from starzoo.evaluate.cache import ResultCache
from starzoo.evaluate.evaluate import Zoo, evaluate
from starzoo.evaluate.findings import predictors
from starzoo.evaluate.rivals import rival_steps, train_rival
from starzoo.sources import Source
from starzoo.specs import infer_architecture

STAR = StarConfig(epochs=3, batch_size=32, lr=0.8, warmup=0.0, seed=5)
ALIGN = AlignConfig(method="balanced-weights")


def test_swa_is_the_mean_of_the_ends_of_epochs(models: list[Source], data: ImageData) -> None:
    model = models[0].architecture.build()
    model.load_state_dict(models[0].state)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    ends = []
    for epoch in range(4):  # 4/3 of the star's three: a star with κ takes predictions of sources too
        model.train()
        for images, labels in data.train.loader(32, epoch=epoch, seed=5):
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimizer.step()
        ends.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
    found = train_rival("swa", models[0].architecture, [each.state for each in models[:2]], data, STAR)
    for name in ends[0]:
        expected = torch.stack([end[name] for end in ends]).mean(0)
        torch.testing.assert_close(found[name], expected, atol=1e-5, rtol=1e-4)
    assert rival_steps("swa", data, STAR) == 4 * 6
    assert rival_steps("swa", data, STAR.model_copy(update={"kappa": 0.0})) == 3 * 6
    assert rival_steps("student", data, StarConfig(epochs=8, batch_size=32, kappa=0.0)) == 6 * 6


@pytest.mark.parametrize(("kappa", "epochs"), [(0.0, 4), (2.0, 3)])
def test_a_student_learns_labels_and_the_predictions_of_all_sources(
    models: list[Source], data: ImageData, kappa: float, epochs: int
) -> None:
    star = STAR.model_copy(update={"kappa": kappa, "epochs": epochs})
    kappa = kappa or 1.0
    architecture, sources = models[0].architecture, models[1:3]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = architecture.build()
    teachers = [architecture.build().eval() for _ in sources]
    for teacher, source in zip(teachers, sources, strict=True):
        teacher.load_state_dict(source.state)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    rng, order, step = np.random.default_rng(5), list[int](), 0
    for epoch in range(3):
        model.train()
        for images, labels in data.train.loader(32, epoch=epoch, seed=5):
            optimizer.param_groups[0]["lr"] = 0.1 * 0.5 * (1 + np.cos(np.pi * step / 18))
            order = order or rng.permutation(2).tolist()
            taught = teachers[order.pop(0)](images).detach().softmax(1)
            logits = model(images)
            # Cross-entropy with a prediction is the Kullback-Leibler divergence from it and a constant.
            loss = cross_entropy(logits, labels) + kappa * kl_div(logits.log_softmax(1), taught, reduction="batchmean")
            optimizer.zero_grad()
            (loss / (1 + kappa)).backward()
            optimizer.step()
            step += 1
    assert rival_steps("student", data, star) == step
    found = train_rival("student", architecture, [each.state for each in sources], data, star)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.detach(), atol=5e-4, rtol=1e-2)


def test_rivals_are_measured_beside_the_star_and_trained_once(
    models: list[Source], data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    star, *sources = models
    zoo = Zoo(star=star.state, sources={model.name: model.state for model in sources}, holdouts={})
    config = EvalConfig(points=3, pairs=0, sources=0, samples=0, rivals=("swa", "student", "swa"))
    arguments = (star.architecture, infer_architecture(star.architecture), zoo, data, config, ALIGN)
    cache, told = ResultCache(tmp_path), list[str]()
    found = evaluate(*arguments, star_config=STAR, cache=cache, progress=lambda stage, *_, **__: told.append(stage))
    assert told.count("averaging weights (SWA)") == 4
    assert told.count("distilling a student") == 3
    [swa], [student] = found.qualities_of("swa"), found.qualities_of("student")
    assert (swa.steps, student.steps, swa.passes) == (24, 18, 1)
    assert found.qualities_of("star")[0].steps is None
    assert student.accuracy > 0.3  # the networks of this zoo have never seen an image, and this one has
    assert swa.tempered is not None
    labels = {row.label: row.steps for row in predictors(found, "test")}
    assert labels["SWA, going on from one source"] == 24
    assert labels["student, distilled from the sources"] == 18

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(measurement, "train_rival", refuse)
    assert evaluate(*arguments, star_config=STAR, cache=cache) == found
    other = STAR.model_copy(update={"seed": 6})
    with pytest.raises(AssertionError, match="trained again"):
        evaluate(*arguments, star_config=other, cache=cache)


def test_a_rival_that_diverges_is_named(models: list[Source], data: ImageData) -> None:
    star = STAR.model_copy(update={"optimizer": "adamw", "lr": 1e30, "epochs": 1})
    with pytest.raises(NumericalError, match="the rival student are not finite"):
        train_rival("student", models[0].architecture, [models[0].state], data, star)
