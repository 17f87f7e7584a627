"""Starlight (paper, algorithm 1): the star model that is linearly connected to every source.

This is the only file that builds an Accelerator. On several ranks each one draws its own source and t, and the
gradients are averaged: more ranks, less variance, the same expectation.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from starzoo.align.align import Aligner, average, choose_method
from starzoo.align.probe import Probe
from starzoo.architecture import Architecture
from starzoo.config import AlignConfig, RunConfig
from starzoo.errors import NumericalError
from starzoo.evaluate.path import reestimate_batch_norm
from starzoo.layout import channels_last
from starzoo.optimization import make_optimizer, set_learning_rate
from starzoo.progress import Progress, silent
from starzoo.star.checkpoint import (
    Checkpoint,
    load_newest,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from starzoo.star.objective import StarlightLoss
from starzoo.star.sampling import SourceSampler
from starzoo.symmetry.permutation import Permutation
from starzoo.symmetry.spec import PermutationSpec

if TYPE_CHECKING:
    from starzoo.data import ImageData

__all__ = ["FittedStar", "fit", "is_main_process", "wait_for_all"]

StateDict = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class FittedStar:
    """What Starlight found.

    Attributes:
        state: The star's state dict, batch-norm statistics re-estimated.
        permutations: What brings each source to the star, in the order of the sources.
        alignment: How the sources were aligned: the run's configuration, with the method that `auto` chose.
        history: One record per epoch: path loss, own loss (with mu), positions moved by the alignment.
    """

    state: dict[str, Tensor]
    permutations: list[Permutation]
    alignment: AlignConfig
    history: list[dict[str, float]]


def fit(
    architecture: Architecture,
    spec: PermutationSpec,
    sources: Sequence[StateDict],
    data: ImageData,
    config: RunConfig,
    *,
    checkpoints: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> FittedStar:
    """Find the star of some sources; a run that was stopped goes on from its newest checkpoint.

    Args:
        architecture: What star and sources have in common.
        spec: Its symmetries.
        sources: State dicts of the sources θ_1 … θ_N.
        data: The task's images.
        config: The run's configuration.
        checkpoints: Folder for checkpoints; none are kept when not given.
        identity: JSON value that tells this run from others: a checkpoint with another one is refused.
        progress: Told after every epoch.

    Returns:
        The star, the permutations of the sources and the history.
    """
    identity = {**(identity or {}), "config": config.model_dump(mode="json", exclude={"evaluate"})}
    found = load_newest(checkpoints, identity) if checkpoints else None  # a stranger's is refused before any work
    run = _Run(architecture, spec, sources, data, config)
    if found:
        run.restore(found)
    for epoch in range(run.epoch, config.star.epochs):
        record = run.train_epoch(epoch)
        progress("fitting the star", epoch + 1, config.star.epochs, **record)
        due = (epoch + 1) % config.star.checkpoint_every == 0 or epoch + 1 == config.star.epochs
        if checkpoints and due and run.accelerator.is_main_process:
            save_checkpoint(checkpoints, run.checkpoint(), identity)
    return run.finish()


def is_main_process() -> bool:
    """Whether this is the process that writes and publishes; true where there is only one."""
    return bool(PartialState(cpu=_on_cpu()).is_main_process)


def wait_for_all() -> None:
    """Wait until every process of the run has come here."""
    PartialState(cpu=_on_cpu()).wait_for_everyone()


def _on_cpu() -> bool:
    # Without a device, Accelerate takes several processes for several single ones unless it is told so.
    return not torch.accelerator.is_available()


class _Run:
    """The state of one fit: the star's parameters, the optimiser and the sources as they are aligned now."""

    def __init__(
        self,
        architecture: Architecture,
        spec: PermutationSpec,
        sources: Sequence[StateDict],
        data: ImageData,
        config: RunConfig,
    ) -> None:
        self.spec, self.sources, self.data, self.config = spec, sources, data, config
        self.epoch, self.history = 0, list[dict[str, float]]()
        self.accelerator = Accelerator(
            cpu=_on_cpu(), kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)]
        )
        ranks, device = self.accelerator.num_processes, self.accelerator.device
        torch.manual_seed(config.star.seed)  # for the random start, and dropout in the working copy
        self.network = architecture.build().to(device)
        probe = None
        if config.align.needs_images:
            some = data.train.labelled_images(limit=config.align.images, seed=config.align.seed)
            probe = Probe(architecture.build(), *some)
        self.alignment = choose_method(spec, sources[0], sources[1:], config.align, probe)
        self.aligner = Aligner(spec, self.alignment.to_one, probe)
        self.seen = [self.aligner.evidence.of(source) for source in sources]
        start, self.permutations = self._start()
        self.network.load_state_dict(start)
        if config.star.channels_last:
            channels_last(self.network)
        self.star = {name: nn.Parameter(value.detach().clone()) for name, value in self.network.named_parameters()}
        self.optimizer = make_optimizer(self.star.values(), config.star)
        working = self.accelerator.prepare_model(self.network) if ranks > 1 else self.network
        self.loss = StarlightLoss(
            list(self.star.values()),
            working,
            mu=config.star.mu,
            backward=self.accelerator.backward,
            hold=functools.partial(self.accelerator.no_sync, working),
        )
        self.sampler = SourceSampler(config.star, len(sources), ranks)

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """Align where it is due, then one pass over the training split."""
        settings = self.config.star
        moved = self._align() if epoch > 0 and settings.realign_every and epoch % settings.realign_every == 0 else 0
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        ends = self._ends()
        loader = self.data.train.loader(
            settings.batch_size,
            epoch=epoch,
            seed=settings.seed,
            augment=self.config.data.augment,
            rank=rank,
            world_size=ranks,
        )
        steps = len(loader)
        self.loss.working.train()
        losses = []
        for number, (images, labels) in enumerate(loader):
            step = epoch * steps + number
            draw = self.sampler.draw(step, rank)
            set_learning_rate(self.optimizer, settings, step=step, total=settings.epochs * steps)
            images, labels = self._to_device(images), labels.to(self.accelerator.device)
            losses.append(self.loss.accumulate(ends[draw.source], draw.t, images, labels))
            if settings.clip_grad_norm:
                torch.nn.utils.clip_grad_norm_(self.star.values(), settings.clip_grad_norm)
            self.optimizer.step()
        record = {"path_loss": float(torch.stack([loss.path for loss in losses]).mean()), "moved": float(moved)}
        own = [loss.own for loss in losses if loss.own is not None]
        if own:
            record["own_loss"] = float(torch.stack(own).mean())
        if not all(map(_is_finite, record.values())):
            raise NumericalError(
                f"the loss of the star is not finite in epoch {epoch + 1}",
                hint="lower star.lr, raise star.warmup, or set star.clip_grad_norm=1; the last checkpoint is kept",
            )
        self.epoch, self.history = epoch + 1, [*self.history, record]
        return record

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(
            epoch=self.epoch,
            star={name: parameter.detach() for name, parameter in self.star.items()},
            optimizer=optimizer_tensors(self.optimizer),
            permutations=[permutation.tensors() for permutation in self.permutations],
            history=self.history,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        with torch.no_grad():
            for name, parameter in self.star.items():
                parameter.copy_(checkpoint.star[name])
        restore_optimizer(self.optimizer, checkpoint.optimizer)
        self.permutations = [Permutation.from_tensors(self.spec, tensors) for tensors in checkpoint.permutations]
        self.epoch, self.history = checkpoint.epoch, [dict(record) for record in checkpoint.history]

    def finish(self) -> FittedStar:
        """Align the sources to the final star and estimate its batch-norm statistics."""
        if self.epoch:
            self._align()
        state = {name: tensor.contiguous() for name, tensor in self._state(statistics=True).items()}
        return FittedStar(state=state, permutations=self.permutations, alignment=self.alignment, history=self.history)

    def _start(self) -> tuple[StateDict, list[Permutation]]:
        """The star before its first step, and the permutations that bring the sources to it."""
        match self.config.star.start:
            case "aligned-average":
                permutations = self.aligner.match_all(self.seen)
                aligned = [each.apply(source) for each, source in zip(permutations, self.sources, strict=True)]
                return average(aligned), permutations
            case "random":
                start: StateDict = {name: tensor.cpu() for name, tensor in self.network.state_dict().items()}
            case "source":
                start = self.sources[0]
        return start, [each.permutation for each in self.aligner.match(self.aligner.evidence.of(start), self.seen)]

    def _align(self) -> int:
        """Bring the sources to the star as it stands; how many positions that moved."""
        before = self.permutations
        star = self.aligner.evidence.of(self._state(statistics=self.alignment.needs_statistics))
        self.permutations = [each.permutation for each in self.aligner.match(star, self.seen, before)]
        return sum(new.moved(old) for new, old in zip(self.permutations, before, strict=True))

    def _state(self, *, statistics: bool) -> dict[str, Tensor]:
        # The working copy's running statistics are those of the paths on which it was evaluated last: they are the
        # star's only once they are estimated anew.
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                parameter.copy_(self.star[name])
        if statistics:
            settings = self.config.evaluate
            batches = self.data.train.images(settings.batch_size, limit=settings.statistics_images, seed=settings.seed)
            reestimate_batch_norm(self.network, map(self._to_device, batches))
        return {name: tensor.detach().cpu().clone() for name, tensor in self.network.state_dict().items()}

    def _ends(self) -> list[list[Tensor]]:
        """The aligned sources' parameters, in the order and memory layout of the star's."""
        device, names = self.accelerator.device, list(self.star)
        ends = []
        for permutation, source in zip(self.permutations, self.sources, strict=True):
            end = permutation.apply(source, only=names)
            ends.append([end[name].to(device).to(memory_format=_layout(self.star[name])) for name in names])
        return ends

    def _to_device(self, images: Tensor) -> Tensor:
        layout = torch.channels_last if self.config.star.channels_last else torch.contiguous_format
        return images.to(self.accelerator.device, memory_format=layout)


def _layout(tensor: Tensor) -> torch.memory_format:
    last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _is_finite(value: float) -> bool:
    return value - value == 0
