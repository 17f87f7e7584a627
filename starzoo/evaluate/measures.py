"""What an evaluation says, as plain values: paths with their four measures, and the quality of predictions.

This file imports neither torch nor numpy, so that a card can be rendered anywhere.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

from pydantic import computed_field, model_validator

from starzoo.config import DataConfig, Frozen
from starzoo.errors import UsageError

__all__ = ["Evaluation", "Path", "PathKind", "Quality", "Role", "Spread"]

PathKind = Literal["star-source", "star-held-out", "regular-regular", "regular-regular-raw"]
Role = Literal["member", "held-out", "aligned-mean", "star", "ensemble"]
Split = Literal["train", "test"]


class Path(Frozen):
    """The loss and accuracy along the straight line between two models.

    Attributes:
        kind: Which kinds of models lie at the ends; the raw kind is not aligned.
        a: Name of the model at t = 0.
        b: Name of the model at t = 1.
        split: The data on which the path was measured.
        t: The points, from 0 to 1.
        loss: Mean cross-entropy at each point, in nats.
        accuracy: Share of right answers at each point.
    """

    kind: PathKind
    a: str
    b: str
    split: Split
    t: tuple[float, ...]
    loss: tuple[float, ...]
    accuracy: tuple[float, ...]

    @model_validator(mode="before")
    @classmethod
    def _drop_computed(cls, value: object) -> object:
        """Let a dumped path be read back: what is computed is computed again."""
        if isinstance(value, dict):
            return {key: entry for key, entry in value.items() if key not in cls.model_computed_fields}
        return value

    @model_validator(mode="after")
    def _check_lengths(self) -> Path:
        """A path that a stranger wrote must be one that can be measured."""
        if not 2 <= len(self.t) == len(self.loss) == len(self.accuracy):
            raise ValueError("a path needs two points or more, and a loss and an accuracy at each of them")
        return self

    @computed_field  # type: ignore[prop-decorator]
    @property
    def barrier(self) -> float:
        """The loss barrier as the paper defines it: max(0, max over t of L(t) − [(1 − t)·L(0) + t·L(1)])."""
        return max(0.0, *(at - line for at, line in zip(self.loss, _chord(self.t, self.loss), strict=True)))

    @computed_field  # type: ignore[prop-decorator]
    @property
    def accuracy_barrier(self) -> float:
        """The same with accuracy: how far it falls under the straight line between the ends, as a share."""
        return max(0.0, *(line - at for at, line in zip(self.accuracy, _chord(self.t, self.accuracy), strict=True)))

    @computed_field  # type: ignore[prop-decorator]
    @property
    def highest_loss(self) -> float:
        """The greatest loss on the path, in nats."""
        return max(self.loss)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def worst_accuracy(self) -> float:
        """The least accuracy on the path, as a share."""
        return min(self.accuracy)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def excess(self) -> float:
        """How far the path rises above its worse end: max over t of L(t) − max(L(0), L(1)), in nats."""
        return max(self.loss) - max(self.loss[0], self.loss[-1])


class Quality(Frozen):
    """How well one model, or a set of models that vote, predicts.

    Attributes:
        name: The model's name.
        role: What it is.
        split: The data on which it was measured.
        accuracy: Share of right answers.
        nll: Mean negative log-likelihood of the labels, in nats.
        ece: Expected calibration error over 15 bins of equal width, as a share.
        passes: Forward passes per image.
    """

    name: str
    role: Role
    split: Split
    accuracy: float
    nll: float
    ece: float
    passes: int = 1


class Spread(Frozen):
    """A mean over models or paths, and how far they scatter.

    Attributes:
        mean: The mean.
        std: The sample standard deviation; 0 for a single value.
        worst: The greatest value, or the least where more is better.
        count: Number of values.
    """

    mean: float
    std: float
    worst: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float], *, more_is_better: bool = False) -> Spread:
        """Summarise some values.

        Args:
            values: At least one value.
            more_is_better: Whether the worst value is the least.

        Returns:
            Their spread.

        Raises:
            UsageError: There is no value.
        """
        if not values:
            raise UsageError("nothing to summarise: no such path or model was evaluated", hint="see evaluate.pairs")
        return cls(
            mean=statistics.fmean(values),
            std=statistics.stdev(values) if len(values) > 1 else 0.0,
            worst=min(values) if more_is_better else max(values),
            count=len(values),
        )


class Evaluation(Frozen):
    """Everything that was measured on one star.

    Attributes:
        paths: All paths.
        qualities: Predictive quality of members, held-outs, their mean, the star and the ensemble.
        images: Number of images that were evaluated, by split.
        data: The images that it was measured on, where they are not those that the star was fitted on.
        repaired: Whether the points between the ends of every path have the channel statistics of the ends (REPAIR);
            such a path is no straight line.
    """

    paths: tuple[Path, ...]
    qualities: tuple[Quality, ...]
    images: dict[Split, int] = {}
    data: DataConfig | None = None
    repaired: bool = False

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits on which anything was measured, in order of appearance."""
        return tuple(dict.fromkeys([*(q.split for q in self.qualities), *(p.split for p in self.paths)]))

    @property
    def kinds(self) -> tuple[PathKind, ...]:
        """The kinds of paths that were measured, in order of appearance."""
        return tuple(dict.fromkeys(path.kind for path in self.paths))

    def paths_of(self, kind: PathKind, split: Split = "test") -> tuple[Path, ...]:
        """The paths of one kind on one split."""
        return tuple(path for path in self.paths if path.kind == kind and path.split == split)

    def qualities_of(self, role: Role, split: Split = "test") -> tuple[Quality, ...]:
        """The qualities of one role on one split."""
        return tuple(quality for quality in self.qualities if quality.role == role and quality.split == split)

    def spread(
        self,
        kind: PathKind,
        measure: Literal["barrier", "accuracy_barrier", "highest_loss", "worst_accuracy", "excess"] = "barrier",
        split: Split = "test",
    ) -> Spread:
        """One measure of all paths of one kind.

        Args:
            kind: The kind of path.
            measure: One of the four measures, or the barrier in accuracy.
            split: The data.

        Returns:
            Mean, standard deviation and worst value over the paths.
        """
        values = [getattr(path, measure) for path in self.paths_of(kind, split)]
        return Spread.of(values, more_is_better=measure == "worst_accuracy")


def _chord(t: Sequence[float], values: Sequence[float]) -> list[float]:
    """The straight line between a path's ends, at each of its points."""
    return [(1 - at) * values[0] + at * values[-1] for at in t]
