"""Every way to predict against a slow reference: single models, means, ensembles, the star domain, other images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from starzoo.align.align import align
from starzoo.align.probe import Probe
from starzoo.config import AlignConfig, DataConfig, EvalConfig, RunConfig, Uniform
from starzoo.data.task import ImageTask, load_data
from starzoo.evaluate.cached_evaluation import CachedEvaluation
from starzoo.evaluate.domain_average import T_RANGES, choose_t_range, draw_points, powers_of_two
from starzoo.evaluate.evaluate import evaluate
from starzoo.evaluate.model_pool import EvaluatedModels
from starzoo.evaluate.results import Evaluation, PathCurve
from starzoo.models.batch_norm import reestimate_batch_norm
from starzoo.models.sources import Source
from starzoo.models.weights import average, interpolate

CONFIG = EvalConfig(points=3, source_pairs=0, sources=0, bma_samples=3, validation_images=150, seed=1)
ALIGN = AlignConfig(method="balanced-weights")


@pytest.fixture(scope="module")
def measured(models: list[Source], data: ImageTask) -> Evaluation:
    star, *sources = models
    states = {model.name: model.state for model in sources}
    zoo = EvaluatedModels(architecture=star.architecture, star=star.state, sources=states)
    return evaluate(CachedEvaluation(zoo, data, RunConfig(evaluate=CONFIG, align=ALIGN), ood=[data.train]))


def bring(models: list[Source], data: ImageTask) -> list[dict[str, torch.Tensor]]:
    """The sources, aligned to the star as an evaluation aligns them."""
    architecture, (star, *sources) = models[0].architecture, [model.state for model in models]
    meter = Probe(architecture.build(), *data.train.labeled_images(limit=ALIGN.images, seed=ALIGN.seed))
    return [each.state for each in align(architecture.spec, star, sources, ALIGN, meter=meter)]


class Reference:
    """Predicts with one state after the other, without any cache."""

    def __init__(self, models: list[Source], data: ImageTask) -> None:
        self.models, self.data = models, data
        assert data.validation is not None
        rows = data.validation.sample_indices(CONFIG.validation_images, CONFIG.seed)
        outside = data.train.sample_indices(len(data.test), CONFIG.seed)
        self.images = {
            "test": data.test.tensors()[0],
            "validation": data.validation.tensors()[0][rows],
            "ood 1": data.train.tensors()[0][outside],
        }
        self.labels = {"test": data.test.labels, "validation": data.validation.labels[rows]}

    def predict(self, state: dict[str, torch.Tensor], *, estimate: bool = True) -> dict[str, np.ndarray]:
        model = self.models[0].architecture.build().eval()
        model.load_state_dict(state)
        if estimate:
            reestimate_batch_norm(model, self.data.train.images(CONFIG.batch_size, limit=2000, seed=1))
        with torch.no_grad():
            return {split: model(images).double().softmax(1).numpy() for split, images in self.images.items()}

    def mean(self, states: list[dict[str, torch.Tensor]], *, estimate: bool) -> dict[str, np.ndarray]:
        found = [self.predict(state, estimate=estimate) for state in states]
        return {split: np.mean([each[split] for each in found], axis=0) for split in self.images}

    def scores(self, predicted: dict[str, np.ndarray]) -> dict[str, float]:
        probabilities, labels = predicted["test"], self.labels["test"].numpy()
        both = np.concatenate([probabilities, predicted["ood 1"]])
        other = np.arange(len(both)) >= len(labels)
        right = (probabilities.argmax(1) == labels)[np.argsort(-probabilities.max(1), kind="stable")]
        return {
            "accuracy": float(np.mean(probabilities.argmax(1) == labels)),
            "nll": log_loss(labels, probabilities, labels=range(10)),
            "brier": float(np.mean(((probabilities - np.eye(10)[labels]) ** 2).sum(1))),
            "auroc": roc_auc_score(probabilities.argmax(1) == labels, probabilities.max(1)),
            "aurc": float(np.mean(1 - np.cumsum(right) / np.arange(1, len(right) + 1))),
            "accuracy_80": float(right[: round(0.8 * len(right))].mean()),
            "accuracy_90": float(right[: round(0.9 * len(right))].mean()),
            "ood.confidence": roc_auc_score(other, -both.max(1)),
            "ood.entropy": roc_auc_score(other, -(both * np.log(both)).sum(1)),
        }


def test_every_way_to_predict_equals_a_slow_reference(
    measured: Evaluation, models: list[Source], data: ImageTask
) -> None:
    reference = Reference(models, data)
    star, *sources = [model.state for model in models]
    aligned = bring(models, data)
    names = [model.name for model in models[1:]]
    choice = measured.domain
    assert choice is not None
    points = draw_points(names, choice.samples, CONFIG.seed, choice.t)
    ways = {
        "star": [star],
        "naive-mean": [average(sources)],
        "aligned-mean": [average(aligned)],
        "domain": [interpolate(star, aligned[names.index(point.source)], point.t) for point in points],
        "sub-ensemble": sources[:2],
        "ensemble": sources,
    }
    size = sum(tensor.numel() * tensor.element_size() for tensor in star.values())
    for role, states in ways.items():
        [quality] = measured.qualities_of(role)  # type: ignore[arg-type]
        predicted = reference.mean(states, estimate=role in {"naive-mean", "aligned-mean", "domain"})
        for score, value in reference.scores(predicted).items():
            if score.startswith("ood."):
                found = getattr(quality.ood[0], score.removeprefix("ood.")).auroc
            else:
                found = getattr(quality, score)
            assert found == pytest.approx(value, abs=1e-6), (role, score)
        if len(states) > 1:
            members = [reference.predict(state, estimate=role == "domain") for state in states]
            split_entropies = [
                np.mean([-(each[split] * np.log(each[split])).sum(1) for each in members], axis=0)
                for split in ("test", "ood 1")
            ]
            whole = [-(predicted[split] * np.log(predicted[split])).sum(1) for split in ("test", "ood 1")]
            information = np.concatenate([a - b for a, b in zip(whole, split_entropies, strict=True)])
            other = np.arange(len(information)) >= len(reference.labels["test"])
            assert quality.ood[0].mutual_information is not None
            assert quality.ood[0].mutual_information.auroc == pytest.approx(roc_auc_score(other, information), abs=2e-3)
        else:
            assert quality.ood[0].mutual_information is None
        assert (quality.passes, quality.bytes) == (len(states), len(states) * size)
        assert quality.tempered is not None
        grid = np.exp(np.linspace(math.log(0.05), math.log(20), 1000))
        losses = [tempered_loss(predicted["validation"], reference.labels["validation"].numpy(), t) for t in grid]
        assert quality.tempered.temperature == pytest.approx(grid[np.argmin(losses)], rel=0.01)
        expected = tempered_loss(predicted["test"], reference.labels["test"].numpy(), quality.tempered.temperature)
        assert quality.tempered.nll == pytest.approx(expected, abs=1e-6)
    assert measured.validation_images == 150
    assert measured.ood_images == (80,)


def paths_of(
    models: list[Source], a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], data: ImageTask
) -> list[PathCurve]:
    config = CONFIG.model_copy(update={"bma_samples": 0, "sources": 1})
    zoo = EvaluatedModels(architecture=models[0].architecture, star=a, sources={"b": b})
    return list(evaluate(CachedEvaluation(zoo, data, RunConfig(evaluate=config, align=ALIGN))).paths)


def test_the_ends_of_a_path_are_estimated_as_its_points_are_and_tempered_alike(
    models: list[Source], data: ImageTask
) -> None:
    reference, states = Reference(models, data), {"star": models[0].state, "b": models[1].state}
    paths = paths_of(models, states["star"], states["b"], data)
    assert paths
    for path in paths:
        for index, name in ((0, path.a), (-1, path.b)):
            predicted = reference.predict(states[name])
            labels = {split: each.numpy() for split, each in reference.labels.items()}
            assert path.loss[index] == pytest.approx(log_loss(labels["test"], predicted["test"], labels=range(10)))
            grid = np.exp(np.linspace(math.log(0.05), math.log(20), 4000))
            best = grid[np.argmin([tempered_loss(predicted["validation"], labels["validation"], t) for t in grid])]
            expected = tempered_loss(predicted["test"], labels["test"], best)
            assert path.tempered_loss[index] == pytest.approx(expected, rel=1e-3)
        assert len(path.tempered_loss) == len(path.t)
        assert path.tempered_barrier is not None


def test_a_tempered_path_does_not_measure_the_scale_of_logits(models: list[Source], data: ImageTask) -> None:
    def quieter(source: Source) -> dict[str, torch.Tensor]:
        return {name: tensor * 0.2 if name.startswith("fc.") else tensor for name, tensor in source.state.items()}

    _, one, two = models[:3]
    [loud] = paths_of(models, one.state, two.state, data)
    [quiet] = paths_of(models, quieter(one), quieter(two), data)
    assert quiet.loss[0] != pytest.approx(loud.loss[0], rel=0.001)
    assert quiet.tempered_loss == pytest.approx(loud.tempered_loss, rel=1e-3)  # a temperature is at most 20


def tempered_loss(probabilities: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    powers = probabilities ** (1 / temperature)
    return float(-np.log(powers[np.arange(len(labels)), labels] / powers.sum(1)).mean())


def test_points_of_the_domain_are_chosen_on_validation_images_alone(
    measured: Evaluation, models: list[Source], data: ImageTask
) -> None:
    reference = Reference(models, data)
    star, *_sources = [model.state for model in models]
    aligned = bring(models, data)
    names = [model.name for model in models[1:]]
    losses = {}
    for t in T_RANGES:
        points = draw_points(names, CONFIG.bma_samples, CONFIG.seed, t)
        found = [
            reference.predict(interpolate(star, aligned[names.index(point.source)], point.t))["validation"]
            for point in points
        ]
        for samples in range(1, CONFIG.bma_samples + 1):
            mean = np.mean(found[:samples], axis=0)
            losses[t, samples] = log_loss(reference.labels["validation"].numpy(), mean, labels=range(10))
    assert measured.domain is not None
    assert measured.domain.nll == pytest.approx(min(losses.values()), abs=1e-6)
    assert losses[measured.domain.t, measured.domain.samples] == pytest.approx(min(losses.values()), abs=1e-9)


def test_points_come_from_a_deck_of_sources() -> None:
    half = Uniform(low=0.25, high=0.75)
    points = draw_points(["a", "b", "c"], 7, 0, half)
    assert {point.source for point in points[:3]} == {point.source for point in points[3:6]} == {"a", "b", "c"}
    assert all(0.25 <= point.t <= 0.75 for point in points)
    assert draw_points(["a", "b", "c"], 4, 0, half) == points[:4]
    assert draw_points(["a", "b", "c"], 7, 1, half) != points


def test_without_validation_images_nothing_is_tuned(models: list[Source]) -> None:
    everything = load_data(DataConfig(test_size=50), models[0].architecture.preprocessing)
    star, *sources = models
    states = {model.name: model.state for model in sources}
    zoo = EvaluatedModels(architecture=star.architecture, star=star.state, sources=states)
    few = CONFIG.model_copy(update={"batch_norm_images": 100})
    found = evaluate(CachedEvaluation(zoo, everything, RunConfig(evaluate=few, align=ALIGN)))
    assert found.domain is not None
    assert (found.domain.nll, found.domain.t.high, found.domain.samples) == (None, 0.5, 3)
    assert all(quality.tempered is None and quality.ood == () for quality in found.qualities)
    assert found.validation_images == 0


def test_choices_and_sizes() -> None:
    near, far = T_RANGES[:2]
    assert choose_t_range({far: [0.3, 0.1], near: [0.2, 0.1]}).t == near  # equal: the nearer one
    assert choose_t_range({near: [0.1, 0.1, 0.2]}).samples == 1  # equal: fewer
    assert choose_t_range({near: [0.3], far: [0.2]}).nll == 0.2
    assert [powers_of_two(most) for most in (1, 2, 3, 8, 12)] == [[], [2], [2, 3], [2, 4, 8], [2, 4, 8, 12]]
