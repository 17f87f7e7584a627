"""Read config.json as timm does: timm itself parses the file, builds the network and loads the tensors."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self

from starzoo.errors import UntrustedInputError, UsageError
from starzoo.models.config_allowlist import check_arguments, check_pretrained, refuse
from starzoo.models.safetensors_header import MISMATCH
from starzoo.models.timm_registry import TIMM_ERRORS, TIMM_NAME, build, registry_entry, resolve_name

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["TimmConfig"]

_ROOT = frozenset({
    "architecture", "num_classes", "num_features", "global_pool", "label_names", "label_descriptions", "model_args",
    "pretrained_cfg",
})  # fmt: skip
_LOCATORS = ("url", "file", "source", "hf_hub_id", "hf_hub_filename")
"""Keys that point timm to other weights. They are never followed: the file beside config.json is what is loaded."""

_WITH_WEIGHTS: Mapping[str, Mapping[str, Any]] = {"fbnetc_100": {"bn_eps": 1e-3}}
"""Arguments that timm gives to a network only when it loads weights into it."""

_MAX_MODULES = 30_000  # the largest network of timm has 7,000
_MAX_BYTES = 500_000_000  # of buffers, and of one tensor of activations for one image; more where timm's own has it

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TimmConfig:
    """What timm makes of a config.json.

    Attributes:
        name: The architecture by its current name, without a tag.
        pretrained_cfg: timm's pretrained configuration, the root's values included, without pointers to weights.
        model_args: Arguments of the network's constructor.
    """

    name: str
    pretrained_cfg: Mapping[str, Any]
    model_args: Mapping[str, Any]

    @property
    def num_classes(self) -> int:
        """The number of classes; timm's default where the file says none."""
        return int(self.pretrained_cfg.get("num_classes", 1000))

    @classmethod
    def parse(cls, config: Mapping[str, Any], subject: str) -> Self:
        """Let timm read a config.json, of any version of timm, and check what it has read."""
        from timm.models._hub import load_model_config_from_path  # the parser of `local-dir:`; it reads this file only

        name = config.get("architecture")
        if not isinstance(name, str) or not TIMM_NAME.fullmatch(name):
            refuse(subject, f"architecture {str(name)[:60]!r} is not a name of a timm model")
        for section in ("pretrained_cfg", "model_args"):
            if not isinstance(config.get(section, {}), dict):
                refuse(subject, f"{section}: expected an object, got {type(config[section]).__name__}")
        if "pretrained_cfg" in config and (unread := sorted(set(config) - _ROOT)):
            _logger.debug("%s: config.json: keys that timm does not read: %s", subject, ", ".join(unread)[:200])
        with TemporaryDirectory(prefix="starzoo-") as folder:
            Path(folder, "config.json").write_text(json.dumps(config), encoding="utf-8")
            try:
                pretrained, _, arguments = load_model_config_from_path(folder)
                pretrained, arguments = dict(pretrained), dict(arguments)
            except TIMM_ERRORS as error:
                refuse(subject, f"timm cannot read it: {type(error).__name__}: {str(error)[:100]}")
        stated = config.get("pretrained_cfg", config)  # where `file` and `source` are not yet those of the copy
        if ignored := [key for key in _LOCATORS if stated.get(key)]:
            _logger.warning("%s: config.json points to other weights (%s): not followed", subject, ", ".join(ignored))
        check_pretrained(pretrained, subject)
        check_arguments(arguments, subject)
        try:
            current, _ = resolve_name(name)
        except UsageError as error:
            refuse(subject, error.message, error.hint)
        pretrained = {key: value for key, value in pretrained.items() if key not in _LOCATORS}
        return cls(current, pretrained, {**_WITH_WEIGHTS.get(current, {}), **arguments})

    def at_size(self, image_size: int | None) -> Self:
        """Return the same for square images of another size, to which timm resamples what depends on the size."""
        if image_size is None:
            return self
        channels = self.pretrained_cfg.get("input_size", registry_entry(self.name).input_size)[0]
        size = {"img_size": [image_size, image_size]} if "img_size" in self.model_args else {}
        pretrained_cfg = {**self.pretrained_cfg, "input_size": [channels, image_size, image_size]}
        return replace(self, pretrained_cfg=pretrained_cfg, model_args={**self.model_args, **size})

    def build(self, subject: str) -> nn.Module:
        """Build the network on the meta device: shapes without memory."""
        import torch

        try:
            with torch.device("meta"), _limit_modules():
                model = build(self.name, self.model_args, pretrained_cfg=dict(self.pretrained_cfg))
        except UsageError as error:
            refuse(subject, error.message)
        sizes = _sizes(self.name, json.dumps(self.model_args), json.dumps(self.pretrained_cfg, default=str))
        for part, size in sizes.items():
            if size > _MAX_BYTES and size > 4 * _sizes(self.name)[part]:
                hint = "correct its input size, window size or kernel sizes in config.json"
                refuse(subject, f"its {part} would take {size / 1e9:,.1f} GB", hint)
        return model

    def load(self, tensors: Mapping[str, Tensor], subject: str, *, meta: bool = False) -> dict[str, Tensor]:
        """Let timm load tensors as it loads a pretrained file: filter, rename, resample, cut, and compare strictly."""
        import torch

        from starzoo.models.skip_init import SkipInit

        source = {**self.pretrained_cfg, "state_dict": dict(tensors)}
        options = {"pretrained_model_args": dict(self.model_args)} if self.model_args else {}
        try:
            with torch.device("meta") if meta else SkipInit(loading=True):
                model = build(self.name, {**options, **self.model_args}, pretrained_cfg=source, pretrained=True)
        except UsageError as error:
            cause = error.__cause__
            reason = str(cause).strip().replace("\n\t", " ").partition("\n")[0] or type(cause).__name__
            raise UntrustedInputError(subject, f"timm cannot load it: {reason[:300]}", hint=MISMATCH) from error
        return {name: tensor.detach() for name, tensor in model.state_dict().items()}


@cache
def _sizes(name: str, arguments: str = "{}", pretrained_cfg: str = "null") -> dict[str, int]:
    """Return the bytes that a network takes beside its weights; timm's own network without arguments."""
    import torch
    from timm.data import resolve_input_data_config  # type: ignore[attr-defined]  # lacks a re-export
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class LargestOutput(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            outputs = func(*args, **(kwargs or {}))
            for output in outputs if isinstance(outputs, list | tuple) else (outputs,):
                if isinstance(output, torch.Tensor):
                    largest = max(largest, output.numel() * output.element_size())
            return outputs

    with torch.device("meta"):
        model = build(name, json.loads(arguments), pretrained_cfg=json.loads(pretrained_cfg))
        images = torch.empty(1, *resolve_input_data_config(model)["input_size"])
    # Some networks need numbers that are not there on the meta device; their outputs until then count.
    with suppress(*TIMM_ERRORS), torch.no_grad(), LargestOutput():  # type: ignore[no-untyped-call]
        model(images)
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    return {"buffers": buffers, "activations for one image": largest}


@contextmanager
def _limit_modules() -> Iterator[None]:
    """Stop a constructor that adds layers without end."""
    from torch.nn.modules.module import register_module_module_registration_hook

    count = 0

    def add(*_: object) -> None:
        nonlocal count
        count += 1
        if count > _MAX_MODULES:
            raise UsageError("", f"its arguments ask for more than {_MAX_MODULES:,} layers")

    hook = register_module_module_registration_hook(add)
    try:
        yield
    finally:
        hook.remove()
