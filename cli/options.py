"""The options and arguments that several commands share, and the configuration that they make."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from starzoo.config import AlignConfig, DataConfig, EvalConfig, RunConfig, StarConfig, TrainConfig, load_config

from .field_options import FieldOptions

__all__ = [
    "AcceptLicense",
    "AlignDataOptions",
    "AlignOptions",
    "ConfigFile",
    "DataOptions",
    "EvaluateOptions",
    "Holdouts",
    "ImageSize",
    "ModelArgs",
    "Overrides",
    "Preset",
    "Private",
    "Seed",
    "Sources",
    "Star",
    "StarDataOptions",
    "StarEvaluateOptions",
    "StarOptions",
    "TrainOptions",
    "load_run",
]

# Which fields of the configuration have an option; --set reaches the others.
_DATA = FieldOptions(
    title="Images",
    config=DataConfig,
    fields=tuple(name for name in DataConfig.model_fields if name != "transform"),
    flags={"name": "--data-name", "revision": "--data-revision"},
)
_EVALUATE = FieldOptions(
    title="Evaluation",
    config=EvalConfig,
    fields=("points", "source_pairs", "splits", "ood", "corruptions", "bma_samples", "baselines", "loss_plane_points"),
    flags={"splits": "--split", "baselines": "--baseline"},
)
_ALIGN = FieldOptions(title="Alignment", config=AlignConfig, fields=("method",))
_STAR = FieldOptions(title="Star", config=StarConfig, fields=("epochs", "batch_size", "lr", "mu", "kappa"))
_TRAIN = FieldOptions(
    title="Training",
    config=TrainConfig,
    fields=("epochs", "batch_size", "optimizer", "lr", "weight_decay", "warmup", "small_size"),
)

DataOptions = Annotated[dict[str, Any], _DATA]
AlignDataOptions = Annotated[dict[str, Any], replace(_DATA, default="")]  # `align` has no images by default
StarDataOptions = Annotated[
    dict[str, Any],
    replace(_DATA, default="the star's", fields=tuple(name for name in _DATA.fields if name != "image_size")),
]
EvaluateOptions = Annotated[dict[str, Any], _EVALUATE]
StarEvaluateOptions = Annotated[dict[str, Any], replace(_EVALUATE, default="the star's")]
AlignOptions = Annotated[dict[str, Any], _ALIGN]
StarOptions = Annotated[dict[str, Any], _STAR]
TrainOptions = Annotated[dict[str, Any], _TRAIN]

Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE",
        help="Two models or more (user/repo, user/repo/folder, user/repo@revision, folders, folders of folders), or a "
        "zoo file.",
    ),
]
Star = Annotated[str, typer.Argument(metavar="STAR", help="A star: a folder or user/repo.")]
Holdouts = Annotated[
    list[str] | None,
    typer.Option("--holdout", metavar="REF", help="A model to test on, or a folder of them. Repeatable."),
]
ModelArgs = Annotated[
    str | None, typer.Option(metavar="JSON", help="""Arguments of timm.create_model, as '{"stem_width": 16}'.""")
]
ImageSize = Annotated[int | None, typer.Option(metavar="PIXELS", min=1, help="Height and width of the model's input.")]
Private = Annotated[
    bool, typer.Option("--private", help="Make a new repository private.", rich_help_panel="Publishing")
]
AcceptLicense = Annotated[
    str | None,
    typer.Option(
        metavar="LICENSE",
        help="The star's license, where its sources leave that open.",
        rich_help_panel="Publishing",
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE.yaml", help="Read the configuration from a file.", rich_help_panel="Configuration"
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="a.b=c",
        help="Set any value of the configuration, for example data.augment=flip. Repeatable.",
        rich_help_panel="Configuration",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(help="Seed of all random choices.", show_default="0", rich_help_panel="Configuration"),
]


Preset = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="What the star is for: `connected` to new models (the default), or the best `predictor`.",
        rich_help_panel="Configuration",
    ),
]


def load_run(
    file: Path | None,
    overrides: list[str] | None,
    seed: int | None = None,
    preset: str | None = None,
    **sections: dict[str, Any],
) -> RunConfig:
    """Load the configuration of a run: the file, then the preset, then the options, then `--set`."""
    seeded = {name: {**sections.get(name, {}), "seed": seed} for name in ("align", "star", "evaluate")}
    return load_config(file, overrides or (), preset=preset, **{**sections, **seeded})
