"""Read config.json as timm does.

timm itself parses the file, builds the network and loads the tensors. What stands here decides what of a stranger's
file may reach timm: no pointer to other weights, no other loader, no value that is not small and plain.
"""

from __future__ import annotations

import inspect
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NoReturn, Self

from starzoo.errors import UntrustedInputError, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["TimmConfig", "build", "resolve_name", "sizes_of"]

_NAME = re.compile(r"[A-Za-z0-9_]{1,120}(\.[\w.-]{1,120})?", re.ASCII)
_INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos", "box", "hamming")  # no "random": only for training
_CROP_MODES = ("center", "squash", "border")
_ROOT = frozenset({
    "architecture", "num_classes", "num_features", "global_pool", "label_names", "label_descriptions", "model_args",
    "pretrained_cfg",
})  # fmt: skip
_LOCATORS = ("url", "file", "source", "hf_hub_id", "hf_hub_filename")
"""Keys that point timm to other weights. They are never followed: the file beside config.json is what is loaded."""

_WITH_WEIGHTS: Mapping[str, Mapping[str, Any]] = {"fbnetc_100": {"bn_eps": 1e-3}}
"""Arguments that timm gives to a network only when it loads weights into it."""

_LARGEST_NUMBER = 65_536
_MOST_MODULES = 30_000  # the largest network of timm has 7,000
_MOST_CLASSES = 1_000_000
_MOST_BYTES = 500_000_000  # of buffers, and of one tensor of activations for one image; more where timm's own has it
_LARGE_HINT = "correct its input size, window size or kernel sizes in config.json"
_FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)  # of timm's constructors and filters
_HINT = "export the model again with timm.models.save_for_hf, or ask its author to"

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
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            _refuse(subject, f"architecture {str(name)[:60]!r} is not a name of a timm model")
        for section in ("pretrained_cfg", "model_args"):
            if not isinstance(config.get(section, {}), dict):
                _refuse(subject, f"{section}: expected an object, got {type(config[section]).__name__}")
        if "pretrained_cfg" in config and (unread := sorted(set(config) - _ROOT)):
            _logger.debug("%s: config.json: keys that timm does not read: %s", subject, ", ".join(unread)[:200])
        with TemporaryDirectory(prefix="starzoo-") as folder:
            Path(folder, "config.json").write_text(json.dumps(config), encoding="utf-8")
            try:
                pretrained, _, arguments = load_model_config_from_path(folder)
                pretrained, arguments = dict(pretrained), dict(arguments)
            except _FAILURES as error:
                reason = f"timm cannot read it: {type(error).__name__}: {str(error)[:100]}"
                _refuse(subject, reason)
        stated = config.get("pretrained_cfg", config)  # where `file` and `source` are not yet those of the copy
        ignored = [key for key in _LOCATORS if stated.get(key)]
        if ignored:
            _logger.warning("%s: config.json points to other weights (%s): not followed", subject, ", ".join(ignored))
        _check_pretrained(pretrained, subject)
        _check_arguments(arguments, subject)
        try:
            current, _ = resolve_name(name)
        except UsageError as error:
            _refuse(subject, error.message, error.hint)
        followed = {key: value for key, value in pretrained.items() if key not in _LOCATORS}
        return cls(current, followed, {**_WITH_WEIGHTS.get(current, {}), **arguments})

    def build(self, subject: str) -> nn.Module:
        """Build the network on the meta device: shapes without memory."""
        import torch

        try:
            with torch.device("meta"), _bounded():
                model = build(self.name, self.model_args, pretrained_cfg=dict(self.pretrained_cfg))
        except UsageError as error:
            _refuse(subject, error.message)
        sizes = _sizes(self.name, json.dumps(self.model_args), json.dumps(self.pretrained_cfg, default=str))
        for what, size in sizes.items():
            if size > _MOST_BYTES and size > 4 * _sizes(self.name)[what]:
                _refuse(subject, f"its {what} would take {size / 1e9:,.1f} GB", _LARGE_HINT)
        return model

    def load(self, tensors: Mapping[str, Tensor], subject: str, *, meta: bool = False) -> dict[str, Tensor]:
        """Let timm load tensors as it loads a pretrained file: filter, rename, resample, cut, and compare strictly."""
        import torch

        from starzoo.models.skip_init import SkipInit

        source = {**self.pretrained_cfg, "state_dict": dict(tensors)}
        more = {"pretrained_model_args": dict(self.model_args)} if self.model_args else {}
        try:
            with torch.device("meta") if meta else SkipInit(loading=True):
                model = build(self.name, {**more, **self.model_args}, pretrained_cfg=source, pretrained=True)
        except UsageError as error:
            reason = str(error.__cause__).strip().replace("\n\t", " ").splitlines() or [type(error.__cause__).__name__]
            raise UntrustedInputError(
                subject,
                f"timm cannot load it: {reason[0][:300]}",
                hint="config.json and weights do not belong together",
            ) from error
        return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def resolve_name(name: str) -> tuple[str, str]:
    """The architecture that timm takes a name for."""
    import timm

    listing = "see timm.list_models() for the names"
    architecture, tag = timm.models.split_model_name_tag(name) if _NAME.fullmatch(name) else ("", "")
    deprecated = timm.models.get_deprecated_models()
    if architecture in deprecated:
        current = deprecated[architecture]
        if current is None:
            raise UsageError(name, "timm has removed this architecture", hint=listing)
        architecture, current_tag = timm.models.split_model_name_tag(current)
        tag = tag or current_tag
    if not timm.is_model(architecture):
        hint = f"{listing}; timm {timm.__version__} is installed, a newer one may know it"
        raise UsageError(name[:120], "timm does not know this architecture", hint=hint)
    return architecture, tag


def build(name: str, arguments: Mapping[str, Any], **more: Any) -> nn.Module:
    """Build a network as `timm.create_model` does, in evaluation mode."""
    import timm

    try:
        model: nn.Module = timm.models.model_entrypoint(name)(**{"pretrained": False, **more}, **arguments)
    except _FAILURES as error:
        shown = {key: value for key, value in arguments.items() if key != "pretrained_model_args"}
        raise UsageError(
            name,
            f"timm cannot build it with {shown}: {str(error) or type(error).__name__}",
            hint="see timm.list_models() for names and the model's page for arguments",
        ) from error
    return model.eval()


def sizes_of(model: nn.Module) -> dict[str, int]:
    """What a network takes beside its weights, judged on the meta device."""
    import torch
    from timm.data import resolve_input_data_config  # type: ignore[attr-defined]  # lacks a re-export
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            made = func(*args, **(kwargs or {}))
            for each in made if isinstance(made, list | tuple) else (made,):
                if isinstance(each, torch.Tensor):
                    largest = max(largest, each.numel() * each.element_size())
            return made

    size = resolve_input_data_config(model)["input_size"]
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    # Some networks compute with numbers that are not there on the meta device; what they made until then counts.
    with suppress(*_FAILURES), torch.no_grad(), Watch():  # type: ignore[no-untyped-call]
        model.eval()(torch.empty(1, *size, device="meta"))
    return {"buffers": buffers, "activations for one image": largest}


@cache
def _sizes(name: str, arguments: str = "{}", pretrained_cfg: str = "null") -> dict[str, int]:
    """`sizes_of` a network, measured once for all models that share it; timm's own without arguments."""
    import torch

    with torch.device("meta"):
        return sizes_of(build(name, json.loads(arguments), pretrained_cfg=json.loads(pretrained_cfg)))


@contextmanager
def _bounded() -> Iterator[None]:
    """Stop a constructor that adds layers without end."""
    from torch.nn.modules.module import register_module_module_registration_hook

    count = 0

    def add(*_: object) -> None:
        nonlocal count
        count += 1
        if count > _MOST_MODULES:
            raise UsageError("", f"its arguments ask for more than {_MOST_MODULES:,} layers")

    hook = register_module_module_registration_hook(add)
    try:
        yield
    finally:
        hook.remove()


@cache
def _reserved_arguments() -> frozenset[str]:
    """Arguments that timm's builders take for themselves: they choose a loader or a file, not a network."""
    import timm

    builders = (timm.create_model, timm.models.build_model_with_cfg)
    taken = {name for builder in builders for name in inspect.signature(builder).parameters} - {"kwargs"}
    return frozenset({*taken, "device", "dtype", "feature_cls", "features_only", "out_indices", "pruned"})


@cache
def _pretrained_keys() -> frozenset[str]:
    from timm.models import PretrainedCfg

    return frozenset(field.name for field in fields(PretrainedCfg)) - {"state_dict"}  # which would be weights


def _check_arguments(arguments: Mapping[str, Any], subject: str) -> None:
    for key, value in arguments.items():
        if key in _reserved_arguments():
            _refuse(subject, f"model_args.{key} is not allowed")
        if not _is_plain(value) or not _is_plain(key):
            _refuse(subject, f"model_args.{key[:60]} has the value {str(value)[:60]}")


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Whether a value is a bounded number, a short word, or a small list or table of such."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        return depth < 3 and len(value) <= 64 and all(_is_plain(item, depth + 1) for item in value)
    if isinstance(value, str):
        return len(value) <= 60 and not set("/\\:") & set(value)
    return value is None or (isinstance(value, bool | int | float) and abs(value) <= _LARGEST_NUMBER)


def _check_pretrained(pretrained: Mapping[str, Any], subject: str) -> None:
    """Refuse loaders, impossible preprocessing and impossible classes."""
    for key in pretrained:
        if key not in _pretrained_keys():
            _refuse(subject, f"pretrained_cfg.{key[:60]} is not allowed")
    file = pretrained.get("hf_hub_filename")
    if file is not None and (not isinstance(file, str) or ".." in file or file.startswith("/")):
        _refuse(subject, f"pretrained_cfg.hf_hub_filename {str(file)[:60]!r} is not a file of the repository")
    if pretrained.get("custom_load") == "hf":  # any other value loads nothing else from a folder or the Hub
        _refuse(subject, "pretrained_cfg.custom_load 'hf' asks for another loader")
    problems: dict[str, Callable[[Any], bool]] = {
        "input_size": lambda value: _are_numbers(value, int, 1, 16_384) and len(value) == 3,
        "mean": lambda value: _are_numbers(value, (int, float), -1e6, 1e6),
        "std": lambda value: _are_numbers(value, (int, float), 1e-9, 1e6),
        "interpolation": lambda value: value in _INTERPOLATIONS,
        "crop_mode": lambda value: value in _CROP_MODES,
        "crop_pct": lambda value: _are_numbers([value], (int, float), 0.01, 10),
        "num_classes": lambda value: type(value) is int and 0 <= value <= _MOST_CLASSES,
    }
    for key, fits in problems.items():
        value, where = pretrained.get(key), "" if key == "num_classes" else "pretrained_cfg."
        if key in pretrained and not fits(value) and (value is not None or key == "num_classes"):
            _refuse(subject, f"{where}{key} is {str(value)[:60]}")


def _are_numbers(value: Any, kind: type | tuple[type, ...], low: float, high: float) -> bool:
    return (
        isinstance(value, list | tuple)
        and 1 <= len(value) <= 64
        and all(isinstance(item, kind) and not isinstance(item, bool) for item in value)
        and all(low <= item <= high for item in value)
    )


def _refuse(subject: str, reason: str, hint: str = _HINT) -> NoReturn:
    raise UntrustedInputError(subject, f"config.json: {reason}", hint=hint)
