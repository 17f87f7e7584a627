"""The whole flow on the embedded digits."""

from __future__ import annotations

from pathlib import Path

from starzoo.config import DataConfig, RunConfig, StarConfig, TrainConfig, validate
from starzoo.models.training import architecture_for, train_zoo
from starzoo.parallel import on_main_process
from starzoo.progress import Progress, no_progress
from starzoo.workflows.fit import PublishOptions, StarResult, fit_star

__all__ = ["QUICKSTART_ARGS", "quickstart"]

QUICKSTART_ARGS = {"layers": [1, 1, 0, 0], "channels": [32, 64, 64, 64], "zero_init_last": False}
QUICKSTART_SOURCES, QUICKSTART_HOLDOUTS = 12, 4
QUICKSTART_RECIPE, QUICKSTART_STAR = TrainConfig(), StarConfig()


def quickstart(out: Path, *, seed: int = 0, progress: Progress = no_progress) -> StarResult:
    """Train a zoo on the embedded digits, fit its star, and prove it on held-outs; needs no network connection.

    Args:
        out: Folder for the zoo (`zoo/`) and the star (`star/`).
        seed: Seed of the star; the zoo is always the same.
        progress: Told about every stage.

    Returns:
        What `fit_star` returns for the star.
    """
    data = DataConfig(dataset="digits")
    star = validate(StarConfig, {**QUICKSTART_STAR.model_dump(), "seed": seed})
    architecture = architecture_for("resnet18", data, model_args=QUICKSTART_ARGS, image_size=16)
    seeds = range(QUICKSTART_SOURCES + QUICKSTART_HOLDOUTS)
    zoo = on_main_process(
        lambda: train_zoo(architecture, data, QUICKSTART_RECIPE, seeds, out / "zoo", progress=progress)
    )
    refs = [str(member.folder) for member in zoo]
    sources, holdouts = refs[:QUICKSTART_SOURCES], refs[QUICKSTART_SOURCES:]
    config, options = RunConfig(data=data, star=star), PublishOptions(name="digits-star")
    return fit_star(sources, holdouts, config, out / "star", publish=options, progress=progress)
