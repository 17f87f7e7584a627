"""Tables of stars, of alignments and of joined models."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from .output import Output, Table

if TYPE_CHECKING:
    from pathlib import Path

    from starzoo.evaluate.results import Evaluation, Measure, PathCurve, Split
    from starzoo.report.summary import PredictorSummary
    from starzoo.star.join import JoinResult
    from starzoo.workflows.align import AlignmentReport
    from starzoo.workflows.fit import StarResult

__all__ = ["show_alignment", "show_joined", "show_star", "summary_json"]

_MEASURES: tuple[Measure, ...] = ("barrier", "excess", "highest_loss", "accuracy_barrier", "worst_accuracy")
_TABLE_MEASURES: tuple[Measure, ...] = ("barrier", "excess", "highest_loss", "worst_accuracy")  # as wide as a terminal
_SCORES = ("accuracy", "nll", "ece", "brier", "auroc", "aurc", "accuracy_80", "accuracy_90")


def show_star(out: Output, result: StarResult, *, next_steps: Sequence[str] = ()) -> None:
    """Show what matters of a star's evaluation in a sentence, then its tables, its folder and the next commands."""
    from starzoo.report.summary import bf16_note, headline

    manifest, evaluation = result.manifest, result.manifest.evaluation
    human: list[Table | str] = []
    if evaluation:
        human += [headline(evaluation, split) for split in evaluation.splits[:1]]
        for split in evaluation.splits:
            human += [_connectivity(evaluation, split), _predictions(evaluation, split)]
        human += filter(None, [bf16_note(evaluation)])
    human.append(f"{manifest.name}: {result.folder}")
    if result.pushed:
        human.append(f"published: {result.pushed}")
    if next_steps:
        human += ["next:", *(f"  {step}" for step in next_steps)]
    out.result(
        {**vars(result), "summary": summary_json(evaluation) if evaluation else None},
        brief=[result.pushed or result.folder],
        human=human,
    )


def show_alignment(
    out: Output, fixed: str, folder: Path, reports: list[AlignmentReport], *, images: int | None
) -> None:
    """Show the distances of models to the fixed one, and their folders."""
    title = f"Euclidean distance to {fixed}, matched by {reports[0].method}"
    notes = [f"aligned models: {folder}"]
    columns = ["permutee", "before", "after", "left", "sweeps"]
    if images:
        notes.insert(0, f"midpoint: the loss of the mean of two models, in nats, on at most {images:,} training images")
        columns += ["midpoint\nbefore", "midpoint\nafter"]
    if all(report.connected for report in reports):
        notes.insert(0, "these models share an ancestor: their plain mean is already good, and none was permuted")
    rows = [
        [
            report.name,
            f"{report.distance_before:.4f}",
            f"{report.distance_after:.4f}",
            f"{report.distance_after / report.distance_before:.1%}" if report.distance_before else "",
            f"{report.sweeps:.3g}",
            *(f"{loss:.4f}" for loss in (report.midpoint_loss_before, report.midpoint_loss_after) if loss is not None),
        ]
        for report in reports
    ]
    out.result(
        {"fixed": fixed, "aligned": reports},
        brief=[report.folder for report in reports],
        human=[Table(title, columns, rows), *notes],
    )


def show_joined(out: Output, joined: JoinResult) -> None:
    """Show the path from a star to a new model, beside those to the star's held-outs."""
    rows = []
    for path in joined.paths:
        rows.append((f"star to {joined.name}", path.split, *_measures([path])))
        if published := [held_out for held_out in joined.published_paths if held_out.split == path.split]:
            rows.append(("star to its held-outs, mean", path.split, *_measures(published)))
    columns = "path", "split", "n", "loss barrier", "excess", "highest\nloss", "lowest\naccuracy"
    distance = f"distance {joined.distance_before:.4f}, {joined.distance_after:.4f} after alignment"
    shown = "name", "method", "distance_before", "distance_after", "paths"
    out.result(
        {name: getattr(joined, name) for name in shown},
        brief=[f"{path.barrier:.4f}" for path in joined.paths],
        human=[
            Table(f"Connectivity of {joined.name}: losses in nats", columns, rows),
            f"{joined.name}: {distance} by {joined.method}",
        ],
    )


def _measures(paths: list[PathCurve]) -> list[str]:
    """Return the number of paths and the mean of each measure."""
    barrier, excess, highest, worst = (fmean(getattr(path, measure) for path in paths) for measure in _TABLE_MEASURES)
    return [str(len(paths)), f"{barrier:.4f}", f"{excess:.4f}", f"{highest:.4f}", _percent(worst)]


def summary_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return means over paths and models, by split."""
    return {
        split: {
            "connectivity": {
                kind: {
                    measure: {
                        **evaluation.summarize(kind, measure, split).model_dump(),
                        "interval": evaluation.interval(kind, measure, split),
                    }
                    for measure in _MEASURES
                }
                for kind in evaluation.kinds
                if evaluation.paths_of(kind, split)
            },
            "predictions": {
                name: {score: summary.model_dump() for score in _SCORES if (summary := getattr(row, score))}
                | {"ood": row.ood}
                for name, row in _predictors(evaluation, split)
            },
        }
        for split in evaluation.splits
    }


def _connectivity(evaluation: Evaluation, split: Split) -> Table:
    rows = []
    for kind in evaluation.kinds:
        if not evaluation.paths_of(kind, split):
            continue
        barrier, excess, highest, worst = (evaluation.summarize(kind, measure, split) for measure in _TABLE_MEASURES)
        interval = evaluation.interval(kind, "barrier", split)
        rows.append((
            kind,
            str(barrier.count),
            f"{barrier.mean:.4f}",
            f"{interval[0]:.3f}–{interval[1]:.3f}" if interval else "",
            f"{barrier.worst:.4f}",
            f"{excess.mean:.4f}",
            f"{highest.mean:.4f}",
            _percent(worst.mean),
        ))
    columns = "path", "n", "loss\nbarrier", "95 %", "greatest", "excess", "highest\nloss", "lowest\naccuracy"
    paths = "repaired paths" if evaluation.repaired else "paths"
    return Table(f"Connectivity on the {split} split: losses in nats, means over n {paths}", columns, rows)


def _predictions(evaluation: Evaluation, split: Split) -> Table:
    rows = []
    for name, row in _predictors(evaluation, split):
        accuracy = _percent(row.accuracy.mean)
        if row.accuracy.count > 1:
            accuracy = f"{100 * row.accuracy.mean:.2f} ± {_percent(row.accuracy.std)}"
        rows.append((
            name,
            str(row.accuracy.count),
            accuracy,
            f"{row.nll.mean:.4f}",
            f"{row.ece.mean:.4f}",
            str(row.passes),
        ))
    columns = "model", "n", "accuracy", "NLL", "ECE", "passes"
    return Table(f"Predictions on the {split} split: means over n models", columns, rows)


def _predictors(evaluation: Evaluation, split: Split) -> list[tuple[str, PredictorSummary]]:
    """Return the means over predictors by role; a smaller ensemble has its own name."""
    from starzoo.report.summary import summarize_predictors

    return [
        (row.name if row.name and row.role == "sub-ensemble" else row.role, row)
        for row in summarize_predictors(evaluation, split)
        if not row.is_best_source  # the mean over sources includes it
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
