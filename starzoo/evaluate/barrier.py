"""Loss and accuracy along the straight line between two models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from starzoo.errors import NumericalError
from starzoo.evaluate.path import has_batch_norm, interpolate, reestimate_batch_norm
from starzoo.evaluate.predictive import accuracy, negative_log_likelihood
from starzoo.evaluate.repair import measure_channels, repair
from starzoo.layout import channels_last

__all__ = ["Curve", "Evaluator"]

StateDict = Mapping[str, Tensor]


@dataclass(frozen=True)
class Curve:
    """Loss (nats) and accuracy (share) at each point of a path, per split."""

    loss: Mapping[str, tuple[float, ...]]
    accuracy: Mapping[str, tuple[float, ...]]


class Evaluator:
    """Predicts with any weights of one architecture, on the same images each time.

    Args:
        network: The architecture; its weights are overwritten.
        splits: For each split a function that yields batches of evaluation images, and the labels of all of them.
        statistics: Yields the un-augmented training images that re-estimate batch-norm statistics, the same each time.
        repairs: Whether points between the ends of a curve get the channel statistics of the ends.
        precision: In which the network is evaluated; log-probabilities and all that follows are in float32 or more.
    """

    def __init__(
        self,
        network: nn.Module,
        splits: Mapping[str, tuple[Callable[[], Iterable[Tensor]], Tensor]],
        statistics: Callable[[], Iterable[Tensor]],
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

    def log_probabilities(self, state: StateDict) -> dict[str, Tensor]:
        """Predict every split with one set of weights, batch-norm statistics re-estimated.

        Args:
            state: The weights.

        Returns:
            For every split log-probabilities, shape (images, classes), on the CPU.

        Raises:
            NumericalError: The model predicts values that are not finite.
        """
        self.network.load_state_dict(dict(state))
        self.network.eval()
        if self.estimates:
            with self._autocast():
                reestimate_batch_norm(self.network, self._statistics())
        with torch.inference_mode(), self._autocast():
            predicted = {
                split: torch.cat([
                    self.network(self._place(images)).double().log_softmax(1).float().cpu() for images in batches()
                ])
                for split, (batches, _) in self.splits.items()
            }
        if not all(torch.isfinite(values).all() for values in predicted.values()):
            raise NumericalError("the predictions are not finite", hint="use another model, or evaluate.precision=fp32")
        return predicted

    def curve(self, a: StateDict, b: StateDict, t: Sequence[float]) -> Curve:
        """Loss and accuracy at some points of the line from `a` to `b`; between the ends repaired if that is wanted.

        Args:
            a: Weights at t = 0.
            b: Weights at t = 1, already aligned to `a` where that is wanted.
            t: The points.

        Returns:
            The curve on every split.
        """
        loss: dict[str, list[float]] = {split: [] for split in self.splits}
        right: dict[str, list[float]] = {split: [] for split in self.splits}
        with self._autocast():
            ends = [measure_channels(self.network, end, self._statistics()) for end in (a, b)] if self.repairs else []
        for at in t:
            with self._autocast():
                state = repair(self.network, a, b, at, ends, self._statistics()) if ends else interpolate(a, b, at)
            for split, predicted in self.log_probabilities(state).items():
                labels = self.labels(split)
                loss[split].append(negative_log_likelihood(predicted, labels))
                right[split].append(accuracy(predicted, labels))
        return Curve(
            {s: tuple(values) for s, values in loss.items()}, {s: tuple(values) for s, values in right.items()}
        )

    def labels(self, split: str) -> Tensor:
        """The labels of one split, shape (images,)."""
        return self.splits[split][1]

    def _autocast(self) -> torch.autocast:
        """The precision of forward passes. Without a cache, which would go on with copies of overwritten weights."""
        device = next(self.network.parameters()).device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=False)

    def _statistics(self) -> Iterable[Tensor]:
        return map(self._place, self.statistics())

    def _place(self, images: Tensor) -> Tensor:
        device = next(self.network.parameters()).device
        return images.to(device, memory_format=torch.channels_last)
