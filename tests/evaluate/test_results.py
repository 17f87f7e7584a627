import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from starzoo.errors import UsageError
from starzoo.evaluate.results import Evaluation, PathCurve, PredictionScores, Summary


def make_path(loss, accuracy=None, t=None, kind="star-source", split="test", b="b"):
    t = t or [number / (len(loss) - 1) for number in range(len(loss))]
    return PathCurve(kind=kind, a="a", b=b, split=split, t=t, loss=loss, accuracy=accuracy or [0.5] * len(loss))


def make_quality(name, role, accuracy, split="test"):
    return PredictionScores(name=name, role=role, split=split, accuracy=accuracy, nll=1 - accuracy, ece=0.01)


losses = st.lists(st.floats(0, 10), min_size=2, max_size=12)
shares = st.floats(0, 1)


@st.composite
def paths(draw):
    loss = draw(losses)
    accuracy = draw(st.lists(shares, min_size=len(loss), max_size=len(loss)))
    kind = draw(st.sampled_from(["star-source", "star-heldout", "source-source", "source-source-unaligned"]))
    return make_path(loss, accuracy, kind=kind, split=draw(st.sampled_from(["train", "test"])), b=draw(st.text()))


def test_measures_of_a_hand_computed_path():
    path = make_path([0.2, 0.9, 0.7, 0.6], [0.95, 0.6, 0.7, 0.9], t=[0, 0.25, 0.5, 1])
    # chord of the loss: 0.2, 0.3, 0.4, 0.6; of the accuracy: 0.95, 0.9375, 0.925, 0.9
    assert path.barrier == pytest.approx(0.6)
    assert path.accuracy_barrier == pytest.approx(0.3375)
    assert path.highest_loss == 0.9
    assert path.worst_accuracy == 0.6
    assert path.excess == pytest.approx(0.3)


def test_a_valley_has_no_barrier_and_no_excess():
    path = make_path([0.5, 0.1, 0.5], [0.8, 0.9, 0.8])
    assert (path.barrier, path.accuracy_barrier, path.excess) == (0, 0, 0)


def test_a_path_can_have_a_barrier_without_rising_above_its_worse_end():
    path = make_path([0.0, 0.9, 1.0])
    assert path.barrier == pytest.approx(0.4)
    assert path.excess == 0


@given(st.floats(0, 10), st.floats(0, 10), st.integers(2, 15))
def test_a_straight_line_has_no_barrier(first, last, points):
    t = [number / (points - 1) for number in range(points)]
    path = make_path([(1 - at) * first + at * last for at in t], t=t)
    assert path.barrier == pytest.approx(0, abs=1e-12)
    assert path.excess == pytest.approx(0, abs=1e-12)


@given(paths())
def test_measures_are_ordered(path):
    assert 0 <= path.excess <= path.barrier + 1e-12
    assert path.barrier <= path.highest_loss
    assert path.highest_loss == pytest.approx(max(path.loss[0], path.loss[-1]) + path.excess)
    assert 0 <= path.accuracy_barrier <= 1
    assert path.worst_accuracy <= min(path.accuracy[0], path.accuracy[-1])


@given(losses, st.floats(0, 5), st.floats(0, 5))
def test_the_barrier_ignores_what_is_linear_in_t(loss, offset, slope):
    path = make_path(loss)
    tilted = make_path([value + offset + slope * at for value, at in zip(loss, path.t, strict=True)])
    assert tilted.barrier == pytest.approx(path.barrier, abs=1e-9)


@given(paths())
def test_the_barrier_is_the_same_from_both_ends(path):
    turned = make_path(path.loss[::-1], path.accuracy[::-1], t=[1 - at for at in path.t[::-1]])
    assert turned.barrier == pytest.approx(path.barrier, abs=1e-9)
    assert turned.accuracy_barrier == pytest.approx(path.accuracy_barrier, abs=1e-9)


@given(st.lists(paths(), max_size=4), st.lists(shares, max_size=4))
def test_an_evaluation_survives_json(some_paths, accuracies):
    qualities = tuple(make_quality(f"m{number}", "source", share) for number, share in enumerate(accuracies))
    evaluation = Evaluation(paths=tuple(some_paths), qualities=qualities)
    assert Evaluation.model_validate_json(evaluation.model_dump_json()) == evaluation


def test_json_shows_the_measures_but_does_not_trust_them():
    path = make_path([0.0, 1.0, 0.0])
    dump = path.model_dump()
    assert dump["barrier"] == 1.0
    assert PathCurve.model_validate(dump | {"barrier": 0.0}).barrier == 1.0


@pytest.mark.parametrize(
    ("loss", "accuracy", "t"),
    [([1.0], [1.0], [0.0]), ([1.0, 1.0], [1.0], [0.0, 1.0]), ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.0, 1.0])],
)
def test_a_path_with_missing_points_is_refused(loss, accuracy, t):
    with pytest.raises(ValidationError, match="a path needs two points or more"):
        PathCurve(kind="star-source", a="a", b="b", split="test", t=t, loss=loss, accuracy=accuracy)


def test_a_loss_that_is_no_number_is_refused():
    with pytest.raises(ValidationError, match="finite number"):
        make_path([0.1, float("nan"), 0.1])


def test_a_key_that_is_not_known_is_refused():
    with pytest.raises(ValidationError, match="Extra inputs"):
        PathCurve.model_validate(make_path([0.1, 0.2]).model_dump() | {"barriers": 0.0})


def test_spread_of_some_values():
    spread = Summary.of([1.0, 2.0, 6.0])
    assert (spread.mean, spread.worst, spread.count) == (3.0, 6.0, 3)
    assert spread.std == pytest.approx(7**0.5)
    assert Summary.of([1.0, 2.0, 6.0], more_is_better=True).worst == 1.0
    assert Summary.of([2.5]) == Summary(mean=2.5, std=0.0, worst=2.5, count=1)


def test_spread_of_nothing_is_an_error():
    with pytest.raises(UsageError, match="nothing to summarize"):
        Summary.of([])


def test_an_evaluation_picks_kind_role_and_split():
    low, high, other = (
        make_path([0, 0.2, 0]),
        make_path([0, 0.4, 0], [0.9, 0.3, 0.9]),
        make_path([0, 9, 0], split="train"),
    )
    held = make_path([0, 1, 0], kind="star-heldout")
    evaluation = Evaluation(
        paths=(low, high, other, held),
        qualities=(make_quality("x", "source", 0.8), make_quality("y", "star", 0.9, split="train")),
    )
    assert evaluation.splits == ("test", "train")
    assert evaluation.kinds == ("star-source", "star-heldout")
    assert evaluation.paths_of("star-source") == (low, high)
    assert evaluation.paths_of("star-source", "train") == (other,)
    assert [quality.name for quality in evaluation.qualities_of("star", "train")] == ["y"]
    assert evaluation.qualities_of("star") == ()
    barrier = evaluation.summarize("star-source")
    assert (barrier.mean, barrier.worst, barrier.count) == (pytest.approx(0.3), 0.4, 2)
    assert evaluation.summarize("star-source", "worst_accuracy").worst == 0.3
    with pytest.raises(UsageError, match="no such path"):
        evaluation.summarize("source-source")


def slow_interval(paths, draws):
    """The bootstrap by the book, with numpy's random numbers instead."""
    import numpy as np

    rng, means = np.random.default_rng(5), []
    names = sorted({path.b for path in paths})
    for _ in range(draws):
        drawn = rng.choice(names, size=len(names))
        means.append(np.mean([path.barrier for name in drawn for path in paths if path.b == name]))
    return np.quantile(means, [0.025, 0.975])


def test_an_interval_draws_models_and_not_paths():
    paths = tuple(make_path([0, bump, 0], b=f"m{number}") for number, bump in enumerate((0.1, 0.3, 0.2, 0.6)))
    evaluation = Evaluation(paths=paths, qualities=())
    low, high = evaluation.interval("star-source")
    assert (low, high) == pytest.approx(slow_interval(paths, 4000), abs=0.03)
    assert low < evaluation.summarize("star-source").mean < high
    # All pairs of three models: only one pair can be drawn without the third model.
    pairs = [
        PathCurve(kind="source-source", a=a, b=b, split="test", t=(0, 0.5, 1), loss=(0, bump, 0), accuracy=(1, 1, 1))
        for a, b, bump in (("x", "y", 0.1), ("x", "z", 0.5), ("y", "z", 0.9))
    ]
    assert Evaluation(paths=tuple(pairs), qualities=()).interval("source-source") == (0.1, 0.9)
    assert Evaluation(paths=paths[:2], qualities=()).interval("star-source") is None


def test_a_star_of_an_earlier_version_can_still_be_read():
    old = {
        "paths": [],
        "qualities": [
            {"name": "s", "role": "star", "split": "test", "accuracy": 0.9, "nll": 0.3, "ece": 0.1, "passes": 1}
        ],
        "images": {"test": 10},
        "data": None,
        "repaired": False,
    }
    [quality] = Evaluation.model_validate(old).qualities
    assert (quality.nll, quality.brier, quality.tempered, quality.bytes) == (0.3, None, None, None)
