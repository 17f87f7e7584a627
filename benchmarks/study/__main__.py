"""Run experiments of the study, and write docs/results.md from what is there.

    python -m benchmarks.study                                          # the page again, from committed results
    python -m benchmarks.study benchmarks/study/cifar.yaml              # an experiment from scratch, or what it lacks
    python -m benchmarks.study benchmarks/study/*.yaml --dataset DIR    # all, with a local copy of CIFAR-10

Every row is kept in benchmarks/results/study as soon as it is measured, so that the same command goes on where it was
cut off. Members are trained into runs/zoos where they are missing.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import timm
import torch

from benchmarks.study.experiment import load_experiment, results_file
from benchmarks.study.measure import Row, rows
from benchmarks.study.report import write_page
from benchmarks.zoos import DATASET, OUT


def run(file: Path, dataset: str, zoos: Path, seeds: list[int] | None, variants: list[str] | None) -> None:
    """Measure what an experiment lacks."""
    experiment, kept = load_experiment(file), results_file(file)
    kept.parent.mkdir(exist_ok=True)

    def done() -> list[Row]:  # read each time, since seeds may run side by side
        return json.loads(kept.read_text(encoding="utf-8"))["rows"] if kept.is_file() else []

    for row in rows(experiment, dataset, zoos, seeds or experiment.seeds, variants or experiment.variants, done()):
        machine = f"{torch.get_num_threads()} thread of a CPU ({platform.machine()})"
        versions = {"torch": torch.__version__.partition("+")[0], "timm": timm.__version__}
        content = {"machine": machine, "versions": versions, "rows": [*done(), row]}
        kept.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(file.stem, row["variant"], row["seed"], json.dumps(row["qualities"]["star"]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*", help="experiments to run; none writes the page only")
    parser.add_argument("--dataset", default=DATASET, help="CIFAR-10: a Hub data set or a local folder")
    parser.add_argument("--zoos", type=Path, default=OUT, help="the folder of all zoos")
    parser.add_argument("--seeds", type=int, nargs="+", help="only these seeds of the stars")
    parser.add_argument("--variants", nargs="+", help="only these variants")
    options = parser.parse_args()
    for file in options.files:
        run(file, options.dataset, options.zoos, options.seeds, options.variants)
    write_page()


if __name__ == "__main__":
    main()
