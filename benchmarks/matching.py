"""What each matching method is worth: the loss half-way between two members of a zoo, per method.

    python benchmarks/matching.py digits runs/quickstart/zoo
    python benchmarks/matching.py cifar10 runs/cifar10/zoo --dataset uoft-cs/cifar10 --train-size 10000 --test-size 2000

takes disjoint pairs of the zoo's members, aligns each by every method, with and without restarts, and writes
benchmarks/results/matching-NAME.json and .md. The barrier is measured at t = ½ alone, on test images.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from starzoo.align.align import align
from starzoo.config import AlignConfig, DataConfig
from starzoo.data import load_data
from starzoo.evaluate.barrier import Evaluator
from starzoo.evaluate.path import interpolate
from starzoo.evaluate.predictive import accuracy, negative_log_likelihood
from starzoo.sources import load_sources
from starzoo.specs import infer_architecture

RESULTS = Path(__file__).parent / "results"
METHODS = get_args(AlignConfig.model_fields["method"].annotation)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("zoo", type=Path)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--train-size", type=int)
    parser.add_argument("--test-size", type=int)
    parser.add_argument("--pairs", type=int, default=6)
    options = parser.parse_args()
    data_config = DataConfig(dataset=options.dataset, train_size=options.train_size, test_size=options.test_size)
    models = load_sources([options.zoo / f"seed-{number}" for number in range(2 * options.pairs)])
    architecture = models[0].architecture
    data, spec = load_data(data_config, architecture.preprocessing), infer_architecture(architecture)
    evaluator = Evaluator(
        architecture.build(),
        {"test": (lambda: data.test.images(256), data.test.labels)},
        lambda: data.train.images(256, limit=1000),
    )

    def measure(state: dict[str, Tensor]) -> tuple[float, float]:
        predicted = evaluator.log_probabilities(state)["test"]
        return negative_log_likelihood(predicted, data.test.labels), accuracy(predicted, data.test.labels)

    own = [measure(dict(model.state))[0] for model in models]
    rows = []
    for method in ("none", *METHODS):
        for restarts in (1,) if method == "none" else (1, 5):
            barriers, accuracies = [], []
            for first in range(0, 2 * options.pairs, 2):
                a, b = models[first].state, models[first + 1].state
                if method != "none":
                    b = align(spec, a, [b], AlignConfig(method=method, restarts=restarts))[0].state
                loss, right = measure(interpolate(a, b, 0.5))
                barriers.append(loss - (own[first] + own[first + 1]) / 2)
                accuracies.append(right)
            rows.append({"method": method, "starts": restarts, "barriers": barriers, "accuracies": accuracies})
            print(json.dumps(rows[-1]), flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"matching-{options.name}.json").write_text(json.dumps(rows, indent=1) + "\n")
    (RESULTS / f"matching-{options.name}.md").write_text(table(options.name, options.pairs, rows))


def table(name: str, pairs: int, rows: list[dict]) -> str:
    lines = [
        f"**{name}**: {pairs} disjoint pairs of members, test images, t = ½ (mean ± standard deviation over pairs).",
        "",
        "| method | starts | loss barrier (nats) | accuracy |",
        "|---|--:|--:|--:|",
    ]
    for row in rows:
        cells = (
            f"{statistics.fmean(row[key]):.3f} ± {statistics.stdev(row[key]):.3f}" for key in ("barriers", "accuracies")
        )
        lines.append(f"| {row['method']} | {row['starts']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
