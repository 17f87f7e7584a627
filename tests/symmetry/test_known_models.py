"""Group counts that were counted by hand, and outputs that stay on small models of each family."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.layers import GroupNormAct, StdConv2d
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnetv2 import ResNetV2
from timm.models.vgg import VGG

from starzoo.symmetry import infer, verify


def on_meta(name, **model_args):
    with torch.device("meta"):
        return timm.create_model(name, **model_args)


@pytest.mark.parametrize(
    ("name", "groups", "wreath_groups"),
    [
        ("resnet18", 12, 0),
        ("vgg11", 10, 0),
        ("vit_tiny_patch16_224", 49, 24),
        ("densenet121", 120, 0),
        ("swin_tiny_patch4_window7_224", 52, 24),
        ("convnext_zepto_rms", 14, 0),
        ("mixer_s32_224", 17, 0),
    ],
)
def test_known_group_counts(name, groups, wreath_groups):
    spec = infer(on_meta(name), torch.zeros(1, 3, 224, 224))
    assert (len(spec.groups), spec.wreath_groups) == (groups, wreath_groups)
    assert spec.unsupported_operators == ()


SMALL = {
    "resnet, digits": ("resnet18", {"in_chans": 1, "layers": [1, 1, 0, 0], "channels": [64, 128, 128, 128]}, 16, 4),
    "resnet, cifar": ("resnet18", {"layers": [1, 1, 1, 0], "channels": [64, 128, 256, 256]}, 32, 6),
    "resnet with zero-initialized scales": ("test_resnet", {"zero_init_last": True}, 32, 11),
    "resnetv2": ("resnetv2_18", {"layers": [1, 1, 1], "channels": [64, 128, 256]}, 32, 6),
    "densenet": ("densenet121", {"growth_rate": 8, "block_config": (2, 2)}, 32, 10),
    "convnext": ("test_convnext", {}, 64, 13),
    "convnext, rms norm": ("convnext_zepto_rms", {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}, 64, 8),
    "vit": ("vit_tiny_patch16_224", {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2}, 16, 9),
    "vit, test size": ("test_vit", {"img_size": 32}, 32, 25),
    "beit: a constant key bias": (
        "beit_base_patch16_224",
        {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 3, "init_values": 1e-5},
        32,
        9,
    ),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 56, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)},
        56,
        18,
    ),
}


@pytest.mark.parametrize(("name", "model_args", "pixels", "groups"), SMALL.values(), ids=SMALL)
def test_outputs_stay_when_everything_is_permuted(name, model_args, pixels, groups):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, **model_args)
    check(model, torch.zeros(1, model_args.get("in_chans", 3), pixels, pixels), groups)


def test_vgg_whose_features_go_through_a_wide_kernel():
    check(VGG([8, "M", 16, "M"], num_classes=7, mlp_ratio=0.01), torch.zeros(1, 3, 32, 32), 4)


def test_mixer_whose_tokens_are_mixed():
    check(MlpMixer(num_classes=7, img_size=64, embed_dim=32, num_blocks=2), torch.zeros(1, 3, 64, 64), 5)


def test_group_norm_permutes_groups_and_the_channels_in_each_of_them():
    """Stem and stages: (32, 2), (32, 4), (32, 8); inside of the blocks 32 channels that are groups of one, twice,
    and (32, 2), twice."""
    model = ResNetV2(
        layers=[1, 1],
        channels=[128, 256],
        num_classes=7,
        norm_layer=GroupNormAct,
        conv_layer=StdConv2d,
        stem_type="fixed",
    )
    spec = check(model, torch.zeros(1, 3, 32, 32), 12)
    assert spec.wreath_groups == 5


def check(model, example, groups):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    spec = infer(model, example)
    result = verify(model, example, spec)
    assert len(spec.groups) == groups
    assert result.relative_error < 1e-9
    assert result.weights_changed
    assert result.negative_control_passed == result.negative_control_tried == 4
    assert result.passed
    assert list(spec.axes) == list(before)
    assert all(tuple(term.size for term in spec.axes[name]) == value.shape for name, value in before.items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return spec


def test_a_model_on_the_meta_device_gives_the_same_groups():
    example = torch.zeros(1, 3, 32, 32)
    assert infer(on_meta("test_resnet"), example).axes == infer(timm.create_model("test_resnet"), example).axes
