"""The tables of docs/results.md, from the rows of an experiment."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.study.experiment import Experiment

Row = Mapping[str, Any]


def kept(row: Row, score: str, *, tempered: bool = False) -> float | None:
    """The share of the ensemble's gain over the mean source that is kept; None where there is none."""
    found = [ensemble_of(row), *(row["qualities"][role] for role in ("source", "star"))]
    if tempered and not all("tempered" in each for each in found):
        return None
    ensemble, source, star = (each["tempered"][score] if tempered else each[score] for each in found)
    return float((star - source) / (ensemble - source)) if ensemble != source else None


def ensemble_of(row: Row) -> Any:
    """The scores of the ensemble of all sources."""
    sizes = _sizes(row)
    return row["qualities"][f"ensemble of {max(sizes)}"] if sizes else row["qualities"]["source"]


def _sizes(row: Row) -> list[int]:
    return [int(role.rpartition(" ")[2]) for role in row["qualities"] if role.startswith("ensemble of ")]


def path_of(measure: str, kind: str = "star-heldout") -> Callable[[Row], Any]:
    """A measure of the paths to one kind of held-outs, as a column."""
    return lambda row: row["paths"].get(kind, {}).get(measure)


def _score(score: str) -> Callable[[Row], float | None]:
    return lambda row: row["qualities"]["star"].get(score)


def _tempered(row: Row) -> float | None:
    return row["qualities"]["star"].get("tempered", {}).get("nll")


Columns = Mapping[str, tuple[Callable[[Row], float | None], str]]


def paths_to(kind: str) -> Columns:
    """The measures of the paths to one kind of held-outs."""
    return {
        "barrier": (path_of("barrier", kind), ".3f"),
        "highest loss": (path_of("highest_loss", kind), ".3f"),
        "excess": (path_of("excess", kind), ".3f"),
        "worst accuracy": (path_of("worst_accuracy", kind), ".1%"),
        "accuracy drop": (path_of("accuracy_barrier", kind), ".1%"),
    }


SCORES = {"accuracy": ".1%", "nll": ".3f", "ece": ".3f"}
COLUMNS: Columns = {
    **paths_to("star-heldout"),
    "accuracy": (_score("accuracy"), ".1%"),
    "NLL": (_score("nll"), ".3f"),
    "ECE": (_score("ece"), ".3f"),
    "NLL, tempered": (_tempered, ".3f"),
    "gain kept in accuracy": (lambda row: kept(row, "accuracy"), ".0%"),
    "in NLL": (lambda row: kept(row, "nll"), ".0%"),
    "in NLL, all tempered": (lambda row: kept(row, "nll", tempered=True), ".0%"),
}


def spread(values: Sequence[float | None], form: str) -> str:
    """Mean ± standard deviation, or a dash where nothing was measured."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    deviation = statistics.stdev(known) if len(known) > 1 else None
    mean = f"{statistics.fmean(known):{form}}"
    if deviation is None:
        return mean.replace("%", " %")
    unit = " %" if form.endswith("%") else ""
    return f"{mean.rstrip('%')} ± {f'{deviation:{form}}'.rstrip('%')}{unit}"


def table(experiment: Experiment, rows: Sequence[Row]) -> str:
    """One line per variant, mean ± standard deviation over seeds; first a line about each zoo."""
    columns = {title: column for title, column in COLUMNS.items() if any(column[0](row) is not None for row in rows)}
    lines = []
    for zoo in dict.fromkeys(row["zoo"] for row in rows):
        lines.append(f"- {about(zoo, [row for row in rows if row['zoo'] == zoo])}")
    lines += ["", "| variant | seeds | " + " | ".join(columns) + " |", "|---|--:|" + "--:|" * len(columns)]
    for variant in experiment.variants:
        mine = [row for row in rows if row["variant"] == variant]
        if mine:
            cells = [spread([column(row) for row in mine], form) for column, form in columns.values()]
            lines.append(f"| {variant} | {len(mine)} | " + " | ".join(cells) + " |")
    if experiment.strangers:
        lines += [
            "",
            "| held-outs | variant | " + " | ".join(paths_to("")) + " |",
            "|---|---|" + "--:|" * len(paths_to("")),
        ]
    for kind, name in {
        "star-heldout": "trained as the sources",
        **{each: each for each in experiment.strangers},
    }.items():
        for variant in experiment.variants if experiment.strangers else ():
            mine = [row for row in rows if row["variant"] == variant and kind in row["paths"]]
            if mine:
                cells = [spread([column(row) for row in mine], form) for column, form in paths_to(kind).values()]
                lines.append(f"| {name} | {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def about(zoo: str, rows: Sequence[Row]) -> str:
    """What the sources of a zoo and their ensemble are, and how far two of them are apart."""
    most = max(rows, key=lambda row: max(_sizes(row), default=1))  # variants may have fewer sources
    source, all_of_them = most["qualities"]["source"], ensemble_of(most)
    text = (
        f"`{zoo}`: sources {source['accuracy']:.1%} / {source['nll']:.3f} (accuracy / NLL), the ensemble of "
        f"{max(_sizes(most), default=1)} sources {all_of_them['accuracy']:.1%} / {all_of_them['nll']:.3f}"
    )
    for row in rows:
        if "source-source" in row["paths"]:
            aligned, raw = (row["paths"][kind] for kind in ("source-source", "source-source-unaligned"))
            text += (
                f"; barrier between two sources {aligned['barrier']:.3f} aligned (accuracy drop "
                f"{aligned['accuracy_barrier']:.1%}), {raw['barrier']:.3f} not aligned ({raw['accuracy_barrier']:.1%})"
            )
            break
    return text.replace("%", " %") + "."
