"""Train a zoo: a folder with one sub-folder per member, of which several are trained at a time."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from starzoo.config import DataConfig, TrainConfig
from starzoo.data.augmentation import transform_key
from starzoo.data.task import ImageTask, load_data
from starzoo.errors import UntrustedInputError, UsageError
from starzoo.files import translate_write_errors, write_text
from starzoo.models.architecture import Architecture
from starzoo.models.memory_format import channels_last
from starzoo.models.timm_folder import CONFIG_FILE, WEIGHTS_FILE, save_timm_folder
from starzoo.models.training.member import measure, train_member
from starzoo.models.training.optimizer import check_optimizer
from starzoo.models.training.workers import ReportProgress, run_in_processes
from starzoo.parallel import available_cpus
from starzoo.progress import Progress, no_progress
from starzoo.strict_json import read_json
from starzoo.text import json_differences

__all__ = ["MemberReport", "train_zoo"]

_logger = logging.getLogger(__name__)

_RECORD_FILE = "training.json"
_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class MemberReport:
    """One member of a zoo.

    Attributes:
        seed: The seed of its initialization, order and augmentation.
        folder: Its folder in timm format.
        trained: False when the folder existed already.
        seconds: Duration of the training.
        train_loss: Cross-entropy on the un-augmented training split, in nats.
        train_accuracy: Accuracy on the un-augmented training split.
        test_loss: Cross-entropy on the test split, in nats.
        test_accuracy: Accuracy on the test split.
        steps: Steps of the optimizer; None in the records of earlier versions.
    """

    seed: int
    folder: Path
    trained: bool
    seconds: float
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    steps: int | None = None


def train_zoo(
    architecture: Architecture,
    data_config: DataConfig,
    train_config: TrainConfig,
    seeds: Sequence[int],
    out: Path,
    *,
    jobs: int | None = None,
    progress: Progress = no_progress,
) -> list[MemberReport]:
    """Train one member per seed into `out/seed-N`, several at a time; finished members are kept.

    Args:
        architecture: What all members have in common; its label names must be those of the data.
        data_config: The task.
        train_config: The recipe.
        seeds: One for every member.
        out: The zoo's folder.
        jobs: Members at a time, each in a process of its own: as many as there are cores (or GPUs) when not given.
        progress: Called after every epoch of any member.

    Returns:
        One report per seed, in their order. A warning names each member that is no better than chance.

    Raises:
        UsageError: A seed is negative or repeated, or a folder holds something other than its member.
    """
    if len(set(seeds)) < len(seeds) or any(seed < 0 for seed in seeds):
        raise UsageError("seeds", "must be different numbers from 0 on", hint="use for example 0-9")
    check_optimizer(train_config.optimizer)
    if train_config.small_size and architecture.config()["pretrained_cfg"]["fixed_input_size"]:
        raise UsageError("train.small_size", f"{architecture.name} takes images of one size", hint="leave it out")
    data = _load_data(architecture, data_config)
    trainer = _Trainer(architecture, data.config, train_config, data.fingerprint)
    reports = {seed: _read_report(out / f"seed-{seed}", trainer.identity(seed)) for seed in seeds}
    missing = [seed for seed, report in reports.items() if report is None]
    if missing:
        reports |= _train_missing(trainer, missing, out, jobs, progress)
    finished = [report for report in reports.values() if report]
    chance = 1 / architecture.num_classes
    for report in finished:
        if report.train_accuracy < chance + 0.05 * (1 - chance):
            _logger.warning(
                "%s: no better than chance, %.1f %% of its own training images; lower train.lr",
                report.folder,
                100 * report.train_accuracy,
            )
    return finished


def _load_data(architecture: Architecture, config: DataConfig) -> ImageTask:
    return load_data(
        config,
        architecture.preprocessing,
        class_names=architecture.label_names,
        num_classes=architecture.num_classes,
    )


@dataclass(frozen=True)
class _Task:
    """One member to train: its seed, the folder to write, the device."""

    seed: int
    folder: Path
    device: str

    def __str__(self) -> str:
        return f"seed {self.seed}"


@dataclass(frozen=True)
class _Trainer:
    """Trains, measures and saves members; the images stay in memory between them."""

    architecture: Architecture
    data_config: DataConfig
    train_config: TrainConfig
    fingerprint: str

    def __call__(self, task: _Task, report: ReportProgress) -> MemberReport:
        def report_epoch(stage: str, done: int, total: int, **figures: float) -> None:
            report(**figures)

        data, start = self.data, time.monotonic()
        state = train_member(
            self.architecture,
            data,
            self.train_config,
            task.seed,
            device=task.device,
            progress=report_epoch,
        )
        seconds = round(time.monotonic() - start, 2)
        model = self.architecture.build()
        model.load_state_dict(state)
        channels_last(model).to(task.device)
        train_loss, train_accuracy = measure(model, data.train)
        test_loss, test_accuracy = measure(model, data.test)
        result: dict[str, Any] = {
            "seconds": seconds,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "steps": self.train_config.epochs * (len(data.train) // self.train_config.batch_size),
        }
        save_timm_folder(task.folder, self.architecture, state)
        versions = {package: version(package) for package in ("starzoo", "timm", "torch")}
        record = {**self.identity(task.seed), "result": result, "versions": versions}
        write_text(task.folder / _RECORD_FILE, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        return MemberReport(seed=task.seed, folder=task.folder, trained=True, **result)

    @cached_property
    def data(self) -> ImageTask:
        return _load_data(self.architecture, self.data_config)

    def identity(self, seed: int) -> dict[str, Any]:
        """Return what the record of the member of a seed must say."""
        return {
            "schema": _SCHEMA,
            "seed": seed,
            "architecture": self.architecture.model_dump(mode="json"),
            "data": {
                **self.data_config.model_dump(mode="json", exclude={"transform", "image_size"}),
                **transform_key(self.data_config, self.data_config.augment),
                "fingerprint": self.fingerprint,
            },
            "train": self.train_config.model_dump(mode="json"),
        }


def _train_missing(
    trainer: _Trainer, seeds: Sequence[int], out: Path, jobs: int | None, progress: Progress
) -> dict[int, MemberReport]:
    """Train members; each appears in `out` by one rename."""
    reports: dict[int, MemberReport] = {}
    epochs = itertools.count(1)
    gpus = torch.cuda.device_count()

    def report_epoch(**figures: float) -> None:
        progress("training the zoo", next(epochs), len(seeds) * trainer.train_config.epochs, **figures)

    def publish(report: MemberReport) -> None:
        target = out / report.folder.name
        existing = _read_report(target, trainer.identity(report.seed))  # of another run at the same time
        if existing is None:
            with translate_write_errors(target):
                report.folder.rename(target)
        reports[report.seed] = existing or replace(report, folder=target)

    with _scratch_folder(out) as scratch:
        tasks = [
            _Task(seed, scratch / f"seed-{seed}", f"cuda:{number % gpus}" if gpus else "cpu")
            for number, seed in enumerate(seeds)
        ]
        run_in_processes(trainer, tasks, jobs or gpus or available_cpus(), report=report_epoch, on_result=publish)
    return reports


@contextmanager
def _scratch_folder(out: Path) -> Iterator[Path]:
    """Make a hidden folder beside the members; it is removed at the end, and so is an `out` that is new and empty."""
    existed = out.exists()
    with translate_write_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".training-", dir=out))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if not existed:
            with suppress(OSError):  # it holds members
                out.rmdir()


def _expected_record(identity: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a member's record must say.

    Its images are identified by their fingerprint, not by their location. An option that the record does not have was
    added later, with a default that changes nothing.
    """
    data, train = (record[name] if isinstance(record.get(name), dict) else {} for name in ("data", "train"))
    defaults = TrainConfig().model_dump(mode="json")
    location = {key: data[key] for key in ("dataset", "revision") if key in data}
    options = {key: value for key, value in identity["train"].items() if key in train or value != defaults[key]}
    return {**identity, "data": {**identity["data"], **location}, "train": options}


def _read_report(folder: Path, identity: dict[str, Any]) -> MemberReport | None:
    """Return the report of a finished member; None without a folder."""
    if not folder.exists():
        return None
    hint = "choose another folder, or remove this one"
    for name in (_RECORD_FILE, CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise UsageError(str(folder), f"is no finished member: it has no {name}", hint=hint)
    record = read_json(folder / _RECORD_FILE)
    recorded = {key: record.get(key) for key in identity}
    if difference := next(json_differences(recorded, _expected_record(identity, record)), ""):
        raise UsageError(str(folder), f"was made otherwise: {difference}", hint=hint)
    try:
        return MemberReport(seed=identity["seed"], folder=folder, trained=False, **record["result"])
    except (KeyError, TypeError) as error:
        raise UntrustedInputError(str(folder / _RECORD_FILE), "was not written by starzoo", hint=hint) from error
