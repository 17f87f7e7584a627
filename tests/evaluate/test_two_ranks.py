"""An evaluation on two ranks: each image is decoded once, and the results are those of one rank."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from starzoo import parallel
from starzoo.config import DataConfig, RunConfig, RuntimeConfig
from starzoo.data import decoding
from starzoo.data.task import load_data
from starzoo.evaluate.cached_evaluation import CachedEvaluation
from starzoo.evaluate.evaluate import evaluate
from starzoo.evaluate.model_pool import EvaluatedModels
from starzoo.evaluate.result_cache import ResultCache
from starzoo.models.sources import load_sources
from tests.ports import free_port, torchrun_variables
from tests.processes import SERVER, start_process

CONFIG = RunConfig.model_validate({
    "align": {"method": "balanced-weights"},
    "evaluate": {"points": 3, "source_pairs": 1, "bma_samples": 2, "validation_images": 50, "batch_norm_images": 64},
})


def _measure(folders: list[Path], cache: ResultCache) -> str:
    star, *sources = load_sources(folders)
    data = load_data(DataConfig(train_size=200, test_size=80), star.architecture.preprocessing)
    states = {model.name: model.state for model in sources}
    zoo = EvaluatedModels(architecture=star.architecture, star=star.state, sources=states)
    return evaluate(CachedEvaluation(zoo, data, CONFIG, cache=cache)).model_dump_json()


def _rank(rank: int, port: int, together: Any, folders: list[Path], out: Path, name: str) -> None:
    os.environ |= {**torchrun_variables(rank, 2, port), "OMP_NUM_THREADS": "1", "HF_ASSETS_CACHE": str(out)}
    import accelerate  # noqa: F401
    import torch.distributed  # noqa: F401

    together.wait(60)
    parallel.init_processes(RuntimeConfig())
    decoding._MEMORY_BYTES = 0  # so that every split has a file
    counts, decode = Counter[str](), decoding.decode

    def counted(file: Any) -> Any:
        counts[file.description] += 1
        return decode(file)

    decoding.decode = counted
    found = _measure(folders, ResultCache(out / "results" if name == "cached" else None))
    (out / f"{name}-{rank}").write_text(json.dumps([found, counts]))


@pytest.mark.parametrize("name", ["cached", "in-memory"])
def test_two_ranks_decode_each_image_once_and_find_what_one_finds(
    name: str, untrained: list[Path], tmp_path: Path
) -> None:
    port, together = free_port(), SERVER.Barrier(2)
    ranks = [start_process(_rank, rank, port, together, untrained, tmp_path, name) for rank in range(2)]
    for process in ranks:
        process.join(90)
        process.kill()
    (found, counts), (other, other_counts) = (json.loads((tmp_path / f"{name}-{rank}").read_text()) for rank in (0, 1))
    assert found == other == _measure(untrained, ResultCache(None))
    assert min(len(counts), len(other_counts)) > 20  # both have decoded
    total = Counter(counts) + Counter(other_counts)
    assert len(total) >= 80 + 64
    # The images of the alignment are decoded when it starts, on both ranks.
    assert {count for image, count in total.items() if "split 'test'" in image} == {1}
