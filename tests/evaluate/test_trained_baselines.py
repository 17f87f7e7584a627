"""Models that are trained only to be compared with a star, each against a plain loop, and how they are chosen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from starzoo.config import AlignConfig, Augmentation, EvalConfig, RunConfig, StarConfig, TrainConfig
from starzoo.data.task import ImageTask
from starzoo.errors import NumericalError
from starzoo.evaluate import baselines as measurement
from starzoo.evaluate.baselines import BaselineResults
from starzoo.evaluate.cached_evaluation import VALIDATION, CachedEvaluation
from starzoo.evaluate.evaluate import evaluate
from starzoo.evaluate.model_pool import EvaluatedModels
from starzoo.evaluate.result_cache import RESULTS_VERSION, ResultCache
from starzoo.evaluate.trained_baselines import rates_to_try, train_baseline, training_config
from starzoo.models.sources import Source
from starzoo.models.weights import average
from starzoo.report.summary import summarize_predictors

STAR = StarConfig(epochs=3, batch_size=32, lr=0.8, warmup=0.0, seed=5)
ALIGN = AlignConfig(method="balanced-weights")


def with_augmentation(data: ImageTask, augment: Augmentation) -> ImageTask:
    return replace(data, config=data.config.model_copy(update={"augment": augment}))


def loop(
    model: torch.nn.Module, data: ImageTask, lr: float, kappa: float, teachers: list[torch.nn.Module], *, decay: bool
) -> list[dict[str, Tensor]]:
    """Train for three epochs of six steps, and return the weights after each epoch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    step, ends = 0, []
    for epoch in range(3):
        model.train()
        for images, labels in data.train.loader(32, epoch=epoch, seed=5, augment=data.config.augment):
            optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + np.cos(np.pi * step / 18)) if decay else lr
            logits = model(images)
            loss = cross_entropy(logits, labels)
            if teachers:
                taught = torch.stack([teacher(images).softmax(1) for teacher in teachers]).mean(0).detach()
                # Cross-entropy with a prediction is the Kullback-Leibler divergence from it and a constant.
                loss = (loss + kappa * kl_div(logits.log_softmax(1), taught, reduction="batchmean")) / (1 + kappa)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        ends.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
    return ends


def network(source: Source, *, seed: int | None = None) -> torch.nn.Module:
    with torch.random.fork_rng():
        if seed is not None:
            torch.manual_seed(seed)
        model = source.architecture.build()
    if seed is None:
        model.load_state_dict(source.state)
    return model


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=2e-3, rtol=1e-2)


@pytest.mark.parametrize(("kind", "decay"), [("swa", False), ("continued", True)])
def test_a_source_is_trained_further(models: list[Source], data: ImageTask, kind: str, decay: bool) -> None:
    source = models[0]
    ends = loop(network(source), data, 0.05, 0.0, [], decay=decay)
    config = training_config(STAR, 0.05)
    found = train_baseline(kind, source.architecture, source.state, [], data, config, seed=5)
    close(found, average(ends) if kind == "swa" else ends[-1])


def test_ema_is_an_average_of_all_steps(models: list[Source], data: ImageTask) -> None:
    model = network(models[0])
    ema = ModelEmaV3(model, decay=1 - 1 / (0.1 * 18))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    for epoch in range(3):
        model.train()
        for images, labels in data.train.loader(32, epoch=epoch, seed=5):
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimizer.step()
            ema.update(model)
    config = training_config(STAR, 0.05)
    found = train_baseline("ema", models[0].architecture, models[0].state, [], data, config, seed=5)
    close(found, dict(ema.module.named_parameters()))


@pytest.mark.parametrize("augment", ["none", "crop-flip"])
@pytest.mark.parametrize("kind", ["student-random", "student-mean", "self-distilled"])
def test_students_learn_labels_and_the_mean_prediction_of_all_teachers(
    models: list[Source], data: ImageTask, kind: str, augment: Augmentation
) -> None:
    data, sources = with_augmentation(data, augment), models[1:3]
    start = {
        "student-random": None,
        "student-mean": average([source.state for source in sources]),
        "self-distilled": models[0].state,
    }[kind]
    student = network(models[0], seed=5)
    if start is not None:
        student.load_state_dict(start)
    teachers = [network(each).eval() for each in (models[:1] if kind == "self-distilled" else sources)]
    ends = loop(student, data, 0.1, 3.0, teachers, decay=True)
    states = [each.state for each in sources]
    config = training_config(STAR, 0.1)
    close(train_baseline(kind, models[0].architecture, start, states, data, config, seed=5), ends[-1])


def test_rates_are_around_that_of_training() -> None:
    star = StarConfig()
    assert rates_to_try(star, 4) == pytest.approx([0.8, 0.2, 0.05, 0.0125])
    assert rates_to_try(star, 1) == [0.1]
    assert rates_to_try(StarConfig(optimizer="adamw", lr=0.002), 2) == pytest.approx([0.016, 0.004])


def zoo_of(models: list[Source]) -> EvaluatedModels:
    star, *sources = models
    states = {model.name: model.state for model in sources[:-1]}
    held_out = {sources[-1].name: sources[-1].state}
    return EvaluatedModels(architecture=star.architecture, star=star.state, sources=states, holdouts=held_out)


def run_of(*baselines: str, trials: int = 2) -> RunConfig:
    config = {"points": 3, "source_pairs": 0, "sources": 0, "bma_samples": 0, "validation_images": 50}
    evaluation = EvalConfig.model_validate({**config, "baselines": baselines, "trials": trials})
    return RunConfig(evaluate=evaluation, align=ALIGN, star=STAR)


def test_each_baseline_is_the_best_of_its_trials(models: list[Source], data: ImageTask, tmp_path: Path) -> None:
    evaluation = CachedEvaluation(zoo_of(models), data, run_of("continued"), cache=ResultCache(tmp_path))
    told = list[str]()
    found = BaselineResults(evaluation, lambda stage, *_, **__: told.append(stage))
    state = found.state("continued")
    assert told == ["training continued"] * (2 * 3)  # two trials of three epochs
    first = next(iter(evaluation.models.sources.values()))
    tried, losses = [], []
    for rate in rates_to_try(STAR, 2):
        trial = train_baseline(
            "continued", models[0].architecture, first, [], data, training_config(STAR, rate), seed=5
        )
        predicted = evaluation.evaluator([VALIDATION]).log_probabilities(trial)[VALIDATION]
        scaled = [(predicted / t).log_softmax(1) for t in np.geomspace(0.05, 20, 4000)]
        losses.append(min(float(-each[range(len(each)), evaluation.labels(VALIDATION)].mean()) for each in scaled))
        tried.append(trial)
    expected = tried[int(np.argmin(losses))]
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert found.cost("continued") == pytest.approx(2 * 3 / 4)


def test_a_soup_takes_what_lowers_the_loss(models: list[Source], data: ImageTask) -> None:
    evaluation = CachedEvaluation(zoo_of(models), data, run_of("greedy-soup"))
    soup = BaselineResults(evaluation).state("greedy-soup")
    aligned = evaluation.pool.aligned_sources

    def loss(state: dict[str, Tensor]) -> float:
        predicted = evaluation.evaluator([VALIDATION]).log_probabilities(state)[VALIDATION]
        scaled = [(predicted / t).log_softmax(1) for t in np.geomspace(0.05, 20, 4000)]
        return min(float(-each[range(len(each)), evaluation.labels(VALIDATION)].mean()) for each in scaled)

    chosen: list[dict[str, Tensor]] = []
    for state in sorted(aligned.values(), key=loss):
        if not chosen or loss(average([*chosen, state])) <= loss(average(chosen)):
            chosen.append(state)
    expected = average(chosen)
    assert all(torch.equal(soup[name], expected[name]) for name in expected)


def test_augmented_copies_are_averaged(models: list[Source], data: ImageTask) -> None:
    run = run_of("star-tta").model_copy(update={"evaluate": EvalConfig(bma_samples=3, validation_images=50)})
    evaluation = CachedEvaluation(zoo_of(models), data, run)
    results = BaselineResults(evaluation)
    found, model = results.predict("star-tta"), network(models[0]).eval()
    with torch.no_grad():
        candidates = {}
        for augment in ("flip", "crop-flip"):
            copies = [torch.cat(list(data.test.images(64)))]
            copies += [torch.cat(list(data.test.images(64, augment=augment, draw=draw))) for draw in (1, 2)]
            candidates[augment] = torch.stack([model(images).softmax(1) for images in copies]).mean(0).log()
    errors = [float((found["test"] - each).abs().max()) for each in candidates.values()]
    assert min(errors) < 1e-4 < max(errors)
    assert (results.passes("star-tta"), results.cost("star-tta")) == (3, 0)


def test_baselines_are_measured_beside_the_star_and_trained_once(
    models: list[Source], data: ImageTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, run, cache = zoo_of(models), run_of("swa", "student-mean", "swa"), ResultCache(tmp_path)
    found = evaluate(CachedEvaluation(zoo, data, run, cache=cache))
    [swa], [student] = found.qualities_of("swa"), found.qualities_of("student-mean")
    assert swa.cost == pytest.approx(2 * 3 / 4)
    assert student.cost == pytest.approx(2 * (3 + len(zoo.sources) / 3) / 4)
    assert (swa.passes, found.qualities_of("star")[0].cost) == (1, None)
    assert student.accuracy > 0.3  # the networks of this zoo have never seen an image, and this one has
    assert swa.tempered is not None
    assert {path.a for path in found.paths_of("baseline-heldout")} == {"aligned mean", "student-mean"}
    labels = {row.label: row.cost for row in summarize_predictors(found, "test")}
    assert labels["SWA of a source"] == swa.cost

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
    trained = []

    def train(*_: object, **__: object) -> dict[str, torch.Tensor]:
        trained.append(1)
        return dict(models[0].state)

    monkeypatch.setattr(measurement, "train_baseline", train)
    for _ in range(2):
        evaluate(CachedEvaluation(zoo_of(models), data, run_of("swa", trials=1), cache=ResultCache(tmp_path)))
    assert len(trained) == 1
    monkeypatch.setattr(*change)
    evaluate(CachedEvaluation(zoo_of(models), data, run_of("swa", trials=1), cache=ResultCache(tmp_path)))
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
    star = STAR.model_copy(update={"optimizer": "adamw", "epochs": 1})
    config = training_config(star, 1e30)
    with pytest.raises(NumericalError, match="baseline swa: its weights are not finite"):
        train_baseline("swa", models[0].architecture, models[0].state, [], data, config, seed=0)
