"""What the start of a run pays for its data set, in seconds of one core.

    python -m benchmarks.opening

A folder of 50,000 small images in 100 classes and a table of 200,000 rows are opened three times, each time in a
process of its own with one cache for all: the data set is opened, then its fingerprint is asked for. Images that are
read are counted. Writes benchmarks/results/opening.json and .md.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
STARTS = 3


def _encode(seed: int) -> bytes:
    import numpy as np
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def make_folder(folder: Path, count: int) -> None:
    """Write class folders, a tenth of the images in the test split."""
    for number in range(count):
        split = "test" if number % 10 == 0 else "train"
        file = folder / split / f"class-{number % 1000 // 10:02d}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(_encode(number))


def make_table(folder: Path, count: int) -> None:
    """Write a Parquet file of each split, with whole numbers as labels."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    for split, numbers in (("train", range(count // 10, count)), ("test", range(count // 10))):
        rows = {
            "image": [{"bytes": _encode(number), "path": None} for number in numbers],
            "label": [number % 10 for number in numbers],
        }
        pq.write_table(pa.table(rows), folder / f"{split}.parquet")


def start(dataset: str) -> dict[str, Any]:
    """Open a data set once, in this process."""
    from starzoo.config import DataConfig
    from starzoo.data import records

    read = 0
    plain = records.RawSplit.files

    def files(self: records.RawSplit, indices: Sequence[int]) -> Any:
        nonlocal read
        read += len(indices)
        return plain(self, indices)

    records.RawSplit.files = files  # type: ignore[method-assign]
    records.open_data(DataConfig())  # imports the libraries
    times = [time.process_time()]
    task = records.open_data(DataConfig(dataset=dataset))
    times.append(time.process_time())
    fingerprint = task.fingerprint
    times.append(time.process_time())
    opening, asking = (round(later - earlier, 2) for earlier, later in itertools.pairwise(times))
    return {"open": opening, "fingerprint": asking, "images_read": read, "digest": fingerprint[:16]}


def table(found: Mapping[str, Any]) -> str:
    """Say what was measured."""
    lines = [
        "# The start of a run: opening its data set",
        "",
        "Seconds of one core, without the import of libraries.",
        "",
        "| data set | start | open | fingerprint | images read |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, rows in found.items():
        lines += [
            f"| {name} | {number} | {row['open']:.2f} | {row['fingerprint']:.2f} | {row['images_read']:,} |"
            for number, row in enumerate(rows, start=1)
        ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--share", type=float, default=1.0, help="of the images")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if options.worker:
        print(json.dumps(start(options.worker)), flush=True)
        return
    files, rows = int(50_000 * options.share), int(200_000 * options.share)
    with tempfile.TemporaryDirectory() as scratch:
        folder, tables = Path(scratch, "folder"), Path(scratch, "tables")
        make_folder(folder, files)
        make_table(tables, rows)
        environment = {**os.environ, "HF_HOME": str(Path(scratch, "home"))}
        environment |= {"HF_ASSETS_CACHE": f"{scratch}/assets", "HF_DATASETS_CACHE": f"{scratch}/datasets"}
        found: dict[str, list[dict[str, Any]]] = {}
        for name, dataset in ((f"folder of {files:,} files", folder), (f"table of {rows:,} rows", tables)):
            command = [sys.executable, "-m", "benchmarks.opening", "--worker", str(dataset)]
            found[name] = [
                json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)
                for _ in range(STARTS)
            ]
    (options.out / "opening.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (options.out / "opening.md").write_text(table(found), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
