"""Starlight on real, small models: it lowers what it optimises, resumes bit for bit, and stops when it diverges."""

from __future__ import annotations

import itertools
import json
import math
import signal
from collections.abc import Container
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from starzoo.align.features import Features
from starzoo.config import AlignConfig, Constant, DataConfig, RunConfig, RuntimeConfig, StarConfig
from starzoo.data.task import ImageTask, load_data
from starzoo.errors import NumericalError, PreemptedError, UsageError
from starzoo.models.sources import Source, load_sources
from starzoo.models.weights import StateDict
from starzoo.progress import Progress, no_progress
from starzoo.star.accelerator import make_accelerator
from starzoo.star.endpoints import Endpoint
from starzoo.star.fit import FittedStar, ResumeOptions, _load_checkpoint, fit
from starzoo.star.objective import StarlightLoss
from starzoo.star.source_alignment import SourceAlignment
from starzoo.star.teacher import Teacher


@pytest.fixture(scope="module")
def sources(digits_zoo: list[Path]) -> list[Source]:
    return load_sources(digits_zoo[:3])


@pytest.fixture(scope="module")
def data(sources: list[Source]) -> ImageTask:
    return load_data(DataConfig(train_size=704), sources[0].architecture.preprocessing)


def run(
    sources: list[Source],
    data: ImageTask,
    folder: Path | None = None,
    method: str = "balanced-weights",
    progress: Progress = no_progress,
    **star: object,
) -> FittedStar:
    config = RunConfig(
        star=StarConfig(**{"epochs": 4, "batch_size": 64, **star}),  # type: ignore[arg-type]
        align=AlignConfig(method=method),  # type: ignore[arg-type]
        runtime=RuntimeConfig(checkpoint_epochs=1),
    )
    return fit(sources, data, config, folder=folder, progress=progress)


def test_path_loss_falls(sources: list[Source], data: ImageTask) -> None:
    history = run(sources, data).history
    assert len(history) == 4
    assert history[-1]["path_loss"] < 0.8 * history[0]["path_loss"]


def test_the_start_reports_its_stages_and_extracts_every_source_once(
    sources: list[Source], data: ImageTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported, extracted = list[tuple[str, int, int]](), []

    def extract(self: Features, state: StateDict, extract: Any = Features.extract) -> dict[str, Tensor]:
        extracted.append(state)
        return extract(self, state)  # type: ignore[no-any-return]

    monkeypatch.setattr(Features, "extract", extract)
    run(sources, data, progress=lambda stage, done, total, **_: reported.append((stage, done, total)), epochs=1)
    assert list(dict.fromkeys(stage for stage, *_ in reported)) == [
        "comparing sources",
        "extracting features",
        "aligning the sources to each other",
        "fitting the star",
    ]
    assert [report for report in reported if report[0] == "extracting features"] == [
        ("extracting features", done, 3) for done in (1, 2, 3)
    ]
    *at_start, _ = extracted  # the last one is the star, to which the sources are aligned at the end
    assert [id(state) for state in at_start] == [id(source.state) for source in sources]


@pytest.mark.parametrize("options", [{}, {"init": "random"}, {"init": "source"}, {"optimizer": "adamw", "lr": 0.002}])
def test_a_star_is_reproducible(options: dict[str, object], sources: list[Source], data: ImageTask) -> None:
    one, two = (run(sources, data, epochs=1, **options) for _ in range(2))
    assert all(torch.equal(one.state[name], two.state[name]) for name in one.state)
    assert one.state.keys() == sources[0].state.keys()


@pytest.mark.parametrize("method", ["balanced-weights", "weights"])
def test_resumed_run_ends_bit_equal_to_an_uninterrupted_one(
    method: str,
    tmp_path: Path,
    sources: list[Source],
    data: ImageTask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = run(sources, data, tmp_path / "whole", method, mu=0.5, kappa=0.5)

    def kill_after_two_epochs(stage: str, done: int, total: int, **_: float) -> None:
        if stage == "fitting the star" and done > total * 2 // 3:
            raise KilledError

    monkeypatch.setattr("starzoo.star.fit._SECONDS_BETWEEN_REPORTS", -1.0)
    with pytest.raises(KilledError):
        run(sources, data, tmp_path / "half", method, kill_after_two_epochs, mu=0.5, kappa=0.5)
    steps = len(data.train) // 64
    kept = sorted(path.name for path in (tmp_path / "half" / "checkpoints").iterdir())
    assert kept == [f"step-{epochs * steps:09d}" for epochs in (1, 2)]
    monkeypatch.delattr("starzoo.align.align.Aligner.match_all")  # which it has no use for any more
    resumed = run(sources, data, tmp_path / "half", method, mu=0.5, kappa=0.5)
    assert_same(resumed, whole)
    assert resumed.steps == whole.steps == 4 * steps


class KilledError(Exception):
    """Ends a run where it stands, as SIGKILL does."""


def assert_same(one: FittedStar, other: FittedStar) -> None:
    assert one.history == other.history
    assert all(torch.equal(one.state[name], other.state[name]) for name in other.state)
    for mine, theirs in zip(one.permutations, other.permutations, strict=True):
        assert mine.count_moved(theirs) == 0


@pytest.fixture(scope="module")
def uninterrupted(sources: list[Source], data: ImageTask) -> FittedStar:
    """A run of three epochs that nobody stopped."""
    return run(sources, data, epochs=3, mu=0.5)


@pytest.mark.parametrize("at", [1, 7, 11, 22, 30])
def test_a_run_that_was_stopped_within_an_epoch_ends_bit_equal(
    at: int,
    uninterrupted: FittedStar,
    tmp_path: Path,
    sources: list[Source],
    data: ImageTask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop_at(stage: str, done: int, total: int, **_: float) -> None:
        if stage == "fitting the star" and done == at:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("starzoo.star.fit._SECONDS_BETWEEN_REPORTS", -1.0)
    with pytest.raises(PreemptedError, match=r"stopped by SIGTERM; step \d+ of 33 is kept"):
        run(sources, data, tmp_path, "balanced-weights", stop_at, epochs=3, mu=0.5)
    resumed = run(sources, data, tmp_path, epochs=3, mu=0.5)
    assert_same(resumed, uninterrupted)
    assert "resumed at step" in (tmp_path / "training.log").read_text()


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "muon"])
def test_a_run_with_any_optimizer_ends_bit_equal(
    optimizer: str, tmp_path: Path, sources: list[Source], data: ImageTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"optimizer": optimizer, "lr": 0.002, "filter_bias_and_bn": True, "epochs": 1, "kappa": 0.0}

    def stop_at(stage: str, done: int, total: int, **_: float) -> None:
        if stage == "fitting the star" and done == 7:
            signal.raise_signal(signal.SIGTERM)

    whole = run(sources, data, **options)
    monkeypatch.setattr("starzoo.star.fit._SECONDS_BETWEEN_REPORTS", -1.0)
    with pytest.raises(PreemptedError):
        run(sources, data, tmp_path, progress=stop_at, **options)
    resumed = run(sources, data, tmp_path, **options)
    assert_same(resumed, whole)
    assert resumed.changes == []


def test_t01_divergence_stops_the_run_and_names_step_source_and_images(
    tmp_path: Path, sources: list[Source], data: ImageTask
) -> None:
    with pytest.raises(
        NumericalError, match=r"not finite at step \d+ \(epoch 1\), source seed-\d, t = 0\.\d+, on training images"
    ) as caught:
        run(sources, data, tmp_path, lr=1e6, warmup=0.0)
    assert "--override" in caught.value.hint
    [line] = (tmp_path / "training.log").read_text().splitlines()
    assert len(line.partition("images ")[2].split(", ")) == 64


class Spoiled:
    """Spoils what some steps, from 1, find: their loss, or their gradients."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: Container[int], *, loss: float = 1, gradient: float = 1):
        accumulate, number = StarlightLoss.accumulate, itertools.count(1)

        def spoil(self: StarlightLoss, *arguments: Any, **options: Any) -> torch.Tensor:
            found = accumulate(self, *arguments, **options)
            if next(number) not in steps:
                return found
            assert self.star[0].grad is not None
            self.star[0].grad.mul_(gradient)
            return found * loss

        monkeypatch.setattr(StarlightLoss, "accumulate", spoil)


def test_t02_spikes_of_the_loss_are_counted_and_reported(
    tmp_path: Path, sources: list[Source], data: ImageTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    Spoiled(monkeypatch, {7, 11}, loss=1000)  # the last step of the epoch is one of them
    star = run(sources, data, tmp_path, epochs=2)
    assert star.history[0]["loss_spikes"] == 2
    assert "loss_spikes" not in star.history[1]
    first, second = (tmp_path / "training.log").read_text().splitlines()
    assert "loss spikes 2" in first
    assert "loss spikes" not in second


def test_t02_a_run_that_begins_with_losses_above_guessing_has_no_spikes(
    sources: list[Source], data: ImageTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    Spoiled(monkeypatch, range(99), loss=2)
    history = run(sources, data, epochs=3, init="random", lr=1e-9, t=Constant(value=0.0)).history
    assert all(record["path_loss"] > math.log(10) for record in history)
    assert not any("loss_spikes" in record for record in history)


def test_t02_more_than_twenty_spikes_in_a_row_end_the_run(
    tmp_path: Path, sources: list[Source], data: ImageTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    Spoiled(monkeypatch, range(15, 99), loss=1000)
    with pytest.raises(NumericalError, match="21 steps in a row lost more than 4 times the usual") as caught:
        run(sources, data, tmp_path, epochs=4)
    assert "--override" in caught.value.hint
    assert max(path.name for path in (tmp_path / "checkpoints").iterdir()) == "step-000000033"


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses are scaled as in half precision, which Accelerate does on a GPU only."""

    def scale(*arguments: Any) -> Any:
        accelerator = make_accelerator(*arguments)
        accelerator.scaler = torch.amp.GradScaler("cpu")  # type: ignore[assignment]
        return accelerator

    monkeypatch.setattr("starzoo.star.fit.make_accelerator", scale)


@pytest.mark.usefixtures("scaled")
def test_t02_steps_that_overflow_are_left_out_counted_and_reported(
    tmp_path: Path, sources: list[Source], data: ImageTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    Spoiled(monkeypatch, {3, 7}, gradient=math.inf)
    star = run(sources, data, tmp_path, epochs=2)
    assert [record.get("skipped_steps") for record in star.history] == [2.0, None]
    assert "skipped steps 2" in (tmp_path / "training.log").read_text().splitlines()[0]
    assert all(torch.isfinite(tensor).all() for tensor in star.state.values())
    state = json.loads((tmp_path / "checkpoints" / "step-000000022" / "state.json").read_text())
    assert state["scaler"]["scale"] == 2.0**14  # halved twice


MIXED = {"mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1, "ema_decay": 0.8, "kappa": 0.5, "draws": 2}


def test_a_run_with_mixed_images_and_an_average_ends_bit_equal(
    tmp_path: Path, sources: list[Source], data: ImageTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_at(stage: str, done: int, total: int, **_: float) -> None:
        if done == 7:
            signal.raise_signal(signal.SIGTERM)

    whole = run(sources, data, epochs=1, **MIXED)
    monkeypatch.setattr("starzoo.star.fit._SECONDS_BETWEEN_REPORTS", -1.0)
    with pytest.raises(PreemptedError):
        run(sources, data, tmp_path, progress=stop_at, epochs=1, **MIXED)
    assert_same(run(sources, data, tmp_path, epochs=1, **MIXED), whole)


def test_the_average_of_the_last_weights_alone_is_the_star_without_an_average(
    sources: list[Source], data: ImageTask
) -> None:
    options = {"epochs": 1, "label_smoothing": 0.1, "bce": True}
    plain, last, average = (run(sources, data, ema_decay=decay, **options) for decay in (None, 0.0, 0.9))
    assert_same(plain, last)
    assert not torch.equal(plain.state["conv1.weight"], average.state["conv1.weight"])


def test_a_source_predicts_the_mixed_images_that_the_star_sees(
    sources: list[Source], data: ImageTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    predicted, learned = list[Tensor](), list[tuple[Tensor, Tensor]]()

    def predict(self: Teacher, ends: list[Endpoint], images: Tensor, predict: Any = Teacher.predict) -> Tensor:
        predicted.append(images)
        return predict(self, ends, images)  # type: ignore[no-any-return]

    def accumulate(self: StarlightLoss, *batch: Any, plain: Any = StarlightLoss.accumulate, **options: Any) -> Tensor:
        learned.append(batch[2:4])
        return plain(self, *batch, **options)  # type: ignore[no-any-return]

    monkeypatch.setattr(Teacher, "predict", predict)
    monkeypatch.setattr(StarlightLoss, "accumulate", accumulate)
    run(sources, data, epochs=1, **MIXED)
    assert len(predicted) == len(learned) == 2 * (len(data.train) // 64)
    assert all(mine is theirs for mine, (theirs, _) in zip(predicted, learned, strict=True))
    assert all(0.1 < float(labels.max()) < 1 and labels.shape == (32, 10) for _, labels in learned)


def test_all_sources_teach_if_asked(sources: list[Source], data: ImageTask, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = list[int]()

    def predict(self: Teacher, ends: Any, images: Tensor, predict: Any = Teacher.predict) -> Tensor:
        ends = list(ends)
        counts.append(len(ends))
        return predict(self, ends, images)  # type: ignore[no-any-return]

    drawn = run(sources, data, epochs=1)
    monkeypatch.setattr(Teacher, "predict", predict)
    taught = run(sources, data, epochs=1, teachers="all")
    assert set(counts) == {len(sources)}
    assert not torch.equal(drawn.state["conv1.weight"], taught.state["conv1.weight"])


@pytest.mark.usefixtures("scaled")
def test_a_run_in_half_precision_ends_bit_equal_when_it_was_stopped(
    tmp_path: Path, sources: list[Source], data: ImageTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(stage: str, done: int, total: int, **_: float) -> None:
        if stage == "fitting the star" and done == 7:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("starzoo.star.fit._SECONDS_BETWEEN_REPORTS", -1.0)
    whole = run(sources, data, tmp_path / "whole", epochs=2)
    with pytest.raises(PreemptedError):
        run(sources, data, tmp_path / "half", progress=stop, epochs=2)
    assert_same(run(sources, data, tmp_path / "half", epochs=2), whole)
    ends = [tmp_path / name / "checkpoints" / "step-000000022" / "state.json" for name in ("whole", "half")]
    one, other = (json.loads(end.read_text())["scaler"] for end in ends)
    assert one == other
    assert one["_growth_tracker"] == 22  # steps since it grew


@pytest.mark.usefixtures("scaled")
def test_t02_more_than_twenty_overflows_in_a_row_end_the_run(
    tmp_path: Path, sources: list[Source], data: ImageTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    Spoiled(monkeypatch, range(5, 99), gradient=math.inf)
    with pytest.raises(NumericalError, match="21 steps in a row overflowed in half precision") as caught:
        run(sources, data, tmp_path, epochs=4)
    assert "star.precision=bf16 and add --override" in caught.value.hint


def test_t01_a_star_that_broke_in_the_last_step_of_an_epoch_ends_the_run(
    sources: list[Source], data: ImageTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    Spoiled(monkeypatch, {11}, gradient=math.inf)
    with pytest.raises(NumericalError, match="not finite at the end of epoch 1"):
        run(sources, data, epochs=2, midpoint_every=0)


@pytest.mark.parametrize(("period", "times"), [(0, 1), (1, 3), (2, 2)])
def test_the_sources_are_aligned_anew_as_often_as_asked(
    period: int,
    times: int,
    sources: list[Source],
    data: ImageTask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bring, at = SourceAlignment.align_to, list[int]()

    def count(self: SourceAlignment, star: dict[str, torch.Tensor]) -> int:
        at.append(1)
        return bring(self, star)

    monkeypatch.setattr(SourceAlignment, "align_to", count)
    run(sources, data, epochs=3, realign_every=period, midpoint_every=0, batch_size=640)
    assert len(at) == times  # before epochs, and once more for the star that was found


def test_gradients_are_clipped(sources: list[Source], data: ImageTask, monkeypatch: pytest.MonkeyPatch) -> None:
    Spoiled(monkeypatch, range(99), gradient=1e6)
    free, clipped = (run(sources, data, epochs=1, clip_grad_norm=norm) for norm in (None, 1.0))
    assert free.state["conv1.weight"].norm() > 1000  # which a batch norm does not notice
    assert clipped.state["conv1.weight"].norm() < 2 * sources[0].state["conv1.weight"].norm()


def test_a_star_that_starts_from_a_source_and_takes_no_step_is_that_source(
    sources: list[Source], data: ImageTask
) -> None:
    star = run(sources, data, epochs=0, init="source")
    for name, _ in sources[0].model().named_parameters():
        assert torch.equal(star.state[name], sources[0].state[name])


def test_one_image_for_a_draw_is_none_for_batch_norm(sources: list[Source], data: ImageTask) -> None:
    with pytest.raises(UsageError, match="expected two images for each of 8 draws"):
        run(sources, data, batch_size=8, draws=8)


def test_processes_that_find_other_checkpoints_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("starzoo.star.fit.all_gather_object", lambda _: [500, 500])
    assert _load_checkpoint(tmp_path, {}, ResumeOptions()) is None
    monkeypatch.setattr("starzoo.star.fit.all_gather_object", lambda _: [500, 0])
    with pytest.raises(UsageError, match=r"the processes find different checkpoints there, of the steps 500, 0"):
        _load_checkpoint(tmp_path, {}, ResumeOptions())


def test_a_signal_after_the_last_step_is_obeyed(
    tmp_path: Path, sources: list[Source], data: ImageTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = SourceAlignment.midpoint_losses

    def measure_and_stop(self: SourceAlignment, star: dict[str, torch.Tensor]) -> list[float]:
        signal.raise_signal(signal.SIGTERM)
        return measure(self, star)

    monkeypatch.setattr(SourceAlignment, "midpoint_losses", measure_and_stop)
    with pytest.raises(PreemptedError, match="stopped by SIGTERM; step 11 of 11 is kept"):
        run(sources, data, tmp_path, epochs=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000000011"]


def test_another_optimizer_begins_without_a_state(tmp_path: Path, sources: list[Source], data: ImageTask) -> None:
    run(sources, data, tmp_path, epochs=1)
    config = RunConfig(
        star=StarConfig(epochs=2, batch_size=64, optimizer="adamw", lr=0.002),
        align=AlignConfig(method="balanced-weights"),
    )
    star = fit(sources, data, config, folder=tmp_path, resume=ResumeOptions(override=True))
    assert star.steps == 22
    assert "from step 11: the new optimizer begins without a state" in star.changes
    again = fit(sources, data, config, folder=tmp_path)  # with the state of its own kind
    assert again.changes == star.changes


def test_without_epochs_the_star_is_the_aligned_average(sources: list[Source], data: ImageTask) -> None:
    star = run(sources, data, epochs=0)
    aligned = [permutation.apply(source.state) for permutation, source in zip(star.permutations, sources, strict=True)]
    mean = sum(state["conv1.weight"] for state in aligned) / 3
    torch.testing.assert_close(star.state["conv1.weight"], mean)
    assert star.history == []


def test_mu_looks_after_the_stars_own_loss(sources: list[Source], data: ImageTask) -> None:
    history = run(sources, data, mu=1.0, t=Constant(value=0.5)).history
    assert history[-1]["own_loss"] < history[0]["own_loss"]
