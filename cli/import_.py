"""`starzoo import`."""

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .output import Output, Table
from .parsing import parse_model_args, read_lines


def import_(
    out: Output,
    checkpoints: Annotated[
        list[Path], typer.Argument(metavar="CHECKPOINT", help="Files of weights: .pth.tar, .pth, .ckpt, .safetensors.")
    ],
    folder: Annotated[Path, typer.Option("--out", help="Folder for the models, one subfolder per checkpoint.")],
    arch: Annotated[
        str | None, typer.Option(metavar="NAME", help="The timm architecture, if a checkpoint does not state it.")
    ] = None,
    model_args: options.ModelArgs = None,
    num_classes: Annotated[
        int | None, typer.Option(min=0, help="Number of classes, if it cannot be read from the weights.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File with the class names, one per line, by output."),
    ] = None,
    no_ema: Annotated[
        bool,
        typer.Option("--no-ema", help="Use the weights even if a checkpoint has their average (EMA)."),
    ] = False,
) -> None:
    """Turn checkpoints of timm's train.py, torchvision, Lightning or torch.save into folders that starzoo reads.

    Pickles are read in a separate process that never runs code from them.

    Example:
        starzoo import runs/*/model_best.pth.tar --out zoo
    """
    arguments, names = parse_model_args(model_args), read_lines(labels)
    from starzoo.workflows.import_checkpoints import ImportOptions, import_checkpoints

    choices = ImportOptions(arch=arch, model_args=arguments, num_classes=num_classes, label_names=names, ema=not no_ema)
    models = import_checkpoints(checkpoints, folder, choices, progress=out.progress)
    rows = [
        (
            model.folder.name,
            model.architecture.name,
            str(model.architecture.num_classes),
            "x".join(map(str, model.architecture.preprocessing.input_size)),
            "EMA" if model.ema else "as trained",
        )
        for model in models
    ]
    out.result(
        {"models": models},
        brief=[model.folder for model in models],
        human=[Table("Imported", ("folder", "architecture", "classes", "input", "weights"), rows), f"folder: {folder}"],
    )
