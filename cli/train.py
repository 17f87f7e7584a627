"""`starzoo train`: a zoo where there is none yet."""

from pathlib import Path
from typing import Annotated

import typer

from .options import DataOptions, FileOptions, ImageSize, ModelArgs, TrainOptions, load_zoo
from .output import Output, Table
from .parsing import parse_model_args, parse_seeds


def train(
    out: Output,
    architecture: Annotated[str, typer.Argument(metavar="ARCH", help="A timm architecture, as timm.list_models().")],
    folder: Annotated[Path, typer.Option("--out", help="Folder of the zoo; each member gets a sub-folder.")],
    data: DataOptions,
    recipe: TrainOptions,
    config: FileOptions,
    seeds: Annotated[str, typer.Option(metavar="0-9", help="One member per seed, as 0-9 or 0,3,5-7.")] = "0-9",
    model_args: ModelArgs = None,
    image_size: ImageSize = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Members at a time; one per core or GPU when not given.")
    ] = None,
) -> None:
    """Train independent members of a zoo from scratch, each from its own seed.

    The same command again trains only the members that are missing.

    Example:
        starzoo train resnet18 --dataset digits --image-size 16 --seeds 0-9 --out zoo
    """
    members, arguments, run = parse_seeds(seeds), parse_model_args(model_args), load_zoo(config, data, recipe)
    from starzoo.models.training import architecture_for, train_zoo

    model = architecture_for(architecture, run.data, model_args=arguments, image_size=image_size)
    reports = train_zoo(model, run.data, run.train, members, folder, jobs=jobs, progress=out.progress)
    rows = [
        (
            report.folder.name,
            f"{report.train_loss:.4f}",
            f"{report.train_accuracy:.2%}",
            f"{report.test_loss:.4f}",
            f"{report.test_accuracy:.2%}",
            f"{report.seconds:.0f} s" if report.trained else "was there",
        )
        for report in reports
    ]
    columns = "member", "train loss", "accuracy", "test loss", "accuracy", "trained in"
    out.result(
        {"members": [vars(report) for report in reports]},
        brief=[report.folder for report in reports],
        human=[Table(f"{architecture} on {run.data.dataset}: losses in nats", columns, rows), f"zoo: {folder}"],
    )
