"""`starzoo train`: a zoo where there is none yet."""

from pathlib import Path
from typing import Annotated

import typer

from starzoo.config import load_zoo_config

from . import options
from .output import Output, Table
from .parsing import parse_model_args, parse_seeds


def train(
    out: Output,
    architecture: Annotated[str, typer.Argument(metavar="ARCH", help="A timm architecture (timm.list_models()).")],
    folder: Annotated[Path, typer.Option("--out", help="Folder of the zoo; each source gets a subfolder.")],
    data: options.DataOptions,
    recipe: options.TrainOptions,
    config: options.ConfigFile = None,
    overrides: options.Overrides = None,
    seeds: Annotated[str, typer.Option(metavar="0-9", help="One source per seed, for example 0-9 or 0,3,5-7.")] = "0-9",
    model_args: options.ModelArgs = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Sources at a time; one per core or GPU when not given.")
    ] = None,
) -> None:
    """Train independent sources from scratch, each from its own seed.

    Run the same command again to train only the sources that are missing.

    Example:
        starzoo train resnet18 --dataset digits --image-size 16 --seeds 0-9 --out zoo
    """
    seed_list, arguments = parse_seeds(seeds), parse_model_args(model_args)
    run = load_zoo_config(config, overrides or (), data=data, train=recipe)
    from starzoo.models.training import architecture_for, train_zoo

    model = architecture_for(architecture, run.data, model_args=arguments, image_size=run.data.image_size)
    reports = train_zoo(model, run.data, run.train, seed_list, folder, jobs=jobs, progress=out.progress)
    rows = [
        (
            report.folder.name,
            f"{report.train_loss:.4f}",
            f"{report.train_accuracy:.2%}",
            f"{report.test_loss:.4f}",
            f"{report.test_accuracy:.2%}",
            f"{report.seconds:.0f} s" if report.trained else "already there",
        )
        for report in reports
    ]
    columns = "source", "train loss", "accuracy", "test loss", "accuracy", "trained in"
    out.result(
        {"members": reports},
        brief=[report.folder for report in reports],
        human=[Table(f"{architecture} on {run.data.dataset}: losses in nats", columns, rows), f"zoo: {folder}"],
    )
