"""What a fit counts, and when it gives up."""

from __future__ import annotations

import json
import math

import pytest
import torch

from starzoo.errors import NumericalError
from starzoo.star.loss_monitor import Epoch, LossMonitor


def test_an_epoch_that_was_interrupted_sums_up_bit_for_bit() -> None:
    losses = torch.rand(50, generator=torch.Generator().manual_seed(0))
    whole, first = Epoch(), Epoch()
    for loss in losses:
        whole.add(loss, own=float(loss) < 0.3)
    for loss in losses[:17]:
        first.add(loss, own=float(loss) < 0.3)
    second = Epoch(*first.sums())
    for loss in losses[17:]:
        second.add(loss, own=float(loss) < 0.3)
    assert second.sums() == whole.sums()


def test_the_record_is_the_mean_over_all_processes() -> None:
    one, other = Epoch(), Epoch(spikes=2, skipped=1)
    one.add(torch.tensor(1.0), own=False)
    one.add(torch.tensor(9.0), own=True)
    other.add(torch.tensor(2.0), own=False)
    other.add(torch.tensor(6.0), own=False)
    assert one.record([one.sums()]) == {"path_loss": 1.0, "own_loss": 9.0}
    both = one.record([one.sums(), other.sums()])
    assert both == {"path_loss": 3.0, "own_loss": 9.0, "skipped_steps": 0.5, "loss_spikes": 1.0}


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_another_number_of_processes_goes_on_with_the_same_sums(ranks: int) -> None:
    parts = [[3.0, 6.0, 1.0, 2.0, 4.0, 5.0], [2.0, 4.0, 2.0, 2.0, 4.0, 5.0]]  # of which the last two are alike
    shares = [Epoch.shared_out(parts, rank, ranks).sums() for rank in range(ranks)]
    assert Epoch.record(shares) == Epoch.record(parts)


def test_a_vigil_goes_on_from_what_another_one_remembers() -> None:
    one, other = LossMonitor(classes=10), LossMonitor(classes=10)
    for loss in [0.5, 0.6, *[9.0] * 20]:
        one.is_spike(loss)
    other.remember(json.loads(json.dumps(one.memory)))
    with pytest.raises(NumericalError, match="21 steps in a row"):
        other.is_spike(9.0)


def test_a_loss_far_above_the_usual_and_above_guessing_is_a_spike() -> None:
    loss_monitor = LossMonitor(classes=10)
    assert not any(loss_monitor.is_spike(loss) for loss in [0.4, 0.5, 0.6])
    assert not loss_monitor.is_spike(2.2)  # more than four times the usual, and no more than guessing costs
    assert not loss_monitor.is_spike(math.log(10))
    assert loss_monitor.is_spike(12.0)
    assert not loss_monitor.is_spike(0.5)


def test_t02_twenty_one_spikes_in_a_row_end_the_run() -> None:
    loss_monitor = LossMonitor(classes=10)
    loss_monitor.is_spike(0.5)
    assert all(loss_monitor.is_spike(9.0) for _ in range(20))
    with pytest.raises(NumericalError, match="21 steps in a row lost more than 4 times the usual"):
        loss_monitor.is_spike(9.0)


def test_t02_twenty_one_overflows_in_a_row_end_the_run() -> None:
    loss_monitor = LossMonitor(classes=10)
    for _ in range(30):
        loss_monitor.skipped(True)
        loss_monitor.skipped(False)
    for _ in range(20):
        loss_monitor.skipped(True)
    with pytest.raises(NumericalError, match="21 steps in a row overflowed"):
        loss_monitor.skipped(True)
