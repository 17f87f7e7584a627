import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from starzoo.errors import UntrustedInputError, UsageError
from starzoo.evaluate.results import Evaluation, LossPlane, PathCurve, PredictionScores
from starzoo.report.plots import plot_cost, plot_loss_plane, plot_paths, plot_quality, save

T = tuple(number / 10 for number in range(11))
BUMPS = {"star-source": 0.0, "star-heldout": 0.02, "source-source": 0.3, "source-source-unaligned": 2.0}


def make_path(kind, bump, number=0, split="test"):
    loss = tuple(0.05 + 4 * t * (1 - t) * bump * (1 + number / 10) for t in T)
    accuracy = tuple(0.985 - min(0.8, bump / 2) * 4 * t * (1 - t) for t in T)
    return PathCurve(kind=kind, a="a", b=f"$b_{number}", split=split, t=T, loss=loss, accuracy=accuracy)


def make_quality(role, accuracy, name="m", passes=1, split="test"):
    return PredictionScores(
        name=name, role=role, split=split, accuracy=accuracy, nll=2 * (1 - accuracy), ece=0.01, passes=passes
    )


def make_evaluation(kinds=tuple(BUMPS), split="test"):
    members = [make_quality("source", 0.97 + number / 500, f"<m{number}>", split=split) for number in range(4)]
    return Evaluation(
        paths=tuple(make_path(kind, BUMPS[kind], number, split) for kind in kinds for number in range(3)),
        qualities=(
            *members,
            make_quality("held-out", 0.972, split=split),
            make_quality("aligned-mean", 0.4, split=split),
            make_quality("star", 0.975, split=split),
            make_quality("ensemble", 0.985, passes=4, split=split),
        ),
    )


def lines(axes):
    return {line.get_label(): np.asarray(line.get_ydata()) for line in axes.get_lines()}


def test_each_kind_is_drawn_as_the_mean_of_its_paths():
    evaluation = make_evaluation()
    losses, accuracies = plot_paths(evaluation).axes
    for kind, label in (("star-source", "star to source (3 paths)"), ("star-heldout", "star to held-out (3 paths)")):
        paths = evaluation.paths_of(kind)
        assert lines(losses)[label] == pytest.approx(np.mean([path.loss for path in paths], axis=0))
        assert lines(accuracies)[label] == pytest.approx(100 * np.mean([path.accuracy for path in paths], axis=0))
    assert len(lines(losses)) == 4


def test_everything_drawn_lies_inside_the_axes():
    evaluation = make_evaluation()
    for axes, values in zip(
        plot_paths(evaluation).axes,
        ([path.loss for path in evaluation.paths], [[100 * a for a in path.accuracy] for path in evaluation.paths]),
        strict=True,
    ):
        low, high = axes.get_ylim()
        assert low <= np.min(values) <= np.max(values) <= high


def test_a_towering_raw_path_leaves_room_for_the_stars_own():
    figure = plot_paths(make_evaluation())
    for axes, near, far in zip(figure.axes, ((0.05, 0.07), (97.5, 98.5)), (2.0, 18.5), strict=True):
        height = axes.transAxes.inverted().transform
        heights = [height(axes.transData.transform((0.5, value)))[1] for value in (*near, far)]
        assert abs(heights[0] - heights[1]) > 0.05
        assert 0 <= heights[2] <= 1


def test_a_narrow_range_is_drawn_on_plain_axes():
    figure = plot_paths(make_evaluation(["star-source", "star-heldout"]))
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "linear"]


def test_errors_of_zero_and_losses_of_zero_can_be_drawn(tmp_path):
    perfect = PathCurve(kind="star-source", a="a", b="b", split="test", t=T, loss=[0.0] * 11, accuracy=[1.0] * 11)
    raw = make_path("source-source-unaligned", 2.0)
    png, _ = save(plot_paths(Evaluation(paths=(perfect, raw), qualities=())), tmp_path / "paths")
    assert png.stat().st_size > 0


def test_an_aligned_mean_far_away_does_not_squeeze_the_rest():
    right, nll = plot_quality(make_evaluation()).axes
    assert right.get_xlim()[0] > 90
    assert nll.get_xlim()[1] < 0.2
    assert any(line.get_marker() == "<" and len(line.get_xdata()) for line in right.get_lines())
    assert any(line.get_marker() == ">" and len(line.get_xdata()) for line in nll.get_lines())


@pytest.mark.parametrize("split", ["train", "test"])
def test_files_name_their_axes(tmp_path, split):
    evaluation = make_evaluation(split=split)
    png, svg = save(plot_paths(evaluation, split), tmp_path / "plots" / "paths")
    text = svg.read_text(encoding="utf-8")
    for words in (
        f"{split} loss (nats)",
        f"{split} accuracy (%)",
        "position on the path t",
        "star to held-out (3 paths)",
    ):
        assert words in text
    with Image.open(png) as picture:
        assert picture.size == (1520, 800)
    _, svg = save(plot_quality(evaluation, split), tmp_path / "plots" / "quality")
    text = svg.read_text(encoding="utf-8")
    for words in (f"{split} accuracy (%)", f"{split} NLL (nats)", "ensemble of 4", "aligned mean", "97.50"):
        assert words in text


def test_a_rerun_writes_the_same_bytes_under_any_matplotlibrc(tmp_path):
    first = [save(draw(make_evaluation()), tmp_path / draw.__name__) for draw in (plot_paths, plot_quality)]
    before = [file.read_bytes() for files in first for file in files]
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "savefig.dpi": 10, "svg.hashsalt": None}):
        again = [save(draw(make_evaluation()), tmp_path / draw.__name__) for draw in (plot_paths, plot_quality)]
    assert [file.read_bytes() for files in again for file in files] == before
    for content in before:
        assert b"<dc:date>" not in content
        assert mpl.__version__.encode() not in content


def test_what_is_missing_is_left_out():
    evaluation = make_evaluation(["star-source"])
    assert list(lines(plot_paths(evaluation).axes[0])) == ["star to source (3 paths)"]
    only_star = Evaluation(paths=(), qualities=evaluation.qualities_of("star"))
    assert [label.get_text() for label in plot_quality(only_star).axes[0].get_yticklabels()] == ["star"]


def test_nothing_to_draw_is_an_error():
    with pytest.raises(UsageError, match="no path was measured on the train split"):
        plot_paths(make_evaluation(), "train")
    with pytest.raises(UsageError, match="no model was measured on the train split"):
        plot_quality(make_evaluation(), "train")


def test_costs_are_drawn_against_forward_passes():
    evaluation = make_evaluation()
    some = (make_quality("sub-ensemble", 0.98, passes=2), make_quality("domain", 0.981, passes=3))
    evaluation = evaluation.model_copy(update={"qualities": (*evaluation.qualities, *some)})
    right, nll = plot_cost(evaluation).axes
    assert lines(right)["ensembles of the first sources"] == pytest.approx([97, 98, 98.5])
    assert lines(nll)["star domain"] == pytest.approx([2 * 0.019])
    assert [axes.get_xlabel() for axes in (right, nll)] == ["forward passes per image"] * 2
    with pytest.raises(UsageError, match="no ensemble was measured on the train split"):
        plot_cost(evaluation, "train")


@pytest.mark.parametrize("loss", [((0.1, 0.2), (0.3, 0.4)), ((0.01, 2.0), (3.0, 4.0)), ((1.0, 1.0), (1.0, 1.0))])
def test_a_plane_shows_its_three_models(loss):
    corners = ((0.0, 0.0), (2.0, 0.0), (0.5, 1.5))
    names = ("star", "a", "b")
    plane = LossPlane(names=names, corners=corners, split="test", x=(-1, 3), y=(-1, 2), loss=loss)
    axes, bar = plot_loss_plane(plane).axes
    assert [text.get_text() for text in axes.texts] == ["star", "source", "held-out"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.get_lines()] == list(corners)
    assert bar.get_ylabel() == "test loss (nats)"
    assert axes.get_xlabel() == "Euclidean distance of weights from the star"


@pytest.mark.parametrize(("x", "y", "loss"), [((0,), (0,), ((1,),)), ((2, 2), (0, 1), ((1, 1), (1, 1)))])
def test_a_plane_along_a_line_is_no_picture(x, y, loss):
    corners = ((0.0, 0.0), (2.0, 0.0), (0.5, 1.5))
    plane = LossPlane(names=("star", "a", "b"), corners=corners, split="test", x=x, y=y, loss=loss)
    with pytest.raises(UntrustedInputError, match="the plane of star, a, b was measured along a line only"):
        plot_loss_plane(plane)


def test_plots_need_neither_torch_nor_pyplot():
    check = "import sys, starzoo.report.plots; print([m for m in ('torch', 'matplotlib.pyplot') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
