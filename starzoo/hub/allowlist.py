"""What a config.json may say: an allow-list, because timm follows many of its keys to other files and loaders.

Nothing here imports torch or opens a connection.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

from starzoo.errors import UntrustedInputError

__all__ = ["check_config"]

_ARCHITECTURE_NAME = re.compile(r"[A-Za-z0-9_]{1,120}")
_INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos", "box", "hamming")  # no "random": only for training
_CROP_MODES = ("center", "squash", "border")

_LOCATORS = ("url", "file", "source", "hf_hub_id", "hf_hub_filename")
"""Keys that point timm to other weights. They are never read; a file beside config.json is what is loaded."""

_PRETRAINED_KEYS = frozenset({
    *_LOCATORS, "architecture", "tag", "custom_load", "input_size", "test_input_size", "min_input_size",
    "fixed_input_size", "interpolation", "crop_pct", "test_crop_pct", "crop_mode", "mean", "std", "num_classes",
    "label_offset", "label_names", "label_descriptions", "pool_size", "test_pool_size", "first_conv", "classifier",
    "license", "description", "origin_url", "paper_name", "paper_ids", "notes",
})  # fmt: skip
"""The fields of timm's PretrainedCfg, except `state_dict`, which holds weights."""

_MODEL_ARGS = frozenset({
    "act_layer", "aa_layer", "attn_drop_rate", "attn_layer", "attn_ratio", "avg_down", "base_width", "block_config",
    "block_reduce_first", "bottle_ratio", "cardinality", "channel_multiplier", "channels", "class_token", "conv_bias",
    "conv_mlp", "depth", "depth_mult", "depths", "dim", "dims", "distilled", "down_kernel_size", "downsample",
    "downsamples", "drop_block_rate", "drop_path_rate", "drop_rate", "dynamic_img_pad", "dynamic_img_size", "embed_dim",
    "embed_dims", "expand_ratio", "expansion_ratio", "fc_norm", "final_norm", "global_pool", "groups",
    "growth_rate", "head_bias", "head_dim", "head_hidden_size", "head_init_scale", "head_norm",
    "head_norm_first", "heads", "hidden_size", "img_size", "in_chans", "init_values", "kernel_size",
    "kernel_sizes", "layer_scale", "layer_scale_init_value", "layers", "ls_init_value", "mlp_ratio",
    "mlp_ratios", "no_embed_class", "norm_eps", "norm_layer", "num_blocks", "num_classes", "num_features",
    "num_heads", "num_init_features", "num_kv_heads", "num_reg_tokens", "output_stride", "pad_type",
    "patch_drop_rate", "patch_norm", "patch_size", "patch_sizes", "pool_size", "pool_type", "pos_drop_rate",
    "pos_embed", "pre_norm", "proj_bias", "proj_drop_rate", "qk_norm", "qkv_bias", "qkv_fused", "reg_tokens",
    "replace_stem_pool", "se_ratio", "sr_ratios", "stem_chs", "stem_kernel_size", "stem_size", "stem_stride",
    "stem_type", "stem_width", "strict_img_size", "strides", "use_abs_pos_emb", "use_fc_norm", "use_grn",
    "use_pos_embed", "use_rel_pos_bias", "weight_init", "width", "width_factor", "width_mult", "widths",
    "window_ratio", "window_size", "window_sizes", "zero_init_last",
})  # fmt: skip
"""Arguments of timm's model constructors that JSON can express and that only decide shapes and operators."""

_LARGEST_NUMBER = 65_536
_DEPTHS = ("block_config", "depth", "depths", "layers", "num_blocks")
_MOST_BLOCKS = 1_000
_EXPORT_HINT = "export the model again with timm.models.save_for_hf"

_logger = logging.getLogger(__name__)


def check_config(config: Mapping[str, Any], subject: str) -> None:
    """Refuse a config.json that asks timm for anything but building an architecture.

    Unknown keys of the root are harmless (neither timm nor starzoo reads them); everything else is an allow-list.

    Args:
        config: The parsed file.
        subject: The folder or repository, for messages.

    Raises:
        UntrustedInputError: A key is unknown or reserved for loaders, or a value is of the wrong kind.
    """
    name = config.get("architecture")
    if not isinstance(name, str) or not _ARCHITECTURE_NAME.fullmatch(name):
        raise UntrustedInputError(
            f"{subject}: config.json: architecture {str(name)[:60]!r} is no name of a timm model",
            hint=_EXPORT_HINT,
            subject=subject,
        )
    pretrained = config.get("pretrained_cfg")
    arguments = config.get("model_args") or {}
    if not isinstance(pretrained, dict) or not isinstance(arguments, dict):
        raise UntrustedInputError(
            f"{subject}: config.json: pretrained_cfg and model_args must be objects", hint=_EXPORT_HINT, subject=subject
        )
    for section, table, allowed in (
        ("pretrained_cfg", pretrained, _PRETRAINED_KEYS),
        ("model_args", arguments, _MODEL_ARGS),
    ):
        unknown = [key for key in table if key not in allowed]
        if unknown:
            raise UntrustedInputError(
                f"{subject}: config.json: {section}.{unknown[0][:60]} is not allowed",
                hint=_EXPORT_HINT,
                subject=subject,
            )
    for key in ("pretrained_strict", "kwargs_filter", "features_only", "feature_cls", "state_dict", "custom_load"):
        if config.get(key):
            raise UntrustedInputError(
                f"{subject}: config.json: {key} is not allowed", hint=_EXPORT_HINT, subject=subject
            )
    _check_arguments(arguments, subject)
    _check_pretrained(pretrained, subject)
    _check_classes(config, subject)


def _check_arguments(arguments: Mapping[str, Any], subject: str) -> None:
    for key, value in arguments.items():
        if not _is_plain(value):
            raise UntrustedInputError(
                f"{subject}: config.json: model_args.{key} has the value {str(value)[:60]}",
                hint=_EXPORT_HINT,
                subject=subject,
            )

    for key in _DEPTHS:
        depths = arguments.get(key)
        numbers = [n for n in (depths if isinstance(depths, list) else [depths]) if isinstance(n, int)]
        if sum(numbers) > _MOST_BLOCKS:
            raise UntrustedInputError(
                f"{subject}: config.json: model_args.{key} asks for {sum(numbers):,} blocks",
                hint=f"at most {_MOST_BLOCKS:,} are built",
                subject=subject,
            )


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Whether a value is a bounded number, a short word, or a short list of such."""
    if isinstance(value, list):
        return depth < 3 and len(value) <= 64 and all(_is_plain(item, depth + 1) for item in value)
    if isinstance(value, str):
        return len(value) <= 60 and not set("/\\:") & set(value)
    return value is None or (isinstance(value, bool | int | float) and abs(value) <= _LARGEST_NUMBER)


def _check_pretrained(pretrained: Mapping[str, Any], subject: str) -> None:
    """Refuse loaders and impossible preprocessing; say which pointers to other weights are not followed."""
    filename = pretrained.get("hf_hub_filename")
    if filename is not None and (not isinstance(filename, str) or ".." in filename or filename.startswith("/")):
        raise UntrustedInputError(
            f"{subject}: config.json: pretrained_cfg.hf_hub_filename {str(filename)[:60]!r}",
            hint=_EXPORT_HINT,
            subject=subject,
        )
    for key in ("custom_load", "label_offset"):
        if pretrained.get(key):
            raise UntrustedInputError(
                f"{subject}: config.json: pretrained_cfg.{key} {pretrained[key]!r} is not allowed",
                hint=_EXPORT_HINT,
                subject=subject,
            )
    ignored = [key for key in _LOCATORS if pretrained.get(key)]
    if ignored:
        _logger.warning(
            "%s: config.json points to other weights (%s); they are not followed", subject, ", ".join(ignored)
        )
    problems: dict[str, Callable[[Any], bool]] = {
        "input_size": lambda value: _are_numbers(value, int, 1, 16_384) and len(value) == 3,
        "mean": lambda value: _are_numbers(value, (int, float), -1e6, 1e6),
        "std": lambda value: _are_numbers(value, (int, float), 1e-9, 1e6),
        "interpolation": lambda value: value in _INTERPOLATIONS,
        "crop_mode": lambda value: value in _CROP_MODES,
        "crop_pct": lambda value: _are_numbers([value], (int, float), 0.01, 10),
        "fixed_input_size": lambda value: isinstance(value, bool),
    }
    for key, fits in problems.items():
        if key in pretrained and not fits(pretrained[key]):
            raise UntrustedInputError(
                f"{subject}: config.json: pretrained_cfg.{key} is {str(pretrained[key])[:60]}",
                hint=_EXPORT_HINT,
                subject=subject,
            )


def _are_numbers(value: Any, kind: type | tuple[type, ...], low: float, high: float) -> bool:
    return (
        isinstance(value, list)
        and 1 <= len(value) <= 64
        and all(isinstance(item, kind) and not isinstance(item, bool) for item in value)
        and all(low <= item <= high for item in value)
    )


def _check_classes(config: Mapping[str, Any], subject: str) -> None:
    """Refuse class counts that are impossible, or that disagree between the places that state one."""
    pretrained, arguments = config["pretrained_cfg"], config.get("model_args") or {}
    counts = {
        "num_classes": config.get("num_classes"),
        "pretrained_cfg.num_classes": pretrained.get("num_classes"),
        "model_args.num_classes": arguments.get("num_classes"),
    }
    for place, table in (("label_names", config), ("pretrained_cfg.label_names", pretrained)):
        names = table.get("label_names")
        if names is None:
            continue
        values = list(names.values()) if isinstance(names, dict) else names
        if not isinstance(values, list) or not all(isinstance(name, str) for name in values):
            raise UntrustedInputError(
                f"{subject}: config.json: {place} is no list of names", hint=_EXPORT_HINT, subject=subject
            )
        if isinstance(names, list):
            counts[f"the number of {place}"] = len(names)
    stated = {place: count for place, count in counts.items() if count is not None}
    wrong = [place for place, count in stated.items() if type(count) is not int or not 1 <= count <= 1_000_000]
    if wrong:
        raise UntrustedInputError(
            f"{subject}: config.json: {wrong[0]} is {str(stated[wrong[0]])[:60]}",
            hint="a classifier has 1 or more",
            subject=subject,
        )
    if len(set(stated.values())) > 1:
        what = ", ".join(f"{place} = {count}" for place, count in stated.items())
        raise UntrustedInputError(
            f"{subject}: config.json: class counts disagree: {what}", hint=_EXPORT_HINT, subject=subject
        )
