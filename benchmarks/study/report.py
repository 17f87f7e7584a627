"""docs/results.md and its plots, from the committed results alone."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.study.experiment import HERE, ROOT, Experiment, load_experiment, results_file
from benchmarks.study.tables import Row, path_of, table
from starzoo.report.plots import plot_style, save

PAGE = ROOT / "docs" / "results.md"
PLOTS = ROOT / "docs" / "results"
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito
ORDER = (
    *("cifar", "digits", "sources", "digits-sources", "sizes", "architectures", "vgg"),
    *("strangers", "digits-strangers", "ablations", "full-size"),
)
FAIR = "fair", "python -m benchmarks.fair ZOO"
OTHERS = {  # tables of other benchmarks, by the command that makes them
    "Matching two networks": ("matching", "python -m benchmarks.matching"),
    "Averaging over the star domain": ("bma", "python -m benchmarks.bma"),
    "The cost of a step": ("step-cpu", "python benchmarks/step.py"),
    "The cost of a curve": ("curve", "python benchmarks/curve.py"),
    "The time of matching": ("align-speed", "python benchmarks/align_speed.py"),
}


def draw_paths(experiment: Experiment, rows: Sequence[Row]) -> Figure:
    """The mean loss along the paths to held-outs, a line per variant, its range over the seeds shaded."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    with plot_style():
        axes = figure.subplots()
        shown = [
            variant for variant in experiment.variants if any(path_of("t")(r) for r in rows if r["variant"] == variant)
        ]
        for variant, color in zip(shown, COLORS, strict=False):
            found = [row["paths"]["star-heldout"] for row in rows if row["variant"] == variant]
            curves = list(zip(*(each["loss"] for each in found), strict=True))
            axes.plot(found[0]["t"], list(map(statistics.fmean, curves)), color=color, label=variant)
            axes.fill_between(
                found[0]["t"], list(map(min, curves)), list(map(max, curves)), color=color, alpha=0.15, lw=0
            )
        between = [row["paths"]["source-source"] for row in rows if "source-source" in row["paths"]]
        for path in between[:1]:
            axes.plot(path["t"], path["loss"], color="#777777", ls="--", label="between two sources")
        axes.set_xlabel("t, from the star (0) to a held-out (1)")
        axes.set_ylabel("test loss (nats)")
        axes.legend(frameon=False, fontsize=8)
    return figure


def draw_numbers(experiment: Experiment, rows: Sequence[Row]) -> Figure:
    """The barrier to held-outs over the variants' `x`, one mark per seed, a line through the means."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    with plot_style():
        axes = figure.subplots()
        lines: dict[str, list[tuple[float, list[float]]]] = {}
        for variant, chosen in experiment.variants.items():
            values = [path_of("barrier")(row) for row in rows if row["variant"] == variant]
            if chosen.x is not None and values:
                name = "the paper's algorithm" if chosen.config else "starzoo"
                lines.setdefault(name, []).append((chosen.x, [value for value in values if value is not None]))
        for (name, points), color in zip(lines.items(), COLORS, strict=False):
            points = sorted(points)
            axes.plot([x for x, _ in points], [statistics.fmean(each) for _, each in points], color=color, label=name)
            for x, each in points:
                axes.plot([x] * len(each), each, "o", ms=4, mew=0, color=color, alpha=0.6)
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
        "that measures it again. All figures of stars are on test images, mean ± standard deviation over seeds of the "
        "star (or over pairs of models, where it says so); all stars, the paper's too, are fitted (unless a variant "
        "says otherwise) and measured under the same matching, starzoo's. A *barrier* is how far the loss rises above "
        "the straight line between the losses of the ends, an *excess* how far above the worse end.",
        "The networks are small, and trained on parts of CIFAR-10 or on digits. Nothing was measured at full size, "
        "where the paper has a barrier of 0.035 (ResNet-18 on all of CIFAR-10): "
        "`benchmarks/study/full-size.yaml` is that experiment, takes a GPU, and was not run.",
    ]
    parts += fair()
    parts += map(section, measured())
    for title, (name, command) in OTHERS.items():
        made = HERE.parent / "results" / f"{name}.md"
        if made.is_file():
            parts += [f"## {title}", made.read_text(encoding="utf-8").strip(), f"`{command}`"]
    return "\n\n".join(parts) + "\n"


def fair() -> list[str]:
    """What the page says of the fair table and of the choice of settings."""
    name, command = FAIR
    table = (HERE.parent / "results" / f"{name}.md").read_text(encoding="utf-8")
    body = re.sub(r"^# .*\n", "", table).replace("\n## ", "\n### ").strip()
    return [
        "## A star beside everything that one could do instead",
        (HERE / "fair-reading.md").read_text(encoding="utf-8").strip(),
        body,
        f"`{command}`",
        "## What a path costs",
        "![Barrier to held-outs against tempered negative log-likelihood](results/tradeoff.png)",
        (HERE / "tuning-reading.md").read_text(encoding="utf-8").strip(),
        "`python -m benchmarks.tuning tradeoff tuning-resnet`",
    ]


def measured() -> list[Path]:
    """The experiments that have results, in the order of the page."""
    files = [HERE / f"{name}.yaml" for name in ORDER]
    return [file for file in files if results_file(file).is_file()]


def write_page() -> None:
    """Write docs/results.md and its plots."""
    for file in measured():
        experiment, rows = load_experiment(file), json.loads(results_file(file).read_text(encoding="utf-8"))["rows"]
        if experiment.plot:
            draw = draw_paths if experiment.plot == "paths" else draw_numbers
            save(draw(experiment, rows), PLOTS / file.stem)
    PAGE.write_text(page(), encoding="utf-8")
