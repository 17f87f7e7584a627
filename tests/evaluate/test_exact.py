"""No barrier lies between a network and itself, or its own permutation: with batch norm, layer norm and attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from starzoo.config import AlignConfig, DataConfig, EvalConfig, RunConfig
from starzoo.data.preprocessing import Preprocessing
from starzoo.data.task import load_data
from starzoo.evaluate.cached_evaluation import CachedEvaluation
from starzoo.evaluate.evaluate import evaluate
from starzoo.evaluate.model_pool import EvaluatedModels
from starzoo.models.architecture import Architecture
from starzoo.symmetry import Permutation

ONE_CHANNEL = {"in_chans": 1}
NETWORKS = {
    "test_resnet": ONE_CHANNEL,  # batch norm
    "test_convnext": ONE_CHANNEL,  # layer norm
    "test_vit": {**ONE_CHANNEL, "img_size": 32},  # attention
}


@pytest.mark.parametrize("name", NETWORKS)
def test_t11_no_barrier_to_itself_and_to_its_own_permutation(name: str) -> None:
    architecture = Architecture(
        name=name,
        num_classes=10,
        model_args=NETWORKS[name],
        preprocessing=Preprocessing(input_size=(1, 32, 32), mean=(0.3,), std=(0.4,)),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = architecture.build().state_dict()
        # Trained networks have no tensor of zeros or ones; in them neurons could not be told apart.
        noise = {key: 0.1 * torch.randn_like(each) for key, each in state.items() if each.is_floating_point()}
    state = {key: each + noise.get(key, 0) for key, each in state.items()}
    spec = architecture.spec
    shuffled = Permutation.random(spec, np.random.default_rng(0)).apply(state)
    assert sum(not torch.equal(state[key], shuffled[key]) for key in state) > len(state) / 2
    data = load_data(DataConfig(train_size=100, test_size=50), architecture.preprocessing)
    models = EvaluatedModels(
        architecture=architecture, star=state, sources={"itself": state}, holdouts={"shuffled": shuffled}
    )
    config = EvalConfig(points=5, source_pairs=1, bma_samples=0, batch_norm_images=100, validation_images=50)
    run = RunConfig(evaluate=config, align=AlignConfig(method="weights"))
    found = evaluate(CachedEvaluation(models, data, run))
    for kind in ("star-source", "star-heldout", "source-source"):
        assert found.summarize(kind).worst <= 1e-6
        assert found.summarize(kind, "accuracy_barrier").worst <= 1e-6
    [raw] = found.paths_of("source-source-unaligned")  # the control: not aligned, the path between them is another one
    assert max(abs(loss - raw.loss[0]) for loss in raw.loss) > 1e-3
