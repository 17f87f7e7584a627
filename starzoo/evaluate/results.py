"""The results of an evaluation as plain values.

This file imports neither torch nor numpy, so that a card can be rendered anywhere.
"""

from __future__ import annotations

import math
import operator
import random
import statistics
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import Field, computed_field, model_validator

from starzoo.config import DataConfig, Finite, FrozenModel, Name, Number, Share, Uniform
from starzoo.errors import UsageError

__all__ = [
    "Bf16Error",
    "DomainSampling",
    "Evaluation",
    "Path",
    "PathKind",
    "Plane",
    "PredictionScores",
    "Role",
    "Scores",
    "Summary",
    "TemperatureScaled",
]

PathKind = Literal["star-source", "star-heldout", "star-star", "source-source", "source-source-unaligned"]
Role = Literal[
    "source",
    "held-out",
    "naive-mean",
    "aligned-mean",
    "star",
    "domain",
    "domain-whole-lines",
    "swa",
    "student",
    "sub-ensemble",
    "ensemble",
]
Split = Literal["train", "test"]
Measure = Literal["barrier", "tempered_barrier", "accuracy_barrier", "highest_loss", "worst_accuracy", "excess"]
_RESAMPLES = 1000

NearShare = Annotated[float, Field(ge=-1e-3, le=1.001)]  # rounded
Passes = Annotated[int, Field(ge=1, le=1_000_000)]
_Points, _Side = Field(max_length=1001), Field(max_length=201)
_AT_MOST = 50  # of one role, where there is not one for every model


class Path(FrozenModel):
    """The loss and accuracy along the straight line between two models.

    Attributes:
        kind: Which kinds of models lie at the ends; the raw kind is not aligned.
        a: Name of the model at t = 0.
        b: Name of the model at t = 1.
        split: The data on which the path was measured.
        t: The points, from 0 to 1.
        loss: Mean cross-entropy at each point, in nats.
        accuracy: Share of right answers at each point.
        tempered_loss: Mean cross-entropy at each point, in nats, with the temperature that suits it best on validation
            images; empty where there were none. Ends whose logits have different scales are compared fairly so.
    """

    kind: PathKind
    a: Name
    b: Name
    split: Split
    t: Annotated[tuple[Share, ...], _Points]
    loss: Annotated[tuple[Finite, ...], _Points]
    accuracy: Annotated[tuple[Share, ...], _Points]
    tempered_loss: Annotated[tuple[Finite, ...], _Points] = ()

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
        lengths = {len(self.t), len(self.loss), len(self.accuracy), len(self.tempered_loss) or len(self.t)}
        if len(lengths) > 1 or len(self.t) < 2:
            raise ValueError("a path needs two points or more, and a loss and an accuracy at each of them")
        return self

    @computed_field  # type: ignore[prop-decorator]
    @property
    def barrier(self) -> float:
        """The loss barrier as the paper defines it: max(0, max over t of L(t) − [(1 − t)·L(0) + t·L(1)])."""
        return _barrier(self.t, self.loss)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def tempered_barrier(self) -> float | None:
        """The barrier of `tempered_loss`; None where there is none."""
        return _barrier(self.t, self.tempered_loss) if self.tempered_loss else None

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


class Scores(FrozenModel):
    """What predicted probabilities are worth. Of an old star, only the first two were measured.

    Attributes:
        nll: Mean negative log-likelihood of the labels, in nats.
        ece: Expected calibration error over 15 bins of equal width, as a share.
        brier: Brier score, from 0 to 2.
        auroc: How well confidence tells right answers from wrong ones; None where there is only one kind.
        ood_auroc: How well confidence tells the images of another data set from those of the task.
        ood_auroc_entropy: The same by the entropy of the prediction.
    """

    nll: Finite
    ece: NearShare
    brier: Annotated[float, Field(ge=-1e-3, le=2.001)] | None = None
    auroc: NearShare | None = None
    ood_auroc: NearShare | None = None
    ood_auroc_entropy: NearShare | None = None


class TemperatureScaled(Scores):
    """The scores after temperature scaling.

    Attributes:
        temperature: The temperature, fitted on validation images.
    """

    temperature: Annotated[float, Field(gt=0, le=1e6)]


class PredictionScores(Scores):
    """How well one model, or a set of models that vote, predicts.

    Attributes:
        name: The model's name.
        role: What it is; a `sub-ensemble` has fewer than all sources.
        split: The data on which it was measured.
        accuracy: Share of right answers.
        passes: Forward passes per image.
        bytes: Size of all weights that a prediction takes.
        steps: Training steps of a baseline that was trained only to be measured; None of all others.
        tempered: The scores after temperature scaling; None where there were no validation images.
    """

    name: Name
    role: Role
    split: Split
    accuracy: Share
    passes: Passes = 1
    bytes: Number | None = None
    steps: Number | None = None
    tempered: TemperatureScaled | None = None


class DomainSampling(FrozenModel):
    """Which points of the star domain are averaged.

    Attributes:
        t: Where on the lines from the star (0) to the sources (1) they lie.
        samples: How many there are.
        nll: Their negative log-likelihood on the validation images, which chose them; None where there were none.
    """

    t: Uniform
    samples: Passes
    nll: Finite | None = None


class Plane(FrozenModel):
    """The loss in the plane through a star, a source and a held-out, both aligned.

    Attributes:
        names: The three models.
        corners: Where they lie, in units of the Euclidean distance between weights; the star at (0, 0).
        split: The data.
        x: The first coordinates of the grid.
        y: The second ones.
        loss: Mean cross-entropy in nats, one row for every y.
    """

    names: tuple[Name, Name, Name]
    corners: tuple[tuple[Finite, Finite], tuple[Finite, Finite], tuple[Finite, Finite]]
    split: Split
    x: Annotated[tuple[Finite, ...], _Side]
    y: Annotated[tuple[Finite, ...], _Side]
    loss: Annotated[tuple[Annotated[tuple[Finite, ...], _Side], ...], _Side]

    @model_validator(mode="after")
    def _check_grid(self) -> Plane:
        if len(self.loss) != len(self.y) or any(len(row) != len(self.x) for row in self.loss):
            raise ValueError("a plane needs a loss at every point of its grid")
        return self


class Bf16Error(FrozenModel):
    """What forward passes in bfloat16 change: the star's scores against those in float32, on the same images.

    Attributes:
        nll: The difference of the negative log-likelihood, in nats; the greatest of all splits.
        accuracy: That of the accuracy, as a share.
    """

    nll: Finite
    accuracy: Annotated[float, Field(ge=-1, le=1)]


class Summary(FrozenModel):
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
    def of(cls, values: Sequence[float], *, more_is_better: bool = False) -> Summary:
        """Summarize some values."""
        if not values:
            raise UsageError(
                "", "nothing to summarize: no such path or model was evaluated", hint="see evaluate.source_pairs"
            )
        return cls(
            mean=statistics.fmean(values),
            std=statistics.stdev(values) if len(values) > 1 else 0.0,
            worst=min(values) if more_is_better else max(values),
            count=len(values),
        )


class Evaluation(FrozenModel):
    """Everything that was measured on one star.

    Attributes:
        paths: All paths.
        qualities: Predictive quality of members, held-outs, means of weights, the star, its domain and ensembles.
        images: Number of images that were evaluated, by split.
        validation_images: Number of images that temperatures and the domain's points were chosen by.
        domain: Which points of the star domain were averaged.
        ood_images: Number of images of another data set, for the AUROC of OOD detection.
        planes: The loss around the star.
        data: The images that it was measured on, where they are not those that the star was fitted on.
        repaired: Whether the points between the ends of every path have the channel statistics of the ends (REPAIR);
            such a path is no straight line.
        rounding: What forward passes in bfloat16 change; None where they were in float32.
    """

    paths: Annotated[tuple[Path, ...], Field(max_length=10_000)]
    qualities: Annotated[tuple[PredictionScores, ...], Field(max_length=10_000)]
    images: dict[Split, Number] = {}
    validation_images: Number = 0
    domain: DomainSampling | None = None
    ood_images: Number = 0
    planes: Annotated[tuple[Plane, ...], Field(max_length=2)] = ()
    data: DataConfig | None = None
    repaired: bool = False
    rounding: Bf16Error | None = None

    @model_validator(mode="after")
    def _check_counts(self) -> Evaluation:
        for role, count in Counter(quality.role for quality in self.qualities).items():
            if count > _AT_MOST and role not in {"source", "held-out"}:
                raise ValueError(f"{count} rows have the role {role!r}, which at most {_AT_MOST} may have")
        return self

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

    def qualities_of(self, role: Role, split: Split = "test") -> tuple[PredictionScores, ...]:
        """The qualities of one role on one split."""
        return tuple(quality for quality in self.qualities if quality.role == role and quality.split == split)

    def spread(
        self,
        kind: PathKind,
        measure: Measure = "barrier",
        split: Split = "test",
    ) -> Summary:
        """One measure of all paths of one kind.

        Args:
            kind: The kind of path.
            measure: One of the four measures, or the barrier in accuracy.
            split: The data.

        Returns:
            Mean, standard deviation and worst value over the paths.
        """
        values = [getattr(path, measure) for path in self.paths_of(kind, split)]
        return Summary.of(values, more_is_better=measure == "worst_accuracy")

    def interval(
        self, kind: PathKind, measure: Measure = "barrier", split: Split = "test"
    ) -> tuple[float, float] | None:
        """The 95 % bootstrap interval of a measure's mean over paths.

        Models are drawn with replacement, not paths: paths that share an end are no independent ones. A path counts as
        often as both of its ends were drawn, an end that all paths have in common, as the star, as often as the other.

        Args:
            kind: The kind of path.
            measure: The measure.
            split: The data.

        Returns:
            The 2.5th and the 97.5th percentile over 1,000 draws; None where there are fewer than three models to draw.
        """
        paths = self.paths_of(kind, split)
        values = tuple(getattr(path, measure) for path in paths)
        shared = set.intersection(*({path.a, path.b} for path in paths)) if len(paths) > 1 else set[str]()
        return _bootstrap(tuple(tuple(sorted({path.a, path.b} - shared)) for path in paths), values)


@lru_cache(maxsize=64)  # a card shows an interval in several places
def _bootstrap(ends: Sequence[Sequence[str]], values: Sequence[float]) -> tuple[float, float] | None:
    models = sorted({name for pair in ends for name in pair})
    if len(models) < 3:
        return None
    rng, means = random.Random(0), list[float]()
    while len(means) < _RESAMPLES:
        drawn = Counter(rng.choices(models, k=len(models)))
        weights = [math.prod(drawn[name] for name in pair) for pair in ends]
        if total := sum(weights):
            means.append(sum(map(operator.mul, weights, values)) / total)
    means.sort()
    return means[round(0.025 * (_RESAMPLES - 1))], means[round(0.975 * (_RESAMPLES - 1))]


def _barrier(t: Sequence[float], loss: Sequence[float]) -> float:
    """How far a curve rises above the straight line between its ends: 0 where it nowhere does."""
    return max(0.0, *(at - line for at, line in zip(loss, _chord(t, loss), strict=True)))


def _chord(t: Sequence[float], values: Sequence[float]) -> list[float]:
    """The straight line between a path's ends, at each of its points."""
    return [(1 - at) * values[0] + at * values[-1] for at in t]
