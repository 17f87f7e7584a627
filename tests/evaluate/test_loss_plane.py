"""The plane through a star, a source and a held-out: where they lie in it, and where there is none."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from starzoo.evaluate.loss_plane import LossPlaneSampler


def triangle(star: list[float], source: list[float], heldout: list[float]) -> LossPlaneSampler:
    """Models of one tensor, as a measurement that keeps nothing knows them."""
    states = {name: {"w": torch.tensor(values)} for name, values in (("a", source), ("b", heldout))}
    network = torch.nn.ParameterDict({"w": torch.zeros(3)})
    pool = SimpleNamespace(to_star=states, hashes={"a": "", "b": ""}, star_alignment_key=lambda names: {})
    return LossPlaneSampler(
        SimpleNamespace(  # type: ignore[arg-type]
            models=SimpleNamespace(star={"w": torch.tensor(star)}),
            pool=pool,
            network=network,
            config=SimpleNamespace(loss_plane_points=3),
            get_or_compute=lambda key, measure: measure(),
        ),
        ("a", "b"),
    )


def test_the_corners_are_distances() -> None:
    found = triangle([1, 1, 1], [3, 1, 1], [2, 5, 1])
    assert found.corners == ((2, 0), (1, 4))
    assert not found.is_degenerate
    assert found.grid == ([-0.5, 1, 2.5], [-1, 2, 5])


@pytest.mark.parametrize(
    ("source", "heldout"),
    [
        ([1, 1, 1], [2, 5, 1]),  # the star is the source
        ([3, 1, 1], [1, 1, 1]),  # or the held-out
        ([3, 1, 1], [3, 1, 1]),
        ([1.1, 1.2, 1.3], [1.3, 1.6, 1.9]),  # all on a line, but for rounding
        ([1, 1, 1], [1, 1, 1]),
    ],
)
def test_there_is_no_plane_through_models_on_a_line(source: list[float], heldout: list[float]) -> None:
    assert triangle([1, 1, 1], source, heldout).is_degenerate
