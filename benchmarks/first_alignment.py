"""How long the first alignment of a fit's sources takes on one process and on two.

    python -m benchmarks.first_alignment

Eight networks are aligned to each other as at the start of a fit: features of every source, then the joint match. Each
process has one core. Runs on one and on two processes take turns, and the shortest of each is compared: what disturbs a
machine only ever adds. Permutations are compared by their hash. Writes benchmarks/results/first-alignment.json and .md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
SOURCES, REPEATS = 8, 2


def measure(width: int) -> dict[str, Any]:
    """Align the sources once, on all processes of this run."""
    import torch

    from starzoo.config import DataConfig, RunConfig, RuntimeConfig
    from starzoo.data.preprocessing import Preprocessing
    from starzoo.data.task import load_data
    from starzoo.models.architecture import Architecture
    from starzoo.parallel import init_processes
    from starzoo.star.source_alignment import SourceAlignment

    init_processes(RuntimeConfig())
    architecture = Architecture(
        name="resnet18",
        num_classes=10,
        model_args={
            "in_chans": 1,
            "layers": [1, 1, 1, 1],
            "channels": [width, 2 * width, 4 * width, 4 * width],
            "zero_init_last": False,
        },
        preprocessing=Preprocessing(input_size=(1, 32, 32), mean=(0.3,), std=(0.4,)),
    )
    states = []
    for seed in range(SOURCES):
        torch.manual_seed(seed)
        states.append(architecture.build().state_dict())
    data = load_data(DataConfig(), architecture.preprocessing)
    alignment = SourceAlignment(architecture, states, data, RunConfig())
    start = time.monotonic()
    alignment.initial_weights(states[0])
    seconds = time.monotonic() - start
    digest = hashlib.sha256()
    for permutation in alignment.permutations:
        for name, index in sorted(permutation.to_tensors().items()):
            digest.update(name.encode() + index.numpy().tobytes())
    return {"seconds": round(seconds, 2), "permutations": digest.hexdigest()[:16]}


def launch(processes: int, width: int) -> dict[str, Any]:
    """Measure in a run of so many processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command += ["-m", "benchmarks.first_alignment", "--worker", "--width", str(width)]
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    rows = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    return {"processes": processes, **max(rows, key=lambda row: row["seconds"])}


def table(found: Mapping[str, Any]) -> str:
    """Say what was measured."""
    best = {count: min(row["seconds"] for row in found["rows"] if row["processes"] == count) for count in (1, 2)}
    same = len({row["permutations"] for row in found["rows"]}) == 1
    return (
        f"# The first alignment of {found['sources']} sources\n\n"
        "| processes | seconds | of one process |\n|--:|--:|--:|\n"
        f"| 1 | {best[1]:.1f} | 1 |\n"
        f"| 2 | {best[2]:.1f} | {best[2] / best[1]:.2f} |\n\n"
        f"The permutations are {'the same' if same else 'DIFFERENT'} in all runs.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--width", type=int, default=72)
    options = parser.parse_args()
    if options.worker:
        print("\n" + json.dumps(measure(options.width)) + "\n", end="", flush=True)
        return
    rows = [launch(processes, options.width) for _ in range(REPEATS) for processes in (1, 2)]
    found = {"sources": SOURCES, "width": options.width, "rows": rows}
    (RESULTS / "first-alignment.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "first-alignment.md").write_text(table(found), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
