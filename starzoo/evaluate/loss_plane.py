"""The loss on the plane through a star, a source and a held-out."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from starzoo.evaluate.cached_evaluation import CachedEvaluation
from starzoo.metrics import negative_log_likelihood

__all__ = ["LossPlaneSampler"]

_FLAT = 1e-6  # of a triangle's size, which is what rounding leaves of a side that is none
_MARGIN = 0.25  # of a plane around its triangle, as a share of its width


class LossPlaneSampler:
    """A star and two models that are aligned to it; the star lies at (0, 0), the first model on the first axis."""

    def __init__(self, measurement: CachedEvaluation, names: tuple[str, str]) -> None:
        self.measurement, self.names = measurement, names

    @cached_property
    def corners(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Where the two models lie, in units of the Euclidean distance between weights."""

        def measure() -> dict[str, Tensor]:
            first, second = map(self._from_star, self.names)
            length = first.norm()
            axis = first / length if length else first
            along = second @ axis
            across = (second - along * axis).norm()
            return {"corners": torch.stack([length, torch.zeros_like(length), along, across])}

        models = self.measurement.models
        key = {
            "corners": [models.hashes[name] for name in self.names],
            "alignment": models.star_alignment(self.names),
        }
        x1, y1, x2, y2 = self.measurement.get_or_compute(key, measure)["corners"].tolist()
        return (x1, y1), (x2, y2)

    @property
    def is_degenerate(self) -> bool:
        """Whether the three models lie on a line, or two of them are one, so that there is no plane through them."""
        (width, _), (along, across) = self.corners
        return not min(width, across) > _FLAT * max(width, abs(along), across)

    @cached_property
    def grid(self) -> tuple[list[float], list[float]]:
        """The coordinates of the points where the loss is measured."""
        axes = []
        for places in zip((0.0, 0.0), *self.corners, strict=True):
            margin = _MARGIN * (max(places) - min(places))
            low, high = min(places) - margin, max(places) + margin
            axes.append(np.linspace(low, high, self.measurement.config.loss_plane_points).tolist())
        return axes[0], axes[1]

    def row(self, number: int) -> list[float]:
        """The losses along one row of the grid, on the last of the splits."""
        measurement, models = self.measurement, self.measurement.models
        split, (width, _), (along, across) = measurement.config.splits[-1], *self.corners
        columns, rows = self.grid

        def measure() -> dict[str, Tensor]:
            evaluator, losses = measurement.evaluator([split]), []
            star, first, second = measurement.zoo.star, *(models.to_star[name] for name in self.names)
            for x in columns:
                second_share = rows[number] / across
                first_share = (x - second_share * along) / width
                state = {
                    key: value + first_share * (first[key] - value) + second_share * (second[key] - value)
                    if value.is_floating_point()
                    else value
                    for key, value in star.items()
                }
                predicted = evaluator.log_probabilities(state)[split]
                losses.append(negative_log_likelihood(predicted, measurement.labels(split)))
            return {"loss": torch.tensor(losses, dtype=torch.float64)}

        key = {"plane": [models.hashes[name] for name in ("star", *self.names)], "row": rows[number]}
        key |= {"columns": columns, "alignment": models.star_alignment(self.names), "split": split}
        losses: list[float] = measurement.get_or_compute(key, measure)["loss"].tolist()
        return losses

    def _from_star(self, name: str) -> Tensor:
        star, model = self.measurement.zoo.star, self.measurement.models.to_star[name]
        parameters = [key for key, _ in self.measurement.network.named_parameters()]
        return torch.cat([(model[key] - star[key]).double().flatten() for key in parameters])
