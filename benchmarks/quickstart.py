"""The claim of `starzoo quickstart`, over several star seeds, with the controls that it takes to credit Starlight.

    python benchmarks/quickstart.py --out runs/quickstart

trains two zoos once (kept in --out): the quickstart's own, on whose test images the recipe was chosen, and a second
one from other seeds, on which nothing was chosen. It fits one star per zoo, seed and variant and writes
benchmarks/results/quickstart.json and quickstart.md. Every path is evaluated under the same matching.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from starzoo.config import (
    AlignConfig,
    Constant,
    DataConfig,
    EvalConfig,
    RunConfig,
    StarConfig,
    TrainConfig,
    load_config,
)
from starzoo.data import load_data
from starzoo.evaluate.evaluate import Zoo, evaluate
from starzoo.evaluate.measures import Evaluation
from starzoo.pipeline import (
    QUICKSTART_ARGS,
    QUICKSTART_HOLDOUTS,
    QUICKSTART_SOURCES,
)
from starzoo.sources import load_sources
from starzoo.specs import infer_architecture
from starzoo.star.train import fit
from starzoo.zoo import architecture_for, train_zoo

RESULTS = Path(__file__).parent / "results"
DATA = DataConfig(dataset="digits")
EVALUATE = EvalConfig(pairs=24)
ZOOS = {"the zoo of the quickstart": 0, "another zoo, on which nothing was chosen": 100}


def variants(seed: int) -> Mapping[str, RunConfig]:
    """The quickstart, the paper's algorithm at equal epochs, and two controls from the same start."""
    ours = StarConfig(seed=seed)
    paper = load_config(Path(__file__).parents[1] / "configs" / "paper.yaml")
    same = {"seed": seed, "epochs": ours.epochs, "batch_size": ours.batch_size}  # at its own rate
    return {
        "starzoo (default)": RunConfig(data=DATA, star=ours, evaluate=EVALUATE),
        "the paper's algorithm": RunConfig(
            data=DATA, align=paper.align, star=paper.star.model_copy(update=same), evaluate=EVALUATE
        ),
        "aligned average, no training": RunConfig(
            data=DATA, star=ours.model_copy(update={"epochs": 0}), evaluate=EVALUATE
        ),
        "aligned average, plain SGD": RunConfig(
            data=DATA, star=ours.model_copy(update={"mu": 0.0, "t": Constant(value=0.0)}), evaluate=EVALUATE
        ),
    }


def figures(found: Evaluation) -> dict[str, float]:
    def mean(role: Any, score: str) -> float:
        return statistics.fmean(getattr(quality, score) for quality in found.qualities_of(role))

    held = "star-held-out"
    return {
        "regular_regular_barrier": found.spread("regular-regular").mean,
        "star_held_out_barrier": found.spread(held).mean,
        "star_source_barrier": found.spread("star-source").mean,
        "ratio": found.spread("regular-regular").mean / found.spread(held).mean,
        "highest_loss": found.spread(held, "highest_loss").mean,
        "excess": found.spread(held, "excess").mean,
        "worst_accuracy": found.spread(held, "worst_accuracy").mean,
        "star_accuracy": mean("star", "accuracy"),
        "star_nll": mean("star", "nll"),
        "member_accuracy": mean("member", "accuracy"),
        "member_nll": mean("member", "nll"),
        "ensemble_accuracy": mean("ensemble", "accuracy"),
        "ensemble_nll": mean("ensemble", "nll"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--seeds", type=int, default=3, help="number of star seeds")
    options = parser.parse_args()
    rows = []
    for title, first in ZOOS.items():
        for row in measure(options.out / "zoo", first, options.seeds):
            rows.append({"zoo": title, **row})
            print(json.dumps(rows[-1]), flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "quickstart.json").write_text(json.dumps(rows, indent=1) + "\n")
    (RESULTS / "quickstart.md").write_text("\n".join(table(title, rows) for title in ZOOS))


def measure(zoo: Path, first: int, seeds: int) -> Iterator[dict[str, Any]]:
    """One row per star seed and variant, on the members from seed `first` on."""
    architecture = architecture_for("resnet18", DATA, model_args=QUICKSTART_ARGS, image_size=16)
    count = QUICKSTART_SOURCES + QUICKSTART_HOLDOUTS
    members = train_zoo(architecture, DATA, TrainConfig(), range(first, first + count), zoo)
    models = load_sources([member.folder for member in members])
    sources, holdouts = models[:QUICKSTART_SOURCES], models[QUICKSTART_SOURCES:]
    data, spec = load_data(DATA, architecture.preprocessing), infer_architecture(architecture)
    for seed in range(seeds):
        for name, config in variants(seed).items():
            began = time.perf_counter()
            star = fit(architecture, spec, [source.state for source in sources], data, config)
            seconds = time.perf_counter() - began
            models_by_role = Zoo(
                star=star.state,
                sources={source.name: source.state for source in sources},
                holdouts={holdout.name: holdout.state for holdout in holdouts},
            )
            found = evaluate(architecture, spec, models_by_role, data, EVALUATE, AlignConfig())
            yield {"variant": name, "seed": seed, "fit_seconds": round(seconds, 1), **figures(found)}


def table(title: str, all_rows: Sequence[Mapping[str, Any]]) -> str:
    """Means and standard deviations over the star seeds, one line per variant."""
    rows = [row for row in all_rows if row["zoo"] == title]
    first = rows[0]
    seeds = len({row["seed"] for row in rows})
    columns = {
        "star_held_out_barrier": "star–held-out barrier",
        "ratio": "regular–regular ÷ star–held-out",
        "highest_loss": "highest loss",
        "excess": "excess",
        "worst_accuracy": "worst accuracy",
        "star_accuracy": "star accuracy",
        "star_nll": "star NLL",
    }
    lines = [
        f"**Digits, {title}**: test images, {seeds} star seeds (mean ± standard deviation), every path aligned by "
        f"`{AlignConfig().method}` matching. "
        f"Regular–regular barrier {first['regular_regular_barrier']:.3f}; single members "
        f"{first['member_accuracy']:.4f} / {first['member_nll']:.4f} (accuracy / NLL), ensemble "
        f"{first['ensemble_accuracy']:.4f} / {first['ensemble_nll']:.4f}.",
        "",
        "| variant | " + " | ".join(columns.values()) + " |",
        "|---|" + "--:|" * len(columns),
    ]
    for name in dict.fromkeys(row["variant"] for row in rows):
        cells = []
        for key in columns:
            values = [row[key] for row in rows if row["variant"] == name]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            digits = 1 if key == "ratio" else 4
            cells.append(f"{statistics.fmean(values):.{digits}f} ± {spread:.{digits}f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
