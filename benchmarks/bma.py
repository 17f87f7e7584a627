"""Averages over the star domain (BMA) beside the star itself and deep ensembles at equal forward passes.

    python -m benchmarks.bma --dataset uoft-cs/cifar10 --seeds 0 1 2

takes the stars of benchmarks/study/cifar.yaml, each of eight converged networks, fitted where they are missing, and
predicts with points of their domains: drawn as one first thinks of (any source each time, t anywhere on its line), and
each source once, t from several ranges. Which range, and in what proportion points count, is chosen on 2,000 training
images that nothing was fitted on; the scores are those of 2,000 test images, and of the digits as another data set.

What a seed's points predict is kept in runs/bma/seed-N.pt, and its scores in benchmarks/results/bma.json, from which
bma.md is written: the same command goes on where it was cut off.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.study.experiment import load_experiment
from benchmarks.study.measure import make, members
from benchmarks.zoos import DATASET, OUT, RECIPES
from starzoo.align.align import Aligner
from starzoo.align.probe import Probe
from starzoo.config import AlignConfig, Uniform
from starzoo.data.task import ImageTask, load_data
from starzoo.evaluate.domain_average import draw_points
from starzoo.evaluate.evaluator import Evaluator
from starzoo.evaluate.scores import scores
from starzoo.metrics import accuracy, fit_temperature, negative_log_likelihood
from starzoo.models.sources import Source
from starzoo.models.weights import interpolate

RESULTS = Path(__file__).parent / "results"
KEPT = Path("runs/bma")
IMAGES = 2000  # of each split, and for the statistics of batch norm
SIZES = (2, 4, 8)
SEED = 0  # of what is drawn here
RANGES = ((0.0, 0.25), (0.0, 0.5), (0.25, 0.75), (0.5, 1.0))
SCORES = ("accuracy", "nll", "ece", "brier", "auroc")
STAR, NAIVE, CHOSEN, WEIGHTED, ENSEMBLE = (
    "the star",
    "star domain, t from 0 to 1",
    "star domain, range chosen",
    "star domain, range and weights chosen",
    "deep ensemble",
)


def draw(kind: str, low: float, high: float, names: Sequence[str]) -> list[tuple[str, float]]:
    """As many points as there are sources: of any source, or of each."""
    if kind == "each":
        return [*draw_points(names, len(names), SEED, Uniform(low=low, high=high))]
    rng = np.random.default_rng(SEED)
    order = rng.integers(len(names), size=len(names))
    return [(names[at], float(rng.uniform(low, high))) for at in order]


def predict(star: Mapping[str, Tensor], members: Sequence[Source], data: ImageTask) -> dict[str, Any]:
    """What the star, its sources and the points of its domain predict on test and validation images."""
    architecture, sources = members[0].architecture, {member.name: member.state for member in members}
    spec, align = architecture.spec, AlignConfig()
    probe = Probe(architecture.build(), *data.train.labeled_images(limit=align.images, seed=align.seed))
    aligner = Aligner(spec, align, probe)
    first, *others = map(aligner.features.extract, [star, *sources.values()])
    matched = aligner.match(first, iter(others))
    aligned = {name: found.permutation.apply(sources[name]) for name, found in zip(sources, matched, strict=True)}
    assert data.validation is not None
    splits = {"test": data.test, "validation": data.validation}
    evaluator = Evaluator(
        architecture.build(),
        {name: (partial(split.images, 250, limit=IMAGES, seed=SEED), split.labels) for name, split in splits.items()},
        partial(data.train.images, 250, limit=IMAGES, seed=SEED),
    )
    points: dict[str, list[dict[str, Tensor]]] = {}
    for kind, low, high in [("any", 0.0, 1.0), *(("each", *t) for t in RANGES)]:
        drawn = draw(kind, low, high, list(sources))
        points[f"{kind} {low:g}-{high:g}"] = [
            evaluator.log_probabilities(interpolate(star, aligned[name], t)) for name, t in drawn
        ]
        print(f"{kind} {low:g}-{high:g}", flush=True)
    return {
        "star": evaluator.log_probabilities(star),
        "sources": [evaluator.log_probabilities(state) for state in sources.values()],
        "points": points,
        "labels": {name: split.labels[split.sample_indices(IMAGES, SEED)] for name, split in splits.items()},
    }


def mix(parts: Sequence[Mapping[str, Tensor]], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """The log of the weighted mean of probabilities, on every split."""
    shares = torch.tensor(weights or [1 / len(parts)] * len(parts), dtype=torch.float64).log()
    return {
        split: torch.logsumexp(torch.stack([part[split].double() for part in parts]) + shares[:, None, None], 0)
        for split in parts[0]
    }


def best_weights(parts: Sequence[Mapping[str, Tensor]], labels: Tensor, rounds: int = 500) -> list[float]:
    """The proportions of greatest likelihood on the validation images, by expectation maximisation."""
    likelihoods = torch.stack([part["validation"].double().gather(1, labels[:, None])[:, 0].exp() for part in parts])
    weights = torch.full((len(parts), 1), 1 / len(parts), dtype=torch.float64)
    for _ in range(rounds):
        shares = weights * likelihoods
        weights = (shares / shares.sum(0)).mean(1, keepdim=True)
    found: list[float] = weights[:, 0].tolist()
    return found


def score(found: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, float | None]:
    """The scores on test images, as they are and after temperature scaling, and the likelihood that chooses."""
    temperature = fit_temperature(found["validation"], labels["validation"])
    row: dict[str, float | None] = {
        "validation nll": negative_log_likelihood(found["validation"], labels["validation"])
    }
    for suffix, degrees in (("", 1.0), (" scaled", temperature)):
        every = scores(found, "test", labels["test"], degrees) | {"accuracy": accuracy(found["test"], labels["test"])}
        row |= {f"{score}{suffix}": every[score] for score in SCORES}
    return row


def ways(found: Mapping[str, Any]) -> Iterator[tuple[str, int, str, dict[str, float | None]]]:
    """Every way to predict: what it is, forward passes, how it was chosen, and its scores."""
    labels, points = found["labels"], found["points"]
    yield STAR, 1, "", score(found["star"], labels)
    for size in SIZES:
        yield NAIVE, size, "", score(mix(points["any 0-1"][:size]), labels)
        tried = {t: score(mix(points[t][:size]), labels) for t in points if t.startswith("each")}
        best = min(tried, key=lambda t: tried[t]["validation nll"])
        yield CHOSEN, size, best, tried[best]
        weighted = {t: best_weights(points[t][:size], labels["validation"]) for t in tried}
        mixed = {t: score(mix(points[t][:size], weights), labels) for t, weights in weighted.items()}
        best = min(mixed, key=lambda t: mixed[t]["validation nll"])
        yield WEIGHTED, size, f"{best}: {', '.join(f'{weight:.2f}' for weight in weighted[best])}", mixed[best]
        groups = [found["sources"][at : at + size] for at in range(0, len(found["sources"]), size)]
        scored = [score(mix(group), labels) for group in groups if len(group) == size]
        yield (
            ENSEMBLE,
            size,
            f"mean of {len(scored)}",
            {key: statistics.fmean(each[key] for each in scored) for key in scored[0]},
        )  # type: ignore[misc]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Means and standard deviations over the stars."""
    seeds = len({row["seed"] for row in rows})
    lines = [
        f"**CIFAR-10 subset, 8 sources**: {IMAGES:,} test images, {seeds} stars (mean ± standard deviation); AUROC of "
        "errors by confidence. Ranges and weights are chosen on "
        f"{IMAGES:,} validation images. Ensembles of fewer than 8 are means over disjoint ones.",
    ]
    for suffix, title in (("", ""), (" scaled", "After temperature scaling on the same validation images:")):
        lines += ["", *([title, ""] if title else [])]
        lines += [
            "| | passes | accuracy (%) | NLL (nats) | ECE (%) | Brier | AUROC of errors |",
            "|---|--:|--:|--:|--:|--:|--:|",
        ]
        for size in (1, *SIZES):
            for way in (STAR, NAIVE, CHOSEN, WEIGHTED, ENSEMBLE):
                group = [row for row in rows if (row["way"], row["passes"]) == (way, size)]
                if group:
                    cells = [spread(group, f"{each}{suffix}") for each in SCORES]
                    lines.append(f"| {way} | {size} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def spread(rows: Sequence[Mapping[str, Any]], column: str) -> str:
    factor, digits = (100, 2) if column.split(maxsplit=1)[0] in {"accuracy", "ece"} else (1, 4)
    values = [factor * row[column] for row in rows]
    scatter = f" ± {statistics.stdev(values):.{digits}f}" if len({*values}) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{scatter}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default=DATASET, help="CIFAR-10: a Hub data set or a local folder")
    parser.add_argument("--out", type=Path, default=OUT, help="the folder of all zoos")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    experiment = load_experiment(Path(__file__).parent / "study" / "cifar.yaml")
    KEPT.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        file = KEPT / f"seed-{seed}.pt"
        if not file.is_file():
            models = members("resnet", experiment.sources + experiment.holdouts, options.dataset, options.out)
            models = models[: experiment.sources]
            star, _ = make(experiment, "starzoo", seed, models, options.dataset, options.out.parent / "study")
            data = load_data(RECIPES["resnet"].on(options.dataset), models[0].architecture.preprocessing)
            torch.save(predict(star, models, data), file)
    rows = [
        {"seed": seed, "way": way, "passes": passes, "chosen": chosen, **scores}
        for seed in options.seeds
        for way, passes, chosen, scores in ways(torch.load(KEPT / f"seed-{seed}.pt"))
    ]
    (RESULTS / "bma.json").write_text(json.dumps(rows, indent=1) + "\n")
    (RESULTS / "bma.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
