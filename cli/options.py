"""The options that several commands share, in groups, and the configuration that they make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

import typer

from starzoo.choices import Method

from .parsing import parse_method

if TYPE_CHECKING:
    from starzoo.config import RunConfig, ZooConfig

__all__ = [
    "AlignOptions",
    "ConfigOptions",
    "DataOptions",
    "EvaluateOptions",
    "FileOptions",
    "ImageSize",
    "ModelArgs",
    "PublishOptions",
    "ResumeOptions",
    "Sources",
    "StarOptions",
    "TrainOptions",
    "given",
    "load_run",
    "load_zoo",
]

ModelArgs = Annotated[
    str | None, typer.Option(metavar="JSON", help="""Arguments of timm.create_model, as '{"stem_width": 16}'.""")
]
Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE",
        help="Two models or more (user/repo, user/repo/folder, user/repo@revision, folders, folders of folders), or a "
        "zoo file.",
    ),
]
ImageSize = Annotated[int | None, typer.Option(metavar="PIXELS", min=1, help="Height and width of the model's input.")]


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which images: the fields of `starzoo.config.DataConfig` that have an option."""

    title: ClassVar = "Images"
    dataset: Annotated[
        str | None,
        typer.Option(
            help="digits (embedded), a Hub data set id, or a local folder; by default a star's own, none "
            "for align, and otherwise digits."
        ),
    ] = None
    name: Annotated[
        str | None, typer.Option("--data-name", help="Configuration of the data set, where it has several.")
    ] = None
    revision: Annotated[str | None, typer.Option("--data-revision", help="Commit of a Hub data set.")] = None
    train_split: Annotated[str | None, typer.Option(help="Name of the training split.")] = None
    test_split: Annotated[str | None, typer.Option(help="Name of the test split.")] = None
    image_column: Annotated[str | None, typer.Option(help="Found by its type when not given.")] = None
    label_column: Annotated[str | None, typer.Option(help="Found by its type when not given.")] = None
    train_size: Annotated[int | None, typer.Option(help="Train on a class-balanced subset of this size.")] = None
    test_size: Annotated[int | None, typer.Option(help="Test on a class-balanced subset of this size.")] = None
    augment: Annotated[Literal["none", "flip", "crop-flip"] | None, typer.Option(help="Training augmentation.")] = None


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How a member is trained: the fields of `starzoo.config.TrainConfig` that have an option."""

    title: ClassVar = "Training"
    epochs: Annotated[int | None, typer.Option(help="Passes over the training split; 20 by default.")] = None
    batch_size: Annotated[int | None, typer.Option(help="Images per step; 64 by default.")] = None
    optimizer: Annotated[Literal["sgd", "adamw"] | None, typer.Option(help="sgd when not given.")] = None
    lr: Annotated[float | None, typer.Option(help="Greatest learning rate; 0.1 by default.")] = None
    weight_decay: Annotated[float | None, typer.Option(help="Decay of the weights; 0.0005 by default.")] = None
    warmup: Annotated[float | None, typer.Option(help="Share of all steps with a rising rate; 0.05 by default.")] = None


@dataclass(frozen=True, kw_only=True)
class AlignOptions:
    """How models are aligned: `starzoo.config.AlignConfig`."""

    title: ClassVar = "Alignment"
    method: Annotated[
        Method | None,
        typer.Option(
            parser=parse_method,
            metavar="METHOD",
            help=f"What is compared: {', '.join(get_args(Method))}.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class StarOptions:
    """How the star is fitted: the fields of `starzoo.config.StarConfig` that have an option."""

    title: ClassVar = "Star"
    epochs: Annotated[int | None, typer.Option(help="Passes over the training split; 40 by default.")] = None
    batch_size: Annotated[int | None, typer.Option(help="Images per step; 64 by default.")] = None
    lr: Annotated[float | None, typer.Option(help="Greatest learning rate; 0.2 by default.")] = None
    mu: Annotated[float | None, typer.Option(help="Weight of the star's own loss; 0.2 by default.")] = None
    kappa: Annotated[
        float | None, typer.Option(help="Weight of the sources' predictions beside the labels; 1.0 by default.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class ResumeOptions:
    """What may differ from the run that is resumed."""

    title: ClassVar = "Resuming"
    override: Annotated[
        bool, typer.Option("--override", help="Go on from checkpoints of another configuration, which is noted.")
    ] = False
    allow_world_size_change: Annotated[
        bool, typer.Option("--allow-world-size-change", help="Go on with another number of processes, which is noted.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class PublishOptions:
    """Whether, where and how the star is published once it is measured."""

    title: ClassVar = "Publishing"
    push_to: Annotated[str | None, typer.Option(metavar="REPO", help="Publish the star here, as user/name.")] = None
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False
    accept_license: Annotated[
        str | None,
        typer.Option(
            "--accept-license", metavar="LICENSE", help="The star's license, where its sources leave that open."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What is measured: the fields of `starzoo.config.EvalConfig` that have an option."""

    title: ClassVar = "Evaluation"
    points: Annotated[int | None, typer.Option(help="Points of a path, both ends included; 11 by default.")] = None
    source_pairs: Annotated[
        int | None, typer.Option(help="Pairs of sources or held-outs to connect; 6 by default.")
    ] = None
    splits: Annotated[
        list[str] | None, typer.Option("--split", metavar="train|test", help="Measure on this split; repeatable.")
    ] = None
    ood: Annotated[
        str | None, typer.Option(metavar="DATASET", help="Other images, which uncertainty should tell from the task's.")
    ] = None
    bma_samples: Annotated[
        int | None,
        typer.Option(help="Average at most so many points of the star domain, or none at 0; 8 by default."),
    ] = None
    baselines: Annotated[
        list[str] | None,
        typer.Option(
            "--baseline", metavar="swa|student", help="Train this too, at the star's cost, to compare; repeatable."
        ),
    ] = None
    loss_plane_points: Annotated[
        int | None, typer.Option(metavar="POINTS", help="Draw the loss around the star, at so many points a side.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """A whole configuration: a file, and single values."""

    title: ClassVar = "Configuration"
    config: Annotated[Path | None, typer.Option(metavar="FILE.yaml", help="Read the configuration from here.")] = None
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="a.b=c", help="Set any value, as data.augment=flip; repeatable."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ConfigOptions(FileOptions):
    """A whole configuration of a star, with one seed for everything."""

    seed: Annotated[int | None, typer.Option(help="Seed of all that is drawn.")] = None


def given(options: object) -> dict[str, Any]:
    """The options of a group that were given: the others must not hide what a file or a star's manifest says."""
    return {name: value for name, value in vars(options).items() if value is not None}


def load_run(options: ConfigOptions, **sections: dict[str, Any]) -> RunConfig:
    """The configuration of a run: its file, then the options that were given, then `--set`."""
    from starzoo.config import load_config

    seeded = {section: {**sections.get(section, {}), "seed": options.seed} for section in ("align", "star", "evaluate")}
    return load_config(options.config, options.overrides or (), **{**sections, **seeded})


def load_zoo(options: FileOptions, data: DataOptions, recipe: TrainOptions) -> ZooConfig:
    """How members are trained, and on which images: the file, then the options that were given, then `--set`."""
    from starzoo.config import load_zoo_config

    return load_zoo_config(options.config, options.overrides or (), data=given(data), train=given(recipe))
