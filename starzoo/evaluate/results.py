"""The results of an evaluation as plain values.

This file imports neither torch nor numpy, so that a card can be rendered anywhere.
"""

from __future__ import annotations

import math
import operator
import random
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import Field, computed_field, model_validator

from starzoo.config import Baseline, DataConfig, Finite, FrozenModel, Name, Number, Share, Uniform
from starzoo.errors import UsageError

__all__ = [
    "KIND_LABELS",
    "ROLE_LABELS",
    "Bf16Error",
    "CorruptionScores",
    "DomainSampling",
    "EnsembleSize",
    "Evaluation",
    "LossPlane",
    "Measure",
    "OodDetection",
    "OodScores",
    "PathCurve",
    "PathKind",
    "PredictionScores",
    "Role",
    "Scores",
    "SourceContribution",
    "Split",
    "Summary",
    "TemperatureScaled",
]

PathKind = Literal[
    "star-source", "star-heldout", "star-star", "baseline-heldout", "source-source", "source-source-unaligned"
]
Role = Literal[
    "source",
    "held-out",
    "naive-mean",
    "aligned-mean",
    "star",
    "domain",
    "domain-whole-lines",
    Baseline,
    "sub-ensemble",
    "ensemble",
]
KIND_LABELS: Mapping[PathKind, str] = {
    "star-source": "star to source",
    "star-heldout": "star to held-out",
    "star-star": "star to another star",
    "baseline-heldout": "baseline to held-out",
    "source-source": "source to source, aligned",
    "source-source-unaligned": "source to source, not aligned",
}
ROLE_LABELS: Mapping[Role, str] = {
    "source": "source",
    "held-out": "held-out",
    "naive-mean": "mean of the sources, not aligned",
    "aligned-mean": "aligned mean of the sources",
    "star": "star",
    "domain": "star domain",
    "domain-whole-lines": "star domain, whole lines",
    "continued": "source trained further",
    "self-distilled": "source trained further on its own predictions",
    "swa": "SWA of a source",
    "ema": "EMA of a source",
    "student-random": "student of all sources, from random weights",
    "student-source": "student of all sources, from a source",
    "student-mean": "student of all sources, from their aligned mean",
    "trained-mean": "aligned mean, trained further",
    "source-tta": "source, augmented images",
    "star-tta": "star, augmented images",
    "greedy-soup": "greedy soup of the aligned sources",
    "sub-ensemble": "ensemble",
    "ensemble": "ensemble",
}
Split = Literal["train", "test"]
Measure = Literal["barrier", "tempered_barrier", "accuracy_barrier", "highest_loss", "worst_accuracy", "excess"]
_RESAMPLES = 1000

NearShare = Annotated[float, Field(ge=-1e-3, le=1.001)]  # rounded
Passes = Annotated[int, Field(ge=1, le=1_000_000)]
_Points, _Side = Field(max_length=1001), Field(max_length=201)
_MAX_OF_ROLE = 50  # predictors of a role other than source and held-out


class PathCurve(FrozenModel):
    """Loss and accuracy along the straight line between two models.

    Attributes:
        kind: The kinds of models at the ends, and whether they are aligned.
        a: Name of the model at t = 0.
        b: Name of the model at t = 1.
        split: The data.
        t: The points, from 0 to 1.
        loss: Mean cross-entropy at each point, in nats.
        accuracy: Share of right answers at each point.
        tempered_loss: The loss at each point with a temperature fitted for it on validation images; empty without
            them. It makes ends comparable whose logits differ in scale.
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
        """Leave computed fields out when a dumped path is read back."""
        if isinstance(value, dict):
            return {key: field for key, field in value.items() if key not in cls.model_computed_fields}
        return value

    @model_validator(mode="after")
    def _check_lengths(self) -> PathCurve:
        """Refuse curves that no measurement gives: star.json may come from a stranger."""
        lengths = {len(self.t), len(self.loss), len(self.accuracy), len(self.tempered_loss) or len(self.t)}
        if len(lengths) > 1 or len(self.t) < 2:
            raise ValueError("a path needs two points or more, and a loss and an accuracy at each of them")
        return self

    @computed_field  # type: ignore[prop-decorator]
    @property
    def barrier(self) -> float:
        """The paper's loss barrier: max(0, max over t of L(t) − [(1 − t)·L(0) + t·L(1)])."""
        return _barrier(self.t, self.loss)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def tempered_barrier(self) -> float | None:
        """The barrier of `tempered_loss`; None without one."""
        return _barrier(self.t, self.tempered_loss) if self.tempered_loss else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def accuracy_barrier(self) -> float:
        """How far the accuracy falls under the straight line between the ends, as a share."""
        return _barrier(self.t, [-accuracy for accuracy in self.accuracy])

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
        """The rise above the worse end: max over t of L(t) − max(L(0), L(1)), in nats."""
        return max(self.loss) - max(self.loss[0], self.loss[-1])


class Scores(FrozenModel):
    """Scores of predicted probabilities; an old star has only the first two.

    Attributes:
        nll: Mean negative log-likelihood of the labels, in nats.
        ece: Expected calibration error over 15 bins of equal width, as a share.
        brier: Brier score, from 0 to 2.
        auroc: AUROC of misclassification detection by confidence; None where all answers are right, or all wrong.
        aurc: Area under the risk-coverage curve, by confidence; less is better.
        accuracy_80: Accuracy on the 80 % of images of the greatest confidence.
        accuracy_90: The same for 90 %.
    """

    nll: Finite
    ece: NearShare
    brier: Annotated[float, Field(ge=-1e-3, le=2.001)] | None = None
    auroc: NearShare | None = None
    aurc: NearShare | None = None
    accuracy_80: NearShare | None = None
    accuracy_90: NearShare | None = None


class TemperatureScaled(Scores):
    """Scores after temperature scaling; the temperature is fitted on validation images."""

    temperature: Annotated[float, Field(gt=0, le=1e6)]


class OodDetection(FrozenModel):
    """How well an uncertainty tells out-of-distribution images from the task's (`starzoo.metrics.ood_detection`).

    Attributes:
        auroc: The area under the ROC curve; 0.5 is chance.
        fpr95: The share of them that pass for the task's where 95 % of these pass; 0.95 is chance.
    """

    auroc: NearShare
    fpr95: NearShare


class OodScores(FrozenModel):
    """The detection of the images of one out-of-distribution data set, by three uncertainties.

    Attributes:
        confidence: By the greatest probability.
        entropy: By the entropy of the prediction.
        mutual_information: By the mutual information of the averaged predictions; None for a single one.
    """

    confidence: OodDetection
    entropy: OodDetection
    mutual_information: OodDetection | None = None


class CorruptionScores(FrozenModel):
    """Scores on corrupted images, without temperature scaling.

    Attributes:
        accuracy: Share of right answers at each severity, the mean over corruptions.
        nll: Negative log-likelihood at each severity, in nats, the mean over corruptions.
        worst: The corruption of the least accuracy over all severities.
        worst_accuracy: The accuracy on it.
    """

    accuracy: tuple[Share, Share, Share, Share, Share]
    nll: tuple[Finite, Finite, Finite, Finite, Finite]
    worst: Name
    worst_accuracy: Share


class PredictionScores(Scores):
    """Scores of one predictor: a model, an ensemble or an average over the star domain.

    Attributes:
        name: Its name.
        role: What it is; a `sub-ensemble` has fewer than all sources.
        split: The data.
        accuracy: Share of right answers.
        passes: Forward passes per image.
        bytes: Size of all weights that a prediction takes.
        ood: The detection of out-of-distribution images, one for each data set of `evaluate.ood`.
        corrupted: Scores on corrupted test images; None where these were not measured.
        cost: Cost of a baseline's training, the choice of its settings included, in fits of the star; None for others.
        tempered: The scores after temperature scaling; None without validation images.
        dee: Deep-ensemble equivalent: the size of the ensemble of sources with the same negative log-likelihood, after
            temperature scaling where there are validation images. Below 1 it is worse than one source; at the number of
            sources it is as good as the ensemble of all of them, or better.
        dee_interval: Its 95 % interval, from a bootstrap over images.
    """

    name: Name
    role: Role
    split: Split
    accuracy: Share
    passes: Passes = 1
    bytes: Number | None = None
    ood: Annotated[tuple[OodScores, ...], Field(max_length=20)] = ()
    corrupted: CorruptionScores | None = None
    cost: Finite | None = None
    tempered: TemperatureScaled | None = None
    dee: Finite | None = None
    dee_interval: tuple[Finite, Finite] | None = None


class EnsembleSize(FrozenModel):
    """The ensembles of some number of sources.

    Attributes:
        split: The data.
        size: Number of sources.
        subsets: Number of ensembles that were measured, each source being in as many as any other.
        nll: Mean negative log-likelihood over the ensembles, in nats, after temperature scaling as for `dee`.
        nll_std: Its standard deviation over them.
        accuracy: Mean share of right answers.
        accuracy_std: Its standard deviation.
    """

    split: Split
    size: Passes
    subsets: Passes
    nll: Finite
    nll_std: Finite
    accuracy: Share
    accuracy_std: Finite


class SourceContribution(FrozenModel):
    """What a source adds to the ensemble of all others.

    Attributes:
        name: The source.
        split: The data.
        nll: How far the negative log-likelihood is lower with it, in nats, after temperature scaling as for `dee`.
        accuracy: How far the accuracy is higher with it, as a share.
    """

    name: Name
    split: Split
    nll: Finite
    accuracy: Annotated[float, Field(ge=-1, le=1)]


class DomainSampling(FrozenModel):
    """Which points of the star domain are averaged.

    Attributes:
        t: Their range on the lines from the star (0) to the sources (1).
        samples: Number of points.
        nll: Their negative log-likelihood on the validation images that chose them; None without such images.
    """

    t: Uniform
    samples: Passes
    nll: Finite | None = None


class LossPlane(FrozenModel):
    """The loss in the plane through a star, a source and a held-out, both aligned.

    Attributes:
        names: The three models.
        corners: Their coordinates, in units of the Euclidean distance between weights; the star at (0, 0).
        split: The data.
        x: The x coordinates of the grid.
        y: Its y coordinates.
        loss: Mean cross-entropy in nats, one row for every y.
    """

    names: tuple[Name, Name, Name]
    corners: tuple[tuple[Finite, Finite], tuple[Finite, Finite], tuple[Finite, Finite]]
    split: Split
    x: Annotated[tuple[Finite, ...], _Side]
    y: Annotated[tuple[Finite, ...], _Side]
    loss: Annotated[tuple[Annotated[tuple[Finite, ...], _Side], ...], _Side]

    @model_validator(mode="after")
    def _check_grid(self) -> LossPlane:
        if len(self.loss) != len(self.y) or any(len(row) != len(self.x) for row in self.loss):
            raise ValueError("a plane needs a loss at every point of its grid")
        return self


class Bf16Error(FrozenModel):
    """Absolute differences of the star's scores in bfloat16 from those in float32, the greatest of all splits.

    Attributes:
        nll: That of the negative log-likelihood, in nats.
        accuracy: That of the accuracy, as a share.
    """

    nll: Finite
    accuracy: Annotated[float, Field(ge=-1, le=1)]


class Summary(FrozenModel):
    """Mean and scatter over models or paths.

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
        """Summarize values."""
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
    """All measurements of one star.

    Attributes:
        paths: All paths.
        qualities: Scores of sources, held-outs, means of weights, the star, its domain, ensembles and baselines.
        images: Number of images, by split.
        validation_images: Number of images on which temperatures and the points of the domain were chosen.
        domain: Which points of the star domain were averaged.
        ood_images: Number of out-of-distribution images, one for each data set.
        planes: The loss around the star.
        data: The images, where they are not those that the star was fitted on.
        repaired: Whether the points between the ends of every path have the channel statistics of the ends (REPAIR);
            such a path is no straight line.
        rounding: The error of forward passes in bfloat16; None where they were in float32.
        ensembles: Ensembles of 1, 2, 3 … sources.
        contributions: What each source adds to the ensemble of the others.
    """

    paths: Annotated[tuple[PathCurve, ...], Field(max_length=10_000)]
    qualities: Annotated[tuple[PredictionScores, ...], Field(max_length=10_000)]
    images: dict[Split, Number] = {}
    validation_images: Number = 0
    domain: DomainSampling | None = None
    ood_images: Annotated[tuple[Number, ...], Field(max_length=20)] = ()
    planes: Annotated[tuple[LossPlane, ...], Field(max_length=2)] = ()
    data: DataConfig | None = None
    repaired: bool = False
    rounding: Bf16Error | None = None
    ensembles: Annotated[tuple[EnsembleSize, ...], Field(max_length=1000)] = ()
    contributions: Annotated[tuple[SourceContribution, ...], Field(max_length=1000)] = ()

    @model_validator(mode="after")
    def _check_counts(self) -> Evaluation:
        for role, count in Counter(quality.role for quality in self.qualities).items():
            if count > _MAX_OF_ROLE and role not in {"source", "held-out"}:
                raise ValueError(f"{count} rows have the role {role!r}, which at most {_MAX_OF_ROLE} may have")
        if any(len(row.ood) != len(self.ood_images) for row in self.qualities):
            raise ValueError("expected scores of each data set of out-of-distribution images in every row")
        return self

    @property
    def splits(self) -> tuple[Split, ...]:
        """The measured splits, in order of appearance."""
        return tuple(dict.fromkeys([*(row.split for row in self.qualities), *(path.split for path in self.paths)]))

    @property
    def kinds(self) -> tuple[PathKind, ...]:
        """The measured kinds of paths, in order of appearance."""
        return tuple(dict.fromkeys(path.kind for path in self.paths))

    def paths_of(self, kind: PathKind, split: Split = "test") -> tuple[PathCurve, ...]:
        """The paths of one kind on one split."""
        return tuple(path for path in self.paths if path.kind == kind and path.split == split)

    def qualities_of(self, role: Role, split: Split = "test") -> tuple[PredictionScores, ...]:
        """The scores of one role on one split."""
        return tuple(quality for quality in self.qualities if quality.role == role and quality.split == split)

    def summarize(self, kind: PathKind, measure: Measure = "barrier", split: Split = "test") -> Summary:
        """Summarize one measure over all paths of one kind.

        Args:
            kind: The kind of path.
            measure: A measure of `PathCurve`.
            split: The data.

        Returns:
            Mean, standard deviation and worst value over the paths.
        """
        values = [getattr(path, measure) for path in self.paths_of(kind, split)]
        return Summary.of(values, more_is_better=measure == "worst_accuracy")

    def interval(
        self, kind: PathKind, measure: Measure = "barrier", split: Split = "test"
    ) -> tuple[float, float] | None:
        """Bootstrap the 95 % interval of a measure's mean over paths.

        Models are drawn with replacement, not paths, since paths that share an end are not independent. A path has the
        product of the counts of its ends as weight, but for an end that all paths share, such as the star.

        Args:
            kind: The kind of path.
            measure: The measure.
            split: The data.

        Returns:
            The 2.5th and the 97.5th percentile over 1,000 draws; None for fewer than three models.
        """
        paths = self.paths_of(kind, split)
        values = tuple(getattr(path, measure) for path in paths)
        shared = set.intersection(*({path.a, path.b} for path in paths)) if len(paths) > 1 else set[str]()
        return _bootstrap(tuple(tuple(sorted({path.a, path.b} - shared)) for path in paths), values)


@lru_cache(maxsize=64)  # a card needs the same interval several times
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
    """The greatest rise of a curve above the straight line between its ends; 0 where it nowhere rises."""
    line = [(1 - position) * loss[0] + position * loss[-1] for position in t]
    return max(0.0, *(value - chord for value, chord in zip(loss, line, strict=True)))
