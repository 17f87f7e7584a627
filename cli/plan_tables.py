"""The table of a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.filesize import decimal

from .output import Output, Table

if TYPE_CHECKING:
    from starzoo.workflows.plan import Plan

__all__ = ["show_plan"]


def show_plan(out: Output, plan: Plan) -> None:
    """Show what the fit of a star would take."""
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
        f"{decimal(plan.alignment_memory)} for alignment",
        f"steps: {plan.steps:,}"
        if plan.steps is not None
        else "steps: unknown until the data set is read; give --train-size",
        f"license of the star: {licensing.license or 'not settled'}",
        *([f"{reason}: publishing it will take --accept-license"] if (reason := licensing.needs_decision) else []),
        *([f"cannot be published: {licensing.conflict}"] if licensing.conflict else []),
    ]
    models = [
        {**vars(model), "architecture": model.architecture.model_dump(mode="json", exclude={"label_names"})}
        for model in plan.models
    ]
    out.result(
        {**vars(plan), "models": models},
        brief=[plan.to_download],
        human=[Table(f"{plan.models[0].architecture.name}, {plan.parameters:,} numbers", columns, rows), *notes],
    )
