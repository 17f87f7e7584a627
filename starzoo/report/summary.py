"""The rows and sentences of a card, from an evaluation."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

from starzoo.evaluate.results import (
    ROLE_LABELS,
    CorruptionScores,
    Evaluation,
    OodDetection,
    OodScores,
    PathKind,
    PredictionScores,
    Role,
    Scores,
    Split,
    Summary,
)
from starzoo.text import pluralize

__all__ = [
    "PathSummary",
    "PredictorSummary",
    "Purpose",
    "ScaledSummary",
    "bf16_note",
    "dee_text",
    "has_costs",
    "headline",
    "label_group",
    "purposes",
    "summarize_paths",
    "summarize_predictors",
    "summary",
]

OodSummary = tuple[Summary, Summary]
"""AUROC and FPR95."""
Score = Literal["accuracy", "nll", "brier", "ece", "auroc"]
_MORE_IS_BETTER: frozenset[Score] = frozenset({"accuracy", "auroc"})


@dataclass(frozen=True, kw_only=True)
class PathSummary:
    """The measures of all paths of one kind, in the units of `PathCurve`.

    `highest_loss` and `worst_accuracy` are those of the worst path, `drop` is the accuracy barrier, `tempered` the
    tempered barrier, and `interval` the 95 % bootstrap interval of the mean barrier.
    """

    kind: PathKind
    barrier: Summary
    highest_loss: float
    worst_accuracy: float
    excess: Summary
    drop: Summary
    interval: tuple[float, float] | None
    tempered: Summary | None


@dataclass(frozen=True, kw_only=True)
class ScoreSummary:
    """The fields of `Scores` over predictors of one role; None where one was not measured for all of them."""

    nll: Summary
    ece: Summary
    brier: Summary | None
    auroc: Summary | None
    aurc: Summary | None
    accuracy_80: Summary | None
    accuracy_90: Summary | None


@dataclass(frozen=True, kw_only=True)
class ScaledSummary(ScoreSummary):
    """Scores after temperature scaling, with the temperatures."""

    temperature: Summary


@dataclass(frozen=True, kw_only=True)
class PredictorSummary(ScoreSummary):
    """A row of the table of predictions, in the units of `PredictionScores`: one predictor, or a mean over several.

    `name` is None for a mean, `scaled` has the scores after temperature scaling, and `best` names the scores in which
    no other row is better.
    """

    role: Role
    label: str
    name: str | None
    accuracy: Summary
    passes: int
    bytes: int | None
    cost: float | None
    dee: Summary | None
    dee_interval: tuple[float, float] | None
    scaled: ScaledSummary | None
    ood: tuple[Mapping[str, OodSummary | None], ...]
    corrupted: CorruptionScores | None
    is_best_source: bool = False
    best: frozenset[Score] = frozenset()

    @property
    def proper_nll(self) -> Summary:
        """The negative log-likelihood, after temperature scaling where that was measured."""
        return self.scaled.nll if self.scaled else self.nll


@dataclass(frozen=True)
class Purpose:
    """A question that a user has, and what the measurements answer.

    Attributes:
        question: The purpose.
        winner: What is best for it.
        evidence: The figures of the winner, and of the star where that is another.
        how: How to get it.
    """

    question: str
    winner: str
    evidence: str
    how: str

    @property
    def is_code(self) -> bool:
        """Whether `how` is a command or an expression."""
        return self.how.startswith(("starzoo ", "star."))


def summarize_paths(evaluation: Evaluation, split: Split) -> list[PathSummary]:
    """Summarize the paths by kind."""
    summaries = []
    for kind in get_args(PathKind):
        paths = evaluation.paths_of(kind, split)
        if not paths:
            continue
        summarize = partial(evaluation.summarize, kind, split=split)
        summaries.append(
            PathSummary(
                kind=kind,
                barrier=summarize("barrier"),
                highest_loss=summarize("highest_loss").worst,
                worst_accuracy=summarize("worst_accuracy").worst,
                excess=summarize("excess"),
                drop=summarize("accuracy_barrier"),
                interval=evaluation.interval(kind, "barrier", split),
                tempered=summarize("tempered_barrier") if all(path.tempered_loss for path in paths) else None,
            )
        )
    return summaries


def summarize_predictors(evaluation: Evaluation, split: Split) -> list[PredictorSummary]:
    """Summarize the predictors by role, with the most accurate source in a row of its own."""
    rows: list[PredictorSummary] = []
    for role in get_args(Role):
        group = evaluation.qualities_of(role, split)
        if role == "sub-ensemble":
            rows += [_summarize_group([quality]) for quality in group]
        elif group:
            rows.append(_summarize_group(group))
        if role == "source" and len(group) > 1:
            best = max(group, key=lambda quality: quality.accuracy)
            rows.append(replace(_summarize_group([best]), label="most accurate source", is_best_source=True))
    best_means: dict[Score, float] = {}
    for score in get_args(Score):
        means = [value.mean for row in rows if (value := getattr(row, score))]
        if means:
            best_means[score] = max(means) if score in _MORE_IS_BETTER else min(means)
    return [_with_best(row, best_means) for row in rows]


def label_group(group: Sequence[PredictionScores]) -> str:
    """Name predictors of one role: how many they are, or how many models they average."""
    role, passes = group[0].role, group[0].passes
    match role:
        case "ensemble" | "sub-ensemble":
            return f"{ROLE_LABELS[role]} of {passes} sources"
        case "domain" | "domain-whole-lines":
            return f"{ROLE_LABELS[role]}, {pluralize(passes, 'point')}"
        case _:
            return f"mean of {len(group)} {ROLE_LABELS[role]}s" if len(group) > 1 else ROLE_LABELS[role]


def has_costs(evaluation: Evaluation, split: Split) -> bool:
    """Whether predictors of more than one forward pass were measured, so that a plot of their costs says something."""
    return bool(evaluation.qualities_of("sub-ensemble", split) or evaluation.qualities_of("domain", split))


def summary(evaluation: Evaluation, split: Split) -> dict[str, str]:
    """Sum up the two tables in sentences."""
    parts = {
        "Worth": _on_worth(evaluation, split),
        "Connected": _on_connections(evaluation, split),
        "By itself": _on_predictions(evaluation, split),
        "Its domain": _on_domain(evaluation, split),
        "Who wins": _on_winners(evaluation, split),
    }
    texts = {topic: " ".join(sentences) for topic, sentences in parts.items()}
    return {topic: text for topic, text in texts.items() if text}


def purposes(evaluation: Evaluation, split: Split) -> list[Purpose]:
    """Say what is best for each of three purposes, among all that was measured."""
    rows = [row for row in summarize_predictors(evaluation, split) if row.role != "held-out" and not row.is_best_source]
    star = next((row for row in rows if row.role == "star"), None)
    if star is None:
        return []
    passes = max((row.passes for row in rows if row.role in {"domain", "star-tta"}), default=1)
    found = [_best_predictor("One network, one forward pass", star, [row for row in rows if row.passes == 1])]
    if passes > 1:
        question = f"At most {passes} forward passes"
        found.append(_best_predictor(question, star, [row for row in rows if row.passes <= passes]))
    return [*found, *_best_connected(evaluation, split)]


def dee_text(row: PredictorSummary, sources: int) -> str:
    """Write a deep-ensemble equivalent, with its interval where there is one."""
    if row.dee is None:
        return "–"
    text = _ensemble_size(row.dee.mean, sources)
    if row.dee_interval is None or row.dee_interval[0] == row.dee_interval[1]:
        return text
    return f"{text} ({' to '.join(_ensemble_size(bound, sources) for bound in row.dee_interval)})"


def headline(evaluation: Evaluation, split: Split) -> str:
    """Say in one sentence what a star is worth and how it is connected."""
    sizes = [size.size for size in evaluation.ensembles if size.split == split]
    star = next((row for row in summarize_predictors(evaluation, split) if row.role == "star"), None)
    parts = [f"accuracy {_percent(star.accuracy)}"] if star else []
    if star and star.dee and sizes:
        size, _, interval = dee_text(star, max(sizes)).partition(" ")
        parts.append(f"worth an ensemble of {size} sources {interval}".rstrip())
    heldout, pairs = (evaluation.paths_of(kind, split) for kind in ("star-heldout", "source-source"))
    if heldout:
        barrier = Summary.of([path.barrier for path in heldout]).mean
        between = f", and {Summary.of([path.barrier for path in pairs]).mean:.3f} between two sources" if pairs else ""
        parts.append(f"barrier {barrier:.3f} to {pluralize(len(heldout), 'held-out')}{between}")
    return f"The star on the {split} images: {'; '.join(parts) or 'not measured'}."


def bf16_note(evaluation: Evaluation) -> str | None:
    """The sentence that states what forward passes in bfloat16 change; None where they were in float32."""
    if evaluation.rounding is None:
        return None
    error = evaluation.rounding
    return (
        f"Forward passes were in bfloat16: the star's own negative log-likelihood differs by {error.nll:.2g} nats, and "
        f"its accuracy by {100 * error.accuracy:.2g} percentage points, from those in float32 on the same images."
    )


_HOW: dict[Role, str] = {
    "source": "take any of the sources",
    "star": "this model",
    "aligned-mean": "starzoo fit-star … --epochs 0",
    "domain": "star.domain().predict(images, samples={passes})",
    "domain-whole-lines": "star.domain().predict(images, samples={passes})",
    "student-mean": "starzoo fit-star … --preset predictor",
    "trained-mean": "starzoo fit-star … --preset predictor --kappa 0",
    "source-tta": "average a source over augmented copies of an image",
    "star-tta": "average this model over augmented copies of an image",
    "ensemble": "average the predictions of the sources",
    "sub-ensemble": "average the predictions of {passes} sources",
}


def _best_predictor(question: str, star: PredictorSummary, rows: Sequence[PredictorSummary]) -> Purpose:
    best = min(rows, key=lambda row: (row.proper_nll.mean, row.passes))
    evidence = f"NLL {_loss(best.proper_nll)}, accuracy {_percent(best.accuracy)}"
    if best.role != "star":
        evidence += f" (the star: {_loss(star.proper_nll)}, {_percent(star.accuracy)})"
    how = _HOW.get(best.role, "any training code makes it")
    winner = f"a source ({best.label})" if best.role == "source" else best.label
    return Purpose(question, winner, evidence, how.format(passes=best.passes))


def _best_connected(evaluation: Evaluation, split: Split) -> Iterator[Purpose]:
    groups: dict[str, list[float]] = {}
    for path in (*evaluation.paths_of("star-heldout", split), *evaluation.paths_of("baseline-heldout", split)):
        groups.setdefault(path.a, []).append(path.barrier)
    if "star" not in groups:
        return
    if pairs := [path.barrier for path in evaluation.paths_of("source-source", split)]:
        groups["a source"] = pairs
    best = min(groups, key=lambda name: Summary.of(groups[name]).mean)
    others = [f"{name} {Summary.of(values).mean:.3f}" for name, values in groups.items() if name != best]
    evidence = f"barrier {_nats(groups[best])}" + (f" ({', '.join(others)})" if others else "")
    role: Role = {"star": "star", "aligned mean": "aligned-mean"}.get(best, best)  # type: ignore[assignment]
    label = ROLE_LABELS.get(role, best)
    yield Purpose("Connected to models that it never saw", label, evidence, _HOW.get(role, "take one of the sources"))


def _ensemble_size(value: float, sources: int) -> str:
    return "<1" if value < 1 else f"≥{sources}" if value >= sources else f"{value:.1f}"


def _summarize_group(group: Sequence[PredictionScores]) -> PredictorSummary:
    scaled = [quality.tempered for quality in group if quality.tempered]
    first = group[0]
    return PredictorSummary(
        role=first.role,
        label=label_group(group),
        name=first.name if len(group) == 1 else None,
        accuracy=Summary.of([quality.accuracy for quality in group], more_is_better=True),
        passes=max(quality.passes for quality in group),
        bytes=first.bytes,
        cost=first.cost,
        dee=Summary.of([quality.dee for quality in group if quality.dee is not None])
        if all(quality.dee is not None for quality in group)
        else None,
        dee_interval=first.dee_interval if len(group) == 1 else None,
        scaled=ScaledSummary(
            temperature=Summary.of([scores.temperature for scores in scaled]), **_summarize_scores(scaled)
        )
        if len(scaled) == len(group)
        else None,
        corrupted=_summarize_corruption([quality.corrupted for quality in group if quality.corrupted]),
        ood=tuple(_summarize_ood([quality.ood[number] for quality in group]) for number in range(len(first.ood))),
        **_summarize_scores(group),
    )


def _summarize_corruption(group: Sequence[CorruptionScores]) -> CorruptionScores | None:
    """Average scores on corrupted images; the worst corruption is that of the worst predictor."""
    if not group:
        return None
    mean = {
        name: tuple(map(statistics.fmean, zip(*(getattr(scores, name) for scores in group), strict=True)))
        for name in ("accuracy", "nll")
    }
    return min(group, key=lambda scores: scores.worst_accuracy).model_copy(update=mean)


def _summarize_ood(group: Sequence[OodScores]) -> dict[str, OodSummary | None]:
    """Summarize the detection of the images of one data set, by uncertainty; None where a predictor has none."""
    found: dict[str, OodSummary | None] = {}
    for name in OodScores.model_fields:
        values: list[OodDetection | None] = [getattr(scores, name) for scores in group]
        known = [value for value in values if value]
        areas, rates = ([getattr(value, field) for value in known] for field in ("auroc", "fpr95"))
        complete = len(known) == len(group)
        found[name] = (Summary.of(areas, more_is_better=True), Summary.of(rates)) if complete else None
    return found


def _summarize_scores(group: Sequence[Scores]) -> dict[str, Any]:
    """Summarize the fields of a `ScoreSummary`, each if all predictors have it."""
    columns = {name: [getattr(scores, name) for scores in group] for name in Scores.model_fields}
    return {
        name: None
        if None in values
        else Summary.of(values, more_is_better=name in {"auroc", "accuracy_80", "accuracy_90"})
        for name, values in columns.items()
    }


def _with_best(row: PredictorSummary, best_means: dict[Score, float]) -> PredictorSummary:
    values = {score: getattr(row, score) for score in best_means}
    best = frozenset(score for score, value in values.items() if value and value.mean == best_means[score])
    return replace(row, best=best)


def _on_worth(evaluation: Evaluation, split: Split) -> Iterator[str]:
    sizes = [size.size for size in evaluation.ensembles if size.split == split]
    for row in summarize_predictors(evaluation, split):
        if row.role == "star" and row.dee and sizes:
            tempered = " after temperature scaling" if row.scaled else ""
            interval = dee_text(row, max(sizes)).partition(" (")[2]
            worth = f"an ensemble of {row.dee.mean:.1f} of its sources" if row.dee.mean >= 1 else "less than one source"
            if row.dee.mean >= max(sizes):
                worth = "the ensemble of all its sources, or more"
            yield f"By its negative log-likelihood{tempered}, this one network is worth {worth}" + (
                f" (95 % interval: {interval.rstrip(')')})." if interval else "."
            )


def _on_connections(evaluation: Evaluation, split: Split) -> Iterator[str]:
    heldout, pairs, unaligned, own = (
        [path.barrier for path in evaluation.paths_of(kind, split)]
        for kind in ("star-heldout", "source-source", "source-source-unaligned", "star-source")
    )
    if evaluation.repaired and any(path.split == split for path in evaluation.paths):
        yield (
            "Every path here is repaired: the points between its ends have the channel statistics of the ends, which a "
            "straight line would not have."
        )
    if heldout:
        yield f"On the {split} images the loss barrier from the star to a model it never saw is {_nats(heldout)}" + (
            f", {_compare_with_pairs(heldout, pairs)}." if pairs else "; no pair of sources was measured beside it."
        )
    else:
        yield "No held-out model was measured: whether the star is connected to models it never saw is not known."
        if pairs:
            yield f"On the {split} images two sources that are aligned have a loss barrier of {_nats(pairs)}."
    if own:
        yield f"From the star to its own sources the barrier is {_nats(own)}."
    if unaligned:
        yield f"Two sources that are not aligned have a barrier of {_nats(unaligned)}."


def _compare_with_pairs(heldout: Sequence[float], pairs: Sequence[float]) -> str:
    ours, theirs = (round(Summary.of(values).mean, 3) for values in (heldout, pairs))
    between = f"{_nats(pairs)} between two sources aligned in the same way"
    if ours < theirs:
        overlap = max(heldout) >= min(pairs)
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
    accuracy = _compare_with(star, others, "accuracy", _percent)
    nll = _compare_with(star, others, "nll", _loss)
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
            aurocs = (
                f"; the AUROC of errors is {domain.auroc.mean:.4f}, and {baseline.auroc.mean:.4f} of the ensemble"
                if domain.auroc and baseline.auroc
                else ""
            )
            scores = f"{_percent(baseline.accuracy)} and {_loss(baseline.nll)} nats"
            yield f"An ensemble at as many forward passes has {scores}{aurocs}."


def _on_winners(evaluation: Evaluation, split: Split) -> Iterator[str]:
    rows = summarize_predictors(evaluation, split)
    if len(rows) < 2:
        return
    most_accurate, lowest_nll = ([row for row in rows if score in row.best] for score in ("accuracy", "nll"))
    yield (
        f"Of all that was measured, highest in accuracy: {_join_labels(most_accurate)} "
        f"({_percent(most_accurate[0].accuracy)}, {_cheapest(most_accurate)}); lowest in negative log-likelihood: "
        f"{_join_labels(lowest_nll)} ({_loss(lowest_nll[0].nll)}, {_cheapest(lowest_nll)})."
    )
    single_pass = [row for row in rows if row.passes == 1]
    if single_pass and all(row.passes > 1 for row in most_accurate):
        single = max(single_pass, key=lambda row: row.accuracy.mean)
        yield f"Highest in accuracy at one forward pass: {single.label} ({_percent(single.accuracy)})."


def _join_labels(rows: Sequence[PredictorSummary]) -> str:
    *others, last = [row.label for row in rows]
    return f"{', '.join(others)} and {last}" if others else last


def _cheapest(rows: Sequence[PredictorSummary]) -> str:
    """The cost of the cheapest of several equal predictors."""
    row = min(rows, key=lambda row: row.passes)
    cost = f"{'from ' if len(rows) > 1 else ''}{pluralize(row.passes, 'forward pass', 'forward passes')} per image"
    return cost if row.bytes is None else f"{cost}, {row.bytes / 1e6:,.1f} MB of weights"


def _compare_with(
    star: PredictorSummary, others: Sequence[PredictorSummary], score: Score, show: Callable[[Summary], str]
) -> str:
    """Compare the star with each of the others as they are shown: a difference that is rounded away is none."""
    more, less = ("above", "below") if score == "accuracy" else ("worse than", "better than")
    ours, parts = show(getattr(star, score)), []
    for row in others:
        theirs = show(getattr(row, score))
        is_higher = getattr(star, score).mean > getattr(row, score).mean
        order = "level with" if ours == theirs else more if is_higher else less
        price = f", at {row.passes} forward passes per image" if row.passes > 1 else ""
        parts.append(f"{order} {_describe(row)} ({theirs}{price})")
    return f": {', '.join(parts[:-1])}{' and ' if parts[1:] else ''}{parts[-1]}" if parts else ""


def _describe(row: PredictorSummary) -> str:
    if row.role == "ensemble":
        return "their ensemble"
    return f"the mean of its {row.accuracy.count} sources" if row.name is None else "the most accurate source"


def _nats(values: Sequence[float]) -> str:
    value = Summary.of(values)
    deviation = f" ± {value.std:.3f}" if value.count > 1 else ""
    return f"{value.mean:.3f}{deviation} nats ({pluralize(value.count, 'path')})"


def _percent(value: Summary) -> str:
    return f"{100 * value.mean:.2f} %"


def _loss(value: Summary) -> str:
    return f"{value.mean:.3f}"
