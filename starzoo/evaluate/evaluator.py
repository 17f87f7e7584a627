"""Loss and accuracy along the straight line between two models."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from starzoo.errors import NumericalError
from starzoo.evaluate.repair import measure_channels, repair
from starzoo.metrics import accuracy, fit_temperature, negative_log_likelihood, scale_temperature
from starzoo.models.batch_norm import has_batch_norm, reestimate_batch_norm
from starzoo.models.memory_format import channels_last
from starzoo.models.weights import StateDict, interpolate

__all__ = ["CURVE_ROWS", "Curve", "Evaluator", "name_errors", "score_points"]

_PART = 2048  # images

Curve = Mapping[str, Tensor]
"""The scores of the points of a path: for every split a tensor of shape (`CURVE_ROWS`, points)."""

CURVE_ROWS = ("loss", "accuracy", "tempered_loss")  # the last one only with calibration images


def score_points(
    points: Iterable[Mapping[str, Tensor]], labels: Mapping[str, Tensor], calibration: str | None = None
) -> dict[str, Tensor]:
    """Score the predictions of the points of a path; a temperature is fitted for each on the calibration split."""
    columns = defaultdict[str, list[list[float]]](list)
    for point in points:
        temperature = fit_temperature(point[calibration], labels[calibration]) if calibration else None
        for split in (split for split in labels if split != calibration):
            column = [negative_log_likelihood(point[split], labels[split]), accuracy(point[split], labels[split])]
            if temperature is not None:
                scaled = scale_temperature(point[split], temperature)
                column.append(negative_log_likelihood(scaled, labels[split]))
            columns[split].append(column)
    return {split: torch.tensor(values, dtype=torch.float64).T.contiguous() for split, values in columns.items()}


class Evaluator:
    """Predicts the same images with any weights of one architecture.

    Args:
        network: The architecture, whose weights are overwritten.
        splits: The images, as a function that returns their batches, and the labels, by split.
        statistics: Returns the training images on which batch-norm statistics are re-estimated, in batches.
        repairs: Whether points between the ends of a line get the channel statistics of the ends (REPAIR).
        precision: Of the forward passes.
    """

    def __init__(
        self,
        network: nn.Module,
        splits: Mapping[str, tuple[Callable[[], Iterable[Tensor]], Tensor]],
        statistics: Callable[[], Iterable[Tensor]] = lambda: (),
        *,
        repairs: bool = False,
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> None:
        self.network = channels_last(network)
        self.splits = splits
        self.statistics = statistics
        self.estimates = has_batch_norm(network)
        self.repairs = repairs
        self.precision = precision

    def log_probabilities(self, state: StateDict, *, estimate: bool = True) -> dict[str, Tensor]:
        """Predict every split, with re-estimated batch-norm statistics unless `estimate` is false."""
        self.network.load_state_dict(dict(state))
        self.network.eval()
        if self.estimates and estimate:
            with self._autocast():
                reestimate_batch_norm(self.network, self._statistics())
        with torch.inference_mode(), self._autocast():
            predicted = {
                split: self._predict(batches(), len(labels)) for split, (batches, labels) in self.splits.items()
            }
        if not all(torch.isfinite(part).all() for values in predicted.values() for part in torch.split(values, _PART)):
            raise NumericalError(
                "", "the predictions are not finite", hint="use another model, or evaluate.precision=fp32"
            )
        return predicted

    def curve(self, a: StateDict, b: StateDict, t: Sequence[float], *, calibration: str | None = None) -> Curve:
        """Score points of the line from `a` to `b`, with re-estimated batch-norm statistics at all of them."""
        with self._autocast():
            ends = [measure_channels(self.network, end, self._statistics()) for end in (a, b)] if self.repairs else []

        def predict(position: float) -> dict[str, Tensor]:
            if not ends:
                return self.log_probabilities(interpolate(a, b, position))
            with self._autocast():
                state = repair(self.network, a, b, position, ends, self._statistics())
            return self.log_probabilities(state)

        return score_points(map(predict, t), {split: labels for split, (_, labels) in self.splits.items()}, calibration)

    def _predict(self, batches: Iterable[Tensor], count: int) -> Tensor:
        start, predicted = 0, torch.empty(0)
        for images in batches:
            logits = self.network(self._to_device(images)).cpu().double()
            if not start:  # at once as large as all predictions, which are not copied then
                predicted = torch.empty(count, logits.shape[1])
            predicted[start : start + len(logits)] = logits.log_softmax(1)
            start += len(logits)
        return predicted

    def _autocast(self) -> torch.autocast:
        """The precision of forward passes; without a cache, which would keep copies of overwritten weights."""
        device = next(self.network.parameters()).device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=False)

    def _statistics(self) -> Iterable[Tensor]:
        return map(self._to_device, self.statistics())

    def _to_device(self, images: Tensor) -> Tensor:
        device = next(self.network.parameters()).device
        return images.to(device, memory_format=torch.channels_last)


@contextmanager
def name_errors(subject: str) -> Iterator[None]:
    """Say which model or path a numerical error belongs to."""
    try:
        yield
    except NumericalError as error:
        raise NumericalError(subject, error.message, hint=error.hint) from error
