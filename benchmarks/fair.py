"""The fair table: a star beside everything that a user could do with the sources instead.

    python -m benchmarks.fair digits-split
    python -m benchmarks.fair resnet-quarter --dataset DIR     # CIFAR-10, 10,000 images
    python -m benchmarks.fair                                  # the tables again, from what was measured

Eight sources and four held-outs of a zoo (benchmarks/zoos.py trains what is missing), stars and baselines of three
seeds. Every baseline has the best of four rates on validation images. The star's settings were chosen on validation
images of other members (benchmarks/tuning.py). Writes benchmarks/results/fair.json and fair.md; a seed that is there is
not measured again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.zoos import DATASET, OUT, RECIPES, train
from starzoo import fit_star
from starzoo.config import PRESETS, EvalConfig, RunConfig, StarConfig
from starzoo.evaluate.results import ROLE_LABELS, Evaluation, PredictionScores

RESULTS = Path(__file__).parent / "results"
SOURCES, HOLDOUTS, SEEDS = 8, 4, (0, 1, 2)
STARS = {
    "digits-split": StarConfig(),
    "resnet-quarter": StarConfig(epochs=8, batch_size=128, lr=0.8),
}
PREDICTOR = "star, preset predictor"
SHOWN: dict[str, tuple[str, str | None]] = {  # with what the README calls them, and whose paths they are
    "source": ("a source", "source-source"),
    "star": ("**the star**", "star"),
    "star, preset predictor": ("the star, `--preset predictor`", "star, preset predictor"),
    "aligned mean, trained further": ("the aligned mean, trained", "trained-mean"),
    "SWA of a source": ("SWA of a source", None),
    "EMA of a source": ("EMA of a source", None),
    "star domain": ("**the star domain**", None),
    "ensemble": ("the ensemble", None),
}
SKIPPED = {"held-out", "domain-whole-lines"}


def run_star(zoo: str, members: Sequence[Path], dataset: str, star: StarConfig, evaluate: EvalConfig) -> Evaluation:
    """Fit and measure one star."""
    config = RunConfig(data=RECIPES[zoo].on(dataset), star=star, evaluate=evaluate)
    names = [str(member) for member in members]
    with tempfile.TemporaryDirectory() as folder:
        evaluation = fit_star(names[:SOURCES], names[SOURCES:], config, Path(folder, "star")).manifest.evaluation
    assert evaluation
    return evaluation


def measure(zoo: str, members: Sequence[Path], dataset: str, seed: int) -> dict[str, Any]:
    """Measure the star of one seed and all baselines."""
    star = STARS[zoo].model_copy(update={"seed": seed})
    found = run_star(zoo, members, dataset, star, EvalConfig.model_validate({"baselines": "all", "seed": seed}))
    rows = {
        ROLE_LABELS[row.role] if row.role != "sub-ensemble" else f"ensemble of {row.passes}": scores(group)
        for row in found.qualities
        if row.role not in SKIPPED
        for group in [[row] if row.role == "sub-ensemble" else list(found.qualities_of(row.role))]
    }
    barriers: dict[str, list[float]] = {}
    for path in found.paths:
        kind = path.a if path.kind in {"star-heldout", "baseline-heldout"} else path.kind
        barriers.setdefault(kind, []).append(path.barrier)
    sizes = [{"size": size.size, "nll": size.nll, "nll_std": size.nll_std} for size in found.ensembles]
    means = {kind: statistics.fmean(values) for kind, values in barriers.items()}
    return {"seed": seed, "rows": rows, "barriers": means, "ensembles": sizes}


def add_predictor(row: dict[str, Any], zoo: str, members: Sequence[Path], dataset: str) -> None:
    """Add the star of the preset `predictor`, which is measured again where the preset has changed."""
    preset = dict(PRESETS["predictor"])
    if row.get("preset") != preset:
        settings = {**STARS[zoo].model_dump(), "seed": row["seed"], **preset}
        alone = EvalConfig(bma_samples=0, sources=0, source_pairs=0)
        found = run_star(zoo, members, dataset, StarConfig.model_validate(settings), alone)
        row["rows"][PREDICTOR] = scores(found.qualities_of("star"))
        row["barriers"][PREDICTOR] = found.summarize("star-heldout").mean
        row["preset"] = preset


def scores(group: Sequence[PredictionScores]) -> dict[str, Any]:
    """Average the scores of the predictors of one role."""
    tempered = [row.tempered.nll for row in group if row.tempered]
    return {
        "passes": group[0].passes,
        "cost": group[0].cost,
        "accuracy": statistics.fmean(row.accuracy for row in group),
        "nll": statistics.fmean(row.nll for row in group),
        "tempered_nll": statistics.fmean(tempered),
        "dee": statistics.fmean(row.dee or 0.0 for row in group),
        "interval": group[0].dee_interval if len(group) == 1 else None,
    }


def tables(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Say what was measured: the mean ± standard deviation over seeds, by tempered negative log-likelihood."""
    lines = ["# The fair table", ""]
    for zoo, seeds in found.items():
        lines += [
            f"## {zoo}",
            "",
            f"{SOURCES} sources, {HOLDOUTS} held-outs, {len(seeds)} seeds. The best network comes first. Worth is "
            "the deep-ensemble equivalent; its interval is the bootstrap over images of seed 0. Training is in fits of "
            "the star, the choice of settings included.",
            "",
            "| what | passes | training | accuracy | NLL | NLL, tempered | worth | interval |",
            "|---|--:|--:|--:|--:|--:|--:|--:|",
        ]
        names = sorted(
            seeds[0]["rows"], key=lambda name: statistics.fmean(row["rows"][name]["tempered_nll"] for row in seeds)
        )
        for name in sorted(names, key=lambda name: seeds[0]["rows"][name]["passes"] > 1):
            rows = [row["rows"][name] for row in seeds]
            cost = "–" if rows[0]["cost"] is None else f"{statistics.fmean(row['cost'] for row in rows):.1f}"
            cells = [
                _spread([row[score] for row in rows], form)
                for score, form in (("accuracy", ".1%"), ("nll", ".4f"), ("tempered_nll", ".4f"), ("dee", ".1f"))
            ]
            interval = rows[0]["interval"]
            shown = f"{interval[0]:.1f} to {interval[1]:.1f}" if interval else "–"
            lines.append(f"| {name} | {rows[0]['passes']} | {cost} | {' | '.join(cells)} | {shown} |")
        lines += ["", "| paths from | barrier (nats) |", "|---|--:|"]
        for name in sorted(
            seeds[0]["barriers"], key=lambda name: statistics.fmean(row["barriers"][name] for row in seeds)
        ):
            label = {"source-source": "a source to a source", "star-source": "the star to its sources"}.get(name, name)
            lines.append(f"| {label} | {_spread([row['barriers'][name] for row in seeds], '.4f')} |")
        lines.append("")
    return "\n".join(lines)


def summary(seeds: Sequence[Mapping[str, Any]]) -> str:
    """Return the few lines that the README shows of one zoo."""
    lines = ["| | passes | accuracy | NLL, tempered | worth | barrier |", "|---|--:|--:|--:|--:|--:|"]
    for name, (label, barrier) in SHOWN.items():
        rows = [row["rows"][name] for row in seeds]
        cells = [
            _spread([row[score] for row in rows], form)
            for score, form in (("accuracy", ".1%"), ("tempered_nll", ".3f"), ("dee", ".1f"))
        ]
        found = [row["barriers"][barrier] for row in seeds] if barrier else []
        cells.append(_spread(found, ".2f") if found else "–")
        lines.append(f"| {label} | {rows[0]['passes']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float], form: str) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    mean, spread = (f"{value:{form}}".rstrip("%") for value in (statistics.fmean(values), deviation))
    return f"{mean} ± {spread}{' %' if form.endswith('%') else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("zoo", choices=STARS, nargs="?")
    parser.add_argument("--dataset", default=DATASET, help="CIFAR-10: a Hub data set or a local folder")
    parser.add_argument("--zoos", type=Path, default=OUT, help="the folder of all zoos")
    options = parser.parse_args()
    file = RESULTS / "fair.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    if options.zoo:
        seeds = RECIPES[options.zoo].seeds(SOURCES + HOLDOUTS)
        members = train(options.zoo, seeds, options.dataset, options.zoos)
        for seed in SEEDS:
            rows = found.setdefault(options.zoo, [])
            if all(row["seed"] != seed for row in rows):
                rows.append(measure(options.zoo, members, options.dataset, seed))
            add_predictor(rows[seed], options.zoo, members, options.dataset)
            file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "fair.md").write_text(tables(found), encoding="utf-8")
    print(tables(found))


if __name__ == "__main__":
    main()
