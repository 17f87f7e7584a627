"""What a fit counts, and when it gives up."""

from __future__ import annotations

import json
import math

import pytest
import torch

from starzoo.errors import NumericalError
from starzoo.star.loss_monitor import EpochSums, LossMonitor


def test_an_epoch_that_was_interrupted_sums_up_bit_for_bit() -> None:
    losses = torch.rand(50, generator=torch.Generator().manual_seed(0))
    whole, first = EpochSums(), EpochSums()
    for loss in losses:
        whole.add(loss, at_star=float(loss) < 0.3)
    for loss in losses[:17]:
        first.add(loss, at_star=float(loss) < 0.3)
    second = EpochSums(*first.values())
    for loss in losses[17:]:
        second.add(loss, at_star=float(loss) < 0.3)
    assert second.values() == whole.values()


def test_the_record_is_the_mean_over_all_processes() -> None:
    one, other = EpochSums(moved=7), EpochSums(moved=7)
    one.add(torch.tensor(1.0), at_star=False)
    one.add(torch.tensor(9.0), at_star=True)
    other.add(torch.tensor(2.0), at_star=False)
    other.add(torch.tensor(6.0), at_star=False)
    assert one.record([one.values()]) == {"path_loss": 1.0, "own_loss": 9.0, "moved": 7}
    for sums in (one, other):  # what all processes count alike
        sums.skipped, sums.spikes = 1, 2
    both = one.record([one.values(), other.values()])
    assert both == {"path_loss": 3.0, "own_loss": 9.0, "skipped_steps": 1, "loss_spikes": 2, "moved": 7}


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_another_number_of_processes_goes_on_with_the_same_sums(ranks: int) -> None:
    parts = [[3.0, 6.0, 1.0, 2.0, 4.0, 5.0, 7.0], [2.0, 4.0, 2.0, 2.0, 4.0, 5.0, 7.0]]  # the last three are alike
    shares = [EpochSums.redistribute(parts, rank, ranks).values() for rank in range(ranks)]
    assert EpochSums.record(shares) == EpochSums.record(parts)
    sums, sums_before = ([sum(column) for column in zip(*rows, strict=True)][:4] for rows in (shares, parts))
    assert sums == sums_before  # else what is still to come would count less


def test_a_monitor_resumes_from_the_state_of_another_one() -> None:
    one, other = LossMonitor(classes=10), LossMonitor(classes=10)
    for loss in [0.5, 0.6, *[9.0] * 20]:
        one.record_loss(loss)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    with pytest.raises(NumericalError, match="21 steps in a row"):
        other.record_loss(9.0)


def test_a_loss_far_above_the_usual_and_above_guessing_is_a_spike() -> None:
    loss_monitor = LossMonitor(classes=10)
    assert not any(loss_monitor.record_loss(loss) for loss in [0.4, 0.5, 0.6])
    assert not loss_monitor.record_loss(2.2)  # more than four times the usual, and no more than guessing costs
    assert not loss_monitor.record_loss(math.log(10))
    assert loss_monitor.record_loss(12.0)
    assert not loss_monitor.record_loss(0.5)


def test_t02_twenty_one_spikes_in_a_row_end_the_run() -> None:
    loss_monitor = LossMonitor(classes=10)
    loss_monitor.record_loss(0.5)
    assert all(loss_monitor.record_loss(9.0) for _ in range(20))
    with pytest.raises(NumericalError, match="21 steps in a row lost more than 4 times the usual"):
        loss_monitor.record_loss(9.0)


def test_t02_twenty_one_overflows_in_a_row_end_the_run() -> None:
    loss_monitor = LossMonitor(classes=10)
    for _ in range(30):
        loss_monitor.record_overflow(True)
        loss_monitor.record_overflow(False)
    for _ in range(20):
        loss_monitor.record_overflow(True)
    with pytest.raises(NumericalError, match="21 steps in a row overflowed"):
        loss_monitor.record_overflow(True)
