"""The configuration of a run as frozen values: checked when made, saved with the result, shown in the card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from starzoo.choices import Method
from starzoo.errors import UsageError

__all__ = [
    "YAML_ERRORS",
    "AlignConfig",
    "Augmentation",
    "Baseline",
    "Beta",
    "Constant",
    "DataConfig",
    "EvalConfig",
    "Method",
    "RunConfig",
    "RuntimeConfig",
    "StarConfig",
    "TrainConfig",
    "Uniform",
    "ZooConfig",
    "load_config",
    "load_zoo_config",
    "parse_section_overrides",
    "validate",
    "with_changes",
]

Optimizer = Literal["sgd", "adamw"]
Baseline = Literal["swa", "student"]
Augmentation = Literal["none", "flip", "crop-flip"]
# Bounds are far above what anybody needs, and below what fills a machine: a stranger's star.json has these values too.
_MANY = 1_000_000
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what NumPy and PyTorch both take

Value = TypeVar("Value", bound=BaseModel)


def _without_repeats(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))  # what is named twice is measured once


def _as_dataset(value: object) -> object:
    return {"dataset": value} if isinstance(value, str) else value


def _not_one(points: int) -> int:
    if points == 1:
        raise ValueError("one point is no picture; give 2 or more, or 0 for none")
    return points


Name = Annotated[str, Field(max_length=300)]
Finite = Annotated[float, Field(ge=-1e39, le=1e39)]  # all that float32 holds
Share = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[int, Field(ge=0, lt=2**63)]


class FrozenModel(BaseModel):
    """A configuration value: immutable, finite, of bounded length, and no unknown key passes."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, str_max_length=4096)


class DataConfig(FrozenModel):
    """Which images, and how they are split and augmented."""

    dataset: str = Field(
        "digits", min_length=1, description="`digits` (embedded), a Hub data set id, or a local folder"
    )
    name: str | None = Field(None, description="the data set's configuration name, where it has several")
    revision: str | None = Field(None, description="the commit of a Hub data set")
    train_split: str = "train"
    test_split: str = "test"
    image_column: str | None = Field(None, description="found by its type when not given")
    label_column: str | None = Field(None, description="found by its type when not given")
    train_size: int | None = Field(
        None, ge=1, lt=2**32, description="a class-balanced, seeded subset of the training split"
    )
    test_size: int | None = Field(None, ge=1, lt=2**32, description="a class-balanced, seeded subset of the test split")
    augment: Augmentation = Field("none", description="training augmentation")


class TrainConfig(FrozenModel):
    """How one independent member of a zoo is trained."""

    epochs: int = Field(20, ge=1, le=_MANY)
    batch_size: int = Field(64, ge=2, le=100_000)
    optimizer: Optimizer = "sgd"
    lr: float = Field(0.1, gt=0, le=1e38)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(5e-4, ge=0, le=_MANY)
    warmup: float = Field(0.05, ge=0, lt=1, description="share of all steps with a linearly rising rate")
    label_smoothing: float = Field(0.0, ge=0, lt=1)


class AlignConfig(FrozenModel):
    """How a permutee is brought as close as its symmetries allow to the fixed model.

    The methods compare weights as they are (`weights`, Git Re-Basin's), or with layers of norm 1 (`balanced-weights`);
    or activations on some training images, alone (`activations`) or with the gradients of the output
    (`activations-gradients`).
    """

    method: Method = Field("activations-gradients", description="how models are matched")
    restarts: int = Field(
        1,
        ge=1,
        le=1000,
        description="starts of the matching to one model: the given one, and random ones; the closest is kept",
    )
    max_sweeps: int = Field(
        100, ge=1, le=_MANY, description="bound on sweeps over the groups; a sweep that moves nothing ends it"
    )
    images: int = Field(1000, ge=2, le=100_000, description="training images for the methods that run the models")
    seed: Seed = 0

    @property
    def needs_images(self) -> bool:
        """Whether the method runs the models on images."""
        return self.method.startswith("activations")

    @property
    def needs_statistics(self) -> bool:
        """Whether the running statistics of models must be their own: they vote, or the models are run with them."""
        return self.method == "weights" or self.needs_images


class Uniform(FrozenModel):
    """t ~ U[low, high]: the paper's choice with 0 and 1."""

    kind: Literal["uniform"] = "uniform"
    low: float = Field(0.0, ge=0, le=1)
    high: float = Field(1.0, ge=0, le=1)

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low is {self.low}, which is above high, {self.high}")
        return self


class Beta(FrozenModel):
    """t ~ Beta(a, b): an ablation of the paper with a = b = 2."""

    kind: Literal["beta"] = "beta"
    a: float = Field(2.0, gt=0, le=_MANY)
    b: float = Field(2.0, gt=0, le=_MANY)


class Constant(FrozenModel):
    """t = value at every step: an ablation of the paper with ½ (a star that games the barrier)."""

    kind: Literal["constant"] = "constant"
    value: float = Field(0.5, ge=0, le=1)


class StarConfig(FrozenModel):
    """Starlight: how the star is found (paper, section 3)."""

    epochs: int = Field(40, ge=0, le=_MANY, description="passes over the training split; 0 keeps the start as it is")
    batch_size: int = Field(64, ge=2, le=100_000)
    optimizer: Optimizer = "sgd"
    lr: float = Field(0.2, gt=0, le=1e38)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(5e-4, ge=0, le=_MANY)
    warmup: float = Field(0.05, ge=0, lt=1, description="share of all steps with a linearly rising rate")
    init: Literal["aligned-average", "random", "source"] = "aligned-average"
    source_order: Literal["shuffled", "independent"] = Field(
        "shuffled", description="each source once per shuffled round, or every source drawn independently"
    )
    t: Annotated[Uniform | Beta | Constant, Field(discriminator="kind")] = Uniform()
    mu: float = Field(
        0.2, ge=0, le=_MANY, description="weight of the star's own loss, which is the share mu / (1 + mu) of all draws"
    )
    kappa: float = Field(1.0, ge=0, le=_MANY, description="weight of the drawn source's prediction beside the label's")
    draws: int | None = Field(
        None,
        ge=1,
        le=_MANY,
        description="draws of (source, t) per step, which share the batch; one for each process by default",
    )
    realign_every: int = Field(
        1, ge=0, le=_MANY, description="epochs between alignments of the sources to the star; 0: never again"
    )
    clip_grad_norm: float | None = Field(None, gt=0, le=_MANY)
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="of the forward passes; fp16 needs a GPU")
    channels_last: bool = True
    midpoint_every: int = Field(
        5, ge=0, le=_MANY, description="epochs between measurements of the loss half-way to every source; 0: never"
    )
    midpoint_images: int = Field(500, ge=2, le=_MANY, description="un-augmented training images of that measurement")
    patience: int | None = Field(
        None,
        ge=1,
        le=_MANY,
        description="stop after this many measurements in a row without a lower mean half-way loss",
    )
    seed: Seed = 0

    @model_validator(mode="after")
    def _check_patience(self) -> Self:
        if self.patience and not self.midpoint_every:
            raise ValueError("patience counts half-way losses, and midpoint_every=0 measures none")
        return self


class RuntimeConfig(FrozenModel):
    """How a run is carried out, which changes nothing that is found: a resumed run may have another one."""

    num_processes: int | None = Field(
        None, ge=1, le=_MANY, description="refuse to run on any other number of processes"
    )
    checkpoint_epochs: int = Field(5, ge=1, le=_MANY, description="epochs between checkpoints")
    checkpoint_minutes: float = Field(
        10.0, gt=0, le=_MANY, description="a checkpoint within an epoch after this long without"
    )
    timeout_minutes: float = Field(
        10.0, gt=0, le=_MANY, description="how long processes wait within a step for one that does not answer"
    )
    workers: int = Field(
        0, ge=0, le=1000, description="threads that prepare batches ahead; 0: each batch when it is needed"
    )
    sources_on: Literal["auto", "device", "host"] = Field(
        "auto",
        description="where the aligned sources are held: on the device, or in host memory to be permuted for each draw;"
        " auto: on the device while they take at most half of its free memory",
    )
    compile: bool = Field(False, description="torch.compile the network, whose results differ in the last digits")
    trackers: tuple[str, ...] = Field(
        (), max_length=100, description="where Accelerate reports figures: tensorboard, wandb, trackio…"
    )


class EvalConfig(FrozenModel):
    """What is measured, and on how much data."""

    points: int = Field(11, ge=3, le=1001, description="evenly spaced points of a path, both ends included")
    source_pairs: int = Field(6, ge=0, le=1000, description="source-source pairs, drawn among sources and held-outs")
    sources: int | None = Field(None, ge=0, le=_MANY, description="star-source paths; all of them when not given")
    splits: Annotated[tuple[Literal["train", "test"], ...], Field(min_length=1), AfterValidator(_without_repeats)] = (
        "test",
    )
    batch_size: int = Field(256, ge=2, le=10_000)
    batch_norm_images: int = Field(2000, ge=2, le=_MANY, description="training images that re-estimate batch norm")
    batch_norm_augment: Augmentation | None = Field(
        None,
        description="how these are augmented; found when not given: as the sources were trained, where they say so, or "
        "as it leaves them closest to their own statistics",
    )
    repair: bool = Field(
        False, description="give every point between two ends the channel statistics of the ends (REPAIR), on all paths"
    )
    bma_samples: int = Field(
        8, ge=0, le=1000, description="points of the star domain that are averaged (BMA), at most; 0: not measured"
    )
    validation_images: int = Field(
        2000,
        ge=2,
        le=_MANY,
        description="training images that no star was fitted on, which temperatures and t are chosen by",
    )
    ood: Annotated[DataConfig, BeforeValidator(_as_dataset)] | None = Field(
        None, description="another data set, whose images uncertainty should tell from those of the task"
    )
    baselines: Annotated[tuple[Baseline, ...], AfterValidator(_without_repeats)] = Field(
        (),
        description="models that are trained at the star's cost to compare it with: swa goes on from the first source, "
        "student is distilled from all",
    )
    loss_plane_points: Annotated[int, AfterValidator(_not_one)] = Field(
        0, ge=0, le=201, description="points along each side of a picture of the loss around the star; 0: none"
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="of the forward passes; with bf16 the star is measured in fp32 too, for the difference"
    )
    seed: Seed = 0


class RunConfig(FrozenModel):
    """Everything that decides a run of `fit-star`: the value that is saved, shown and replayed."""

    data: DataConfig = DataConfig()
    align: AlignConfig = AlignConfig()
    star: StarConfig = StarConfig()
    evaluate: EvalConfig = EvalConfig()
    runtime: RuntimeConfig = RuntimeConfig()


class ZooConfig(FrozenModel):
    """Everything that decides the members of a zoo, besides their architecture and seeds."""

    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()


# Beside its own errors PyYAML raises what Python does for a date such as 2024-13-45, `!!bool maybe` or deep nesting.
YAML_ERRORS = (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, RecursionError, ValueError)
_SECTIONS = {*RunConfig.model_fields, *ZooConfig.model_fields}


def load_config(file: Path | None = None, overrides: Sequence[str] = (), **sections: Mapping[str, Any]) -> RunConfig:
    """Read a run's configuration: the file first, then command-line sections, then `a.b=c` overrides.

    Args:
        file: A YAML file with any of the keys of `RunConfig`, or None for the defaults; `train` is passed over.
        overrides: Assignments such as `star.epochs=10`; the value is read as YAML.
        **sections: Values by section (`data={"dataset": "digits"}`); None values leave the file's value.

    Returns:
        The checked configuration.

    Raises:
        UsageError: The file cannot be read, an assignment is none, or a key or value is not allowed.
    """
    return _load(RunConfig, file, overrides, sections)


def load_zoo_config(
    file: Path | None = None, overrides: Sequence[str] = (), **sections: Mapping[str, Any]
) -> ZooConfig:
    """Read how a zoo is trained, from the same kind of file as `load_config`, so that one serves both."""
    return _load(ZooConfig, file, overrides, sections)


def parse_section_overrides(overrides: Sequence[str], **sections: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Put assignments into sections of changes to a configuration that is not known yet."""
    tree = {section: dict(values) for section, values in sections.items()}
    _assign(tree, overrides)
    for section, values in tree.items():
        if section not in sections or not isinstance(values, dict):
            raise UsageError(
                f"--set {section}",
                f"only {' and '.join(sections)} can be changed here",
                hint=f"write --set {next(iter(sections))}.KEY=VALUE",
            )
    return tree


def _load(
    kind: type[Value], file: Path | None, overrides: Sequence[str], sections: Mapping[str, Mapping[str, Any]]
) -> Value:
    found = _read_yaml(file) if file else {}
    tree = {key: value for key, value in found.items() if key in kind.model_fields or key not in _SECTIONS}
    for section, values in sections.items():
        given = {key: value for key, value in values.items() if value is not None}
        if given and isinstance(tree.get(section) or {}, dict):  # what is no mapping is refused below
            tree[section] = with_changes(tree.get(section) or {}, given)
    _assign(tree, overrides)
    return validate(kind, tree, origin=str(file or "the options"))


def with_changes(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Some values with changes; where these name another data set, it has not the revision of the one before."""
    another = "dataset" in changes and changes["dataset"] != values.get("dataset")
    return {**{key: value for key, value in values.items() if not (another and key == "revision")}, **changes}


def _assign(tree: dict[str, Any], overrides: Sequence[str]) -> None:
    for assignment in overrides:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError("", f"--set {assignment!r} is no assignment", hint="write --set star.epochs=10")
        *parents, key = path.strip().split(".")
        node = tree
        for parent in parents:
            child = node.setdefault(parent, {})
            if parent == "ood" and isinstance(child, str):  # as `--ood` names it
                child = node[parent] = {"dataset": child}
            if not isinstance(child, dict):
                raise UsageError("", f"--set {path}: {parent!r} is a value, not a section", hint="see --help")
            node = child
        try:
            node[key] = yaml.safe_load(text)
        except YAML_ERRORS as error:
            raise UsageError(path, f"--set {assignment!r}: {text!r} is no YAML value", hint="quote it") from error


def validate(kind: type[Value], values: Mapping[str, Any], *, origin: str = "the options") -> Value:
    """Make a configuration of what a user gave."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"configuration {where}",
            f"{first['msg'].removeprefix('Value error, ')}",
            hint=f"correct it in {origin}",
        ) from error


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, *YAML_ERRORS) as error:
        raise UsageError(str(file), "cannot be read as YAML", hint="check the path and the syntax") from error
    if not isinstance(tree, dict | None):
        raise UsageError(str(file), "not a mapping of sections", hint="see configs/")
    return tree or {}
