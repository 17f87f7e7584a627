"""Figures of a card. Needs matplotlib, but neither pyplot nor torch."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import get_args

import matplotlib as mpl
import numpy as np
from matplotlib import style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from starzoo.config import Baseline
from starzoo.errors import UntrustedInputError, UsageError
from starzoo.evaluate.results import (
    KIND_LABELS,
    ROLE_LABELS,
    Evaluation,
    LossPlane,
    PathCurve,
    PathKind,
    Role,
    Split,
)
from starzoo.files import atomic_write
from starzoo.report.summary import has_costs, label_group
from starzoo.text import pluralize

__all__ = ["all_figures", "plot_cost", "plot_loss_plane", "plot_paths", "plot_quality", "save", "to_png"]

Values = NDArray[np.float64]


@dataclass(frozen=True)
class _Style:
    """A color of Okabe and Ito (2008), with a line or a marker that tells it from others without color."""

    color: str
    line: str | tuple[float, tuple[float, ...]] = "-"
    marker: str = "o"


_KIND_STYLES: dict[PathKind, _Style] = {
    "star-source": _Style("#0072B2", "-"),
    "star-heldout": _Style("#D55E00", (0, (5, 1.5))),
    "star-star": _Style("#000000", (0, (3, 1, 1, 1, 1, 1))),
    "baseline-heldout": _Style("#56B4E9", (0, (2, 1))),
    "source-source": _Style("#009E73", (0, (6, 1.5, 1, 1.5))),
    "source-source-unaligned": _Style("#777777", (0, (1, 1.2))),
}
_ROLE_STYLES: dict[Role, _Style] = {
    "source": _Style("#0072B2"),
    "held-out": _Style("#D55E00"),
    "naive-mean": _Style("#777777", marker="s"),
    "aligned-mean": _Style("#009E73", marker="s"),
    "star": _Style("#000000", marker="*"),
    "domain": _Style("#E69F00", marker="P"),
    "domain-whole-lines": _Style("#009E73", marker="X"),
    **dict.fromkeys(get_args(Baseline), _Style("#56B4E9", marker="v")),
    "ensemble": _Style("#AA4499", marker="D"),
}
_COST_ROLES: tuple[Role, ...] = ("star", "domain", "domain-whole-lines", "student-mean", "trained-mean")
_CORNER_ROLES: tuple[Role, ...] = ("star", "source", "held-out")
_ACCURACY_TICKS = (0, 50, 80, 90, 95, 98, 99, 99.5, 99.8, 100)
_FLOOR = 0.1  # points of error below which the stretched accuracy axis turns linear, so that 100 % has a place on it
_WIDTH = 7.6  # inches
_LABEL_WIDTH = 22  # letters
_SPREAD = 4.0  # a range of values wider than this factor is drawn on a logarithmic axis


def all_figures(evaluation: Evaluation) -> Iterator[tuple[str, Figure]]:
    """Draw every figure that an evaluation has values for, by name."""
    for split in evaluation.splits:
        if any(path.split == split for path in evaluation.paths):
            yield f"paths-{split}", plot_paths(evaluation, split)
        if any(quality.split == split for quality in evaluation.qualities):
            yield f"quality-{split}", plot_quality(evaluation, split)
        if has_costs(evaluation, split):
            yield f"cost-{split}", plot_cost(evaluation, split)
    for plane in evaluation.planes:
        yield f"plane-{plane.split}", plot_loss_plane(plane)


def plot_paths(evaluation: Evaluation, split: Split = "test") -> Figure:
    """Loss and accuracy along the paths: for each kind the mean over its paths, in a band from least to greatest."""
    kinds = [kind for kind in _KIND_STYLES if evaluation.paths_of(kind, split)]
    if not kinds:
        raise UsageError("", f"no path was measured on the {split} split", hint="evaluate the star first")
    with plot_style():
        figure, (losses, accuracies) = _two_panels(4.0)
        for order, kind in enumerate(reversed(kinds)):  # the star's own paths lie on top
            paths, style = evaluation.paths_of(kind, split), _KIND_STYLES[kind]
            label = f"{KIND_LABELS[kind]} ({pluralize(len(paths), 'path')})"
            t = np.asarray(paths[0].t)
            for axes, values in zip((losses, accuracies), _curves(paths, t), strict=True):
                band = values.min(0), values.max(0)
                axes.fill_between(t, *band, color=style.color, alpha=0.18, lw=0, zorder=2 + order)
                axes.plot(t, values.mean(0), color=style.color, ls=style.line, lw=2, label=label, zorder=10 + order)
        _scale_loss(losses)
        _scale_accuracy(accuracies)
        losses.set_ylabel(f"{split} loss (nats)")
        accuracies.set_ylabel(f"{split} accuracy (%)")
        for axes in (losses, accuracies):
            axes.set_xlim(0, 1)
        path = "repaired path" if evaluation.repaired else "path"
        figure.supxlabel(f"position on the {path} t:  0 = star or first model,  1 = other model", fontsize="medium")
        handles, labels = losses.get_legend_handles_labels()
        _add_legend(figure, handles[::-1], labels[::-1])
    return figure


def plot_quality(evaluation: Evaluation, split: Split = "test") -> Figure:
    """Accuracy and negative log-likelihood by role, one mark for each model."""
    roles = [role for role in _ROLE_STYLES if evaluation.qualities_of(role, split)]
    if not roles:
        raise UsageError("", f"no model was measured on the {split} split", hint="evaluate the star first")
    rows = [evaluation.qualities_of(role, split) for role in roles]
    with plot_style():
        figure, (accuracies, losses) = _two_panels(1.2 + 0.42 * len(roles), sharey=True)
        _draw_rows(accuracies, roles, [[100 * model.accuracy for model in row] for row in rows], "{:.2f}")
        _draw_rows(losses, roles, [[model.nll for model in row] for row in rows], "{:#.3g}")
        accuracies.set_xlabel(f"{split} accuracy (%), more is better")
        losses.set_xlabel(f"{split} NLL (nats), less is better")
        accuracies.set_yticks(range(len(roles)), [fill(label_group(row), _LABEL_WIDTH) for row in rows])
        accuracies.set_ylim(len(roles) - 0.5, -0.5)
    return figure


def plot_cost(evaluation: Evaluation, split: Split = "test") -> Figure:
    """Accuracy and negative log-likelihood against forward passes per image."""
    ensembles = [*evaluation.qualities_of("sub-ensemble", split), *evaluation.qualities_of("ensemble", split)]
    first = evaluation.qualities_of("source", split)[:1]
    if not ensembles or not first:
        raise UsageError("", f"no ensemble was measured on the {split} split", hint="evaluate the star first")
    line = [*first, *ensembles]
    marks = [scores for role in _COST_ROLES for scores in evaluation.qualities_of(role, split)]
    with plot_style():
        figure, panels = _two_panels(3.4)
        for axes, score, factor in zip(panels, ("accuracy", "nll"), (100, 1), strict=True):
            axes.plot(
                [scores.passes for scores in line],
                [factor * getattr(scores, score) for scores in line],
                color=_ROLE_STYLES["ensemble"].color,
                marker=_ROLE_STYLES["ensemble"].marker,
                ms=5,
                label="ensembles of the first sources",
            )
            for scores in marks:
                value, style = factor * getattr(scores, score), _ROLE_STYLES[scores.role]
                label = ROLE_LABELS[scores.role]
                axes.plot(scores.passes, value, style.marker, color=style.color, ms=11, mew=0, label=label)
            axes.set_xscale("log", base=2)
            axes.set_xticks(sorted({scores.passes for scores in (*line, *marks)}))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xlabel("forward passes per image")
        panels[0].set_ylabel(f"{split} accuracy (%), more is better")
        panels[1].set_ylabel(f"{split} NLL (nats), less is better")
        _add_legend(figure, *panels[0].get_legend_handles_labels())
    return figure


def plot_loss_plane(plane: LossPlane) -> Figure:
    """The loss in the plane through a star, a source and a held-out."""
    if min(len(set(plane.x)), len(set(plane.y))) < 2:
        raise UntrustedInputError(
            "plane",
            f"the plane of {', '.join(plane.names)} was measured along a line only, so that it cannot be drawn",
            hint="evaluate the star again with more points, or with evaluate.loss_plane_points=0",
        )
    with plot_style():
        figure = Figure(figsize=(6.4, 4.8), layout="constrained")
        axes = figure.subplots()
        losses = np.array(plane.loss)
        low, high = float(losses.min()), float(losses.max())
        is_wide = 0 < low < high / _SPREAD
        levels = np.geomspace(low, high, 15) if is_wide else np.linspace(low, max(high, low + 1e-9), 15)
        norm = LogNorm(low, high) if is_wide else None
        filled = axes.contourf(plane.x, plane.y, losses, levels=levels, cmap="cividis_r", norm=norm)
        bar = figure.colorbar(filled, ax=axes, label=f"{plane.split} loss (nats)", format="%.3g")
        bar.ax.minorticks_off()
        for role, (x, y) in zip(_CORNER_ROLES, plane.corners, strict=True):
            style = _ROLE_STYLES[role]
            axes.plot(x, y, style.marker, ms=14 if role == "star" else 9, color=style.color, mec="white", mew=1.2)
            is_right = x > (plane.x[0] + plane.x[-1]) / 2  # there the label stands on the left
            axes.annotate(
                ROLE_LABELS[role],
                (x, y),
                (-8 if is_right else 8, 8),
                textcoords="offset points",
                ha="right" if is_right else "left",
                bbox={"fc": "white", "ec": "none", "alpha": 0.75, "pad": 1.5},
            )
        axes.set_xlabel("Euclidean distance of weights from the star")
        axes.set_ylabel("distance from the star–source line")
        axes.set_aspect("equal")
        axes.grid(visible=False)
    return figure


def to_png(figure: Figure) -> bytes:
    """Render a figure as a PNG, byte for byte the same each time."""
    content = io.BytesIO()
    with plot_style():
        figure.savefig(content, format="png", dpi=200, metadata={"Software": None})
    return content.getvalue()


def save(figure: Figure, stem: Path) -> tuple[Path, Path]:
    """Write a figure as PNG and SVG, byte for byte the same each time."""
    png, svg = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.svg")
    with atomic_write(png) as draft:
        draft.write_bytes(to_png(figure))
    with atomic_write(svg) as draft, plot_style():
        figure.savefig(draft, metadata={"Date": None, "Creator": None})
    return png, svg


@contextmanager
def plot_style() -> Iterator[None]:
    """Draw in the style of starzoo, whatever the user's matplotlibrc says."""
    with (
        style.context("default"),
        mpl.rc_context({
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#e6e6e6",
            "axes.axisbelow": True,
            "svg.fonttype": "none",
            "svg.hashsalt": "starzoo",
        }),
    ):
        yield


def _two_panels(height: float, *, sharey: bool = False) -> tuple[Figure, tuple[Axes, Axes]]:
    """A figure of two panels side by side; `height` in inches."""
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    first, second = figure.subplots(1, 2, sharey=sharey)
    return figure, (first, second)


def _add_legend(figure: Figure, handles: Sequence[Artist], labels: Sequence[str]) -> None:
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, handlelength=3)


def _curves(paths: Sequence[PathCurve], t: Values) -> tuple[Values, Values]:
    """Loss (nats) and accuracy (%) of every path at the points `t`, shape (paths, points)."""
    loss = np.array([np.interp(t, path.t, path.loss) for path in paths])
    accuracy = np.array([np.interp(t, path.t, path.accuracy) for path in paths])
    return loss, 100 * accuracy


def _band_values(axes: Axes) -> Values:
    """All y values in the bands of the axes."""
    return np.concatenate([np.asarray(path.vertices)[:, 1] for band in axes.collections for path in band.get_paths()])


def _scale_loss(axes: Axes) -> None:
    """Make the axis logarithmic where unaligned paths tower over the star's, so that both can be read."""
    losses = _band_values(axes)
    low, high = float(losses.min()), float(losses.max())
    if low <= 0 or high < _SPREAD * low:
        return
    axes.set_yscale("log")
    axes.set_ylim(low / 1.15, high * 1.15)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _scale_accuracy(axes: Axes) -> None:
    """Stretch the axis toward 100 % (logarithmic in the errors) where the worst path has many more errors."""
    errors = 100 - _band_values(axes)
    low, high = float(errors.min()), float(errors.max())
    if high < _SPREAD * max(low, _FLOOR):
        return
    axes.set_yscale("function", functions=(_stretch, _unstretch))
    bottom, top = _stretch(np.array([100 - high, 100 - low]))
    margin = 0.05 * (top - bottom)
    axes.set_ylim(*_unstretch(np.array([bottom - margin, top + margin])))
    axes.yaxis.set_major_locator(FixedLocator(_ACCURACY_TICKS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _stretch(accuracy: Values) -> Values:
    """Map accuracy (%) to its height on the stretched axis."""
    return -np.log10(np.maximum(100 + _FLOOR - accuracy, 1e-6))


def _unstretch(height: Values) -> Values:
    """Invert `_stretch`."""
    return 100 + _FLOOR - 10.0**-height


def _draw_rows(axes: Axes, roles: Sequence[Role], rows: Sequence[Sequence[float]], number: str) -> None:
    """Draw one row of marks per role; a value far from all others becomes an arrow at the edge."""
    low, high = _value_limits(roles, rows)
    for height, (role, row) in enumerate(zip(roles, rows, strict=True)):
        style, values, is_single = _ROLE_STYLES[role], np.array(row), len(row) == 1
        heights = height + (np.zeros(1) if is_single else np.linspace(-0.22, 0.22, len(row)))
        size = 13 if style.marker == "*" else 7 if is_single else 5
        masks = {style.marker: (low <= values) & (values <= high), "<": values < low, ">": values > high}
        for marker, mask in masks.items():
            axes.plot(
                np.clip(values[mask], low, high),
                heights[mask],
                marker,
                ms=size if marker == style.marker else 7,
                mew=0,
                color=style.color,
                alpha=1 if is_single else 0.55,
            )
        mean = float(values.mean())
        if not is_single and low <= mean <= high:
            axes.plot([mean, mean], [height - 0.32, height + 0.32], color=style.color, lw=2)
    margin = 0.05 * (high - low)
    axes.set_xlim(low - margin, high + margin)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.grid(visible=False, axis="y")
    numbers = axes.secondary_yaxis("right")
    numbers.set_yticks(range(len(rows)), [number.format(float(np.mean(row))) for row in rows])
    numbers.tick_params(length=0)
    numbers.spines["right"].set_visible(False)


def _value_limits(roles: Sequence[Role], rows: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The range to show: all values, but means of weights only where they do not squeeze the others together."""
    values = [value for row in rows for value in row]
    without_means = [value for role, row in zip(roles, rows, strict=True) if "mean" not in role for value in row]
    low, high = min(without_means or values), max(without_means or values)
    if max(values) - min(values) <= 2 * (high - low):
        low, high = min(values), max(values)
    margin = 0.02 * abs(high) or 1.0
    return (low, high) if high > low else (low - margin, high + margin)
