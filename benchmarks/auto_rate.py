"""Does `star.lr: auto` find a rate that is as good as the best of a grid?

    python -m benchmarks.auto_rate digits-split
    python -m benchmarks.auto_rate resnet-quarter --dataset DIR     # CIFAR-10

Four sources and two held-outs of a zoo that it was not made on. The best rate of the grid is chosen on validation
images, by the loss half-way to the held-outs; figures are on test images. Writes benchmarks/results/auto-rate.json and
.md; what is there is not measured again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.tuning import SOURCES, measure, on_validation_images
from benchmarks.zoos import DATASET, OUT, RECIPES, train
from starzoo.config import RunConfig, StarConfig
from starzoo.data.task import load_data
from starzoo.models.sources import load_sources
from starzoo.star.fit import fit
from starzoo.star.rate import best_rate, try_rates

RESULTS = Path(__file__).parent / "results"
HOLDOUTS = 2
STARS = {
    "digits-split": StarConfig(),
    "resnet-quarter": StarConfig(epochs=8, batch_size=128),
    "densenet": StarConfig(epochs=8, batch_size=128),
    "vit": StarConfig(epochs=16, batch_size=32, optimizer="adamw", weight_decay=0.01, lr=0.0005),
}


def run(zoo: str, dataset: str, zoos: Path, found: dict[str, Any]) -> None:
    """Measure what a zoo lacks: the trials, then stars at the rates of the grid and at the one that is chosen."""
    recipe = RECIPES[zoo]
    models = load_sources(train(zoo, recipe.seeds(SOURCES + HOLDOUTS), dataset, zoos))
    data = load_data(recipe.on(dataset), models[0].architecture.preprocessing)
    validation, config = on_validation_images(data), RunConfig(data=recipe.on(dataset), star=STARS[zoo])
    if "trials" not in found:
        trials = try_rates(models[:SOURCES], data, config)
        found["trials"] = [trial.model_dump() for trial in trials]
        found["chosen"] = best_rate(trials)
    for rate in dict.fromkeys([found["chosen"], *(trial["lr"] for trial in found["trials"])]):
        rows = found.setdefault("rows", {})
        if str(rate) not in rows:
            star = config.star.model_copy(update={"lr": rate})
            state = fit(models[:SOURCES], data, config.model_copy(update={"star": star})).state
            rows[str(rate)] = {
                "validation": measure(state, models, validation),
                "test": measure(state, models, data),
            }
            print(zoo, rate, rows[str(rate)]["test"], flush=True)


def table(found: Mapping[str, Any]) -> str:
    """Compare the chosen rate with the best of the grid."""
    lines = [
        "# A learning rate by short trials",
        "",
        f"{SOURCES} sources and {HOLDOUTS} held-outs, one seed. The best of six rates is that of the least loss "
        "half-way to the held-outs on validation images. Barrier and tempered NLL are on test images.",
        "",
        "| zoo | rate | | barrier | NLL, tempered | loss half-way |",
        "|---|--:|---|--:|--:|--:|",
    ]
    for zoo, result in found.items():
        rows = result.get("rows", {})
        grid = [str(trial["lr"]) for trial in result["trials"] if str(trial["lr"]) in rows]
        best = min(grid, key=lambda rate: rows[rate]["validation"]["halfway"])
        for rate, name in ((str(result["chosen"]), "auto"), (best, "best of the grid"), *((each, "") for each in grid)):
            if name or rate not in {str(result["chosen"]), best}:
                test = rows[rate]["test"]
                cells = " | ".join(f"{test[score]:.3f}" for score in ("barrier", "tempered_nll", "halfway"))
                lines.append(f"| {zoo} | {float(rate):.3g} | {name} | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("zoo", choices=STARS)
    parser.add_argument("--dataset", default=DATASET, help="CIFAR-10: a Hub data set or a local folder")
    parser.add_argument("--zoos", type=Path, default=OUT, help="the folder of all zoos")
    options = parser.parse_args()
    file = RESULTS / "auto-rate.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    run(options.zoo, options.dataset, options.zoos, found.setdefault(options.zoo, {}))
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "auto-rate.md").write_text(table(found), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
