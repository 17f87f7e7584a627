"""Models that are trained only to be compared with a star: SWA and a distilled student, each against a plain loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from starzoo.config import AlignConfig, EvalConfig, RunConfig, StarConfig, TrainConfig
from starzoo.data.task import ImageTask
from starzoo.errors import NumericalError
from starzoo.evaluate import cached_evaluation as measurement
from starzoo.evaluate.cached_evaluation import CachedEvaluation
from starzoo.evaluate.evaluate import evaluate
from starzoo.evaluate.model_pool import EvaluatedModels
from starzoo.evaluate.result_cache import RESULTS_VERSION, ResultCache
from starzoo.evaluate.trained_baselines import baseline_steps, train_baseline
from starzoo.models.sources import Source
from starzoo.report.summary import summarize_predictors

STAR = StarConfig(epochs=3, batch_size=32, lr=0.8, warmup=0.0, seed=5)
ALIGN = AlignConfig(method="balanced-weights")


def test_swa_is_the_mean_of_the_ends_of_epochs(models: list[Source], data: ImageTask) -> None:
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
    found = train_baseline("swa", models[0].architecture, [each.state for each in models[:2]], data, STAR)
    for name in ends[0]:
        expected = torch.stack([end[name] for end in ends]).mean(0)
        torch.testing.assert_close(found[name], expected, atol=1e-5, rtol=1e-4)
    assert baseline_steps("swa", data, STAR) == 4 * 6
    assert baseline_steps("swa", data, STAR.model_copy(update={"kappa": 0.0})) == 3 * 6
    assert baseline_steps("student", data, StarConfig(epochs=8, batch_size=32, kappa=0.0)) == 6 * 6


@pytest.mark.parametrize(("kappa", "epochs"), [(0.0, 4), (2.0, 3)])
def test_a_student_learns_labels_and_the_predictions_of_all_sources(
    models: list[Source], data: ImageTask, kappa: float, epochs: int
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
    assert baseline_steps("student", data, star) == step
    found = train_baseline("student", architecture, [each.state for each in sources], data, star)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.detach(), atol=5e-4, rtol=1e-2)


def test_baselines_are_measured_beside_the_star_and_trained_once(
    models: list[Source], data: ImageTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    star, *sources = models
    states = {model.name: model.state for model in sources}
    zoo = EvaluatedModels(architecture=star.architecture, star=star.state, sources=states)
    config = EvalConfig(
        points=3, source_pairs=0, sources=0, bma_samples=0, validation_images=50, baselines=("swa", "student", "swa")
    )
    run = RunConfig(evaluate=config, align=ALIGN, star=STAR)
    cache, told = ResultCache(tmp_path), list[str]()
    found = evaluate(CachedEvaluation(zoo, data, run, cache=cache), progress=lambda stage, *_, **__: told.append(stage))
    assert told.count("averaging weights (SWA)") == 4
    assert told.count("distilling a student") == 3
    [swa], [student] = found.qualities_of("swa"), found.qualities_of("student")
    assert (swa.steps, student.steps, swa.passes) == (24, 18, 1)
    assert found.qualities_of("star")[0].steps is None
    assert student.accuracy > 0.3  # the networks of this zoo have never seen an image, and this one has
    assert swa.tempered is not None
    labels = {row.label: row.steps for row in summarize_predictors(found, "test")}
    assert labels["SWA of a source"] == 24
    assert labels["distilled student"] == 18

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(measurement, "train_baseline", refuse)
    assert evaluate(CachedEvaluation(zoo, data, run, cache=cache)) == found
    other = run.model_copy(update={"star": STAR.model_copy(update={"seed": 6})})
    with pytest.raises(AssertionError, match="trained again"):
        evaluate(CachedEvaluation(zoo, data, other, cache=cache))


class Faster(TrainConfig):
    lr: float = 0.2


@pytest.mark.parametrize(
    "change",
    [("starzoo.evaluate.trained_baselines.TrainConfig", Faster), ("starzoo.evaluate.result_cache.RESULTS_VERSION", 0)],
)
def test_another_recipe_and_another_version_are_other_results(
    models: list[Source], data: ImageTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: tuple[str, object]
) -> None:
    star, *sources = models
    states = {model.name: model.state for model in sources}
    zoo = EvaluatedModels(architecture=star.architecture, star=star.state, sources=states)
    config = EvalConfig(points=3, source_pairs=0, sources=0, bma_samples=0, validation_images=50, baselines=("swa",))
    run = RunConfig(evaluate=config, align=ALIGN, star=STAR)
    trained = []

    def train(*_: object, **__: object) -> dict[str, torch.Tensor]:
        trained.append(1)
        return dict(star.state)

    monkeypatch.setattr(measurement, "train_baseline", train)
    for _ in range(2):
        evaluate(CachedEvaluation(zoo, data, run, cache=ResultCache(tmp_path)))
    assert len(trained) == 1
    monkeypatch.setattr(*change)
    evaluate(CachedEvaluation(zoo, data, run, cache=ResultCache(tmp_path)))
    assert len(trained) == 2


def test_results_of_this_version(models: list[Source], data: ImageTask) -> None:
    """Where this fails for a good reason, raise `RESULTS_VERSION`: results in caches are then measured again."""
    star, *sources = models
    zoo = EvaluatedModels(
        architecture=star.architecture,
        star=star.state,
        sources={model.name: model.state for model in sources[:2]},
        holdouts={"h": sources[2].state},
    )
    config = EvalConfig(points=3, source_pairs=1, bma_samples=2)
    found = evaluate(CachedEvaluation(zoo, data, RunConfig(evaluate=config, align=ALIGN, star=STAR)))
    paths = {path.kind: path.highest_loss for path in found.paths}
    scores = {row.role: row.nll for row in found.qualities}
    assert RESULTS_VERSION == 2
    assert paths == pytest.approx(
        {"star-source": 2.382, "star-heldout": 2.433, "source-source": 2.433, "source-source-unaligned": 2.433},
        abs=2e-3,
    )
    assert scores == pytest.approx(
        {
            "source": 2.315,
            "held-out": 2.368,
            "naive-mean": 2.353,
            "aligned-mean": 2.314,
            "star": 2.388,
            "domain": 2.308,
            "domain-whole-lines": 2.367,
            "ensemble": 2.317,
        },
        abs=2e-3,
    )


def test_a_baseline_that_diverges_is_named(models: list[Source], data: ImageTask) -> None:
    star = STAR.model_copy(update={"optimizer": "adamw", "lr": 1e30, "epochs": 1})
    with pytest.raises(NumericalError, match="baseline student: its weights are not finite"):
        train_baseline("student", models[0].architecture, [models[0].state], data, star)
