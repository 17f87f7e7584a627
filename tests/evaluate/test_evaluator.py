"""What a prediction that is no number ends in; the figures themselves are held in test_evaluate.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from starzoo.errors import NumericalError
from starzoo.evaluate.evaluator import Evaluator


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_t09_predictions_that_are_not_finite_are_an_error(value: float) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    images = torch.ones(5, 1, 2, 2)
    evaluator = Evaluator(network, {"test": (lambda: [images], torch.zeros(5, dtype=torch.long))}, lambda: [])
    good = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert evaluator.log_probabilities(good)["test"].shape == (5, 3)
    bad = {**good, "1.bias": torch.tensor([0.0, value, 0.0])}
    with pytest.raises(NumericalError, match=r"^the predictions are not finite"):  # reads well behind "seed-1: "
        evaluator.log_probabilities(bad)
