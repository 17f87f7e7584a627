"""The table of a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.filesize import decimal

from .output import Output, Table

if TYPE_CHECKING:
    from starzoo.workflows.plan import Plan
    from starzoo.workflows.trial import Trial

__all__ = ["show_plan"]


def show_plan(out: Output, plan: Plan, trial: Trial | None = None) -> None:
    """Show what the fit of a star would take, and what a trial of it took."""
    rows = [
        [
            model.name,
            model.role,
            decimal(model.to_download),
            decimal(model.size - model.to_download),
            model.dtype,
            model.license or "not stated",
            f"{model.architecture.preprocessing.interpolation} {model.architecture.preprocessing.crop_pct:g}",
        ]
        for model in plan.models
    ]
    columns = ["model", "used as", "to download", "here", "type", "license", "resize, crop"]
    licensing = plan.licensing
    notes = [
        f"models to download: {decimal(plan.to_download)}, free: {decimal(plan.free)}",
        f"memory for weights: {decimal(plan.memory)}, plus activations, which depend on the batch size, and at most "
        f"{decimal(plan.alignment_memory)} for alignment"
        + (
            f"; {plan.ranks} processes on one host take {decimal(plan.ranks * plan.memory_per_rank)}" * (plan.ranks > 1)
        ),
        f"steps: {plan.steps:,}"
        if plan.steps is not None
        else "steps: unknown until the data set is read; give --train-size",
        *(
            [f"on the disk: {decimal(plan.predictions)} of predictions, {decimal(plan.pixels)} of decoded images"]
            if plan.predictions is not None and plan.pixels is not None
            else []
        ),
        *(_describe(trial) if trial else []),
        f"license of the star: {licensing.license or 'not settled'}",
        *([f"{reason}: publishing it will take --accept-license"] if (reason := licensing.needs_decision) else []),
        *([f"cannot be published: {licensing.conflict}"] if licensing.conflict else []),
    ]
    models = [
        {**vars(model), "architecture": model.architecture.model_dump(mode="json", exclude={"label_names"})}
        for model in plan.models
    ]
    out.result(
        {**vars(plan), "models": models, "trial": trial},
        brief=[plan.to_download],
        human=[Table(f"{plan.models[0].architecture.name}, {plan.parameters:,} numbers", columns, rows), *notes],
    )


def _describe(trial: Trial) -> list[str]:
    """Describe what a trial of a fit took."""
    fit, start, evaluation = map(_duration, (trial.fit_seconds, trial.start_seconds, trial.evaluation_seconds))
    return [
        f"measured: {trial.used_per_second:,.0f} images/s are used, {trial.loaded_per_second:,.0f} could be loaded; "
        f"{decimal(trial.peak_memory)} of memory on one process",
        f"estimated time: {fit} for the fit, {start} of it before the first step, and {evaluation} for the evaluation",
    ]


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
