"""What the evaluation of many models on many images takes: decoded images, memory of each rank, time.

    python -m benchmarks.evaluation_size                    # 50,000 images, 1,000 classes, 28 models, two ranks
    python -m benchmarks.evaluation_size --images 2000 --classes 20 --models 4 --out /tmp/small.json

Images are synthetic PNGs of 32 × 32 pixels that are made 48 × 48, and the networks are tiny, so that what is measured
is the evaluation around the forward passes. The peak is that of a rank's resident memory, shared pages included. A
second evaluation takes all predictions from the cache: its time is that of scoring. The entry is written under the
name of `--label` beside the others in benchmarks/results/evaluation-size.json, and the table in .md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
RANKS, STORED, SIZE, TRAIN = 2, 32, 48, 2  # TRAIN: training images of each class, and as many for validation
NETWORK = {"img_size": SIZE, "patch_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 2}
MEASURE = {"points": 3, "sources": 2, "source_pairs": 0, "bma_samples": 2}


def make_images(folder: Path, images: int, classes: int) -> None:
    """Write the splits of a data set as Parquet files."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    rng = np.random.default_rng(0)

    def encode() -> dict[str, Any]:
        draft, coarse = BytesIO(), rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((STORED, STORED), Image.Resampling.NEAREST).save(draft, "png")
        return {"bytes": draft.getvalue(), "path": None}

    for split, count in (("train", 2 * TRAIN * classes), ("test", images)):
        columns = {"image": [encode() for _ in range(count)], "label": [index % classes for index in range(count)]}
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")


def measure_rank(folder: Path, classes: int, models: int) -> None:
    """Evaluate twice on one rank, and write what it took."""
    import torch

    from starzoo.config import RunConfig, RuntimeConfig
    from starzoo.data import decoding
    from starzoo.data.preprocessing import Preprocessing
    from starzoo.data.task import load_data
    from starzoo.evaluate.cached_evaluation import CachedEvaluation
    from starzoo.evaluate.evaluate import evaluate
    from starzoo.evaluate.model_pool import EvaluatedModels
    from starzoo.evaluate.result_cache import ResultCache
    from starzoo.models.architecture import Architecture
    from starzoo.parallel import init_processes, rank

    decodes, decode = Counter[str](), decoding.decode

    def counted(file: Any) -> Any:
        decodes[file.description] += 1
        return decode(file)

    decoding.decode = counted
    init_processes(RuntimeConfig())
    config = RunConfig.model_validate({
        "data": {"dataset": str(folder / "images"), "train_size": TRAIN * classes, "label_column": "label"},
        "align": {"method": "balanced-weights"},
        "evaluate": MEASURE,
    })
    preprocessing = Preprocessing(input_size=(3, SIZE, SIZE))
    architecture = Architecture(
        name="vit_tiny_patch16_224", num_classes=classes, model_args=NETWORK, preprocessing=preprocessing
    )
    states = []
    for seed in range(models + 1):
        torch.manual_seed(seed)
        states.append(architecture.build().state_dict())
    zoo = EvaluatedModels(
        architecture=architecture,
        star=states[0],
        sources={f"seed-{seed}": state for seed, state in enumerate(states[1:], start=1)},
    )
    seconds, results = [], []
    for _ in range(2):
        begun, task = time.perf_counter(), load_data(config.data, preprocessing)
        results.append(evaluate(CachedEvaluation(zoo, task, config, cache=ResultCache(folder / "results"))))
        del task
        seconds.append(time.perf_counter() - begun)
    assert results[0] == results[1]
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    found = {
        "peak_mb": int(line.split()[1]) * 1024 / 1e6,
        "seconds": seconds,
        "decodes": decodes,
        "scores": {f"{row.name} {row.split}": row.nll for row in results[0].qualities},
    }
    (folder / f"rank-{rank()}.json").write_text(json.dumps(found))


def measure(images: int, classes: int, models: int) -> dict[str, Any]:
    """Start the ranks of an evaluation, and gather what they took."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        make_images(folder / "images", images, classes)
        caches = {"HF_HOME": str(folder), "HF_ASSETS_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
        rank = [__file__, "--classes", str(classes), "--models", str(models), "--rank-of", str(folder)]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(RANKS), *rank]
        paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        subprocess.run(command, check=True, env={**os.environ, **caches, "PYTHONPATH": paths})
        ranks = [json.loads((folder / f"rank-{number}.json").read_text()) for number in range(RANKS)]
    decodes = sum((Counter(each["decodes"]) for each in ranks), Counter[str]())
    of_test = {description: count for description, count in decodes.items() if "split 'test'" in description}
    return {
        "images": images,
        "classes": classes,
        "models": models,
        "ranks": RANKS,
        "decodes": sum(of_test.values()),
        "most_decodes_of_an_image": max(of_test.values()),
        "peak_mb": [each["peak_mb"] for each in ranks],
        "seconds": max(each["seconds"][0] for each in ranks),
        "scoring_seconds": max(each["seconds"][1] for each in ranks),
        "scores": ranks[0]["scores"],
    }


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """One line per entry."""
    lines = [
        "| | images | classes | models | ranks | decoded images | peak of a rank, GB | seconds | from the cache |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for label, row in found.items():
        sizes = " | ".join(f"{row[name]:,}" for name in ("images", "classes", "models", "ranks", "decodes"))
        peak = max(row["peak_mb"]) / 1000
        lines.append(f"| {label} | {sizes} | {peak:.2f} | {row['seconds']:.0f} | {row['scoring_seconds']:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--models", type=int, default=28)
    parser.add_argument("--label", default="after")
    parser.add_argument("--out", type=Path, default=RESULTS / "evaluation-size.json")
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_of:
        measure_rank(options.rank_of, options.classes, options.models)
        return
    found = json.loads(options.out.read_text()) if options.out.exists() else {}
    found[options.label] = measure(options.images, options.classes, options.models)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
