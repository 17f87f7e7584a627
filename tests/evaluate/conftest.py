from __future__ import annotations

from pathlib import Path

import pytest
import torch

from starzoo.config import DataConfig
from starzoo.data.task import ImageTask, load_data
from starzoo.models.sources import Source, load_sources


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four tiny networks for digits that nobody trained, as folders in timm format."""
    from starzoo.data.preprocessing import Preprocessing
    from starzoo.models.architecture import Architecture
    from starzoo.models.timm_folder import save_timm_folder

    architecture = Architecture(
        name="resnet18",
        num_classes=10,
        model_args={"in_chans": 1, "layers": [1, 1, 0, 0], "channels": [8, 8, 8, 8], "zero_init_last": False},
        preprocessing=Preprocessing(input_size=(1, 16, 16), mean=(0.3,), std=(0.4,)),
        label_names=tuple("0123456789"),
    )
    folders = []
    for seed in range(4):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            folders.append(tmp_path_factory.mktemp("untrained") / f"seed-{seed}")
            save_timm_folder(folders[-1], architecture, architecture.build().state_dict())
    return folders


@pytest.fixture(scope="module")
def models(untrained: list[Path]) -> list[Source]:
    return load_sources(untrained)


@pytest.fixture(scope="module")
def data(models: list[Source]) -> ImageTask:
    return load_data(DataConfig(train_size=200, test_size=80), models[0].architecture.preprocessing)
