"""How fast a fit loads images through timm's training transform, beside torch's DataLoader with the same transform.

    python -m benchmarks.loader                # a minute on two cores, which nothing else should use
    python -m benchmarks.loader --rounds 9

Synthetic JPEGs of 500 × 375 pixels become crops of 224 × 224, in batches of 64. Both loaders have as many processes,
and both give normalized floats. Rounds are interleaved, and the fastest of each variant is compared: what disturbs a
machine only ever adds. A digest of all batches shows that they are the same for any number of processes. Writes
benchmarks/results/loader.json and .md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from starzoo.config import DataConfig
from starzoo.data.preprocessing import Preprocessing
from starzoo.data.split import Split
from starzoo.data.task import load_data
from starzoo.parallel import available_cpus

RESULTS = Path(__file__).parent / "results"
IMAGES, BATCH, WORKERS = 1024, 64, (0, 1, 2)
PREPROCESSING = Preprocessing()
STARZOO, TORCH = "starzoo", "torch DataLoader"


def write_images(root: Path) -> None:
    """Smooth colors with some texture, of about the bytes of a photograph."""
    rng = np.random.default_rng(0)
    for split, count in (("train", IMAGES), ("test", 4)):
        for number in range(count):
            folder = root / split / f"class-{number % 4}"
            folder.mkdir(parents=True, exist_ok=True)
            smooth = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375))
            noisy = np.asarray(smooth).astype(np.int16) + rng.integers(-10, 11, (375, 500, 1), dtype=np.int16)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:04}.jpg", quality=90)


def digest(batches: Iterable[tuple[Tensor, Tensor]]) -> str:
    """The SHA-256 of all batches."""
    sha = hashlib.sha256()
    for images, labels in batches:
        sha.update(images.contiguous().numpy().tobytes() + labels.numpy().tobytes())
    return sha.hexdigest()


def seconds(batches: Iterable[object]) -> float:
    """The time that it takes to load all batches, the start of processes included."""
    before = time.perf_counter()
    for _ in batches:
        pass
    return time.perf_counter() - before


def measure(root: Path, rounds: int) -> dict[str, Any]:
    """Images per second by loader and number of processes."""
    config = DataConfig(dataset=str(root), augment="timm")
    split: Split = load_data(config, PREPROCESSING).train
    options = {"is_training": True, "interpolation": "random", "mean": PREPROCESSING.mean, "std": PREPROCESSING.std}
    files = ImageFolder(str(root / "train"), create_transform(PREPROCESSING.input_size, **options))
    times: dict[str, dict[int, list[float]]] = {name: {workers: [] for workers in WORKERS} for name in (STARZOO, TORCH)}
    for epoch in range(rounds):
        for workers in WORKERS:
            ours = split.loader(BATCH, epoch=epoch, seed=0, augment="timm", workers=workers)
            theirs = DataLoader(files, BATCH, shuffle=True, num_workers=workers)
            turns = [(STARZOO, ours), (TORCH, theirs)]
            for name, loader in turns if epoch % 2 else turns[::-1]:
                times[name][workers].append(seconds(loader))
    digests = [digest(split.loader(BATCH, epoch=0, seed=0, augment="timm", workers=workers)) for workers in WORKERS]
    return {
        "images": IMAGES,
        "batch": BATCH,
        "rounds": rounds,
        "kilobytes": round(sum(Path(path).stat().st_size for path, _ in files.samples) / IMAGES / 1000),
        "cores": available_cpus(),
        "versions": {package: version(package) for package in ("pillow", "timm", "torch", "torchvision")},
        "images_per_second": {
            name: {str(workers): round(IMAGES / min(each), 1) for workers, each in of_name.items()}
            for name, of_name in times.items()
        },
        "sha256": dict(zip(map(str, WORKERS), digests, strict=True)),
    }


def table(found: Mapping[str, Any]) -> str:
    """One line per number of processes."""
    ours, theirs = (found["images_per_second"][name] for name in (STARZOO, TORCH))
    versions = ", ".join(f"{package} {number}" for package, number in found["versions"].items())
    lines = [
        f"{found['images']} JPEGs of 500 × 375 pixels and {found['kilobytes']} kB to 224 × 224, batch {BATCH}; "
        f"{found['cores']} cores, the fastest of {found['rounds']} interleaved rounds; {versions}.",
        "",
        "| processes | images/s of a fit's loader | of torch's DataLoader | ratio | SHA-256 of the batches |",
        "|--:|--:|--:|--:|---|",
    ]
    for workers, rate in ours.items():
        other, sha = theirs[workers], found["sha256"][workers][:16]
        lines.append(f"| {workers} | {rate:.0f} | {other:.0f} | {rate / other:.2f} | {sha} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder))
        found = measure(Path(folder), rounds)
    (RESULTS / "loader.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "loader.md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
