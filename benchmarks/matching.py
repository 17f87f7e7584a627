"""What each matching method is worth: paths between members of six converged zoos (benchmarks/zoos.py).

    python -m benchmarks.matching --dataset uoft-cs/cifar10
    python -m benchmarks.matching vit densenet
    python -m benchmarks.matching --table-only

connects every pair of four members by every method, at t = ¼, ½ and ¾, on 1,000 training and 2,000 test images (of the
VGG 1,000), and writes benchmarks/results/matching-ZOO.json for each zoo, and matching.md for all. A zoo that was
measured before is measured anew only when it is named; with `--methods`, by these methods only, and its other rows
stay.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from benchmarks.zoos import DATASET, FAMILIES, OUT, RECIPES, train
from starzoo.align.align import align
from starzoo.align.probe import Probe
from starzoo.config import AlignConfig, Method
from starzoo.data.task import load_data
from starzoo.evaluate.evaluator import Evaluator
from starzoo.models.sources import load_sources

RESULTS = Path(__file__).parent / "results"
MEMBERS = 4
POINTS = (0.0, 0.25, 0.5, 0.75, 1.0)
METHODS: tuple[Method | Literal["none"], ...] = ("none", *get_args(Method))
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoos", nargs="*", choices=[[], *FAMILIES])
    parser.add_argument("--dataset", default=DATASET, help="a Hub data set or a local folder")
    parser.add_argument("--out", type=Path, default=OUT, help="the folder of all zoos")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--table-only", action="store_true", help="write the table again from the committed results")
    options = parser.parse_args()
    files = {name: RESULTS / f"matching-{name}.json" for name in FAMILIES}
    wanted = options.zoos or [name for name, file in files.items() if not file.is_file()]
    for name in [] if options.table_only else wanted:
        rows = measure(name, options.methods, options.dataset, options.out)
        others = json.loads(files[name].read_text()) if files[name].is_file() else []  # two may run side by side
        rows += [row for row in others if row["method"] not in options.methods]
        rows.sort(key=lambda row: METHODS.index(row["method"]))
        files[name].write_text(json.dumps(rows, indent=1) + "\n")
    found = {name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()}
    whole = {name: rows for name, rows in found.items() if {row["method"] for row in rows} == {*METHODS}}
    (RESULTS / "matching.md").write_text(table(whole))


def measure(name: str, methods: Sequence[str], dataset: str, out: Path) -> list[Row]:
    """These methods on every pair: the loss and the accuracy at each point of the path, and the seconds of a match."""
    models = load_sources(train(name, range(MEMBERS), dataset, out))
    states = [model.state for model in models]
    architecture = models[0].architecture
    spec = architecture.spec
    data_config = RECIPES[name].on(dataset)
    data = load_data(data_config, architecture.preprocessing)
    probe = Probe(architecture.build(), *data.train.labeled_images(limit=AlignConfig().images))
    train_images, train_labels = data.train.labeled_images(limit=1000, seed=1)  # others than those that are matched on
    evaluator = Evaluator(
        architecture.build(),
        {
            "train": (lambda: train_images, train_labels),
            "test": (partial(data.test.images, 250), data.test.labels),
        },
        partial(data.train.images, 250, limit=1000),
    )
    own = [evaluator.curve(state, state, [0.0]) for state in states]
    rows = []
    for method in methods:
        config = AlignConfig(method="weights" if method == "none" else method)
        started = time.perf_counter()
        for a, b in itertools.combinations(range(MEMBERS), 2):
            ends = states[a], states[b]
            if method != "none":
                ends = states[a], align(spec, states[a], [states[b]], config, probe=probe)[0].state
            seconds, started = time.perf_counter() - started, time.perf_counter()
            curve = evaluator.curve(*ends, POINTS[1:-1])
            whole = {split: torch.cat([own[a][split], curve[split], own[b][split]], dim=1).tolist() for split in curve}
            rows.append({
                "method": method,
                "pair": [a, b],
                "loss": {split: loss for split, (loss, _) in whole.items()},
                "accuracy": {split: accuracy for split, (_, accuracy) in whole.items()},
                "seconds": round(seconds, 2),
            })
            print(name, json.dumps(rows[-1]), flush=True)
            started = time.perf_counter()
    return rows


def barrier(row: Row, split: str) -> float:
    """How far the loss rises above the straight line between the ends, in nats."""
    values = row["loss"][split]
    return float(max(0, (np.array(values) - np.interp(POINTS, [0, 1], [values[0], values[-1]])).max()))


def accuracy_drop(row: Row, split: str) -> float:
    """Points by which the accuracy falls below the straight line between the ends."""
    values = row["accuracy"][split]
    return 100 * float(max(0, (np.interp(POINTS, [0, 1], [values[0], values[-1]]) - np.array(values)).max()))


TABLES = (
    ("Loss barrier on training images (nats)", partial(barrier, split="train"), ".3f"),
    ("Accuracy drop on training images (points)", partial(accuracy_drop, split="train"), ".1f"),
    ("Loss barrier on test images (nats)", partial(barrier, split="test"), ".3f"),
    ("Accuracy drop on test images (points)", partial(accuracy_drop, split="test"), ".1f"),
)


def table(found: dict[str, list[Row]]) -> str:
    lines = [
        "How well two independently trained networks connect, by matching method: mean ± standard deviation over the "
        "six pairs of four models, t = ¼, ½, ¾. Made by `python -m benchmarks.matching`; the zoos are those of "
        "benchmarks/zoos.py. `vit` and `convnext` memorize 5,000 images: their ends have a test loss of 3 nats and are "
        "sure of their errors, so that a mean of two models has no barrier on test images; there, read the accuracy. "
        "`vgg` is timm's VGG-11 with batch norm on 2,500 images, of which its models classify 89 to 99 % correctly.",
    ]
    for title, measured, form in TABLES:
        lines += ["", f"| {title} | " + " | ".join(found) + " |", "|---|" + "--:|" * len(found)]
        means = {
            (zoo, method): statistics.fmean(measured(row) for row in rows if row["method"] == method)
            for zoo, rows in found.items()
            for method in METHODS
        }
        for method in METHODS:
            cells = []
            for zoo, rows in found.items():
                spread = statistics.stdev(measured(row) for row in rows if row["method"] == method)
                cell = f"{means[zoo, method]:{form}} ± {spread:{form}}"
                best = min(value for (where, _), value in means.items() if where == zoo)
                cells.append(f"**{cell}**" if means[zoo, method] == best else cell)
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
