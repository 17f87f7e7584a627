"""A look at models before a fit: broken statistics, untrained heads, other scales, and how they were augmented."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from starzoo.align.align import Aligner, take_better
from starzoo.align.probe import Probe
from starzoo.config import AlignConfig, Augmentation, DataConfig, EvalConfig, RunConfig, TrainConfig
from starzoo.data.task import ImageTask, load_data
from starzoo.errors import IncompatibleError
from starzoo.evaluate.cached_evaluation import CachedEvaluation
from starzoo.evaluate.evaluate import evaluate
from starzoo.evaluate.model_pool import EvaluatedModels
from starzoo.evaluate.source_check import SourceCheck, check_sources, reestimate_statistics
from starzoo.models.batch_norm import reestimate_batch_norm
from starzoo.models.sources import Source, load_source, load_sources
from starzoo.models.timm_folder import save_timm_folder
from starzoo.models.training.member import train_member
from starzoo.models.weights import average
from starzoo.star.source_alignment import SourceAlignment
from starzoo.symmetry import Permutation
from starzoo.workflows.align import align_models

State = dict[str, Tensor]
CONFIG = EvalConfig(points=5, source_pairs=0, bma_samples=0, batch_norm_images=1000)


@pytest.fixture(scope="module")
def zoo(digits_zoo: list[Path]) -> list[Source]:
    return load_sources(digits_zoo)


@pytest.fixture(scope="module")
def images(zoo: list[Source]) -> ImageTask:
    return load_data(DataConfig(dataset="digits"), zoo[0].architecture.preprocessing)


def check(
    models: dict[str, State],
    images: ImageTask,
    zoo: list[Source],
    *,
    trained_with: Sequence[Augmentation | None] = (),
    keep_weak: bool = False,
) -> SourceCheck:
    every = [replace(zoo[0].with_record(name=name, augment=None), state=state) for name, state in models.items()]
    for index, augment in enumerate(trained_with):
        every[index] = every[index].with_record(augment=augment)
    sources, holdouts = ([model for model in every if (model.name == "held-out") is held] for held in (False, True))
    return check_sources(sources, holdouts, images, CONFIG, keep_weak=keep_weak)


def broken(found: SourceCheck) -> list[str]:
    return [model.name for model in (*found.sources, *found.holdouts) if model.record.estimated]


def changed(source: Source, change: Callable[[str, Tensor], Tensor]) -> State:
    return {name: change(name, tensor.clone()) for name, tensor in source.state.items()}


def reset_statistics(name: str, tensor: Tensor) -> Tensor:
    """As after a conversion that lost them."""
    return (
        torch.zeros_like(tensor)
        if "running_mean" in name
        else torch.ones_like(tensor)
        if "running_var" in name
        else tensor
    )


def untrained_head(name: str, tensor: Tensor) -> Tensor:
    return (
        torch.randn(tensor.shape, generator=torch.Generator().manual_seed(3)) * 0.05
        if name.startswith("fc.")
        else tensor
    )


def quiet(name: str, tensor: Tensor) -> Tensor:
    return tensor * 0.2 if name.startswith("fc.") else tensor


def three(zoo: list[Source], change: Callable[[str, Tensor], Tensor]) -> dict[str, State]:
    return {"a": dict(zoo[0].state), "b": dict(zoo[1].state), "odd": changed(zoo[2], change)}


def test_good_models_pass_in_silence(zoo: list[Source], images: ImageTask, caplog: pytest.LogCaptureFixture) -> None:
    models = {source.name: dict(source.state) for source in zoo}
    found = check(models, images, zoo)
    assert (broken(found), dict(found.scaled), found.config.batch_norm_augment) == ([], {}, "none")
    assert not caplog.records
    for look, source in zip(found.scores, zoo, strict=True):
        model = source.model()
        logits = torch.cat([model(batch) for batch in images.train.images(100, limit=1000)]).detach()
        labels = images.train.labels[images.train.sample_indices(1000)]
        assert look.accuracy == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
        assert look.loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-5)


def test_broken_statistics_are_named_and_estimated_anew(
    zoo: list[Source], images: ImageTask, caplog: pytest.LogCaptureFixture
) -> None:
    models = three(zoo, reset_statistics)
    with caplog.at_level(logging.WARNING):
        found = check(models, images, zoo)
    [odd] = [look for look in found.scores if look.name == "odd"]
    assert broken(found) == ["odd"]
    assert odd.accuracy < 0.5 < 0.85 < odd.best
    assert [
        f"{odd.accuracy:.1%}".rstrip("%")[:4] in record.message
        for record in caplog.records
        if "broken" in record.message
    ]
    mended = found.sources[-1]
    assert found.config.batch_norm_augment == "none"
    assert torch.equal(mended.state["conv1.weight"], models["odd"]["conv1.weight"])
    assert not torch.equal(mended.state["bn1.running_var"], models["odd"]["bn1.running_var"])


def test_alignment_runs_a_model_with_the_statistics_that_belong_to_it(zoo: list[Source], images: ImageTask) -> None:
    """With the broken ones it is matched by what it would never compute."""
    spec, config = zoo[0].architecture.spec, AlignConfig(method="activations-gradients")
    reset = replace(zoo[1], state=changed(zoo[1], reset_statistics))
    mended = reestimate_statistics(reset, images, CONFIG)
    matches = {}
    for name, state in {"whole": zoo[1].state, "broken": reset.state, "mended": mended.state}.items():
        probe = Probe(zoo[0].architecture.build(), *images.train.labeled_images(limit=1000))
        aligner = Aligner(spec, config, probe)
        [found] = aligner.match(aligner.features.extract(zoo[0].state), [aligner.features.extract(state)])
        matches[name] = found.permutation
    moved = {name: match.count_moved(matches["whole"]) for name, match in matches.items()}
    assert 2 * moved["mended"] < moved["broken"], moved


def test_an_untrained_head_is_refused_unless_it_is_wanted(
    zoo: list[Source], images: ImageTask, caplog: pytest.LogCaptureFixture
) -> None:
    models = three(zoo, untrained_head)
    with pytest.raises(
        IncompatibleError, match=r"odd: is far worse than the other sources: \d+\.\d% of 1000 .* \d\d\.\d%"
    ):
        check(models, images, zoo)
    with caplog.at_level(logging.WARNING):
        found = check(models, images, zoo, keep_weak=True)
    assert [record.message for record in caplog.records if record.message.startswith("odd: is far worse")]
    assert found.scores[-1].best < 0.4
    caplog.clear()
    models["held-out"] = models.pop("odd")
    with caplog.at_level(logging.WARNING):
        check(models, images, zoo)
    assert [record.message for record in caplog.records if record.message.startswith("held-out: is far worse")]


def test_classes_in_another_order_are_refused(zoo: list[Source], images: ImageTask) -> None:
    def turned(name: str, tensor: Tensor) -> Tensor:
        return tensor.roll(1, 0) if name.startswith("fc.") else tensor

    with pytest.raises(IncompatibleError, match=r"odd: is far worse .*another order of classes") as caught:
        check(three(zoo, turned), images, zoo)
    assert caught.value.exit_code == 5


def test_untrained_models_are_no_worse_than_each_other(zoo: list[Source], images: ImageTask) -> None:
    architecture = zoo[0].architecture
    with torch.random.fork_rng():
        torch.manual_seed(0)
        models = {name: dict(architecture.build().state_dict()) for name in "abc"}
    found = check(models, images, zoo)
    assert broken(found) == []


def test_logits_of_another_scale_are_named_and_compared_tempered(
    zoo: list[Source], images: ImageTask, caplog: pytest.LogCaptureFixture
) -> None:
    models = three(zoo, quiet)
    with caplog.at_level(logging.WARNING):
        found = check(models, images, zoo)
    assert list(found.scaled) == ["odd"]
    assert 0.1 < found.scaled["odd"] < 0.4
    assert [record.message for record in caplog.records if record.message.startswith("odd: its logits are 0.")]
    architecture = zoo[0].architecture
    fewer = load_data(DataConfig(train_size=1000), architecture.preprocessing)  # which leaves images for temperatures
    align = AlignConfig(method="balanced-weights")

    def star_path(state: State) -> tuple[float, float]:
        pair = EvaluatedModels(architecture=architecture, star=zoo[0].state, sources={"odd": state})
        measured = evaluate(CachedEvaluation(pair, fewer, RunConfig(evaluate=CONFIG, align=align)))
        [path] = measured.paths
        assert path.tempered_loss
        return path.loss[-1], path.tempered_loss[-1]

    (own, own_tempered), (scaled, scaled_tempered) = star_path(dict(zoo[2].state)), star_path(models["odd"])
    assert scaled > 1.5 * own
    # Equal but where the sharpest temperature that is tried limits one of them: a network without an error has no best.
    assert abs(scaled_tempered - own_tempered) < 0.1 * (scaled - own)


@pytest.fixture(scope="module")
def augmented(zoo: list[Source]) -> tuple[list[Source], ImageTask]:
    """Two networks that were trained on crops and flips."""
    architecture = zoo[0].architecture
    data = load_data(DataConfig(dataset="digits", augment="crop-flip"), architecture.preprocessing)
    states = [train_member(architecture, data, TrainConfig(epochs=8), seed) for seed in (0, 1)]
    return [replace(zoo[seed], state=state) for seed, state in enumerate(states)], data


def test_statistics_come_from_images_like_those_of_the_training(
    augmented: tuple[list[Source], ImageTask], zoo: list[Source]
) -> None:
    sources, data = augmented
    plain = load_data(DataConfig(dataset="digits"), zoo[0].architecture.preprocessing)
    models = {source.name: dict(source.state) for source in sources}
    assert check(models, data, zoo).config.batch_norm_augment == "crop-flip"
    assert check(models, plain, zoo).config.batch_norm_augment == "crop-flip"  # though the fit does not augment
    assert check({source.name: dict(source.state) for source in zoo}, data, zoo).config.batch_norm_augment == "none"
    assert (
        check(models, plain, zoo, trained_with=["flip", "flip"]).config.batch_norm_augment == "flip"
    )  # as it is recorded
    assert check(models, plain, zoo, trained_with=["flip", None]).config.batch_norm_augment == "crop-flip"
    for source in sources:
        model = source.model()
        test, labels = data.test.tensors()
        rights = {}
        for augment in (None, "crop-flip"):
            if augment:
                how = CONFIG.model_copy(update={"batch_norm_augment": augment, "batch_norm_images": 1437})
                reestimate_batch_norm(model, data.batch_norm_images(how))
            with torch.inference_mode():
                rights[augment] = float((model(test).argmax(1) == labels).double().mean())
        assert rights["crop-flip"] >= rights[None] - 1.5 / len(labels)  # within one of 360 images


def test_fine_tunes_of_one_checkpoint_are_not_permuted(
    zoo: list[Source], images: ImageTask, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are connected already: matching may move channels to a greater distance and a worse mean."""
    architecture, spec = zoo[0].architecture, zoo[0].architecture.spec
    tunes = []
    for seed in range(4):
        model = zoo[0].model().train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
        for epoch in range(2):
            for batch, labels in images.train.loader(64, epoch=epoch, seed=100 + seed):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(batch), labels).backward()
                optimizer.step()
        tunes.append({name: tensor.detach().clone() for name, tensor in model.state_dict().items()})
    probe = Probe(architecture.build(), *images.train.labeled_images(limit=1000))
    aligner = Aligner(spec, AlignConfig(), probe)
    first, *others = tunes
    identity = Permutation.identity(spec)
    matched = aligner.match(aligner.features.extract(first), [aligner.features.extract(other) for other in others])
    for other, found in zip(others, matched, strict=True):
        _, before, after = take_better(probe, first, other, identity, found.permutation)
        assert after == min(before, probe.midpoint_loss(first, found.permutation.apply(other)))
        assert probe.are_connected(first, other)
        assert after <= before
    assert not probe.are_connected(zoo[0].state, zoo[1].state)
    folders = [str(tmp_path / f"tune-{number}") for number in range(4)]
    for folder, state in zip(folders, tunes, strict=True):
        save_timm_folder(Path(folder), architecture, state)
    reports = align_models(folders[0], folders[1:], tmp_path / "out", AlignConfig(), data=DataConfig(dataset="digits"))
    assert all(report.midpoint_loss_after <= report.midpoint_loss_before for report in reports)
    for report, state in zip(reports, others, strict=True):
        if report.midpoint_loss_after == report.midpoint_loss_before:
            assert report.connected
            assert report.distance_after == report.distance_before
            assert all(torch.equal(load_source(report.folder).state[name], state[name]) for name in state)
    assert [report for report in reports if report.connected]
    fitted = SourceAlignment(architecture, tunes, images, RunConfig())
    with caplog.at_level(logging.WARNING):
        start = fitted.initial_weights({})
    assert "these models share an ancestor: their plain mean is already good, and none is permuted" in caplog.messages
    assert fitted.align_to(start) == 0
    assert all(torch.equal(start[name], tensor) for name, tensor in average(tunes).items())
