"""The rows and sentences of a card, from an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from starzoo.evaluate.results import Evaluation, PathKind, PredictionScores, Role, Scores, Summary, TemperatureScaled
from starzoo.text import pluralize

__all__ = [
    "PathSummary",
    "PredictorSummary",
    "ScaledSummary",
    "bf16_note",
    "has_costs",
    "summarize_paths",
    "summarize_predictors",
    "summary",
]

Split = Literal["train", "test"]
Score = Literal["accuracy", "nll", "brier", "ece", "auroc"]
_MORE_IS_BETTER: frozenset[Score] = frozenset({"accuracy", "auroc"})


@dataclass(frozen=True, kw_only=True)
class PathSummary:
    """How the models of one kind of path are connected.

    Attributes:
        kind: The kind of path.
        barrier: Loss barrier over the paths, in nats.
        highest_loss: Greatest loss on any of the paths, in nats.
        worst_accuracy: Least accuracy on any of the paths, as a share.
        excess: Rise above the worse end over the paths, in nats.
        drop: Accuracy barrier over the paths, as a share.
        interval: The 95 % bootstrap interval of the mean barrier over models; None where there are too few.
        tempered: Loss barrier with a temperature of its own for every point, in nats; None where it was not measured.
    """

    kind: PathKind
    barrier: Summary
    highest_loss: float
    worst_accuracy: float
    excess: Summary
    drop: Summary
    interval: tuple[float, float] | None = None
    tempered: Summary | None = None


@dataclass(frozen=True, kw_only=True)
class PredictorSummary:
    """One way to predict: a single model, a mean over several single models, an average of weights or predictions.

    Attributes:
        role: What it is.
        label: What it is, in words for a table.
        name: The one model's name, or None for a mean over several.
        accuracy: Share of right answers.
        nll: Negative log-likelihood, in nats.
        ece: Expected calibration error, as a share.
        passes: Forward passes per image.
        brier: Brier score, where it was measured.
        auroc: How well confidence tells right answers from wrong ones, where it was measured.
        bytes: Size of the weights that a prediction takes, where it was measured.
        steps: Training steps of a baseline; None of all others.
        scaled: The one model's scores after temperature scaling, where there were validation images.
        ood: AUROC of OOD detection of the one model, by confidence and by entropy, where it was measured.
        best: The scores in which no other row is better.
    """

    role: Role
    label: str
    name: str | None
    accuracy: Summary
    nll: Summary
    ece: Summary
    passes: int
    brier: Summary | None = None
    auroc: Summary | None = None
    bytes: int | None = None
    steps: int | None = None
    scaled: ScaledSummary | None = None
    ood: tuple[Summary, Summary] | None = None
    best: frozenset[Score] = frozenset()


@dataclass(frozen=True, kw_only=True)
class ScaledSummary:
    """The scores of a predictor after temperature scaling.

    Attributes:
        temperature: The temperature.
        nll: Negative log-likelihood, in nats.
        ece: Expected calibration error, as a share.
        brier: Brier score.
        auroc: How well confidence tells right answers from wrong ones.
        ood: AUROC of OOD detection by confidence and by entropy.
    """

    temperature: Summary
    nll: Summary
    ece: Summary
    brier: Summary | None
    auroc: Summary | None
    ood: tuple[Summary, Summary] | None


def summarize_paths(evaluation: Evaluation, split: Split) -> list[PathSummary]:
    """Sum up the paths by kind."""
    return [
        PathSummary(
            kind=kind,
            barrier=evaluation.spread(kind, "barrier", split),
            highest_loss=evaluation.spread(kind, "highest_loss", split).worst,
            worst_accuracy=evaluation.spread(kind, "worst_accuracy", split).worst,
            excess=evaluation.spread(kind, "excess", split),
            drop=evaluation.spread(kind, "accuracy_barrier", split),
            interval=evaluation.interval(kind, "barrier", split),
            tempered=evaluation.spread(kind, "tempered_barrier", split)
            if all(path.tempered_loss for path in evaluation.paths_of(kind, split))
            else None,
        )
        for kind in get_args(PathKind)
        if evaluation.paths_of(kind, split)
    ]


def summarize_predictors(evaluation: Evaluation, split: Split) -> list[PredictorSummary]:
    """Sum up the qualities by role, with the most accurate source in a row of its own."""
    rows: list[PredictorSummary] = []
    for role in get_args(Role):
        group = evaluation.qualities_of(role, split)
        if role == "sub-ensemble":
            rows += [_sum_up([quality]) for quality in group]
        elif group:
            rows.append(_sum_up(group))
        if role == "source" and len(group) > 1:
            rows.append(_sum_up([max(group, key=lambda quality: quality.accuracy)], "most accurate source"))
    tops: dict[Score, float] = {}
    for score in get_args(Score):
        values = [spread.mean for row in rows if (spread := getattr(row, score))]
        if values:
            tops[score] = max(values) if score in _MORE_IS_BETTER else min(values)
    return [_mark(row, tops) for row in rows]


def has_costs(evaluation: Evaluation, split: Split) -> bool:
    """Whether several ways to predict at several forward passes were measured, so that their costs can be drawn."""
    return bool(evaluation.qualities_of("sub-ensemble", split) or evaluation.qualities_of("domain", split))


def summary(evaluation: Evaluation, split: Split) -> dict[str, str]:
    """Say in words what the two tables show, whoever wins."""
    parts = {
        "Connected": _on_connections(evaluation, split),
        "By itself": _on_predictions(evaluation, split),
        "Its domain": _on_domain(evaluation, split),
        "Who wins": _on_winners(evaluation, split),
    }
    found = {question: " ".join(answer) for question, answer in parts.items()}
    return {question: answer for question, answer in found.items() if answer}


def bf16_note(evaluation: Evaluation) -> str | None:
    """The sentence that states what forward passes in bfloat16 change; None where they were in float32."""
    if evaluation.rounding is None:
        return None
    found = evaluation.rounding
    return (
        f"Forward passes were in bfloat16: the star's own negative log-likelihood differs by {found.nll:.2g} nats, and "
        f"its accuracy by {100 * found.accuracy:.2g} percentage points, from those in float32 on the same images."
    )


def _sum_up(group: Sequence[PredictionScores], label: str = "") -> PredictorSummary:
    role, several = group[0].role, f"mean of {len(group)} " if len(group) > 1 else ""
    labels: dict[Role, str] = {
        "source": f"{several}sources" if several else "source",
        "held-out": f"{several}held-outs" if several else "held-out",
        "naive-mean": "mean of the sources' weights, not aligned",
        "aligned-mean": "aligned mean of the sources",
        "star": "star",
        "domain": f"star domain, {pluralize(group[0].passes, 'point')}",
        "domain-whole-lines": f"star domain, {pluralize(group[0].passes, 'point')} of whole lines",
        "swa": "SWA, going on from one source",
        "student": "student, distilled from the sources",
        "sub-ensemble": f"ensemble of {group[0].passes} sources",
        "ensemble": f"ensemble of {group[0].passes} sources",
    }
    scaled = [quality.tempered for quality in group if quality.tempered]
    return PredictorSummary(
        role=role,
        label=label or labels[role],
        name=group[0].name if len(group) == 1 else None,
        accuracy=Summary.of([quality.accuracy for quality in group], more_is_better=True),
        nll=Summary.of([quality.nll for quality in group]),
        ece=Summary.of([quality.ece for quality in group]),
        passes=max(quality.passes for quality in group),
        brier=_spread([quality.brier for quality in group]),
        auroc=_spread([quality.auroc for quality in group]),
        bytes=group[0].bytes,
        steps=group[0].steps,
        ood=_ood(group),
        scaled=_scale(scaled) if len(scaled) == len(group) else None,
    )


def _scale(group: Sequence[TemperatureScaled]) -> ScaledSummary:
    return ScaledSummary(
        temperature=Summary.of([scores.temperature for scores in group]),
        nll=Summary.of([scores.nll for scores in group]),
        ece=Summary.of([scores.ece for scores in group]),
        brier=_spread([scores.brier for scores in group]),
        auroc=_spread([scores.auroc for scores in group]),
        ood=_ood(group),
    )


def _ood(group: Sequence[Scores]) -> tuple[Summary, Summary] | None:
    confidence, entropy = (
        _spread([scores.ood_auroc for scores in group]),
        _spread([scores.ood_auroc_entropy for scores in group]),
    )
    return (confidence, entropy) if confidence and entropy else None


def _spread(values: Sequence[float | None]) -> Summary | None:
    """Their spread, if all of them were measured."""
    known = [value for value in values if value is not None]
    return Summary.of(known) if len(known) == len(values) else None


def _mark(row: PredictorSummary, tops: dict[Score, float]) -> PredictorSummary:
    spreads = {score: getattr(row, score) for score in tops}
    best = frozenset(score for score, spread in spreads.items() if spread and spread.mean == tops[score])
    return PredictorSummary(**{**vars(row), "best": best})


def _on_connections(evaluation: Evaluation, split: Split) -> Iterator[str]:
    held, pairs, raw, own = (
        [path.barrier for path in evaluation.paths_of(kind, split)]
        for kind in ("star-heldout", "source-source", "source-source-unaligned", "star-source")
    )
    if evaluation.repaired and any(path.split == split for path in evaluation.paths):
        yield (
            "Every path here is repaired: the points between its ends have the channel statistics of the ends, which a "
            "straight line would not have."
        )
    if held:
        yield f"On the {split} images the loss barrier from the star to a model it never saw is {_nats(held)}" + (
            f", {_compare(held, pairs)}." if pairs else "; no pair of sources was measured beside it."
        )
    else:
        yield "No held-out model was measured: whether the star is connected to models it never saw is not known."
        if pairs:
            yield f"On the {split} images two sources that are aligned have a loss barrier of {_nats(pairs)}."
    if own:
        yield f"From the star to its own sources the barrier is {_nats(own)}."
    if raw:
        yield f"Two sources that are not aligned have a barrier of {_nats(raw)}."


def _compare(held: Sequence[float], pairs: Sequence[float]) -> str:
    ours, theirs = (round(Summary.of(values).mean, 3) for values in (held, pairs))
    between = f"{_nats(pairs)} between two sources aligned in the same way"
    if ours < theirs:
        overlap = max(held) >= min(pairs)
        return f"lower than {between}" + (", though the two ranges overlap" if overlap else "")
    if ours > theirs:
        return f"higher than {between}: this star is connected to new models no better than they are to each other"
    return f"the same as {between}: this star is connected to new models no better than they are to each other"


def _on_predictions(evaluation: Evaluation, split: Split) -> Iterator[str]:
    rows = summarize_predictors(evaluation, split)
    stars = [row for row in rows if row.role == "star"]
    if not stars:
        yield "How well the star itself predicts was not measured."
        return
    star, others = stars[0], [row for row in rows if row.role in {"source", "ensemble"}]
    accuracy, nll = _ranked(star, others, "accuracy", _percent), _ranked(star, others, "nll", _loss)
    yield f"The star has an accuracy of {_percent(star.accuracy)}{accuracy}."
    yield f"Its negative log-likelihood is {_loss(star.nll)} nats{nll}."
    own_paths = [row for row in summarize_paths(evaluation, split) if row.kind in {"star-source", "star-heldout"}]
    if own_paths and others and others[0].role == "source" and others[0].accuracy.mean > star.accuracy.mean:
        yield (
            "A star that predicts worse has lower barriers for that reason alone: read them together with the worst "
            f"accuracy on its paths, {100 * min(row.worst_accuracy for row in own_paths):.2f} %."
        )


def _on_domain(evaluation: Evaluation, split: Split) -> Iterator[str]:
    rows = {row.role: row for row in summarize_predictors(evaluation, split)}
    star, domain, choice = rows.get("star"), rows.get("domain"), evaluation.domain
    if not star or not domain or not choice:
        return
    chosen = (
        f"chosen on {evaluation.validation_images:,} validation images"
        if choice.nll is not None
        else "not chosen by anything, as there are no validation images"
    )
    ours, theirs = _loss(domain.nll), _loss(star.nll)
    order = "level with" if ours == theirs else "better than" if domain.nll.mean < star.nll.mean else "worse than"
    yield (
        f"The average of {pluralize(domain.passes, 'point')} of the star domain (t from {choice.t.low:g} to "
        f"{choice.t.high:g}, {chosen}) has an accuracy of {_percent(domain.accuracy)} and a negative log-likelihood of "
        f"{ours} nats, {order} the star's own."
    )
    for baseline in summarize_predictors(evaluation, split):
        if baseline.role in {"ensemble", "sub-ensemble"} and baseline.passes == domain.passes:
            errors = (
                f"; the AUROC of errors is {domain.auroc.mean:.4f}, and {baseline.auroc.mean:.4f} of the ensemble"
                if domain.auroc and baseline.auroc
                else ""
            )
            scores = f"{_percent(baseline.accuracy)} and {_loss(baseline.nll)} nats"
            yield f"An ensemble at as many forward passes has {scores}{errors}."


def _on_winners(evaluation: Evaluation, split: Split) -> Iterator[str]:
    rows = summarize_predictors(evaluation, split)
    if len(rows) < 2:
        return
    right, nll = ([row for row in rows if score in row.best] for score in ("accuracy", "nll"))
    yield (
        f"Of all that was measured, highest in accuracy: {_name(right)} ({_percent(right[0].accuracy)}, "
        f"{_cheapest(right)}); lowest in negative log-likelihood: {_name(nll)} ({_loss(nll[0].nll)}, {_cheapest(nll)})."
    )
    once = [row for row in rows if row.passes == 1]
    if once and all(row.passes > 1 for row in right):
        single = max(once, key=lambda row: row.accuracy.mean)
        yield f"Highest in accuracy at one forward pass: {single.label} ({_percent(single.accuracy)})."


def _name(level: Sequence[PredictorSummary]) -> str:
    """All of those that are level."""
    *others, last = [row.label for row in level]
    return f"{', '.join(others)} and {last}" if others else last


def _cheapest(level: Sequence[PredictorSummary]) -> str:
    return f"{'from ' if len(level) > 1 else ''}{_cost(min(level, key=lambda row: row.passes))}"


def _cost(row: PredictorSummary) -> str:
    passes = f"{pluralize(row.passes, 'forward pass', 'forward passes')} per image"
    return passes if row.bytes is None else f"{passes}, {row.bytes / 1e6:,.1f} MB of weights"


def _ranked(
    star: PredictorSummary, others: Sequence[PredictorSummary], score: Score, show: Callable[[Summary], str]
) -> str:
    """How the star compares with each of the others, as they are shown: a difference that is rounded away is none."""
    more, less = ("above", "below") if score == "accuracy" else ("worse than", "better than")
    ours, parts = show(getattr(star, score)), []
    for row in others:
        theirs = show(getattr(row, score))
        higher = getattr(star, score).mean > getattr(row, score).mean
        order = "level with" if ours == theirs else more if higher else less
        price = f", at {row.passes} forward passes per image" if row.passes > 1 else ""
        parts.append(f"{order} {_describe(row)} ({theirs}{price})")
    return f": {', '.join(parts[:-1])}{' and ' if parts[1:] else ''}{parts[-1]}" if parts else ""


def _describe(row: PredictorSummary) -> str:
    if row.role == "ensemble":
        return "their ensemble"
    return f"the mean of its {row.accuracy.count} sources" if row.name is None else "the most accurate source"


def _nats(values: Sequence[float]) -> str:
    spread = Summary.of(values)
    scatter = f" ± {spread.std:.3f}" if spread.count > 1 else ""
    return f"{spread.mean:.3f}{scatter} nats ({pluralize(spread.count, 'path')})"


def _percent(spread: Summary) -> str:
    return f"{100 * spread.mean:.2f} %"


def _loss(spread: Summary) -> str:
    return f"{spread.mean:.3f}"
