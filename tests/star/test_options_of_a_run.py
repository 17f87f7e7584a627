"""Settings of how a run is carried out: precision, memory, trackers, early stopping."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from starzoo.config import AlignConfig, DataConfig, RunConfig, RuntimeConfig, StarConfig, validate
from starzoo.data.task import ImageTask, load_data
from starzoo.errors import UsageError
from starzoo.models.sources import Source, load_sources
from starzoo.star.fit import FittedStar, fit


@pytest.fixture(scope="module")
def sources(digits_zoo: list[Path]) -> list[Source]:
    return load_sources(digits_zoo[:2])


@pytest.fixture(scope="module")
def data(sources: list[Source]) -> ImageTask:
    return load_data(DataConfig(train_size=704), sources[0].architecture.preprocessing)


class Fitter:
    """Fits a star of two small sources in one or a few epochs."""

    def __init__(self, sources: list[Source], data: ImageTask) -> None:
        self.sources, self.data = sources, data

    def __call__(
        self, folder: Path | None = None, *, runtime: dict[str, object] | None = None, **star: object
    ) -> FittedStar:
        config = RunConfig(
            star=StarConfig(**{"epochs": 1, "batch_size": 64, **star}),  # type: ignore[arg-type]
            align=AlignConfig(method="balanced-weights"),
            runtime=RuntimeConfig(**(runtime or {})),  # type: ignore[arg-type]
        )
        return fit(self.sources, self.data, config, folder=folder)


@pytest.fixture(scope="module")
def run(sources: list[Source], data: ImageTask) -> Fitter:
    return Fitter(sources, data)


@pytest.fixture(scope="module")
def plain(run: Fitter) -> FittedStar:
    return run()


@pytest.mark.parametrize("runtime", [{"sources_on": "host"}, {"sources_on": "device"}, {"workers": 2}])
def test_how_a_run_is_carried_out_changes_no_bit_of_the_star(
    runtime: dict[str, object], run: Fitter, plain: FittedStar
) -> None:
    star = run(runtime=runtime)
    assert star.history == plain.history
    assert all(torch.equal(star.state[name], plain.state[name]) for name in plain.state)


@pytest.mark.parametrize("section", ["data", "evaluate"])
def test_a_run_of_timms_transform_is_resumed_with_the_same_versions(
    section: str, sources: list[Source], data: ImageTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = {"data": "augment", "evaluate": "batch_norm_augment"}[section]
    sections = {section: {name: "timm"}, "star": {"epochs": 1}, "align": {"method": "balanced-weights"}}
    config = validate(RunConfig, sections)
    fit(sources, data, config, folder=tmp_path)
    fit(sources, data, config, folder=tmp_path)
    monkeypatch.setattr("starzoo.data.augmentation.version", lambda package: "9")
    with pytest.raises(UsageError, match=r"config\.data\.transform\.versions\.pillow"):
        fit(sources, data, config, folder=tmp_path)


def test_bfloat16_finds_nearly_the_same_star(run: Fitter, plain: FittedStar) -> None:
    star = run(precision="bf16")
    assert star.history != plain.history
    assert star.history[0]["path_loss"] == pytest.approx(plain.history[0]["path_loss"], rel=0.1)
    assert all(tensor.dtype == plain.state[name].dtype for name, tensor in star.state.items())


def test_half_precision_needs_a_gpu(run: Fitter) -> None:
    with pytest.raises(UsageError, match=r"star\.precision: fp16 needs a GPU"):
        run(precision="fp16")


@pytest.mark.parametrize("draws", [2, 4])
def test_draws_share_a_batch(draws: int, run: Fitter, data: ImageTask) -> None:
    history = run(draws=draws).history
    assert history[0]["path_loss"] > 0
    with pytest.raises(UsageError, match="batch_size: expected a multiple of 3 processes or draws, got 64"):
        run(draws=3)


def test_figures_go_to_the_trackers(run: Fitter, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    star = run(tmp_path, runtime={"trackers": ["tensorboard"]})
    [folder] = {file.parent for file in (tmp_path / "logs").rglob("events.*") if file.parent.name == "starzoo"}
    events = EventAccumulator(str(folder)).Reload()
    [scalar] = events.Scalars("path_loss")
    assert scalar.value == pytest.approx(star.history[0]["path_loss"])


@pytest.mark.parametrize(
    ("name", "hint"), [("no-such-tracker", "the trackers are .*tensorboard"), ("wandb", "pip install wandb")]
)
def test_a_tracker_that_is_not_there_is_refused_before_any_work(name: str, hint: str, run: Fitter) -> None:
    with pytest.raises(UsageError, match=f"tracker '{name}': is not installed") as caught:
        run(runtime={"trackers": [name]})
    assert re.search(hint, caught.value.hint)


def test_the_log_has_a_line_for_every_epoch_that_names_the_worst_source(run: Fitter, tmp_path: Path) -> None:
    star = run(tmp_path, epochs=2, midpoint_every=1)
    lines = (tmp_path / "training.log").read_text().splitlines()
    assert len(lines) == 2
    for number, (line, record) in enumerate(zip(lines, star.history, strict=True), start=1):
        losses = [record[f"midpoint_loss.{source}"] for source in range(2)]
        worst = run.sources[losses.index(max(losses))].name
        assert f"epoch {number}/2  path {record['path_loss']:.4f}" in line
        assert f"midpoint {record['midpoint_loss']:.4f} (worst {max(losses):.4f}, {worst})" in line
        assert f"moved {record['moved']:.0f}" in line
        assert "images/s" in line
        assert line.endswith(" left")


def test_a_run_whose_half_way_losses_no_longer_fall_ends_early(run: Fitter) -> None:
    star = run(epochs=6, lr=1e-12, mu=0, midpoint_every=1, patience=2)
    assert len(star.history) == 3


@pytest.mark.slow
def test_a_compiled_network_finds_nearly_the_same_star(run: Fitter, plain: FittedStar) -> None:
    star = run(runtime={"compile": True})
    assert star.history[0]["path_loss"] == pytest.approx(plain.history[0]["path_loss"], rel=0.02)
