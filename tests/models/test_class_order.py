"""Outputs that are permuted: for every kind of head the logits move, and nothing else changes."""

from __future__ import annotations

import pytest
import torch

from starzoo.errors import IncompatibleError
from starzoo.models import class_order as classes
from starzoo.models.architecture import Architecture
from starzoo.models.class_order import permute_outputs
from starzoo.symmetry.spec import PermutationSpec
from starzoo.symmetry.terms import Pinned

NAMES = ("ant", "bee", "cat", "dog", "eel")
ORDER = [3, 0, 4, 1, 2]
HEADS = {
    "linear": ("test_resnet", {}),
    "after attention": ("test_vit", {}),
    "two heads, averaged": (
        "deit_tiny_distilled_patch16_224",
        {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2},
    ),
    "convolution": ("test_byobnet", {}),
    "hidden layer": ("mobilenetv3_small_050", {}),
    "normalized": ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8], "patch_size": 1}),
    "convolutional classifier": ("test_nfnet", {}),
}


@pytest.mark.parametrize(("name", "arguments"), HEADS.values(), ids=HEADS)
def test_the_logits_are_permuted(name: str, arguments: dict) -> None:
    size = arguments.get("img_size")
    architecture = Architecture.from_registry(name, model_args=arguments, image_size=size or 64)
    architecture = architecture.model_copy(update={"num_classes": 5, "label_names": NAMES})
    torch.manual_seed(0)
    model = architecture.build()
    images = torch.randn(2, *architecture.preprocessing.input_size)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with torch.no_grad():
        before = model(images)
        moved = permute_outputs(architecture, state, ORDER)
        model.load_state_dict(moved)
        after = model(images)
    torch.testing.assert_close(after, before[:, ORDER])
    assert not torch.allclose(before[:, ORDER], before)
    changed = {key for key in state if not torch.equal(state[key], moved[key])}
    assert changed
    assert all(5 in state[key].shape for key in changed)


def test_outputs_that_are_tied_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tied = PermutationSpec(groups={}, axes={}, outputs=((Pinned(1), Pinned(5)),))
    monkeypatch.setattr(classes, "cached_spec", lambda *_, **__: tied)
    architecture = Architecture(name="test_resnet", num_classes=5, label_names=NAMES)
    with pytest.raises(IncompatibleError, match="test_resnet: its outputs cannot be permuted"):
        permute_outputs(architecture, {}, ORDER)
