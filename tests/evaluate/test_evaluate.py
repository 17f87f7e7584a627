"""The evaluation of a whole zoo on real, small models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from starzoo.align.align import align
from starzoo.config import AlignConfig, DataConfig, EvalConfig, RunConfig
from starzoo.data.task import ImageTask, load_data
from starzoo.evaluate.cached_evaluation import CachedEvaluation
from starzoo.evaluate.evaluate import evaluate
from starzoo.evaluate.evaluator import Evaluator
from starzoo.evaluate.model_pool import EvaluatedModels, ModelPool
from starzoo.evaluate.results import Evaluation
from starzoo.models.batch_norm import reestimate_batch_norm
from starzoo.models.sources import Source, load_sources
from starzoo.models.weights import interpolate
from starzoo.symmetry import Permutation, PermutationSpec

ALIGN = AlignConfig(method="balanced-weights")
CONFIG = EvalConfig(points=5, source_pairs=2, splits=("train", "test"), validation_images=50)
RUN = RunConfig(evaluate=CONFIG, align=ALIGN)


@pytest.fixture(scope="module")
def models(digits_zoo: list[Path]) -> list[Source]:
    return load_sources(digits_zoo)


@pytest.fixture(scope="module")
def spec(models: list[Source]) -> PermutationSpec:
    return models[0].architecture.spec


@pytest.fixture(scope="module")
def data(models: list[Source]) -> ImageTask:
    return load_data(DataConfig(train_size=400), models[0].architecture.preprocessing)


@pytest.fixture(scope="module")
def measured(models: list[Source], data: ImageTask) -> Evaluation:
    star, *rest = models
    zoo = EvaluatedModels(
        architecture=star.architecture,
        star=star.state,
        sources={m.name: m.state for m in rest[:2]},
        holdouts={rest[2].name: rest[2].state},
    )
    return evaluate(CachedEvaluation(zoo, data, RUN))


def test_everything_planned_is_measured_once_on_both_splits(measured: Evaluation) -> None:
    for split in ("train", "test"):
        assert [(p.a, p.b) for p in measured.paths_of("star-source", split)] == [("star", "seed-1"), ("star", "seed-2")]
        assert [(p.a, p.b) for p in measured.paths_of("star-heldout", split)] == [("star", "seed-3")]
        aligned, raw = (measured.paths_of(kind, split) for kind in ("source-source", "source-source-unaligned"))
        assert len(aligned) == 2
        assert [(p.a, p.b) for p in aligned] == [(p.a, p.b) for p in raw]
        roles = [q.role for q in measured.qualities if q.split == split]
        single = ["source", "source", "held-out", "naive-mean", "aligned-mean", "star"]
        assert roles == [*single, "domain", "domain-whole-lines", "ensemble"]
    assert measured.qualities_of("ensemble")[0].passes == 2


def test_sources_are_measured_where_the_fit_has_brought_them(
    models: list[Source], spec: PermutationSpec, data: ImageTask
) -> None:
    star, source, held, _ = models
    permutation = Permutation.random(spec, np.random.default_rng(0))
    zoo = EvaluatedModels(
        architecture=star.architecture,
        star=star.state,
        sources={"source": source.state},
        holdouts={"held-out": held.state},
    )
    with_it = replace(zoo, permutations={"source": permutation})
    found, without = (ModelPool(each, data, ALIGN) for each in (with_it, zoo))
    expected = permutation.apply(source.state)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.aligned_sources["source"].items())
    assert not torch.equal(without.aligned_sources["source"]["fc.weight"], expected["fc.weight"])
    assert torch.equal(found.to_star["held-out"]["fc.weight"], without.to_star["held-out"]["fc.weight"])
    assert found.cache_key("aligned mean") != without.cache_key("aligned mean")  # of which the cache of results knows


def test_alignment_lowers_the_highest_loss_between_regular_models(measured: Evaluation) -> None:
    aligned, raw = (measured.summarize(kind, "highest_loss") for kind in ("source-source", "source-source-unaligned"))
    assert aligned.mean < raw.mean


def test_a_path_equals_a_slow_reference(
    measured: Evaluation, models: list[Source], spec: PermutationSpec, data: ImageTask
) -> None:
    [path] = measured.paths_of("star-heldout")
    star, held = models[0], models[3]
    [aligned] = align(spec, star.state, [held.state])
    images, labels = data.test.tensors()
    for position, t in enumerate(path.t):
        model = star.architecture.build()
        model.load_state_dict(interpolate(star.state, aligned.state, t))
        reestimate_batch_norm(model, data.train.images(CONFIG.batch_size, limit=CONFIG.batch_norm_images))
        with torch.no_grad():
            logits = model(images)
        assert path.loss[position] == pytest.approx(float(cross_entropy(logits, labels)), abs=1e-5)
        assert path.accuracy[position] == pytest.approx(float((logits.argmax(1) == labels).double().mean()), abs=1e-9)


def test_t11_barrier_is_zero_for_a_model_and_its_own_permutation(
    models: list[Source], spec: PermutationSpec, data: ImageTask
) -> None:
    state = models[0].state
    shuffled = Permutation.random(spec, np.random.default_rng(0)).apply(state)
    zoo = EvaluatedModels(
        architecture=models[0].architecture, star=state, sources={"itself": state}, holdouts={"shuffled": shuffled}
    )
    config = CONFIG.model_copy(update={"splits": ("test",)})
    found = evaluate(CachedEvaluation(zoo, data, RunConfig(evaluate=config, align=ALIGN)))
    for kind in ("star-source", "star-heldout", "source-source"):
        assert found.summarize(kind).worst < 1e-6
    # The control: without alignment, or without new statistics, the same two models have a barrier.
    assert found.summarize("source-source-unaligned").mean > 0.1


def test_stale_statistics_would_show(models: list[Source], spec: PermutationSpec, data: ImageTask) -> None:
    a = models[0].state
    [b] = [source.state for source in align(spec, a, [models[1].state])]
    evaluator = Evaluator(
        models[0].architecture.build(),
        {"test": (lambda: data.test.images(256), data.test.labels)},
        lambda: data.train.images(256),
    )
    fresh = evaluator.curve(a, b, [0.5])["test"][0, 0].item()
    evaluator.estimates = False
    stale = evaluator.curve(a, b, [0.5])["test"][0, 0].item()
    assert abs(stale - fresh) > 0.01
