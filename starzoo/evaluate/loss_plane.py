"""The loss on the plane through a star, a source and a held-out."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from starzoo.evaluate.cached_evaluation import CachedEvaluation
from starzoo.metrics import negative_log_likelihood

__all__ = ["LossPlaneSampler"]

_DEGENERATE = 1e-6  # of a triangle's size: what rounding leaves of a side of length 0
_MARGIN = 0.25  # around the triangle, as a share of its width


class LossPlaneSampler:
    """The plane through a star, at (0, 0), and two models aligned to it, the first of them on the x axis."""

    def __init__(self, evaluation: CachedEvaluation, names: tuple[str, str]) -> None:
        self.evaluation, self.names = evaluation, names

    @cached_property
    def corners(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """The coordinates of the two models, in units of the Euclidean distance between weights."""

        def measure() -> dict[str, Tensor]:
            first, second = map(self._from_star, self.names)
            length = first.norm()
            axis = first / length if length else first
            along = second @ axis
            across = (second - along * axis).norm()
            return {"corners": torch.stack([length, torch.zeros_like(length), along, across])}

        pool = self.evaluation.pool
        key = {
            "corners": [pool.hashes[name] for name in self.names],
            "alignment": pool.star_alignment_key(self.names),
        }
        x1, y1, x2, y2 = self.evaluation.get_or_compute(key, measure)["corners"].tolist()
        return (x1, y1), (x2, y2)

    @property
    def is_degenerate(self) -> bool:
        """Whether the three models lie on a line, so that there is no plane through them."""
        (width, _), (along, across) = self.corners
        return not min(width, across) > _DEGENERATE * max(width, abs(along), across)

    @cached_property
    def grid(self) -> tuple[list[float], list[float]]:
        """The x and y coordinates of the points where the loss is measured."""
        axes = []
        for corners in zip((0.0, 0.0), *self.corners, strict=True):
            margin = _MARGIN * (max(corners) - min(corners))
            low, high = min(corners) - margin, max(corners) + margin
            axes.append(np.linspace(low, high, self.evaluation.config.loss_plane_points).tolist())
        return axes[0], axes[1]

    def row(self, index: int) -> list[float]:
        """Measure the losses along one row of the grid, on the last of the splits."""
        evaluation, pool = self.evaluation, self.evaluation.pool
        split, (width, _), (along, across) = evaluation.config.splits[-1], *self.corners
        columns, rows = self.grid

        def measure() -> dict[str, Tensor]:
            evaluator, labels, losses = evaluation.evaluator([split]), evaluation.labels(split), []
            star, first, second = evaluation.models.star, *(pool.to_star[name] for name in self.names)
            for x in columns:
                second_share = rows[index] / across
                first_share = (x - second_share * along) / width
                state = {
                    key: value + first_share * (first[key] - value) + second_share * (second[key] - value)
                    if value.is_floating_point()
                    else value
                    for key, value in star.items()
                }
                losses.append(negative_log_likelihood(evaluator.log_probabilities(state)[split], labels))
            return {"loss": torch.tensor(losses, dtype=torch.float64)}

        key = {
            "plane": [pool.hashes[name] for name in ("star", *self.names)],
            "row": rows[index],
            "columns": columns,
            "alignment": pool.star_alignment_key(self.names),
            "split": split,
        }
        losses: list[float] = evaluation.get_or_compute(key, measure)["loss"].tolist()
        return losses

    def _from_star(self, name: str) -> Tensor:
        star, model = self.evaluation.models.star, self.evaluation.pool.to_star[name]
        parameters = [key for key, _ in self.evaluation.network.named_parameters()]
        return torch.cat([(model[key] - star[key]).double().flatten() for key in parameters])
