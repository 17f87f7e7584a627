"""Starlight (paper, algorithm 1): the star model that is linearly connected to every source."""

from __future__ import annotations

import functools
import math
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from starzoo.config import RunConfig, StarConfig
from starzoo.data.augmentation import transform_key
from starzoo.errors import NumericalError, UsageError
from starzoo.models.architecture import Architecture
from starzoo.models.batch_norm import has_batch_norm
from starzoo.models.sources import Source
from starzoo.models.training.optimizer import make_optimizer, set_learning_rate
from starzoo.models.training.targets import Targets, criterion
from starzoo.parallel import DelayedMaxReduce, all_gather_object, init_processes, raise_everywhere, rng_devices
from starzoo.progress import Progress, no_progress
from starzoo.star.accelerator import compile_network, make_accelerator
from starzoo.star.endpoints import Endpoint, Endpoints
from starzoo.star.loss_monitor import EpochSums, LossMonitor, nonfinite_error
from starzoo.star.network import StarNetwork
from starzoo.star.objective import StarlightLoss
from starzoo.star.run.checkpoint import Checkpoint, load_newest, save_checkpoint
from starzoo.star.run.log import LOG, TrainingLog
from starzoo.star.run.signals import StopRequest, raise_for_signal
from starzoo.star.run_state import RunState
from starzoo.star.schedule import Batch, Schedule, is_due
from starzoo.star.source_alignment import SourceAlignment
from starzoo.star.teacher import Teacher
from starzoo.symmetry.permutation import Permutation
from starzoo.text import pluralize

if TYPE_CHECKING:
    from starzoo.data.task import ImageTask

__all__ = ["CHECKPOINTS", "FittedStar", "ResumeOptions", "fit", "identity"]

CHECKPOINTS = "checkpoints"
_SECONDS_BETWEEN_REPORTS = 0.5


@dataclass(frozen=True, kw_only=True)
class FittedStar:
    """The result of a fit.

    Attributes:
        state: The star's state dict, batch-norm statistics re-estimated.
        permutations: What aligns each source to the star, in the order of the sources.
        history: One record per epoch: path loss, own loss (with mu), positions moved by the alignment, and
            where it was measured the midpoint loss: its mean over the sources, and of each (`midpoint_loss.3`).
        changes: What was changed when the run was resumed; empty for a run that its configuration replays bit for bit.
        steps: Steps of the optimizer, those before the run was resumed included.
        draws: Draws of (source, t) in each step, over all processes.
    """

    state: dict[str, Tensor]
    permutations: list[Permutation]
    history: list[dict[str, float]]
    changes: Sequence[str] = ()
    steps: int
    draws: int = 1


@dataclass(frozen=True, kw_only=True)
class ResumeOptions:
    """What may differ from the run that is resumed; every difference is recorded in `changes`.

    Attributes:
        override: Resume from checkpoints of another configuration.
        allow_world_size_change: Resume from checkpoints of another number of processes.
    """

    override: bool = False
    allow_world_size_change: bool = False


def fit(
    sources: Sequence[Source],
    data: ImageTask,
    config: RunConfig,
    *,
    folder: Path | None = None,
    resume: ResumeOptions = ResumeOptions(),
    progress: Progress = no_progress,
) -> FittedStar:
    """Find the star of some sources, or resume from the newest checkpoint in `folder`.

    SIGTERM, SIGUSR1, SIGUSR2 and Ctrl-C end it at the next step, on all processes at the same one, after a checkpoint.
    """
    init_processes(config.runtime)
    warnings.filterwarnings("ignore", "Grad strides do not match", UserWarning)  # of 1 × 1 weights, which have no order
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)  # Accelerate knows no other
    with torch.random.fork_rng(devices=rng_devices()):
        trainer = _Trainer(sources, data, config, folder, resume, progress)
        trainer.train()
        return trainer.finish()


class _StepReport(NamedTuple):
    """What the processes report of a step; the maximum over all of them is acted on one step later.

    Attributes:
        signal: The number of a termination signal, or 0.
        checkpoint_due: Whether the last checkpoint was long ago.
        nonfinite_draw: From 1, the last draw whose loss is not finite, or 0.
        max_loss: The greatest finite loss of a draw.
    """

    signal: float = 0
    checkpoint_due: float = 0
    nonfinite_draw: float = 0
    max_loss: float = 0

    def merge(self, other: _StepReport) -> _StepReport:
        """Return the maximum of both."""
        return _StepReport(*map(max, self, other))


class _Trainer:
    """Takes the steps of a fit: the same ones on one process, on many, and after an interruption."""

    def __init__(
        self,
        sources: Sequence[Source],
        data: ImageTask,
        config: RunConfig,
        folder: Path | None,
        resume: ResumeOptions,
        progress: Progress,
    ) -> None:
        architecture, weights = sources[0].architecture, [source.state for source in sources]
        self.config, self.folder, self.identity = config, folder, identity(sources, data, config)
        checkpoint = _load_checkpoint(folder, self.identity, resume)
        self.accelerator = make_accelerator(config, folder)
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        self.schedule = Schedule(data, config, len(sources), rank, ranks)
        _check_images_per_draw(architecture, config.star, self.schedule.sampler.draws)
        alignment = SourceAlignment(architecture, weights, data, config, progress)
        aligned = checkpoint.permutations if checkpoint else None
        initial_weights = functools.partial(alignment.initial_weights, aligned=aligned)
        self.star = StarNetwork(architecture, initial_weights, data, config, self.accelerator.device)
        self.endpoints = Endpoints(weights, self.star.parameters, sources_on=config.runtime.sources_on)
        precision, parameters = self.accelerator.autocast, self.star.parameters
        self.teacher = Teacher(architecture.build(), parameters, precision, config.star) if config.star.kappa else None
        images_per_draw = config.star.batch_size // self.schedule.sampler.draws
        self.targets = Targets(config.star, architecture.num_classes, images_per_draw, config.star.seed)
        self.loss = self._build_loss()
        monitor = LossMonitor(architecture.num_classes)
        optimizer = make_optimizer(self.star.module, config.star, parameters)
        self.state = RunState(parameters, optimizer, alignment, monitor, self.accelerator.scaler, config.star.ema_decay)
        if checkpoint:
            self.state.load_state_dict(checkpoint, rank, ranks)
        self.reduction, self.saved_step = DelayedMaxReduce(self.star.device), self.state.step or None
        self.log, self.progress = self._open_log([source.name for source in sources]), progress
        self.saved_at = self.reported_at = time.monotonic()
        self.latest_loss: float | None = None

    def _build_loss(self) -> StarlightLoss:
        module, accelerator = self.star.module, self.accelerator
        working = accelerator.prepare_model(module) if accelerator.num_processes > 1 else module
        return StarlightLoss(
            list(self.star.parameters.values()),
            compile_network(working) if self.config.runtime.compile else working,
            kappa=self.config.star.kappa,
            criterion=criterion(self.config.star),
            draws=len(self.schedule.own_draws),
            backward=accelerator.backward,
            no_sync=functools.partial(accelerator.no_sync, working),
            precision=accelerator.autocast,
        )

    def train(self) -> None:
        """Take the steps that are left."""
        with StopRequest() as self.stop_request:
            try:
                while self.state.step < self.schedule.steps and not self.state.has_converged(self.config.star.patience):
                    self._run_epoch()
                self._checkpoint_or_stop(_StepReport(signal=max(all_gather_object(self.stop_request.number))))
            except BaseException:
                self._report_progress()  # so that the status names the last step
                raise
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def _run_epoch(self) -> None:
        """Take the steps that are left of an epoch."""
        epoch, first = divmod(self.state.step, self.schedule.steps_per_epoch)
        if first == 0:
            realign = is_due(self.config.star.realign_every, epoch)
            self.state.epoch_sums = EpochSums(moved=float(self._align()) if realign else 0.0)
        self.endpoints.align(self.state.alignment.permutations)
        self.loss.working.train()
        report = _StepReport()
        for batches in self.schedule.batches(epoch, first, self.star.device):
            report = self._take_step(batches)
            if self.state.step % self.schedule.steps_per_epoch:
                self._checkpoint_or_stop(report)
        report = report.merge(self._check_step(self.reduction.wait(), self.state.step))
        self._close_epoch(epoch + 1, share=1 - first / self.schedule.steps_per_epoch)
        is_last = self.state.step == self.schedule.steps
        due = is_last or is_due(self.config.runtime.checkpoint_epochs, epoch + 1)
        self._checkpoint_or_stop(report.merge(_StepReport(checkpoint_due=due)))

    def _take_step(self, batches: Sequence[Batch]) -> _StepReport:
        """Take one step of the optimizer; return what the processes reported of the step before."""
        set_learning_rate(self.state.optimizer, self.config.star, step=self.state.step, total=self.schedule.steps)
        self.loss.zero_grad()
        nonfinite_draw, max_loss = torch.zeros(2, device=self.star.device)
        for draw_index, batch in zip(self.schedule.own_draws, batches, strict=True):
            loss = self._accumulate(draw_index, *batch)
            nonfinite_draw = torch.maximum(nonfinite_draw, (draw_index + 1) * (~torch.isfinite(loss)).float())
            max_loss = torch.maximum(max_loss, loss.float().nan_to_num(0.0))
        self.state.update_star(self.config.star.clip_grad_norm)
        overdue = time.monotonic() - self.saved_at > 60 * self.config.runtime.checkpoint_minutes
        checkpoint_due = self.accelerator.is_main_process and overdue
        reduced = self.reduction.start([self.stop_request.number, checkpoint_due, nonfinite_draw, max_loss])
        report = self._check_step(reduced, self.state.step - 1)
        if time.monotonic() - self.reported_at > _SECONDS_BETWEEN_REPORTS or self.state.step == self.schedule.steps:
            self._report_progress()
        return report

    def _accumulate(self, draw_index: int, images: Tensor, labels: Tensor) -> Tensor:
        """Add the gradient of one draw of (source, t) to that of the step; return its loss."""
        step, sampler = self.state.step, self.schedule.sampler
        draw = sampler.draw(step, draw_index)
        endpoint = self.endpoints.get(draw.source)
        self.endpoints.prefetch(self.schedule.next_source(step, draw_index))
        torch.manual_seed(sampler.forward_seed(step, draw_index))
        images, labels = self.star.to_device(images), labels.to(self.star.device, non_blocking=True)
        images, labels = self.targets(images, labels, step, draw_index)
        prediction = self.teacher.predict(self._teachers(endpoint), images) if self.teacher else None
        is_last = draw_index == self.schedule.own_draws[-1]
        loss = self.loss.accumulate(endpoint.parameters, draw.t, images, labels, prediction, last=is_last)
        self.state.epoch_sums.add(loss, at_star=draw.at_star)
        return loss

    def _teachers(self, drawn: Endpoint) -> Iterable[Endpoint]:
        """Return the sources whose predictions are learned."""
        return [drawn] if self.config.star.teachers == "drawn" else map(self.endpoints.get, range(len(self.endpoints)))

    def _check_step(self, reduced: Sequence[float] | None, step: int) -> _StepReport:
        """Check what the processes reported of a step, counted from 1."""
        if reduced is None:
            return _StepReport()
        report = _StepReport(*reduced)
        if report.nonfinite_draw:
            raise self._nonfinite_error(step - 1, int(report.nonfinite_draw) - 1)
        self.state.epoch_sums.spikes += self.state.loss_monitor.record_loss(report.max_loss)
        self.latest_loss = report.max_loss
        return report

    def _checkpoint_or_stop(self, report: _StepReport) -> None:
        """Save a checkpoint or stop, as agreed across processes."""
        if report.signal or report.checkpoint_due:
            self._save_checkpoint()
        if report.signal:
            position = f"step {self.state.step} of {self.schedule.steps}"
            self.log.write_line(f"stopped at {position}")
            saved = f"{position} is kept" if self.folder else "nothing is kept without a folder"
            raise_for_signal(int(report.signal), saved)

    def _save_checkpoint(self) -> None:
        """Save a checkpoint, unless this step has one."""
        self.saved_at = time.monotonic()
        if self.state.step == self.saved_step:
            return
        self.saved_step = self.state.step
        self._check_step(self.reduction.wait(), self.state.step)  # a resumed run has no reduction in flight
        checkpoint = self.state.state_dict()
        self._check_finite(f"before step {self.state.step}")
        if self.folder and self.accelerator.is_main_process:
            save_checkpoint(self.folder / CHECKPOINTS, checkpoint, self.identity)

    def _close_epoch(self, epoch: int, *, share: float) -> None:
        """Add the record of an epoch, counted from 1, to the history; `share` of its steps were taken by this call."""
        settings, state = self.config.star, self.state
        record = EpochSums.record(all_gather_object(state.epoch_sums.values()))
        is_last = settings.midpoint_every > 0 and epoch == settings.epochs
        if is_last or is_due(settings.midpoint_every, epoch):
            losses = self.state.alignment.midpoint_losses(self._result(reestimate=False))
            record["midpoint_loss"] = sum(losses) / len(losses)
            record |= {f"midpoint_loss.{index}": loss for index, loss in enumerate(losses)}
        if not all(map(math.isfinite, record.values())):
            raise nonfinite_error(f"in epoch {epoch}")
        self._check_finite(f"at the end of epoch {epoch}")
        state.history.append(record)
        self.log.write_epoch(epoch, record, share)
        self.accelerator.log(record, step=state.step)

    def finish(self) -> FittedStar:
        """Align the sources to the final star and re-estimate its batch-norm statistics."""
        if self.state.step:
            self.state.alignment.align_to(self._result(reestimate=self.config.align.needs_batch_norm_stats))
        state = self._result(reestimate=True)
        return FittedStar(
            state={name: tensor.contiguous() for name, tensor in state.items()},
            permutations=self.state.alignment.permutations,
            history=self.state.history,
            changes=self.state.changes,
            steps=self.state.step,
            draws=self.schedule.sampler.draws,
        )

    def _result(self, *, reestimate: bool) -> dict[str, Tensor]:
        """Return the star that the fit would end with now: the average of its weights, where there is one."""
        return self.star.state_dict(self.state.average or self.star.parameters, reestimate=reestimate)

    def _align(self) -> int:
        """Align the sources to the weights that are optimized, whose paths are; return how many positions moved."""
        star = self.star.state_dict(self.star.parameters, reestimate=self.config.align.needs_batch_norm_stats)
        return self.state.alignment.align_to(star)

    def _check_finite(self, when: str) -> None:
        if not self.star.is_finite():
            raise nonfinite_error(when)

    def _nonfinite_error(self, step: int, draw_index: int) -> NumericalError:
        """Return the error of a draw whose loss is not finite, and log all of its images."""
        draw, epoch = self.schedule.sampler.draw(step, draw_index), step // self.schedule.steps_per_epoch
        source = self.log.names[draw.source]
        when = f"at step {step + 1} (epoch {epoch + 1}), source {source}, t = {draw.t:.4f}, on training images"
        images = list(map(str, self.schedule.image_rows(step, draw_index)))
        self.log.write_line(f"the loss is not finite {when} {', '.join(images)}")
        return nonfinite_error(f"{when} {', '.join(images[:4])}, …")

    def _report_progress(self) -> None:
        """Report the steps taken, with the path loss of the last epoch or else the loss of the last step."""
        self.reported_at = time.monotonic()
        figures = {} if self.latest_loss is None else {"loss": self.latest_loss}
        if self.state.history:
            figures = {name: loss for name, loss in self.state.history[-1].items() if name == "path_loss"}
        self.progress("fitting the star", self.state.step, self.schedule.steps, **figures)

    def _open_log(self, names: Sequence[str]) -> TrainingLog:
        path = self.folder / LOG if self.folder and self.accelerator.is_main_process else None
        images = self.schedule.steps_per_epoch * self.config.star.batch_size
        log = TrainingLog(path, names, epochs=self.config.star.epochs, images=images)
        if self.state.step:
            log.write_line(f"resumed at step {self.state.step} of {self.schedule.steps}")
        return log


def identity(sources: Sequence[Source], data: ImageTask, config: RunConfig) -> dict[str, Any]:
    """Return what decides which star is found: where it differs, no checkpoint is resumed.

    Images are identified by their fingerprint, wherever they lie. Of the evaluation only batch-norm statistics count.
    """
    ignored: Any = {"evaluate": True, "runtime": True, "data": {"dataset", "revision", "transform"}}
    settings = config.model_dump(mode="json", exclude=ignored)
    settings["data"] |= transform_key(config.data, config.data.augment, config.evaluate.batch_norm_augment)
    statistics = {"batch_size", "batch_norm_images", "batch_norm_augment", "seed"}
    settings["evaluate"] = config.evaluate.model_dump(include=statistics)
    return {
        "architecture": sources[0].architecture.model_dump(mode="json"),
        "sources": {str(index): dict(source.record.files) for index, source in enumerate(sources)},
        "data": data.fingerprint,
        "config": settings,
    }


def _load_checkpoint(folder: Path | None, identity: Mapping[str, Any], resume: ResumeOptions) -> Checkpoint | None:
    """Load the checkpoint to resume from, which must be the same one on all processes, and of as many."""
    checkpoint = None
    with raise_everywhere():  # a stranger's checkpoint is refused before any work
        if folder:
            checkpoint = load_newest(folder / CHECKPOINTS, identity, override=resume.override)
    steps = all_gather_object(checkpoint.step if checkpoint else 0)
    if len(set(steps)) > 1:
        raise UsageError(
            str(folder),
            f"the processes find different checkpoints there, of the steps {', '.join(map(str, steps))}",
            hint="give an --out that all machines of the run share",
        )
    if checkpoint is None or len(steps) == (before := len(checkpoint.epoch_sums)):
        return checkpoint
    change = f"{pluralize(before, 'process', 'processes')} before, {len(steps)} now"
    if not resume.allow_world_size_change:
        raise UsageError(
            str(folder),
            f"the run had {change}, which changes its draws or their rounding",
            hint=f"use {before}, or add --allow-world-size-change",
        )
    return checkpoint.with_change(change)


def _check_images_per_draw(architecture: Architecture, settings: StarConfig, draws: int) -> None:
    """Make sure that every draw has two images, without which batch norm has no variance."""
    if settings.batch_size < 2 * draws and has_batch_norm(architecture.build_meta()):
        raise UsageError(
            "star.batch_size",
            f"expected two images for each of {draws} draws, which batch norm needs, got {settings.batch_size}",
            hint=f"use star.batch_size={2 * draws} or more",
        )
