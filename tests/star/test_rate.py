"""A learning rate by short trials: which are made, which is chosen, and that a resumed run makes none again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from starzoo.config import DataConfig, RunConfig
from starzoo.data.task import ImageTask, load_data
from starzoo.errors import NumericalError
from starzoo.models.sources import Source, load_sources
from starzoo.star import rate as module
from starzoo.star.manifest import RateTrial
from starzoo.star.rate import best_rate, try_rates


@pytest.fixture(scope="module")
def sources(digits_zoo: list[Path]) -> list[Source]:
    return load_sources(digits_zoo[:3])


@pytest.fixture(scope="module")
def data(sources: list[Source]) -> ImageTask:
    return load_data(DataConfig(train_size=704), sources[0].architecture.preprocessing)


def trials(*losses: float | None, share: float = 0.25) -> list[RateTrial]:
    return [RateTrial(lr=0.1 * 2**index, share=share, midpoint_loss=loss) for index, loss in enumerate(losses)]


def test_the_rate_grows_with_the_fit_up_to_the_highest_that_was_tried() -> None:
    assert best_rate(trials(1.0, 2.0, 3.0, 4.0)) == pytest.approx(0.4)
    assert best_rate(trials(3.0, 2.0, 3.0, 4.0)) == pytest.approx(0.8)
    assert best_rate(trials(3.0, 2.0, 3.0, 4.0, share=1.0)) == pytest.approx(0.2)
    assert best_rate(trials(2.0, 1.0, 3.0, None)) == pytest.approx(0.4)
    with pytest.raises(NumericalError, match="no rate has a finite loss"):
        best_rate(trials(None, None))


def test_trials_are_short_and_around_the_rate_of_the_sources(
    sources: list[Source], data: ImageTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, int, int]] = []

    def record(_: list[Source], data: ImageTask, trial: RunConfig) -> float:
        seen.append((trial.star.peak_lr, trial.star.epochs, len(data.train)))
        return 1.0

    monkeypatch.setattr(module, "midpoint_loss", record)
    config = RunConfig.model_validate({"star": {"epochs": 400, "batch_size": 64, "lr": "auto"}})
    per_epoch = len(data.train) // 64
    found = try_rates(sources, data, config)
    assert [lr for lr, _, _ in seen] == pytest.approx([0.025, 0.05, 0.1, 0.2, 0.4, 0.8])
    epochs = seen[0][1]
    assert 100 <= epochs * per_epoch < 400 * per_epoch / 8 + per_epoch
    assert found[0].share == pytest.approx(epochs / 400)
    known = [source.with_record(optimizer="sgd", lr=0.3) for source in sources]
    assert [trial.lr for trial in try_rates(known, data, config)][2] == 0.3
    seen.clear()
    few = config.model_copy(update={"star": config.star.model_copy(update={"batch_size": 2, "epochs": 1})})
    [first, *_] = try_rates(sources, data, few)
    assert {images for _, _, images in seen} == {200}  # a hundred steps are less than an epoch
    assert first.share == pytest.approx(100 / (len(data.train) // 2))


def test_finished_trials_are_kept_for_a_resumed_run(
    sources: list[Source], data: ImageTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig.model_validate({"star": {"epochs": 2, "batch_size": 64, "lr": "auto"}})
    fitted = module.midpoint_loss
    calls = list[float]()
    monkeypatch.setattr(module, "_FACTORS", (0.5, 1.0, 2.0))
    monkeypatch.setattr(module, "_IMAGES", 100)

    def stop(sources: list[Source], data: ImageTask, trial: RunConfig) -> float | None:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(trial.star.peak_lr)
        return fitted(sources, data, trial)

    monkeypatch.setattr(module, "midpoint_loss", stop)
    with pytest.raises(KeyboardInterrupt):
        try_rates(sources, data, config, folder=tmp_path)
    assert len(json.loads((tmp_path / "checkpoints" / "rates.json").read_text())) == 2
    rest = list[float]()
    monkeypatch.setattr(module, "midpoint_loss", lambda *run: rest.append(run[2].star.peak_lr) or fitted(*run))
    found = try_rates(sources, data, config, folder=tmp_path)
    assert len(rest) == 1
    assert not set(rest) & set(calls)
    assert found == try_rates(sources, data, config)  # none is kept here
    assert all(trial.midpoint_loss and 0 < trial.midpoint_loss < 20 for trial in found)
