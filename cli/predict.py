"""`starzoo predict`."""

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .output import Output, Table


def predict(
    out: Output,
    star: options.Star,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files.")],
    data: options.StarDataOptions,
    samples: Annotated[
        int,
        typer.Option(min=1, metavar="K", help="Average K models of the star domain (BMA); 1 uses the star alone."),
    ] = 1,
    top: Annotated[int, typer.Option(min=1, metavar="N", help="Number of classes to show per image.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the models of the star domain.")] = 0,
) -> None:
    """Classify image files with a star.

    With --samples, models between the star and its sources are averaged, for which the sources are downloaded. A
    network with batch norm also needs training images: those of the star, or of --dataset. The column `disagreement`
    is the part of the entropy, in nats, that comes from the models contradicting each other.

    Example:
        starzoo predict star cat.png dog.png --samples 8
    """
    from starzoo.workflows.predict import predict_images

    predictions = predict_images(star, images, samples=samples, top=top, seed=seed, data=data, progress=out.progress)
    rows = []
    for image in predictions:
        uncertainty = [f"{value:.4f}" for value in (image.entropy, image.mutual_information) if value is not None]
        for index, choice in enumerate(image.top_classes):
            cells = [image.file, choice.label, f"{100 * choice.probability:.2f} %", *uncertainty]
            rows.append(cells if index == 0 else ["", *cells[1:3], *[""] * len(uncertainty)])
    columns = ["image", "class", "probability", "entropy", "disagreement"][: 5 if samples > 1 else 4]
    title = f"Predictions of {samples} models of the star domain" if samples > 1 else "Predictions of the star"
    out.result(
        {"samples": samples, "images": predictions},
        brief=[image.top_classes[0].label for image in predictions],
        human=[Table(title, columns, rows)],
    )
