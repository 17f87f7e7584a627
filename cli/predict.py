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
        int, typer.Option(min=1, metavar="K", help="Average K models of the star domain instead of asking the star.")
    ] = 1,
    top: Annotated[int, typer.Option(min=1, metavar="N", help="How many classes to name for each image.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Draws the models of the star domain.")] = 0,
) -> None:
    """Classify image files with a star.

    With --samples the sources of the star are loaded and aligned to it, and models between the star and them vote
    (BMA); for a network with batch norm the training images are read, those of the star where no --dataset is named.
    Then `disagreement` is how much of the entropy, in nats, comes from the models saying different things.

    Example:
        starzoo predict star cat.png dog.png --samples 8
    """
    from dataclasses import asdict

    from starzoo.workflows.predict import predict_images

    found = predict_images(star, images, samples=samples, top=top, seed=seed, data=data, progress=out.progress)
    rows = []
    for image in found:
        figures = [f"{image.entropy:.4f}"]
        if image.mutual_information is not None:
            figures.append(f"{image.mutual_information:.4f}")
        for answer in image.top_classes:
            first = answer is image.top_classes[0]
            shown = [f"{100 * answer.probability:.2f} %", *(figures if first else [""] * len(figures))]
            rows.append([image.file if first else "", answer.label, *shown])
    columns = ["image", "class", "probability", "entropy", "disagreement"][: 5 if samples > 1 else 4]
    title = f"Predictions of {samples} models of the star domain" if samples > 1 else "Predictions of the star"
    out.result(
        {"samples": samples, "images": [asdict(image) for image in found]},
        brief=[image.top_classes[0].label for image in found],
        human=[Table(title, columns, rows)],
    )
