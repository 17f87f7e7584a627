"""What each matching method is worth: paths between members of five converged zoos (benchmarks/zoos.py).

    python -m benchmarks.matching --dataset uoft-cs/cifar10
    python -m benchmarks.matching vit densenet
    python -m benchmarks.matching --table-only

connects every pair of four members by every method, at t = ¼, ½ and ¾, on test images, and writes
benchmarks/results/matching.json and .md. A zoo that was measured before is measured anew only when it is named.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from benchmarks.zoos import DATASET, OUT, RECIPES, train
from starzoo.align.align import Aligner, align, choose_method
from starzoo.align.probe import Probe
from starzoo.config import AlignConfig, DataConfig, Method
from starzoo.data import load_data
from starzoo.evaluate.barrier import Evaluator
from starzoo.sources import load_sources
from starzoo.specs import infer_architecture

RESULTS = Path(__file__).parent / "results"
MEMBERS = 4
POINTS = (0.0, 0.25, 0.5, 0.75, 1.0)
METHODS: tuple[Method, ...] = get_args(Method)
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoos", nargs="*", choices=[[], *RECIPES])
    parser.add_argument("--dataset", default=DATASET, help="a Hub data set or a local folder")
    parser.add_argument("--out", type=Path, default=OUT, help="the folder of all zoos")
    parser.add_argument("--table-only", action="store_true", help="write the table again from the committed results")
    options = parser.parse_args()
    file = RESULTS / "matching.json"
    found = json.loads(file.read_text()) if file.is_file() else {}
    for name in [] if options.table_only else options.zoos or [name for name in RECIPES if name not in found]:
        found[name] = measure(name, options.dataset, options.out)
        file.write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "matching.md").write_text(table(found))


def measure(name: str, dataset: str, out: Path) -> list[Row]:
    """Every method on every pair: the loss and the accuracy at each point of the path, and the seconds of a match."""
    models = load_sources(train(name, range(MEMBERS), dataset, out))
    states = [model.state for model in models]
    architecture = models[0].architecture
    spec = infer_architecture(architecture)
    data_config = DataConfig(dataset=dataset, train_size=RECIPES[name].train_size, test_size=2000)
    data = load_data(data_config, architecture.preprocessing)
    probe = Probe(architecture.build(), *data.train.labelled_images(limit=AlignConfig().images))
    evaluator = Evaluator(
        architecture.build(),
        {"test": (partial(data.test.images, 250), data.test.labels)},
        partial(data.train.images, 250, limit=1000),
    )
    rows = []
    for method in ("none", *METHODS):
        config = AlignConfig(method="weight" if method == "none" else method)
        started = time.perf_counter()
        if config.at_once:
            aligner = Aligner(spec, config, probe)
            into = aligner.match_all([aligner.evidence.of(state) for state in states])
            placed = [permutation.apply(state) for permutation, state in zip(into, states, strict=True)]
        for a, b in itertools.combinations(range(MEMBERS), 2):
            chosen = method
            if method == "none":
                ends = states[a], states[b]
            elif config.at_once:
                ends = placed[a], placed[b]
            else:
                chosen = choose_method(spec, states[a], [states[b]], config, probe).method
                ends = states[a], align(spec, states[a], [states[b]], config, probe=probe)[0].state
            seconds, started = time.perf_counter() - started, time.perf_counter()
            curve = evaluator.curve(*ends, POINTS)
            rows.append({
                "method": method,
                "chosen": chosen,
                "pair": [a, b],
                "loss": curve.loss["test"],
                "accuracy": curve.accuracy["test"],
                "seconds": round(seconds, 2),
            })
            print(name, json.dumps(rows[-1]), flush=True)
            started = time.perf_counter()
    return rows


def barrier(row: Row) -> float:
    line = np.interp(POINTS, [0, 1], [row["loss"][0], row["loss"][-1]])
    return float(max(0, (np.array(row["loss"]) - line).max()))


def accuracy_drop(row: Row) -> float:
    """Points by which the accuracy falls below the straight line between the ends."""
    line = np.interp(POINTS, [0, 1], [row["accuracy"][0], row["accuracy"][-1]])
    return 100 * float(max(0, (line - np.array(row["accuracy"])).max()))


def table(found: dict[str, list[Row]]) -> str:
    lines = [
        "How well two independently trained networks connect, by matching method: mean ± standard deviation over the "
        "six pairs of four members, CIFAR-10 test images, t = ¼, ½, ¾. Made by `python -m benchmarks.matching`.",
    ]
    for measure_name, measured, form in (
        ("Loss barrier (nats)", barrier, ".3f"),
        ("Accuracy drop (points)", accuracy_drop, ".1f"),
    ):
        lines += ["", f"| {measure_name} | " + " | ".join(found) + " |", "|---|" + "--:|" * len(found)]
        best = {
            zoo: min(
                statistics.fmean(measured(row) for row in rows if row["method"] == method)
                for method in ("none", *METHODS)
            )
            for zoo, rows in found.items()
        }
        for method in ("none", *METHODS):
            cells = []
            for zoo, rows in found.items():
                values = [measured(row) for row in rows if row["method"] == method]
                cell = f"{statistics.fmean(values):{form}} ± {statistics.stdev(values):{form}}"
                cells.append(f"**{cell}**" if statistics.fmean(values) == best[zoo] else cell)
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    lines += ["", "What `auto` chose: " + "; ".join(f"{zoo}: {choices(rows)}" for zoo, rows in found.items()) + "."]
    return "\n".join(lines) + "\n"


def choices(rows: list[Row]) -> str:
    taken = [row["chosen"] for row in rows if row["method"] == "auto"]
    return ", ".join(f"{method} {taken.count(method)} of {len(taken)}" for method in dict.fromkeys(taken))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
