"""Starlight on real, small models: it lowers what it optimises, resumes bit for bit, and stops when it diverges."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from starzoo.config import AlignConfig, Constant, RunConfig, StarConfig
from starzoo.data import ImageData, load_data
from starzoo.errors import NumericalError
from starzoo.inspection import infer_architecture
from starzoo.sources import Source, load_sources
from starzoo.star.train import FittedStar, fit
from starzoo.symmetry import PermutationSpec


@pytest.fixture(scope="module")
def sources(digits_zoo: list[Path]) -> list[Source]:
    return load_sources(digits_zoo[:3])


@pytest.fixture(scope="module")
def spec(sources: list[Source]) -> PermutationSpec:
    return infer_architecture(sources[0].architecture)


@pytest.fixture(scope="module")
def data(sources: list[Source]) -> ImageData:
    return load_data(RunConfig().data, sources[0].architecture.preprocessing)


def run(
    sources: list[Source],
    spec: PermutationSpec,
    data: ImageData,
    checkpoints: Path | None = None,
    method: str = "balanced",
    **star: object,
) -> FittedStar:
    config = RunConfig(
        star=StarConfig(**{"epochs": 4, "batch_size": 128, **star}),  # type: ignore[arg-type]
        align=AlignConfig(method=method),  # type: ignore[arg-type]
    )
    states = [source.state for source in sources]
    return fit(sources[0].architecture, spec, states, data, config, checkpoints=checkpoints)


def test_path_loss_falls(sources: list[Source], spec: PermutationSpec, data: ImageData) -> None:
    history = run(sources, spec, data).history
    assert len(history) == 4
    assert history[-1]["path_loss"] < 0.8 * history[0]["path_loss"]


@pytest.mark.parametrize("options", [{}, {"start": "random"}, {"start": "source"}, {"optimizer": "adamw", "lr": 0.002}])
def test_a_star_is_reproducible(
    options: dict[str, object], sources: list[Source], spec: PermutationSpec, data: ImageData
) -> None:
    one, two = (run(sources, spec, data, epochs=1, **options) for _ in range(2))
    assert all(torch.equal(one.state[name], two.state[name]) for name in one.state)
    assert one.state.keys() == sources[0].state.keys()


@pytest.mark.parametrize("method", ["balanced", "weight"])
def test_resumed_run_ends_bit_equal_to_an_uninterrupted_one(
    method: str, tmp_path: Path, sources: list[Source], spec: PermutationSpec, data: ImageData
) -> None:
    whole = run(sources, spec, data, tmp_path / "whole", method, checkpoint_every=1, mu=0.5)

    class StoppedError(Exception):
        pass

    def stop_after_two(stage: str, done: int, total: int, **_: float) -> None:
        if done == 3:
            raise StoppedError("after two")

    config = RunConfig(
        star=StarConfig(epochs=4, batch_size=128, checkpoint_every=1, mu=0.5),
        align=AlignConfig(method=method),  # type: ignore[arg-type]
    )
    states = [source.state for source in sources]
    with pytest.raises(StoppedError, match="after two"):
        fit(
            sources[0].architecture,
            spec,
            states,
            data,
            config,
            checkpoints=tmp_path / "half",
            progress=stop_after_two,
        )
    assert sorted(path.name for path in (tmp_path / "half").iterdir()) == ["epoch-00001", "epoch-00002"]
    resumed = run(sources, spec, data, tmp_path / "half", method, checkpoint_every=1, mu=0.5)
    assert resumed.history == whole.history
    assert all(torch.equal(resumed.state[name], whole.state[name]) for name in whole.state)
    for one, two in zip(resumed.permutations, whole.permutations, strict=True):
        assert one.moved(two) == 0


def test_t01_divergence_stops_the_run(sources: list[Source], spec: PermutationSpec, data: ImageData) -> None:
    with pytest.raises(NumericalError, match="not finite in epoch"):
        run(sources, spec, data, lr=1e6, warmup=0.0)


def test_without_epochs_the_star_is_the_aligned_average(
    sources: list[Source], spec: PermutationSpec, data: ImageData
) -> None:
    star = run(sources, spec, data, epochs=0)
    aligned = [permutation.apply(source.state) for permutation, source in zip(star.permutations, sources, strict=True)]
    mean = sum(state["conv1.weight"] for state in aligned) / 3
    torch.testing.assert_close(star.state["conv1.weight"], mean)
    assert star.history == []


def test_mu_looks_after_the_stars_own_loss(sources: list[Source], spec: PermutationSpec, data: ImageData) -> None:
    history = run(sources, spec, data, mu=1.0, t=Constant(value=0.5)).history
    assert history[-1]["own_loss"] < history[0]["own_loss"]
