"""Does a star gain from images that are flipped and cropped while it is fitted?

    python -m benchmarks.augmentation digits
    python -m benchmarks.augmentation resnet-quarter --dataset DIR     # CIFAR-10, 10,000 images

Four sources and two held-outs of a zoo that was trained without augmentation (benchmarks/zoos.py trains what is
missing). Stars of three seeds are fitted with `data.augment` none and crop-flip; all else is as in the study. Writes
benchmarks/results/augmentation.json and .md.
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
from starzoo.config import EvalConfig, RunConfig, StarConfig

RESULTS = Path(__file__).parent / "results"
SOURCES, HOLDOUTS, SEEDS = 4, 2, (0, 1, 2)
STARS = {
    "digits": StarConfig(),
    "resnet-quarter": StarConfig(epochs=8, batch_size=128, lr=0.8),
}


def measure(zoo: str, members: Sequence[Path], dataset: str, augment: str, seed: int) -> dict[str, float]:
    """Fit and measure one star."""
    data = RECIPES[zoo].on(dataset).model_copy(update={"augment": augment})
    config = RunConfig(
        data=data,
        star=STARS[zoo].model_copy(update={"seed": seed}),
        evaluate=EvalConfig(bma_samples=0, sources=0, source_pairs=0),
    )
    names = [str(member) for member in members]
    with tempfile.TemporaryDirectory() as folder:
        evaluation = fit_star(names[:SOURCES], names[SOURCES:], config, Path(folder, "star")).manifest.evaluation
    assert evaluation
    [star] = evaluation.qualities_of("star")
    barriers = [path.barrier for path in evaluation.paths if path.kind == "star-heldout"]
    return {"barrier": statistics.mean(barriers), "accuracy": star.accuracy, "nll": star.nll}


def table(found: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]) -> str:
    """Say what was measured: the mean over seeds, and half of their range."""
    lines = [
        "# A star with and without augmentation",
        "",
        f"{SOURCES} sources that were trained without augmentation, {HOLDOUTS} held-outs, {len(SEEDS)} seeds.",
        "",
        "| zoo | augmentation of the star | barrier to held-outs | accuracy | NLL |",
        "|---|---|--:|--:|--:|",
    ]

    def cell(rows: Sequence[Mapping[str, float]], score: str, form: str) -> str:
        values = [row[score] for row in rows]
        return f"{statistics.mean(values):{form}} ± {(max(values) - min(values)) / 2:{form}}"

    for zoo, variants in found.items():
        for augment, rows in variants.items():
            cells = [
                cell(rows, score, form) for score, form in (("barrier", ".3f"), ("accuracy", ".1%"), ("nll", ".3f"))
            ]
            lines.append(f"| {zoo} | {augment} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("zoo", choices=STARS)
    parser.add_argument("--dataset", default=DATASET, help="CIFAR-10: a Hub data set or a local folder")
    parser.add_argument("--zoos", type=Path, default=OUT, help="the folder of all zoos")
    options = parser.parse_args()
    file = RESULTS / "augmentation.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    members = train(options.zoo, RECIPES[options.zoo].seeds(SOURCES + HOLDOUTS), options.dataset, options.zoos)
    found[options.zoo] = {
        augment: [measure(options.zoo, members, options.dataset, augment, seed) for seed in SEEDS]
        for augment in ("none", "crop-flip")
    }
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "augmentation.md").write_text(table(found), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
