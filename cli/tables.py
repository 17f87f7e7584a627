"""What sums up a star, how it is connected and how it predicts, and what sums up a model that is aligned to another."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from .output import Output, Table

if TYPE_CHECKING:
    from pathlib import Path

    from starzoo.evaluate.results import Evaluation, PathCurve, PredictionScores
    from starzoo.star.join import JoinResult
    from starzoo.workflows.align import AlignmentReport
    from starzoo.workflows.fit import StarResult

    Split = Literal["train", "test"]
    Measure = Literal["barrier", "excess", "highest_loss", "accuracy_barrier", "worst_accuracy"]

__all__ = ["show_alignment", "show_joined", "show_star", "summary_json"]

_MEASURES: tuple[Measure, ...] = ("barrier", "excess", "highest_loss", "accuracy_barrier", "worst_accuracy")
_SHOWN: tuple[Measure, ...] = ("barrier", "excess", "highest_loss", "worst_accuracy")  # as wide as a terminal
_SCORES = ("accuracy", "nll", "ece")
_LATER = ("brier", "auroc", "ood_auroc", "ood_auroc_entropy")  # which a star of an earlier version has not


def show_star(out: Output, report: StarResult) -> None:
    """Show what was measured on a star, and where it is."""
    from starzoo.report.summary import bf16_note

    manifest, evaluation = report.manifest, report.manifest.evaluation
    document = {
        "folder": report.folder,
        "pushed": report.pushed,
        "summary": summary_json(evaluation) if evaluation else None,
        "manifest": manifest.model_dump(mode="json"),
    }
    human: list[Table | str] = []
    if evaluation:
        for split in evaluation.splits:
            human += [_connectivity(evaluation, split), _predictions(evaluation, split)]
        human += filter(None, [bf16_note(evaluation)])
    human.append(f"{manifest.name}: {report.folder}")
    if report.pushed:
        human.append(f"published: {report.pushed}")
    out.result(document, brief=[report.pushed or report.folder], human=human)


def show_alignment(
    out: Output, fixed: str, folder: Path, reports: list[AlignmentReport], *, images: int | None
) -> None:
    """Show how close models were brought to another, and where they are."""
    title = f"Euclidean distance to {fixed}, matched by {reports[0].method}"
    notes = [f"aligned models: {folder}"]
    columns = ["permutee", "before", "after", "left", "sweeps"]
    if images:
        notes.insert(0, f"half-way: the loss of the mean of two models, in nats, on {images:,} training images at most")
        columns += ["half-way\nbefore", "half-way\nafter"]
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
        {"fixed": fixed, "aligned": [vars(report) for report in reports]},
        brief=[report.folder for report in reports],
        human=[Table(title, columns, rows), *notes],
    )


def show_joined(out: Output, joined: JoinResult) -> None:
    """Show how a new model is connected to a star, beside the held-outs that the star was published with."""
    rows = []
    for path in joined.paths:
        rows.append((f"star to {joined.name}", path.split, *_measures([path])))
        published = [other for other in joined.published_paths if other.split == path.split]
        if published:
            rows.append(("star to its held-outs, mean", path.split, *_measures(published)))
    columns = "path", "split", "n", "loss barrier", "excess", "highest\nloss", "lowest\naccuracy"
    distance = f"distance {joined.distance_before:.4f}, {joined.distance_after:.4f} after alignment"
    out.result(
        {
            "name": joined.name,
            "method": joined.method,
            "distance_before": joined.distance_before,
            "distance_after": joined.distance_after,
            "paths": [path.model_dump(mode="json") for path in joined.paths],
        },
        brief=[f"{path.barrier:.4f}" for path in joined.paths],
        human=[
            Table(f"Connectivity of {joined.name}: losses in nats", columns, rows),
            f"{joined.name}: {distance} by {joined.method}",
        ],
    )


def _measures(paths: list[PathCurve]) -> list[str]:
    """How many paths there are, and the mean of each of the four measures."""
    barrier, excess, highest, worst = (fmean(getattr(path, measure) for path in paths) for measure in _SHOWN)
    return [str(len(paths)), f"{barrier:.4f}", f"{excess:.4f}", f"{highest:.4f}", _percent(worst)]


def summary_json(evaluation: Evaluation) -> dict[str, Any]:
    """Means over paths and models, by split."""
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
                role: {score: _spread(group, score).model_dump() for score in (*_SCORES, *_measured(group))}
                for role, group in _by_role(evaluation, split).items()
            },
        }
        for split in evaluation.splits
    }


def _connectivity(evaluation: Evaluation, split: Split) -> Table:
    rows = []
    for kind in evaluation.kinds:
        if not evaluation.paths_of(kind, split):
            continue
        barrier, excess, highest, worst = (evaluation.summarize(kind, measure, split) for measure in _SHOWN)
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
    for role, group in _by_role(evaluation, split).items():
        right, nll, ece = (_spread(group, score) for score in _SCORES)
        accuracy = f"{100 * right.mean:.2f} ± {100 * right.std:.2f} %" if right.count > 1 else _percent(right.mean)
        rows.append((role, str(right.count), accuracy, f"{nll.mean:.4f}", f"{ece.mean:.4f}", str(group[0].passes)))
    columns = "model", "n", "accuracy", "NLL", "ECE", "passes"
    return Table(f"Predictions on the {split} split: means over n models", columns, rows)


def _by_role(evaluation: Evaluation, split: Split) -> dict[str, list[PredictionScores]]:
    """The qualities of one split, by role, in order of appearance."""
    groups: dict[str, list[PredictionScores]] = {}
    for quality in evaluation.qualities:
        if quality.split == split:
            role = quality.name if quality.role == "sub-ensemble" else quality.role
            groups.setdefault(role, []).append(quality)
    return groups


def _measured(group: list[PredictionScores]) -> list[str]:
    return [score for score in _LATER if all(getattr(quality, score) is not None for quality in group)]


def _spread(group: list[PredictionScores], score: str) -> Any:
    from starzoo.evaluate.results import Summary

    return Summary.of(
        [getattr(quality, score) for quality in group], more_is_better=score not in {"nll", "ece", "brier"}
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
