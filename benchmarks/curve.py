"""What a curve of losses costs, beside the passes that it cannot do without.

    python -m benchmarks.curve --rounds 7

A curve has 11 points. Each needs one pass over the images that batch-norm statistics are estimated on, where there are
such statistics, and one over the images that are evaluated; they are plain loops over ready batches here. The rest of a
curve, interpolation, loading weights, decoding and scores, is what it costs beyond. Rounds are interleaved, and a ratio
is taken within each round: the median is what is compared, since the machine's speed drifts. Seconds are those of the
processor, so that what else runs on the machine counts little. Writes benchmarks/results/curve.json and .md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from starzoo.config import DataConfig
from starzoo.data.preprocessing import Preprocessing
from starzoo.data.task import load_data
from starzoo.evaluate.evaluator import Evaluator
from starzoo.models.architecture import Architecture
from starzoo.models.batch_norm import has_batch_norm, reestimate_batch_norm
from starzoo.models.memory_format import as_channels_last, channels_last

RESULTS = Path(__file__).parent / "results"
POINTS, STATISTICS, BATCH = 11, 500, 250
NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "resnet18": {"layers": [1, 1, 0, 0], "channels": [32, 64, 64, 64]},  # batch norm
    "convnext_atto": {"depths": [1, 1, 1, 1], "dims": [32, 64, 64, 64], "patch_size": 2},  # layer norm
}


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Seconds of a curve, and of its passes alone, in each of some rounds."""
    architecture = Architecture(
        name=name,
        num_classes=10,
        model_args={"in_chans": 1, **NETWORKS[name]},
        preprocessing=Preprocessing(input_size=(1, 32, 32), mean=(0.3,), std=(0.4,)),
    )
    torch.manual_seed(0)
    first, second = (architecture.build().state_dict() for _ in range(2))
    data = load_data(DataConfig(), architecture.preprocessing)
    evaluated = data.train
    statistics_images = partial(data.train.images, BATCH, limit=STATISTICS, seed=0)
    evaluator = Evaluator(
        architecture.build(),
        {"train": (partial(evaluated.images, BATCH), evaluated.labels)},
        statistics_images,
    )
    network = channels_last(architecture.build())
    seen = [as_channels_last(images) for images in evaluated.images(BATCH)]
    estimated = [as_channels_last(images) for images in statistics_images()]
    places = [point / (POINTS - 1) for point in range(POINTS)]
    found: dict[str, list[float]] = {"curve": [], "passes": []}
    for number in range(rounds + 1):
        ways = {
            "curve": lambda: evaluator.curve(first, second, places),
            "passes": lambda: [passes(network, estimated, seen) for _ in places],
        }
        for way, work in ways.items():
            start = time.process_time()
            work()
            if number:  # the first round warms up
                found[way].append(time.process_time() - start)
    return {"seconds": found, "images": len(evaluated), "statistics": STATISTICS if has_batch_norm(network) else 0}


def passes(network: nn.Module, estimated: list[torch.Tensor], seen: list[torch.Tensor]) -> None:
    """What one point takes at least: a pass for the statistics, if there are any, and one for the predictions."""
    if has_batch_norm(network):
        reestimate_batch_norm(network, estimated)
    with torch.inference_mode():
        network.eval()
        for images in seen:
            network(images)


def ratio(row: Mapping[str, Any]) -> float:
    """The median over rounds of what a curve costs in units of its passes."""
    seconds = row["seconds"]
    return statistics.median(curve / alone for curve, alone in zip(seconds["curve"], seconds["passes"], strict=True))


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        f"A curve of {POINTS} points beside {POINTS} × (statistics pass + evaluation pass), on a CPU, "
        "medians over interleaved rounds.",
        "",
        "| network | images | for statistics | curve (CPU s) | passes alone (CPU s) | ratio |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, row in found.items():
        curve, alone = (statistics.median(row["seconds"][way]) for way in ("curve", "passes"))
        lines.append(
            f"| {name} | {row['images']} | {row['statistics'] or '–'} | {curve:.2f} | {alone:.2f} | {ratio(row):.3f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    found = {name: measure(name, options.rounds) for name in NETWORKS}
    file = RESULTS / "curve.json"
    file.write_text(json.dumps(found, indent=1) + "\n")
    file.with_suffix(".md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
