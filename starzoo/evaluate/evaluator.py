"""Loss and accuracy along the straight line between two models."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor, nn

from starzoo.errors import NumericalError
from starzoo.evaluate.repair import measure_channels, repair
from starzoo.metrics import accuracy, fit_temperature, negative_log_likelihood, tempered
from starzoo.models.batch_norm import has_batch_norm, reestimate_batch_norm
from starzoo.models.memory_format import channels_last
from starzoo.models.weights import StateDict, interpolate

__all__ = ["Curve", "Evaluator"]


@dataclass(frozen=True)
class Curve:
    """What was measured at each point of a path, per split.

    Attributes:
        loss: Cross-entropy, in nats.
        accuracy: Share of right answers.
        tempered_loss: Cross-entropy with the temperature that suits the point best on the calibration images.
    """

    loss: Mapping[str, tuple[float, ...]]
    accuracy: Mapping[str, tuple[float, ...]]
    tempered_loss: Mapping[str, tuple[float, ...]]

    @classmethod
    def of(
        cls, predicted: Iterable[Mapping[str, Tensor]], labels: Mapping[str, Tensor], calibration: str | None = None
    ) -> Self:
        """Score what the points of a path predict."""
        loss, right, cooled = (defaultdict[str, list[float]](list) for _ in range(3))
        for point in predicted:
            temperature = fit_temperature(point[calibration], labels[calibration]) if calibration else None
            for split, found in point.items():
                if split == calibration or split not in labels:
                    continue
                loss[split].append(negative_log_likelihood(found, labels[split]))
                right[split].append(accuracy(found, labels[split]))
                if temperature is not None:
                    cooled[split].append(negative_log_likelihood(tempered(found, temperature), labels[split]))
        return cls(*({split: tuple(values) for split, values in each.items()} for each in (loss, right, cooled)))


class Evaluator:
    """Predicts with any weights of one architecture, on the same images each time."""

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

    def log_probabilities(self, state: StateDict, *, estimate: bool = True) -> dict[str, Tensor]:
        """Predict every split with one set of weights."""
        self.network.load_state_dict(dict(state))
        self.network.eval()
        if self.estimates and estimate:
            with self._autocast():
                reestimate_batch_norm(self.network, self._statistics())
        with torch.inference_mode(), self._autocast():
            predicted = {
                split: torch.cat([
                    self.network(self._place(images)).cpu().double().log_softmax(1).float() for images in batches()
                ])
                for split, (batches, _) in self.splits.items()
            }
        if not all(torch.isfinite(values).all() for values in predicted.values()):
            raise NumericalError(
                "", "the predictions are not finite", hint="use another model, or evaluate.precision=fp32"
            )
        return predicted

    def curve(self, a: StateDict, b: StateDict, t: Sequence[float], *, calibration: str | None = None) -> Curve:
        """Loss and accuracy at some points of the line from `a` to `b`; between the ends repaired if that is wanted.

        Batch-norm statistics are estimated in one way at all points, the ends included: like is compared with like.
        """
        with self._autocast():
            ends = [measure_channels(self.network, end, self._statistics()) for end in (a, b)] if self.repairs else []

        def predict(at: float) -> dict[str, Tensor]:
            with self._autocast():
                state = repair(self.network, a, b, at, ends, self._statistics()) if ends else interpolate(a, b, at)
            return self.log_probabilities(state)

        return Curve.of(map(predict, t), {split: self.labels(split) for split in self.splits}, calibration)

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
