"""The items of an evaluation: predictions, paths, averages over the star domain and planes, each measured once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from starzoo.align.align import Aligner, average
from starzoo.align.probe import Probe
from starzoo.architecture import Architecture
from starzoo.config import AlignConfig, EvalConfig, Uniform
from starzoo.errors import NumericalError
from starzoo.evaluate.barrier import Evaluator
from starzoo.evaluate.baselines import draw_points, predict_with_points
from starzoo.evaluate.cache import ResultCache, hash_tensors
from starzoo.evaluate.measures import DomainChoice, PathKind
from starzoo.evaluate.predictive import negative_log_likelihood
from starzoo.symmetry.spec import PermutationSpec

if TYPE_CHECKING:
    from starzoo.data import ImageData, Split

__all__ = ["OUTSIDE", "VALIDATION", "Line", "Measurement", "Zoo", "naming", "points"]

StateDict = Mapping[str, Tensor]
SplitName = Literal["train", "test"]
VALIDATION, OUTSIDE = "validation", "outside"  # beside the splits "train" and "test"
_MARGIN = 0.25  # of a plane around its triangle, as a share of its width


@dataclass(frozen=True, kw_only=True)
class Zoo:
    """The models of an evaluation, by name; batch-norm statistics are estimated anew for all of them.

    Attributes:
        star: The star's state dict.
        sources: The models that the star was fitted on.
        holdouts: The models that it never saw.
        others: Other stars of the same task.
    """

    star: StateDict
    sources: Mapping[str, StateDict]
    holdouts: Mapping[str, StateDict]
    others: Mapping[str, StateDict] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """One path to measure: a function of two models, aligned or not."""

    kind: PathKind
    a: str
    b: str


class Measurement:
    """Everything that is measured on one zoo, item by item, each from the cache if it is there.

    Args:
        architecture: What all models have in common.
        spec: Its symmetries.
        zoo: The models.
        data: The task's images.
        config: What is measured, and on how much data.
        align_config: How models are aligned before a path is drawn.
        outside: Images of another data set.
        cache: Where results are kept; None to measure everything.
    """

    def __init__(
        self,
        architecture: Architecture,
        spec: PermutationSpec,
        zoo: Zoo,
        data: ImageData,
        config: EvalConfig,
        align_config: AlignConfig,
        *,
        outside: Split | None = None,
        cache: ResultCache | None = None,
    ) -> None:
        self.architecture, self.spec, self.zoo, self.data, self.config = architecture, spec, zoo, data, config
        self.align = align_config.to_one
        self.cache = cache or ResultCache(None)
        self.models = {**zoo.sources, **zoo.holdouts, **zoo.others, "star": zoo.star}
        self.splits: dict[str, Split] = {split: getattr(data, split) for split in config.splits}
        self.limits: dict[str, int] = {}
        if data.validation:
            self.splits[VALIDATION], self.limits[VALIDATION] = data.validation, config.validation_images
        if outside:
            self.splits[OUTSIDE], self.limits[OUTSIDE] = outside, len(data.test)

    @property
    def names(self) -> list[str]:
        """The models that predict by themselves, averages of weights among them."""
        return [*self.models, "naive mean", "aligned mean"]

    def labels(self, split: str) -> Tensor:
        """The labels of the images of one split that are looked at, shape (images,)."""
        return self.splits[split].labels[self._rows(split)]

    def predict(self, name: str) -> dict[str, Tensor]:
        """What one of `names` predicts: for every split log-probabilities of shape (images, classes)."""
        return self._predict({"model": self._identity(name)}, name)

    def path(self, line: Line) -> dict[SplitName, tuple[tuple[float, ...], tuple[float, ...]]]:
        """The losses and the accuracies between the ends of a path, for each of the configuration's splits."""
        how = None if line.kind == "regular-regular-raw" else self._alignment(line)
        key = {"path": [self._hashes[line.a], self._hashes[line.b]], "alignment": how, "repair": self.config.repair}
        t = points(self.config)[1:-1]

        def measure() -> dict[str, Tensor]:
            evaluator = self._evaluator(self.config.splits)
            with naming(f"the path from {line.a} to {line.b}"):
                curve = evaluator.curve(self.models[line.a], self._end(line), t)
            values = {f"loss {split}": curve.loss[split] for split in self.config.splits}
            values |= {f"accuracy {split}": curve.accuracy[split] for split in self.config.splits}
            return {name: torch.tensor(each, dtype=torch.float64) for name, each in values.items()}

        found = self._remember({**key, "t": t, "splits": self.config.splits}, measure)
        return {
            split: (tuple(found[f"loss {split}"].tolist()), tuple(found[f"accuracy {split}"].tolist()))
            for split in self.config.splits
        }

    def tune(self, t: Uniform) -> list[float]:
        """The loss of the average of 1, 2, 3 … points of the star domain on the validation images."""

        def measure() -> dict[str, Tensor]:
            predict, labels = self._evaluator([VALIDATION]).log_probabilities, self.labels(VALIDATION)
            drawn = draw_points(list(self.zoo.sources), self.config.samples, self.config.seed, t)
            means = predict_with_points(self.zoo.star, self.aligned, drawn, predict)
            losses = [negative_log_likelihood(mean[VALIDATION], labels) for mean in means]
            return {"loss": torch.tensor(losses, dtype=torch.float64)}

        key = {"tune": self._domain_identity(t, self.config.samples), "images": self._digests[VALIDATION]}
        losses: list[float] = self._remember(key, measure)["loss"].tolist()
        return losses

    def domain(self, choice: DomainChoice) -> dict[str, Tensor]:
        """What the average of points of the star domain predicts, as `predict`."""
        return self._predict({"domain": self._domain_identity(choice.t, choice.samples)}, choice)

    def corners(self, names: tuple[str, str]) -> tuple[tuple[float, float], tuple[float, float]]:
        """Where two aligned models lie in the plane of their weights through the star, which lies at (0, 0)."""

        def measure() -> dict[str, Tensor]:
            first, second = map(self._from_star, names)
            length = first.norm()
            along = second @ first / length
            across = (second - along * first / length).norm()
            return {"corners": torch.stack([length, torch.zeros_like(length), along, across])}

        key = {"corners": [self._hashes[name] for name in names], "alignment": self._star_alignment(names)}
        x1, y1, x2, y2 = self._remember(key, measure)["corners"].tolist()
        return (x1, y1), (x2, y2)

    def plane_grid(self, names: tuple[str, str]) -> tuple[list[float], list[float]]:
        """The coordinates of the grid that a plane's loss is measured on."""
        axes = []
        for places in zip((0.0, 0.0), *self.corners(names), strict=True):
            margin = _MARGIN * (max(places) - min(places))
            axes.append(np.linspace(min(places) - margin, max(places) + margin, self.config.plane).tolist())
        return axes[0], axes[1]

    def plane_row(self, names: tuple[str, str], row: int) -> list[float]:
        """The losses along one row of that grid, on the last of the splits."""
        split, (width, _), (along, across) = self.config.splits[-1], *self.corners(names)
        columns, rows = self.plane_grid(names)

        def measure() -> dict[str, Tensor]:
            evaluator, losses = self._evaluator([split]), []
            star, first, second = self.zoo.star, *(self.to_star[name] for name in names)
            for x in columns:
                second_share = rows[row] / across
                first_share = (x - second_share * along) / width
                state = {
                    key: value + first_share * (first[key] - value) + second_share * (second[key] - value)
                    if value.is_floating_point()
                    else value
                    for key, value in star.items()
                }
                predicted = evaluator.log_probabilities(state)[split]
                losses.append(negative_log_likelihood(predicted, self.labels(split)))
            return {"loss": torch.tensor(losses, dtype=torch.float64)}

        key = {"plane": [self._hashes[name] for name in ("star", *names)], "row": rows[row], "columns": columns}
        key |= {"alignment": self._star_alignment(names), "split": split}
        losses: list[float] = self._remember(key, measure)["loss"].tolist()
        return losses

    @cached_property
    def to_star(self) -> dict[str, dict[str, Tensor]]:
        """All models but the star, aligned to it."""
        return self._bring(self._others, "star")

    @property
    def aligned(self) -> dict[str, dict[str, Tensor]]:
        """The sources, aligned to the star."""
        return {name: self.to_star[name] for name in self.zoo.sources}

    @property
    def _others(self) -> list[str]:
        return [name for name in self.models if name != "star"]

    @cached_property
    def _network(self) -> nn.Module:
        return self.architecture.build().to("cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    def _aligner(self) -> Aligner:
        probe = None
        if self.align.needs_images:
            some = self.data.train.labelled_images(limit=self.align.images, seed=self.align.seed)
            probe = Probe(self.architecture.build(), *some)
        return Aligner(self.spec, self.align, probe)

    def _bring(self, names: Sequence[str], fixed: str) -> dict[str, dict[str, Tensor]]:
        """Some models, aligned to another one."""
        seen = map(self._aligner.evidence.of, map(self.models.__getitem__, (fixed, *names)))
        return {
            name: found.permutation.apply(self.models[name])
            for name, found in zip(names, self._aligner.match(next(seen), seen), strict=True)
        }

    def _end(self, line: Line) -> StateDict:
        if line.kind == "regular-regular-raw":
            return self.models[line.b]
        return self._bring([line.b], line.a)[line.b] if line.kind == "regular-regular" else self.to_star[line.b]

    def _state(self, name: str) -> StateDict:
        match name:
            case "naive mean":
                return average(list(self.zoo.sources.values()))
            case "aligned mean":
                return average(list(self.aligned.values()))
            case _:
                return self.models[name]

    def _from_star(self, name: str) -> Tensor:
        parameters = [key for key, _ in self._network.named_parameters()]
        return torch.cat([(self.to_star[name][key] - self.zoo.star[key]).double().flatten() for key in parameters])

    def _evaluator(self, splits: Iterable[str]) -> Evaluator:
        config, data = self.config, self.data
        return Evaluator(
            self._network,
            {name: (partial(self._images, name), self.labels(name)) for name in splits},
            partial(data.train.images, config.batch_size, limit=config.statistics_images, seed=config.seed),
            repairs=config.repair,
        )

    def _images(self, split: str) -> Iterator[Tensor]:
        limit = self.limits.get(split)
        return self.splits[split].images(self.config.batch_size, limit=limit, seed=self.config.seed)

    def _rows(self, split: str) -> Tensor:
        return self.splits[split].draw(self.limits.get(split), self.config.seed)

    def _predict(self, key: Mapping[str, Any], what: str | DomainChoice) -> dict[str, Tensor]:
        measured: dict[str, Tensor] = {}

        def measure(split: str) -> dict[str, Tensor]:
            if not measured:  # one model predicts all splits, since its statistics are estimated once
                measured.update(self._forward(what))
            return {"log_probabilities": measured[split]}

        return {
            split: self._remember({**key, "images": digest}, partial(measure, split))["log_probabilities"]
            for split, digest in self._digests.items()
        }

    def _forward(self, what: str | DomainChoice) -> Mapping[str, Tensor]:
        predict = self._evaluator(self.splits).log_probabilities
        if isinstance(what, str):
            with naming(what):
                return predict(self._state(what))
        drawn = draw_points(list(self.zoo.sources), what.samples, self.config.seed, what.t)
        with naming("a point of the star domain"):
            *_, mean = predict_with_points(self.zoo.star, self.aligned, drawn, predict)
        return mean

    def _remember(self, key: Mapping[str, Any], measure: Any) -> dict[str, Tensor]:
        return self.cache.remember({**key, **self._settings}, measure)

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """What every result depends on."""
        config = self.config
        return {
            "architecture": self.architecture.model_dump(mode="json", exclude={"label_names"}),
            "data": self.data.fingerprint,
            "statistics": [config.statistics_images, config.batch_size, config.seed],
            "device": "cuda" if torch.cuda.is_available() else "cpu",
        }

    @cached_property
    def _digests(self) -> dict[str, str]:
        """What tells the images of each split: the data's fingerprint is about the training and test images alone."""
        return {
            split: hash_tensors({"pixels": images.pixels[self._rows(split)], "labels": self.labels(split)})
            if split in {VALIDATION, OUTSIDE}
            else split
            for split, images in self.splits.items()
        }

    @cached_property
    def _hashes(self) -> dict[str, str]:
        return {name: hash_tensors(state) for name, state in self.models.items()}

    def _identity(self, name: str) -> Any:
        """What decides the weights of one of `names`."""
        means = [self._hashes[source] for source in self.zoo.sources]
        match name:
            case "naive mean":
                return {"mean": means}
            case "aligned mean":
                return {"mean": means, "alignment": self._star_alignment(self.zoo.sources)}
            case _:
                return self._hashes[name]

    def _domain_identity(self, t: Uniform, samples: int) -> dict[str, Any]:
        ends = self._identity("aligned mean")
        return {"t": [t.low, t.high], "samples": samples, "star": self._hashes["star"], **ends}

    def _star_alignment(self, names: Iterable[str]) -> Any:
        return self._alignment(*(Line("star-source", "star", name) for name in names))

    def _alignment(self, *lines: Line) -> dict[str, Any]:
        """What decides how the ends of some lines are aligned; random starts go by a model's place among others."""
        places = [0 if line.kind == "regular-regular" else self._others.index(line.b) for line in lines]
        return {
            "config": self.align.model_dump(mode="json"),
            "fixed": [self._hashes[line.a] for line in lines],
            "places": places if self.align.restarts > 1 else None,
        }


def points(config: EvalConfig) -> tuple[float, ...]:
    """The places on a path where it is measured, from 0 to 1."""
    return tuple(float(at) for at in np.linspace(0, 1, config.points))


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Say which model or path a numerical error belongs to.

    Args:
        what: The model or path.

    Raises:
        NumericalError: What was raised inside, named.
    """
    try:
        yield
    except NumericalError as error:
        raise NumericalError(f"{what}: {error.message}", hint=error.hint, subject=what) from error
