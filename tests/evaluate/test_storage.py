"""The bytes that an evaluation is said to keep are those that it keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors import safe_open

from starzoo.config import EvalConfig, RunConfig
from starzoo.data.task import ImageTask
from starzoo.evaluate.cached_evaluation import CachedEvaluation
from starzoo.evaluate.evaluate import evaluate
from starzoo.evaluate.model_pool import EvaluatedModels
from starzoo.evaluate.result_cache import ResultCache
from starzoo.evaluate.storage import pixel_bytes, prediction_bytes
from starzoo.models.sources import Source


@pytest.mark.parametrize("changes", [{}, {"bma_samples": 0, "precision": "bf16"}])
def test_the_bytes_of_predictions(
    changes: dict[str, object], models: list[Source], data: ImageTask, tmp_path: Path
) -> None:
    measured = EvalConfig.model_validate({
        "points": 3, "source_pairs": 0, "bma_samples": 2, "validation_images": 50, "batch_norm_images": 64, **changes
    })  # fmt: skip
    config = RunConfig.model_validate({"align": {"method": "balanced-weights"}, "evaluate": measured})
    star, *sources = models
    states = {model.name: model.state for model in sources}
    zoo = EvaluatedModels(architecture=star.architecture, star=star.state, sources=states)
    evaluate(CachedEvaluation(zoo, data, config, cache=ResultCache(tmp_path)))
    kept = 0
    for file in tmp_path.iterdir():
        with safe_open(file, "pt") as stored:
            if "log_probabilities" in stored.keys():  # noqa: SIM118 - it is no mapping
                kept += stored.get_tensor("log_probabilities").nbytes
    images = {"test": 80, "validation": 50}
    said = prediction_bytes(measured, images, classes=10, models=4, has_batch_norm=True)
    assert 0.8 * said <= kept <= said  # two averages over the star domain may be the same one
    assert pixel_bytes(images, (1, 16, 16)) == 130 * 256
