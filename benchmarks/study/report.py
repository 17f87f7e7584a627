"""docs/RESULTS.md and its plots, from the committed results alone."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.study.experiment import HERE, ROOT, Experiment, load_experiment, results_file
from starzoo.evaluate.plots import house_style, save

Row = Mapping[str, Any]
PAGE = ROOT / "docs" / "RESULTS.md"
PLOTS = ROOT / "docs" / "results"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito
ORDER = ("cifar", "digits", "sources", "architectures", "strangers", "ablations")
OTHERS = {  # tables of other benchmarks, by the command that makes them
    "Matching two networks": ("matching", "python -m benchmarks.matching"),
    "Averaging over the star domain": ("bma", "python -m benchmarks.bma"),
    "The cost of a step": ("step-cpu", "python benchmarks/step.py"),
    "The cost of a curve": ("curve", "python benchmarks/curve.py"),
    "The time of matching": ("align-speed", "python benchmarks/align_speed.py"),
}


def kept(row: Row, score: str) -> float:
    """The share of the ensemble's gain over the mean single member that is kept, in percent."""
    ensemble = _ensemble(row)[score]
    member, star = (row["qualities"][role][score] for role in ("member", "star"))
    return 100 * (star - member) / (ensemble - member) if ensemble != member else float("nan")


def _ensemble(row: Row) -> Any:
    """The scores of the ensemble of all sources."""
    sizes = [int(role.rpartition(" ")[2]) for role in row["qualities"] if role.startswith("ensemble of ")]
    return row["qualities"][f"ensemble of {max(sizes)}"] if sizes else row["qualities"]["member"]


def _path(measure: str, kind: str = "star-held-out") -> Callable[[Row], float | None]:
    return lambda row: row["paths"].get(kind, {}).get(measure)


def _score(score: str) -> Callable[[Row], float | None]:
    return lambda row: row["qualities"]["star"].get(score)


def _tempered(row: Row) -> float | None:
    return row["qualities"]["star"].get("tempered", {}).get("nll")


Columns = Mapping[str, tuple[Callable[[Row], float | None], str]]


def paths_to(kind: str) -> Columns:
    """The four measures of the paths to one kind of held-outs."""
    return {
        "barrier": (_path("barrier", kind), ".3f"),
        "highest loss": (_path("highest_loss", kind), ".3f"),
        "excess": (_path("excess", kind), ".3f"),
        "worst accuracy": (_path("worst_accuracy", kind), ".1%"),
    }


COLUMNS: Columns = {
    **paths_to("star-held-out"),
    "accuracy": (_score("accuracy"), ".1%"),
    "NLL": (_score("nll"), ".3f"),
    "ECE": (_score("ece"), ".3f"),
    "NLL, tempered": (_tempered, ".3f"),
    "gain kept in accuracy": (lambda row: kept(row, "accuracy") / 100, ".0%"),
    "in NLL": (lambda row: kept(row, "nll") / 100, ".0%"),
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
        "star-held-out": "trained as the sources",
        **{each: each for each in experiment.strangers},
    }.items():
        for variant in experiment.variants if experiment.strangers else ():
            mine = [row for row in rows if row["variant"] == variant and kind in row["paths"]]
            if mine:
                cells = [spread([column(row) for row in mine], form) for column, form in paths_to(kind).values()]
                lines.append(f"| {name} | {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def about(zoo: str, rows: Sequence[Row]) -> str:
    """What a zoo's members and their ensemble are, and how far two of them are apart."""
    paired = [row["paths"]["regular-regular"]["barrier"] for row in rows if "regular-regular" in row["paths"]]
    raw = [row["paths"]["regular-regular-raw"]["barrier"] for row in rows if "regular-regular-raw" in row["paths"]]
    member, all_of_them = rows[0]["qualities"]["member"], _ensemble(rows[0])
    text = (
        f"`{zoo}`: single members {member['accuracy']:.1%} / {member['nll']:.3f} (accuracy / NLL), the ensemble of the "
        f"sources {all_of_them['accuracy']:.1%} / {all_of_them['nll']:.3f}"
    ).replace("%", " %")
    if paired:
        text += f"; barrier between two members {paired[0]:.3f} aligned, {raw[0]:.3f} not aligned"
    return text + "."


def draw_paths(experiment: Experiment, rows: Sequence[Row]) -> Figure:
    """The mean loss along the paths to held-outs, a line per variant, its range over the seeds shaded."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    with house_style():
        axes = figure.subplots()
        shown = [
            variant for variant in experiment.variants if any(_path("t")(r) for r in rows if r["variant"] == variant)
        ]
        for variant, colour in zip(shown, COLOURS, strict=False):
            found = [row["paths"]["star-held-out"] for row in rows if row["variant"] == variant]
            curves = list(zip(*(each["loss"] for each in found), strict=True))
            axes.plot(found[0]["t"], list(map(statistics.fmean, curves)), color=colour, label=variant)
            axes.fill_between(
                found[0]["t"], list(map(min, curves)), list(map(max, curves)), color=colour, alpha=0.15, lw=0
            )
        between = [row["paths"]["regular-regular"] for row in rows if "regular-regular" in row["paths"]]
        for path in between[:1]:
            axes.plot(path["t"], path["loss"], color="#777777", ls="--", label="between two members")
        axes.set_xlabel("t, from the star (0) to a held-out (1)")
        axes.set_ylabel("test loss (nats)")
        axes.legend(frameon=False, fontsize=8)
    return figure


def draw_numbers(experiment: Experiment, rows: Sequence[Row]) -> Figure:
    """The barrier to held-outs over the variants' `x`, one mark per seed, a line through the means."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    with house_style():
        axes = figure.subplots()
        lines: dict[str, list[tuple[float, list[float]]]] = {}
        for variant, chosen in experiment.variants.items():
            values = [_path("barrier")(row) for row in rows if row["variant"] == variant]
            if chosen.x is not None and values:
                name = "the paper's algorithm" if chosen.config else "starzoo"
                lines.setdefault(name, []).append((chosen.x, [value for value in values if value is not None]))
        for (name, points), colour in zip(lines.items(), COLOURS, strict=False):
            points = sorted(points)
            axes.plot([x for x, _ in points], [statistics.fmean(each) for _, each in points], color=colour, label=name)
            for x, each in points:
                axes.plot([x] * len(each), each, "o", ms=4, mew=0, color=colour, alpha=0.6)
        axes.set_xlabel(experiment.x_label)
        axes.set_ylabel("star–held-out barrier (nats)")
        axes.set_ylim(bottom=0)
        axes.set_xticks(sorted({x for points in lines.values() for x, _ in points}))
        axes.legend(frameon=False)
    return figure


def section(file: Path) -> str:
    """What the page says of one experiment."""
    experiment = load_experiment(file)
    content = json.loads(results_file(file).read_text(encoding="utf-8"))
    rows = sorted(content["rows"], key=lambda row: row["seed"])
    parts = [f"## {experiment.title}", experiment.question.strip()]
    if experiment.plot:
        parts.append(f"![{experiment.title}](results/{file.stem}.png)")
    parts += [table(experiment, rows).strip()]
    if experiment.reading:
        parts.append(experiment.reading.strip())
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    minutes = statistics.fmean(row["seconds"] for row in rows) / 60
    parts.append(
        f"`python -m benchmarks.study {file.relative_to(ROOT)}` · {content['machine']}, {versions} · a fit takes "
        f"{minutes:.1f} minutes of one core on average"
    )
    return "\n\n".join(parts)


def page() -> str:
    """The whole page."""
    parts = [
        "# Results",
        "Written by `python -m benchmarks.study` from the files in benchmarks/results; each section names the command "
        "that measures it anew. All figures are on test images, mean ± standard deviation over seeds of the star (or "
        "over pairs of models, where it says so); all stars are measured under the same matching. A *barrier* is how "
        "far the loss rises above the straight line between the losses of the ends, an *excess* how far above the "
        "worse end.",
    ]
    parts += map(section, measured())
    for title, (name, command) in OTHERS.items():
        made = HERE.parent / "results" / f"{name}.md"
        if made.is_file():
            parts += [f"## {title}", made.read_text(encoding="utf-8").strip(), f"`{command}`"]
    return "\n\n".join(parts) + "\n"


def measured() -> list[Path]:
    """The experiments that have results, in the order of the page."""
    files = [HERE / f"{name}.yaml" for name in ORDER]
    return [file for file in files if results_file(file).is_file()]


def write_page() -> None:
    """Write docs/RESULTS.md and its plots."""
    for file in measured():
        experiment, rows = load_experiment(file), json.loads(results_file(file).read_text(encoding="utf-8"))["rows"]
        if experiment.plot:
            draw = draw_paths if experiment.plot == "paths" else draw_numbers
            save(draw(experiment, rows), PLOTS / file.stem)
    PAGE.write_text(page(), encoding="utf-8")
