"""Starlight (paper, algorithm 1): the star model that is linearly connected to every source.

This is the only file that builds an Accelerator. A step has one or more draws of (source, t), which share its batch and
are shared out among the processes; their gradients are averaged. So two processes do what one does with two draws per
step, and more draws mean less variance and the same expectation.
"""

from __future__ import annotations

import datetime
import functools
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from starzoo.config import RunConfig, StarConfig
from starzoo.errors import UsageError
from starzoo.models.architecture import Architecture
from starzoo.models.batch_norm import reestimate_batch_norm
from starzoo.models.memory_format import channels_last
from starzoo.models.training.optimizer import make_optimizer, set_learning_rate
from starzoo.models.weights import StateDict
from starzoo.parallel import DelayedMaxReduce, gather, join, raise_everywhere, rng_devices, runs_on_cpu
from starzoo.progress import Progress, no_progress
from starzoo.star.endpoints import Endpoints
from starzoo.star.loss_monitor import Epoch, LossMonitor
from starzoo.star.objective import StarlightLoss
from starzoo.star.run.checkpoint import (
    Checkpoint,
    load_newest,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from starzoo.star.run.log import LOG, TrainingLog, check_trackers
from starzoo.star.run.signals import StopRequest, stop
from starzoo.star.sampling import SourceSampler
from starzoo.star.source_alignment import SourceAlignment
from starzoo.star.teacher import Teacher
from starzoo.symmetry.permutation import Permutation
from starzoo.text import pluralize

if TYPE_CHECKING:
    from accelerate import Accelerator

    from starzoo.data.split import Loader
    from starzoo.data.task import ImageTask

__all__ = ["CHECKPOINTS", "FittedStar", "fit"]

Batch = tuple[Tensor, Tensor]

CHECKPOINTS = "checkpoints"
_SECONDS_BETWEEN_REPORTS = 0.5


@dataclass(frozen=True, kw_only=True)
class FittedStar:
    """What Starlight found.

    Attributes:
        state: The star's state dict, batch-norm statistics re-estimated.
        permutations: What brings each source to the star, in the order of the sources.
        history: One record per epoch: path loss, own loss (with mu), positions moved by the alignment, and
            where it was measured the loss half-way to the sources, their mean and (`midpoint_loss.3`) each one.
        changes: What was changed when the run was resumed; empty for a run that its configuration replays bit for bit.
        steps: Steps of the optimizer that were taken, those before the run was resumed among them.
        draws: Draws of (source, t) in each of them, over all processes.
    """

    state: dict[str, Tensor]
    permutations: list[Permutation]
    history: list[dict[str, float]]
    changes: Sequence[str] = ()
    steps: int
    draws: int = 1


def fit(
    architecture: Architecture,
    sources: Sequence[StateDict],
    data: ImageTask,
    config: RunConfig,
    *,
    folder: Path | None = None,
    names: Sequence[str] | None = None,
    identity: Mapping[str, Any] | None = None,
    override: bool = False,
    allow_world_size_change: bool = False,
    progress: Progress = no_progress,
) -> FittedStar:
    """Find the star of some sources; a run that was stopped goes on from its newest checkpoint.

    SIGTERM, SIGUSR1, SIGUSR2 and Ctrl-C end it at the next step, on all processes at the same one, after a checkpoint.
    """
    join(config.runtime)
    warnings.filterwarnings("ignore", "Grad strides do not match", UserWarning)  # of 1 × 1 weights, which have no order
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)  # Accelerate knows no other
    identity = {**(identity or {}), "config": _deciding(config)}
    checkpoints = folder / CHECKPOINTS if folder else None
    with raise_everywhere():  # a stranger's checkpoint is refused before any work
        found = load_newest(checkpoints, identity, override=override) if checkpoints else None
    _check_same(gather(found.step if found else 0), folder)
    with torch.random.fork_rng(devices=rng_devices()):
        stored = found.permutations if found else ()
        aligned = [Permutation.from_tensors(architecture.spec, tensors) for tensors in stored] or None
        run = _Run(architecture, sources, data, config, folder, identity, progress, aligned)
        run.names = names or [str(number) for number in range(1, len(sources) + 1)]
        if found:
            run.restore(found, allow_world_size_change=allow_world_size_change)
        with StopRequest() as request:
            run.train(request)
        return run.finish()


class _Run:
    """The state of one fit: the star's parameters, the optimizer and the sources as they are aligned now."""

    def __init__(
        self,
        architecture: Architecture,
        sources: Sequence[StateDict],
        data: ImageTask,
        config: RunConfig,
        folder: Path | None,
        identity: Mapping[str, Any],
        progress: Progress,
        aligned: Sequence[Permutation] | None,
    ) -> None:
        from accelerate.utils import broadcast

        self.data, self.config = data, config
        self.folder, self.identity, self.progress = folder, identity, progress
        self.step, self.epoch, self.history, self.changes = 0, Epoch(), list[dict[str, float]](), list[str]()
        self.moved = 0
        self.kept: int | None = None  # the step of the newest checkpoint
        self.names: Sequence[str] = ()
        settings = config.star
        self.accelerator = _make_accelerator(config, folder)
        self.device, self.ranks = self.accelerator.device, self.accelerator.num_processes
        self.draws = _count_draws(settings.draws, self.ranks)
        self.steps_per_epoch = len(self._loader(0, 0))
        self.steps = settings.epochs * self.steps_per_epoch
        self.alignment = SourceAlignment(architecture, sources, data, config)
        torch.manual_seed(settings.seed)  # for the random start
        self.network = architecture.build().to(self.device)
        _check_share(settings, self.draws, self.network)
        random = {name: tensor.cpu() for name, tensor in self.network.state_dict().items()}
        self.network.load_state_dict(self.alignment.start(random, aligned))
        if settings.channels_last:
            channels_last(self.network)
        self.star = {name: nn.Parameter(value.detach().clone()) for name, value in self.network.named_parameters()}
        broadcast([parameter.data for parameter in self.star.values()])  # the same on all processes to the last bit
        self.optimizer = make_optimizer(self.star.values(), settings)
        kept = {"auto": None, "device": True, "host": False}[config.runtime.sources_on]
        self.ends = Endpoints(sources, self.star, ready=kept)
        precision = self.accelerator.autocast
        self.teacher = Teacher(architecture.build(), self.star, precision) if settings.kappa else None
        working = self.accelerator.prepare_model(self.network) if self.ranks > 1 else self.network
        self.loss = StarlightLoss(
            list(self.star.values()),
            _compile(working) if config.runtime.compile else working,
            kappa=settings.kappa,
            draws=self.draws // self.ranks,
            backward=self.accelerator.backward,
            hold=functools.partial(self.accelerator.no_sync, working),
            precision=precision,
        )
        self.sampler = SourceSampler(settings, len(sources), self.draws)
        self.loss_monitor, self.agreement = LossMonitor(architecture.num_classes), DelayedMaxReduce(self.device)

    def train(self, request: StopRequest) -> None:
        """Take the steps that are left."""
        settings = self.config.star
        self.log = TrainingLog(
            self.folder / LOG if self.folder and self.accelerator.is_main_process else None,
            self.names,
            epochs=settings.epochs,
            images=self.steps_per_epoch * settings.batch_size,
        )
        if self.step:
            self.log.note(f"resumed at step {self.step} of {self.steps}")
        self.saved = self.reported = time.monotonic()
        try:
            while self.step < self.steps and not self._is_settled():
                self._run_epoch(request)
            self._obey(max(gather(request.number)), late=False)
        except BaseException:
            self._report()  # so that the status tells the very step
            raise
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def _run_epoch(self, request: StopRequest) -> None:
        """Take the steps that are left of an epoch, and do what the processes agree on."""
        number, first = divmod(self.step, self.steps_per_epoch)
        if first == 0:
            due = self._is_due(self.config.star.realign_every, number)
            self.epoch, self.moved = Epoch(), self._align() if due else 0
        self.ends.align(self.alignment.permutations)
        self.loss.working.train()
        signal, late = 0, False
        for batches in self._batches(number, first):
            heard = self._take_step(batches, request)
            signal, late = self._judge(heard, self.step - 1)
            if self.step % self.steps_per_epoch:
                self._obey(signal, late=late)
        last_signal, last_late = self._judge(self.agreement.hear(), self.step)
        record = self._close_epoch(number + 1)
        self.log.epoch(number + 1, record, 1 - first / self.steps_per_epoch)
        self.accelerator.log(record, step=self.step)
        due = self.step == self.steps or self._is_due(self.config.runtime.checkpoint_epochs, number + 1)
        self._obey(signal or last_signal, late=due or late or last_late)

    def _take_step(self, batches: Sequence[Batch], request: StopRequest) -> list[float] | None:
        """One step of the optimizer; what all processes said at the end of the one before."""
        settings = self.config.star
        set_learning_rate(self.optimizer, settings, step=self.step, total=self.steps)
        self.loss.clear()
        broken = torch.zeros((), device=self.device)
        worst = torch.zeros((), device=self.device)
        for place, (images, labels) in zip(self._places, batches, strict=True):
            draw = self.sampler.draw(self.step, place)
            end = self.ends.get(draw.source)
            self._prefetch(place)
            torch.manual_seed(self.sampler.noise(self.step, place))
            images, labels = self._to_device(images), labels.to(self.device, non_blocking=True)
            prediction = self.teacher.predict(end, images) if self.teacher else None
            last = place == self._places[-1]
            loss = self.loss.accumulate(end.parameters, draw.t, images, labels, prediction, last=last)
            self.epoch.add(loss, own=draw.own)
            broken = torch.maximum(broken, (place + 1) * (~torch.isfinite(loss)).float())
            worst = torch.maximum(worst, loss.float().nan_to_num(0.0))
        self._update()
        self.step += 1
        late = time.monotonic() - self.saved > 60 * self.config.runtime.checkpoint_minutes
        first = self.accelerator.is_main_process
        heard = self.agreement.share([request.number, first and late, broken, worst])
        if time.monotonic() - self.reported > _SECONDS_BETWEEN_REPORTS or self.step == self.steps:
            self._report(**({"loss": heard[3]} if heard else {}))
        return heard

    def _update(self) -> None:
        scaler = self.accelerator.scaler
        if self.config.star.clip_grad_norm:
            if scaler:
                scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.star.values(), self.config.star.clip_grad_norm)
        if not scaler:
            self.optimizer.step()
            return
        before = scaler.get_scale()
        scaler.step(self.optimizer)  # which is left out where a gradient overflowed
        scaler.update()
        overflowed = scaler.get_scale() < before
        self.epoch.skipped += overflowed
        self.loss_monitor.skipped(overflowed)

    def _judge(self, heard: Sequence[float] | None, step: int) -> tuple[int, bool]:
        """What the processes said of a step, from 1: a signal, and whether the last checkpoint was long ago."""
        if heard is None:
            return 0, False
        signal, late, broken, worst = heard
        if broken:
            where, images = self._describe_step(step - 1, int(broken) - 1)
            self.log.note(f"the loss is not finite {where}, on training images {', '.join(map(str, images))}")
            raise self.loss_monitor.broken(f"{where}, on training images {', '.join(map(str, images[:4]))}, …")
        self.epoch.spikes += self.loss_monitor.is_spike(worst)
        return int(signal), bool(late)

    def _obey(self, signal: int, *, late: bool) -> None:
        """Do what the processes have agreed on: keep what there is, or end."""
        if signal or late:
            self._save()
        if signal:
            self.log.note(f"stopped at step {self.step} of {self.steps}")
            kept = f"step {self.step} of {self.steps} is kept" if self.folder else "nothing is kept without a folder"
            stop(signal, kept)

    def _close_epoch(self, number: int) -> dict[str, float]:
        """Sum up an epoch, from 1, in the history."""
        settings = self.config.star
        record = self.epoch.record(gather(self.epoch.sums())) | {"moved": float(self.moved)}
        if settings.midpoint_every and (self._is_due(settings.midpoint_every, number) or number == settings.epochs):
            losses = self.alignment.midpoint_losses(self._state(statistics=False))
            record["midpoint_loss"] = sum(losses) / len(losses)
            record |= {f"midpoint_loss.{source}": loss for source, loss in enumerate(losses)}
        if not all(map(_is_finite, record.values())):
            raise self.loss_monitor.broken(f"in epoch {number}")
        self._check_finite(f"at the end of epoch {number}")
        self.history = [*self.history, record]
        return record

    def _check_finite(self, where: str) -> None:
        """Make sure that the star is one: the gradient of a finite loss need not be finite."""
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.star.values()):
            raise self.loss_monitor.broken(where)

    def _is_settled(self) -> bool:
        """Whether the half-way losses have stopped falling, where that ends the run."""
        patience = self.config.star.patience
        losses = [record["midpoint_loss"] for record in self.history if "midpoint_loss" in record]
        if patience is None or len(losses) <= patience:
            return False
        return min(losses[-patience:]) >= min(losses[:-patience])

    def restore(self, checkpoint: Checkpoint, *, allow_world_size_change: bool) -> None:
        """Go on from a checkpoint."""
        then = len(checkpoint.sums)
        self.changes = list(checkpoint.changes)
        if then != self.ranks:
            change = f"{pluralize(then, 'process', 'processes')} before, {self.ranks} now"
            if not allow_world_size_change:
                raise UsageError(
                    str(self.folder),
                    f"the run had {change}, which changes its draws or their rounding",
                    hint=f"use {then}, or add --allow-world-size-change",
                )
            self.changes.append(f"from step {checkpoint.step}: {change}")
        with torch.no_grad():
            for name, parameter in self.star.items():
                parameter.copy_(checkpoint.star[name])
        if not restore_optimizer(self.optimizer, checkpoint.optimizer):
            self.changes.append(f"from step {checkpoint.step}: the new optimizer begins without a state")
        if self.accelerator.scaler and checkpoint.scaler:
            self.accelerator.scaler.load_state_dict(dict(checkpoint.scaler))
        parts, [moved, *_] = [part[:-1] for part in checkpoint.sums], [part[-1] for part in checkpoint.sums]
        self.epoch = Epoch.shared_out(parts, self.accelerator.process_index, self.ranks)
        self.step, self.moved = checkpoint.step, int(moved)
        if checkpoint.loss_monitor:
            self.loss_monitor.remember(checkpoint.loss_monitor)
        self.history = [dict(record) for record in checkpoint.history]
        self.kept = self.step

    def finish(self) -> FittedStar:
        """Align the sources to the final star and estimate its batch-norm statistics."""
        if self.step:
            self._align()
        state = {name: tensor.contiguous() for name, tensor in self._state(statistics=True).items()}
        return FittedStar(
            state=state,
            permutations=self.alignment.permutations,
            history=self.history,
            changes=self.changes,
            steps=self.step,
            draws=self.draws,
        )

    def _save(self) -> None:
        """Keep a checkpoint, where there is a folder for it and none of this step in it."""
        self.saved = time.monotonic()
        if self.step == self.kept:
            return
        self.kept = self.step
        self._judge(self.agreement.hear(), self.step)  # so that nothing is on its way any more
        moved = float(self.moved)
        sums = gather([*self.epoch.sums(), moved])
        self._check_finite(f"before step {self.step}")
        if not self.folder or not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        checkpoint = Checkpoint(
            step=self.step,
            star={name: parameter.detach() for name, parameter in self.star.items()},
            optimizer=optimizer_tensors(self.optimizer),
            permutations=[permutation.to_tensors() for permutation in self.alignment.permutations],
            history=self.history,
            sums=sums,
            scaler=scaler.state_dict() if scaler else None,
            loss_monitor=self.loss_monitor.memory,
            changes=self.changes,
        )
        save_checkpoint(self.folder / CHECKPOINTS, checkpoint, self.identity)

    def _align(self) -> int:
        """Bring the sources to the star as it stands; how many positions that moved."""
        return self.alignment.align_to(self._state(statistics=self.alignment.config.needs_batch_norm_stats))

    def _state(self, *, statistics: bool) -> dict[str, Tensor]:
        # The working copy's running statistics are those of the paths on which it was evaluated last: they are the
        # star's only once they are estimated anew.
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                parameter.copy_(self.star[name])
        if statistics:
            batches = self.data.statistics_images(self.config.evaluate)
            reestimate_batch_norm(self.network, map(self._to_device, batches))
        return {name: tensor.detach().cpu().clone() for name, tensor in self.network.state_dict().items()}

    @property
    def _places(self) -> range:
        """Which draws of a step are this process's."""
        return range(self.accelerator.process_index, self.draws, self.ranks)

    def _loader(self, epoch: int, place: int) -> Loader:
        """The share of an epoch's batches that belongs to one of the draws."""
        settings = self.config.star
        return self.data.train.loader(
            settings.batch_size,
            epoch=epoch,
            seed=settings.seed,
            augment=self.config.data.augment,
            shard=place,
            num_shards=self.draws,
            workers=self.config.runtime.workers,
        )

    def _batches(self, epoch: int, first: int) -> Iterator[tuple[Batch, ...]]:
        """For every step from the first on, this process's shares of the batch."""
        return zip(*(self._loader(epoch, place).skip(first) for place in self._places), strict=True)

    def _prefetch(self, place: int) -> None:
        """Ask for the source of the draw after this one."""
        places = self._places
        step, following = (self.step, place + self.ranks) if place != places[-1] else (self.step + 1, places[0])
        if step % self.steps_per_epoch or following != places[0]:  # a new epoch may align anew
            self.ends.prefetch(self.sampler.draw(step, following).source)

    def _describe_step(self, step: int, place: int) -> tuple[str, list[int]]:
        """One draw of a step, from 0, in words, and the images that it has seen."""
        draw = self.sampler.draw(step, place)
        epoch, number = divmod(step, self.steps_per_epoch)
        images: list[int] = self._loader(epoch, place).batches[number].tolist()
        return f"at step {step + 1} (epoch {epoch + 1}), source {self.names[draw.source]}, t = {draw.t:.4f}", images

    def _report(self, **loss: float) -> None:
        """Tell which step was taken, with the path loss of the last epoch or what else is known."""
        self.reported = time.monotonic()
        figures = (
            {name: value for name, value in self.history[-1].items() if name == "path_loss"} if self.history else loss
        )
        self.progress("fitting the star", self.step, self.steps, **figures)

    @staticmethod
    def _is_due(period: int, number: int) -> bool:
        return number > 0 and period > 0 and number % period == 0

    def _to_device(self, images: Tensor) -> Tensor:
        layout = torch.channels_last if self.config.star.channels_last else torch.contiguous_format
        return images.to(self.device, memory_format=layout, non_blocking=True)


def _deciding(config: RunConfig) -> dict[str, Any]:
    """What of a configuration decides which star is found: not how it is measured, but how its statistics are."""
    values = config.model_dump(mode="json", exclude={"evaluate", "runtime"})
    values["data"]["revision"] = None  # its images are told by their fingerprint, whatever else was committed since
    deciding = {"batch_size", "batch_norm_images", "batch_norm_augment", "seed"}
    values["evaluate"] = config.evaluate.model_dump(include=deciding)
    return values


def _make_accelerator(config: RunConfig, folder: Path | None) -> Accelerator:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import AutocastKwargs, DistributedDataParallelKwargs, InitProcessGroupKwargs

    if config.star.precision == "fp16" and runs_on_cpu():
        raise UsageError("star.precision", "fp16 needs a GPU", hint="use bf16 or fp32")
    trackers = check_trackers(config.runtime.trackers)
    AcceleratorState._reset_state()  # it would hold every later fit of this process to the precision of the first
    accelerator = Accelerator(
        cpu=runs_on_cpu(),
        mixed_precision="no" if config.star.precision == "fp32" else config.star.precision,
        log_with=trackers or None,
        project_dir=folder / "logs" if folder and trackers else None,
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False),
            InitProcessGroupKwargs(timeout=datetime.timedelta(minutes=config.runtime.timeout_minutes)),
            AutocastKwargs(cache_enabled=False),
        ],
    )
    if trackers:
        values = {f"star.{name}": value for name, value in config.star.model_dump(mode="json").items()}
        plain = {name: value for name, value in values.items() if isinstance(value, int | float | str)}
        accelerator.init_trackers("starzoo", config={**plain, "align.method": config.align.method})
    return accelerator


def _count_draws(wanted: int | None, ranks: int) -> int:
    draws = wanted or ranks
    if draws % ranks:
        raise UsageError(
            "star.draws",
            f"expected a multiple of {ranks} processes, got {draws}",
            hint=f"use star.draws={ranks * -(-draws // ranks)}",
        )
    return draws


def _check_share(settings: StarConfig, draws: int, network: nn.Module) -> None:
    """Batch norm has no deviation to divide by where a draw has one image."""
    normalized = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())
    if normalized and settings.batch_size < 2 * draws:
        raise UsageError(
            "star.batch_size",
            f"expected two images for each of {draws} draws, which batch norm needs, got {settings.batch_size}",
            hint=f"use star.batch_size={2 * draws} or more",
        )


def _check_same(steps: Sequence[int], folder: Path | None) -> None:
    """All processes must go on from one checkpoint."""
    if len(set(steps)) > 1:
        raise UsageError(
            str(folder),
            f"the processes find different checkpoints there, of the steps {', '.join(map(str, steps))}",
            hint="give an --out that all machines of the run share",
        )


def _compile(network: nn.Module) -> nn.Module:
    if runs_on_cpu() and not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        raise UsageError("runtime.compile", "needs a C++ compiler on a CPU", hint="install g++, or leave it out")
    return torch.compile(network)  # type: ignore[return-value]


def _is_finite(value: float) -> bool:
    return value - value == 0
