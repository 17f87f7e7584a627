"""The configuration of a run: frozen values that are checked when made and saved with the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from starzoo.errors import UsageError

__all__ = [
    "PRESETS",
    "YAML_ERRORS",
    "AlignConfig",
    "Augmentation",
    "Baseline",
    "Beta",
    "Constant",
    "DataConfig",
    "EvalConfig",
    "Method",
    "OptimizationConfig",
    "RunConfig",
    "RuntimeConfig",
    "StarConfig",
    "TrainConfig",
    "TransformConfig",
    "Uniform",
    "ZooConfig",
    "load_config",
    "load_zoo_config",
    "merge_section",
    "parse_section_overrides",
    "validate",
]

Optimizer = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,40}$")]  # the name is checked where torch is loaded
Method = Literal["weights", "balanced-weights", "activations", "activations-gradients"]
Baseline = Literal[
    "continued",
    "self-distilled",
    "swa",
    "ema",
    "student-random",
    "student-source",
    "student-mean",
    "trained-mean",
    "source-tta",
    "star-tta",
    "greedy-soup",
]
Augmentation = Literal["none", "flip", "crop-flip", "crop-alternating-flip", "timm"]
# Bounds are far above what is useful and below what fills a machine: a stranger's star.json holds these values too.
_MANY = 1_000_000
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # NumPy and PyTorch both accept it

Config = TypeVar("Config", bound=BaseModel)


def _plural(method: object) -> object:
    return f"{method}s" if f"{method}s" in get_args(Method) else method  # `weight` is a frequent slip


def _without_repeats(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))


def _all_baselines(values: object) -> object:
    return get_args(Baseline) if isinstance(values, Sequence) and "all" in values else values


def _as_datasets(value: object) -> list[object]:
    values = value if isinstance(value, list | tuple) else [] if value is None else [value]
    return [{"dataset": each} if isinstance(each, str) else each for each in values]


def _ascending(values: tuple[float, float]) -> tuple[float, float]:
    if values[0] > values[1]:
        raise ValueError(f"expected the lower value first, got {values[0]} and {values[1]}")
    return values


def _more_than_one_point(points: int) -> int:
    if points == 1:
        raise ValueError("expected 0 for no picture or 2 points and more, got 1")
    return points


Name = Annotated[str, Field(max_length=300)]
Finite = Annotated[float, Field(ge=-1e39, le=1e39)]  # the range of float32
Share = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[float, Field(gt=0, le=1e38)]
Rate = Positive | Literal["auto"]


class FrozenModel(BaseModel):
    """A value that is immutable, finite, of bounded length and without unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, str_max_length=4096, defer_build=True
    )  # --help reads the fields alone, which takes less time


_POLICY = r"^(rand|augmix|original|originalr|v0|v0r|3a)(-([a-z]+[0-9]{0,3}(\.[0-9]{1,3})?|t3aw?)){0,9}$"
# A crop of a hundredth of the area is the smallest: ResizeKeepRatio enlarges the whole image by its inverse.
Bound = Annotated[float, Field(ge=0.01, le=100)]
Range = Annotated[tuple[Bound, Bound], AfterValidator(_ascending)]
Jitter = Annotated[float, Field(ge=0, le=100)]


class TransformConfig(FrozenModel):
    """timm's training transform: arguments of `timm.data.create_transform` with the defaults of timm's train.py."""

    scale: Range | None = Field(None, description="Area of a random crop, as a range of shares; timm's when not given.")
    ratio: Range | None = Field(None, description="Range of the aspect ratio of a random crop; timm's when not given.")
    train_crop_mode: Literal["rrc", "rkrc", "rkrr"] = Field(
        "rrc", description="A random resized crop, or the whole image resized and cropped in the center or at random."
    )
    hflip: Share = Field(0.5, description="Probability of a horizontal flip.")
    vflip: Share = Field(0.0, description="Probability of a vertical flip.")
    color_jitter: Jitter | tuple[Jitter, Jitter, Jitter] | tuple[Jitter, Jitter, Jitter, Jitter] | None = Field(
        0.4, description="Range of brightness, contrast and saturation, or of each and of hue; not with auto_augment."
    )
    color_jitter_prob: Share | None = Field(None, description="Probability of the color jitter; always when not given.")
    grayscale_prob: Share = Field(0.0, description="Probability of gray colors.")
    gaussian_blur_prob: Share = Field(0.0, description="Probability of a Gaussian blur.")
    auto_augment: Annotated[str, Field(pattern=_POLICY)] | None = Field(
        None, description="Policy by timm's notation, for example rand-m9-mstd0.5-inc1, augmix-m3-w3, original or 3a."
    )
    interpolation: Literal["random", "nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"] = Field(
        "random", description="Resampling filter; random is bilinear or bicubic."
    )
    re_prob: Share = Field(0.0, description="Probability of random erasing.")
    re_mode: Literal["const", "rand", "pixel"] = Field(
        "pixel", description="What is erased becomes the mean, one random color, or random pixels."
    )
    re_count: int = Field(1, ge=1, le=100, description="Most rectangles of an image that are erased.")


class DataConfig(FrozenModel):
    """The images, and how they are split and augmented."""

    dataset: str = Field(
        "digits", min_length=1, description="Images: digits (embedded), a data set id of the Hub, or a local folder."
    )
    name: str | None = Field(None, description="Configuration of the data set, where it has several.")
    revision: str | None = Field(None, description="Commit of a data set of the Hub; the latest when not given.")
    train_split: str = Field("train", description="Name of the training split.")
    test_split: str = Field("test", description="Name of the test split.")
    image_column: str | None = Field(None, description="Column of the images; found by its type when not given.")
    label_column: str | None = Field(None, description="Column of the labels; found by its type when not given.")
    train_size: int | None = Field(
        None, ge=1, lt=2**32, description="Train on a class-balanced random subset of this size."
    )
    test_size: int | None = Field(
        None, ge=1, lt=2**32, description="Test on a class-balanced random subset of this size."
    )
    image_size: int | None = Field(
        None,
        ge=1,
        le=16_384,
        description="Height and width in pixels at which images are used, by all models; their own when not given.",
    )
    augment: Augmentation = Field("none", description="Augmentation of the training images; timm is data.transform.")
    transform: TransformConfig | None = Field(None, description="timm's training transform, with augment=timm.")

    @model_validator(mode="before")
    @classmethod
    def _fill_transform(cls, values: Any) -> Any:
        """Record the defaults of the transform that is used."""
        if isinstance(values, dict) and values.get("augment") == "timm" and values.get("transform") is None:
            return {**values, "transform": {}}
        return values


class OptimizationConfig(FrozenModel):
    """How a network is optimized: what `starzoo train` and the fit of a star have in common."""

    batch_size: int = Field(64, ge=2, le=100_000, description="Images per step.")
    optimizer: Optimizer = Field("sgd", description="Optimizer of timm, for example sgd, adamw, lamb or muon.")
    lr: Rate = Field(0.1, description="Highest learning rate.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of SGD and its variants.")
    nesterov: bool = Field(True, description="Use Nesterov's momentum with SGD.")
    weight_decay: float = Field(5e-4, ge=0, le=_MANY, description="Weight decay.")
    filter_bias_and_bn: bool = Field(False, description="No weight decay on biases and normalization layers.")
    warmup: float = Field(
        0.05, ge=0, lt=1, description="Share of all steps in which the learning rate rises; then it falls to zero."
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of each label that is spread evenly over all classes."
    )
    mixup: float = Field(0.0, ge=0, le=100, description="Mixup: alpha of the share of a second image; 0 mixes none.")
    cutmix: float = Field(0.0, ge=0, le=100, description="CutMix: alpha of the area of a second image; 0 mixes none.")
    mixup_prob: Share = Field(1.0, description="Share of the batches that Mixup or CutMix mixes.")
    mixup_switch_prob: Share = Field(0.5, description="Share of CutMix among mixed batches, where both are used.")
    bce: bool = Field(False, description="Binary cross-entropy of each class instead of the softmax's cross-entropy.")
    ema_decay: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Keep an exponential moving average of the weights with this decay per step, from the initial "
        "weights on, and end with it; the last weights when not given.",
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="Precision of the forward passes; fp16 needs a GPU, and only the fit of a star takes it."
    )

    @property
    def peak_lr(self) -> float:
        """The highest learning rate, where it is a number."""
        return float(self.lr)


class TrainConfig(OptimizationConfig):
    """How the sources of a zoo are trained."""

    epochs: int = Field(20, ge=1, le=_MANY, description="Passes over the training split.")
    small_size: int | None = Field(
        None, ge=1, le=16_384, description="Height and width of images in the first half of the epochs."
    )

    @model_validator(mode="after")
    def _check_values_of_stars(self) -> Self:
        if self.precision == "fp16":
            raise ValueError("expected a precision of fp32 or bf16, got fp16")
        if self.lr == "auto":
            raise ValueError("expected a number as learning rate, got auto")
        return self


class AlignConfig(FrozenModel):
    """How a permutee is brought as close as its symmetries allow to the fixed model.

    The methods compare weights as they are (`weights`, Git Re-Basin's), or with layers of norm 1 (`balanced-weights`);
    or activations on some training images, alone (`activations`) or with the gradients of the output
    (`activations-gradients`).
    """

    method: Annotated[Method, BeforeValidator(_plural)] = Field(
        "activations-gradients", description="What is compared to match the units of two models."
    )
    restarts: int = Field(
        1, ge=1, le=1000, description="Starts of a match: the given order of units, then random ones. The best is used."
    )
    max_sweeps: int = Field(
        100, ge=1, le=_MANY, description="Most sweeps over the groups of units; one without a change is the last."
    )
    images: int = Field(1000, ge=2, le=100_000, description="Training images for the methods that compare activations.")
    seed: Seed = Field(0, description="Seed of the images, of random starts and of the order of groups.")

    @property
    def needs_images(self) -> bool:
        """Whether the method runs the models on images."""
        return self.method.startswith("activations")

    @property
    def needs_batch_norm_stats(self) -> bool:
        """Whether the batch-norm statistics must be those of the weights, since they are compared or used."""
        return self.method == "weights" or self.needs_images


class Uniform(FrozenModel):
    """t ~ U[low, high]: the paper's choice with 0 and 1."""

    kind: Literal["uniform"] = Field("uniform", description="Name of the distribution.")
    low: float = Field(0.0, ge=0, le=1, description="Lowest t; 0 is the star.")
    high: float = Field(1.0, ge=0, le=1, description="Highest t; 1 is the source.")

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low is {self.low}, which is above high, {self.high}")
        return self


class Beta(FrozenModel):
    """t ~ Beta(a, b): an ablation of the paper with a = b = 2."""

    kind: Literal["beta"] = Field("beta", description="Name of the distribution.")
    a: float = Field(2.0, gt=0, le=_MANY, description="First shape parameter; a high one draws t near the source.")
    b: float = Field(2.0, gt=0, le=_MANY, description="Second shape parameter; a high one draws t near the star.")


class Constant(FrozenModel):
    """t = value at every step: an ablation of the paper with ½ (a star that games the barrier)."""

    kind: Literal["constant"] = Field("constant", description="Name of the distribution.")
    value: float = Field(0.5, ge=0, le=1, description="The value of t; 0 is the star, 1 is the source.")


class StarConfig(OptimizationConfig):
    """Starlight: how the star is found (paper, section 3)."""

    epochs: int = Field(40, ge=0, le=_MANY, description="Passes over the training split; 0 keeps the initial weights.")
    lr: Rate = Field(0.2, description="Highest learning rate; auto chooses it by short trials.")
    init: Literal["aligned-average", "random", "source"] = Field(
        "aligned-average",
        description="Initial weights: the mean of the aligned sources, random ones, or the first source.",
    )
    source_order: Literal["shuffled", "independent"] = Field(
        "shuffled", description="Draw every source once per shuffled round, or each one independently."
    )
    t: Annotated[Uniform | Beta | Constant, Field(discriminator="kind")] = Field(
        default_factory=Uniform,
        description="Distribution of the position t on the line from the star (0) to a source (1).",
    )
    mu: float = Field(
        0.2,
        ge=0,
        le=_MANY,
        description="Weight of the star's own loss: the star itself is the share mu / (1 + mu) of all draws.",
    )
    kappa: float = Field(
        1.0, ge=0, le=_MANY, description="Weight of the predictions of sources beside the labels in the loss."
    )
    teachers: Literal["drawn", "all"] = Field(
        "drawn", description="Whose predictions these are: the drawn source's, or the mean of all, which costs more."
    )
    draws: int | None = Field(
        None,
        ge=1,
        le=_MANY,
        description="Draws of (source, t) that share the batch of a step; one per process when not given.",
    )
    realign_every: int = Field(
        1, ge=0, le=_MANY, description="Epochs between alignments of the sources to the star; 0 aligns them only once."
    )
    clip_grad_norm: float | None = Field(
        None, gt=0, le=_MANY, description="Clip the gradient to this norm; no clipping when not given."
    )
    channels_last: bool = Field(True, description="Use the memory format channels_last, which is often faster.")
    midpoint_every: int = Field(
        5,
        ge=0,
        le=_MANY,
        description="Epochs between measurements of the loss at the midpoints to all sources; 0 measures none.",
    )
    midpoint_images: int = Field(
        500, ge=2, le=_MANY, description="Training images, not augmented, of a measurement at the midpoints."
    )
    patience: int | None = Field(
        None,
        ge=1,
        le=_MANY,
        description="Stop after this many measurements at the midpoints in a row without a lower mean loss.",
    )
    seed: Seed = Field(0, description="Seed of the initial weights, of the draws and of the order of images.")

    @model_validator(mode="after")
    def _check_patience(self) -> Self:
        if self.patience and not self.midpoint_every:
            raise ValueError("expected midpoint_every of 1 or more with patience, got 0")
        return self


class RuntimeConfig(FrozenModel):
    """How a run is carried out, which does not change the star; a resumed run may have another one."""

    num_processes: int | None = Field(
        None, ge=1, le=_MANY, description="Refuse to run on any other number of processes."
    )
    checkpoint_epochs: int = Field(5, ge=1, le=_MANY, description="Epochs between checkpoints.")
    checkpoint_minutes: float = Field(
        10.0, gt=0, le=_MANY, description="Most minutes between checkpoints, also within an epoch."
    )
    timeout_minutes: float = Field(
        10.0, gt=0, le=_MANY, description="Minutes to wait within a step for a process that does not answer."
    )
    workers: int | None = Field(
        None, ge=0, le=1000, description="Processes of a rank that load images; as many as its cores when not given."
    )
    sources_on: Literal["auto", "device", "host"] = Field(
        "auto",
        description="Where the aligned sources are held: on the device, or in host memory to be permuted for each "
        "draw; auto chooses the device while they take at most half of its free memory.",
    )
    compile: bool = Field(False, description="Use torch.compile; results differ in the last digits.")
    keep_weak_sources: bool = Field(False, description="Use sources that are far worse than the others.")
    trackers: tuple[str, ...] = Field(
        (), max_length=100, description="Trackers that Accelerate reports to, for example tensorboard or wandb."
    )


class EvalConfig(FrozenModel):
    """What is measured, and on how many images."""

    points: int = Field(11, ge=3, le=1001, description="Evenly spaced points of a path, both endpoints included.")
    source_pairs: int = Field(
        6, ge=0, le=1000, description="Paths between pairs drawn among sources and held-outs, for comparison."
    )
    sources: int | None = Field(None, ge=0, le=_MANY, description="Number of star-source paths; all when not given.")
    splits: Annotated[tuple[Literal["train", "test"], ...], Field(min_length=1), AfterValidator(_without_repeats)] = (
        Field(("test",), description="Splits to measure on.")
    )
    batch_size: int = Field(256, ge=2, le=10_000, description="Images per forward pass.")
    batch_norm_images: int = Field(
        2000, ge=2, le=_MANY, description="Training images that re-estimate batch-norm statistics."
    )
    batch_norm_augment: Augmentation | None = Field(
        None,
        description="Augmentation of these images. When not given, it is that of the sources' training where they "
        "state it, and otherwise the one that brings them closest to their own statistics.",
    )
    repair: bool = Field(
        False, description="Give every point of a path the channel statistics of its endpoints (REPAIR)."
    )
    bma_samples: int = Field(
        8, ge=0, le=1000, description="Most points of the star domain that are averaged (BMA); 0 measures no average."
    )
    validation_images: int = Field(
        2000,
        ge=2,
        le=_MANY,
        description="Training images, unused by the fit, that choose temperatures and the range of t.",
    )
    ood: Annotated[tuple[DataConfig, ...], BeforeValidator(_as_datasets), Field(max_length=20)] = Field(
        (), description="Out-of-distribution data sets, whose images uncertainty should tell from those of the task."
    )
    corruptions: int = Field(
        0,
        ge=0,
        le=100_000,
        description="Test images that are corrupted in 15 ways at five severities, each; 0 measures none.",
    )
    baselines: Annotated[tuple[Baseline, ...], BeforeValidator(_all_baselines), AfterValidator(_without_repeats)] = (
        Field(
            (),
            description="What else a user could do with the sources, to measure beside the star; `all` measures each. "
            "Trained ones take as many steps as the star.",
        )
    )
    trials: int = Field(
        4,
        ge=1,
        le=20,
        description="Learning rates that are tried for each trained baseline and compared on validation images; "
        "without such images, one is used.",
    )
    loss_plane_points: Annotated[int, AfterValidator(_more_than_one_point)] = Field(
        0, ge=0, le=201, description="Points along each side of a picture of the loss around the star; 0 draws none."
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="Precision of the forward passes; with bf16 the star is also measured in fp32."
    )
    seed: Seed = Field(0, description="Seed of the pairs, of the points of the star domain and of the images.")


class RunConfig(FrozenModel):
    """All that decides a run of `fit-star`; it is saved with the star and shown in the card."""

    data: DataConfig = Field(default_factory=DataConfig, description="Images.")
    align: AlignConfig = Field(default_factory=AlignConfig, description="Alignment.")
    star: StarConfig = Field(default_factory=StarConfig, description="Fit of the star.")
    evaluate: EvalConfig = Field(default_factory=EvalConfig, description="Evaluation.")
    runtime: RuntimeConfig = Field(default_factory=RuntimeConfig, description="How the run is carried out.")


class ZooConfig(FrozenModel):
    """All that decides the sources of a zoo, besides their architecture and seeds."""

    data: DataConfig = Field(default_factory=DataConfig, description="Images.")
    train: TrainConfig = Field(default_factory=TrainConfig, description="Training.")


# PyYAML also raises Python's own errors, for a date such as 2024-13-45, `!!bool maybe` or deep nesting.
YAML_ERRORS = (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, RecursionError, ValueError)
_SECTIONS = {*RunConfig.model_fields, *ZooConfig.model_fields}
_KEYS = [
    name
    for config in (
        DataConfig,
        TransformConfig,
        AlignConfig,
        StarConfig,
        EvalConfig,
        RuntimeConfig,
        TrainConfig,
        RunConfig,
    )
    for name in config.model_fields
]


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "connected": {},
    "predictor": {
        "t": {"kind": "constant", "value": 0.0},
        "mu": 0.0,
        "teachers": "all",
        "realign_every": 0,
        "lr": 0.4,
    },
}
"""Settings of the star by purpose: `connected` has the defaults; `predictor` starts from the aligned mean, learns the
mean prediction of all sources, and looks at no path. Both were chosen on validation images (`benchmarks/tuning.py`)."""


def load_config(
    file: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    preset: str | None = None,
    **sections: Mapping[str, Any],
) -> RunConfig:
    """Read a run's configuration: the file first, then the preset, then the sections, then the overrides.

    Args:
        file: A YAML file with any of the keys of `RunConfig`, or None for the defaults; its key `train` is ignored.
        overrides: Assignments `section.key=value`, for example `star.epochs=10`; the value is read as YAML.
        preset: One of `PRESETS`: settings of the star.
        **sections: Values by section (`data={"dataset": "digits"}`); None leaves the file's value.

    Returns:
        The checked configuration.

    Raises:
        UsageError: The file cannot be read, an override is not an assignment, or a key or value is not allowed.
    """
    if preset is not None and preset not in PRESETS:
        raise UsageError("--preset", f"expected one of {', '.join(PRESETS)}, got {preset!r}", hint="use one of these")
    chosen = {key: value for key, value in sections.get("star", {}).items() if value is not None}
    return _load(RunConfig, file, overrides, {**sections, "star": {**PRESETS.get(preset or "", {}), **chosen}})


def load_zoo_config(
    file: Path | None = None, overrides: Sequence[str] = (), **sections: Mapping[str, Any]
) -> ZooConfig:
    """Read the configuration of a zoo, from the same file as `load_config` does."""
    return _load(ZooConfig, file, overrides, sections)


def parse_section_overrides(overrides: Sequence[str], **sections: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Add overrides to changed values by section, for a configuration that is loaded later."""
    changes = {section: dict(values) for section, values in sections.items()}
    _apply_overrides(changes, overrides)
    for section, values in changes.items():
        if section not in sections or not isinstance(values, dict):
            expected = " or ".join(f"{name}.KEY=VALUE" for name in sections)
            raise UsageError("--set", f"expected {expected}, got {section}", hint="change one of these sections")
    return changes


def _load(
    kind: type[Config], file: Path | None, overrides: Sequence[str], sections: Mapping[str, Mapping[str, Any]]
) -> Config:
    content = _read_yaml(file) if file else {}
    tree = {key: value for key, value in content.items() if key in kind.model_fields or key not in _SECTIONS}
    for section, values in sections.items():
        changes = {key: value for key, value in values.items() if value is not None}
        if changes and isinstance(tree.get(section) or {}, dict):  # validation refuses any other value
            tree[section] = merge_section(tree.get(section) or {}, changes)
    _apply_overrides(tree, overrides)
    return validate(kind, tree, origin=str(file or "the options"))


def merge_section(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Change values of a section; another data set does not keep the revision of the previous one."""
    same_dataset = changes.get("dataset", values.get("dataset")) == values.get("dataset")
    return {**{key: value for key, value in values.items() if same_dataset or key != "revision"}, **changes}


def _apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> None:
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals:
            raise UsageError("--set", f"expected KEY=VALUE, got {override!r}", hint="write --set star.epochs=10")
        *parents, key = path.strip().split(".")
        node = tree
        for parent in parents:
            child = node.setdefault(parent, {})
            if parent == "ood":  # `--ood` gives the names of data sets alone
                datasets = _as_datasets(child)
                if len(datasets) != 1:
                    problem = f"{path}: expected one data set, got {len(datasets)}"
                    raise UsageError("--set", problem, hint="write them in a file, for --config")
                child = node[parent] = datasets[0]
            if not isinstance(child, dict):
                raise UsageError("--set", f"{path}: expected a section, got the value {parent}", hint="see --help")
            node = child
        try:
            node[key] = yaml.safe_load(text)
        except YAML_ERRORS as error:
            raise UsageError("--set", f"{path}: expected a YAML value, got {text!r}", hint="quote it") from error


def validate(kind: type[Config], values: Mapping[str, Any], *, origin: str = "the options") -> Config:
    """Make a value of a model from what a user wrote."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        problem, hint = first["msg"].removeprefix("Value error, "), f"correct it in {origin}"
        if first["type"] == "extra_forbidden":
            problem = "no such setting"
            close = get_close_matches(str(first["loc"][-1]), _KEYS, n=1)
            hint = f"use {close[0]}" if close else f"see starzoo fit-star --help; {hint}"
        raise UsageError(f"configuration {key}", problem, hint=hint) from error


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, *YAML_ERRORS) as error:
        raise UsageError(str(file), "cannot be read as YAML", hint="check the path and the syntax") from error
    if not isinstance(tree, dict | None):
        raise UsageError(str(file), f"expected a mapping of sections, got {type(tree).__name__}", hint="see configs/")
    return tree or {}
