"""Which timm model: its name, arguments and preprocessing, as a value that builds the module and its config.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from starzoo.config import Frozen
from starzoo.errors import UntrustedInputError, UsageError
from starzoo.hub.allowlist import check_config

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Architecture", "Preprocessing", "number_among", "registry_entry"]


class Preprocessing(Frozen):
    """What happens to an image before the model sees it: timm's data configuration.

    Attributes:
        input_size: (channels, height, width) in pixels.
        mean: Subtracted from every channel, on the scale 0 to 1.
        std: Every channel is divided by it, on the scale 0 to 1.
        interpolation: Resampling filter, by timm's name.
        crop_pct: Share of the resized image that the centre crop keeps.
        crop_mode: timm's crop mode.
    """

    input_size: tuple[int, int, int] = (3, 224, 224)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "center"


class Architecture(Frozen):
    """One timm architecture with everything that decides its shapes and its input.

    Attributes:
        name: The name that `timm.create_model` takes, without a pretrained tag.
        num_classes: Number of outputs.
        model_args: Further JSON arguments of `timm.create_model`.
        preprocessing: The image transform that belongs to the weights.
        label_names: One name per class, in the order of the outputs, or None when unknown.
    """

    name: str
    num_classes: int = Field(ge=0)
    model_args: dict[str, Any] = {}
    preprocessing: Preprocessing = Preprocessing()
    label_names: tuple[str, ...] | None = None

    @classmethod
    def from_registry(
        cls, name: str, *, model_args: Mapping[str, Any] | None = None, image_size: int | None = None
    ) -> Architecture:
        """An architecture of timm with its own classes and preprocessing.

        Args:
            name: The name that `timm.create_model` takes, without a pretrained tag.
            model_args: Further JSON arguments of `timm.create_model`.
            image_size: Height and width in pixels; timm's own when not given.

        Returns:
            The architecture.

        Raises:
            UsageError: timm does not know the name, or the number of channels or classes is none.
        """
        registry = registry_entry(name)
        arguments = dict(model_args or {})
        channels, height, width = registry.input_size
        classes = number_among(name, arguments, "num_classes")
        arguments.pop("num_classes", None)
        size = (image_size, image_size) if image_size else (height, width)
        if registry.fixed_input_size and size != (height, width):
            arguments.setdefault("img_size", list(size))
        return cls(
            name=name,
            num_classes=registry.num_classes if classes is None else classes,
            model_args=arguments,
            preprocessing=Preprocessing(input_size=(number_among(name, arguments, "in_chans") or channels, *size)),
        )

    def build(self) -> nn.Module:
        """Make the model with fresh random weights, in evaluation mode.

        Returns:
            The module, on the current default device.

        Raises:
            UsageError: timm does not know the name or refuses the arguments.
        """
        import timm

        try:
            model: nn.Module = timm.create_model(
                self.name, pretrained=False, num_classes=self.num_classes, **self.model_args
            )
        except (
            ArithmeticError,
            AssertionError,
            AttributeError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            raise UsageError(
                f"{self.name}: timm cannot build it with {self.model_args}: {error}",
                hint="see timm.list_models() for names and the model's page for arguments",
                subject=self.name,
            ) from error
        return model.eval()

    def build_blank(self) -> nn.Module:
        """Make the model without writing its weights: what a trace of its symmetries needs, at any size.

        Returns:
            The module on the CPU, with buffers as they should be and parameters that hold anything.
        """
        from starzoo.blank import BlankWeights

        with BlankWeights():
            return self.build()

    def build_meta(self) -> nn.Module:
        """Make the model on the meta device: shapes without memory.

        Returns:
            The module on the meta device.
        """
        import torch

        with torch.device("meta"):
            return self.build()

    def example_input(self) -> torch.Tensor:
        """A zero image batch of the model's input size, shape (1, channels, height, width)."""
        import torch

        return torch.zeros(1, *self.preprocessing.input_size)

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor of the state dict, by name."""
        return {name: tuple(tensor.shape) for name, tensor in self.build_meta().state_dict().items()}

    @cached_property
    def integer_tensors(self) -> frozenset[str]:
        """The tensors of the state dict that do not hold floating-point numbers, such as batch counters."""
        state = self.build_meta().state_dict()
        return frozenset(name for name, tensor in state.items() if not tensor.is_floating_point())

    def config(self, **extra: Any) -> dict[str, Any]:
        """The config.json of a folder or repository that plain timm loads.

        `pretrained_cfg` holds what these weights need and nothing that timm's registry says about other weights of
        the same architecture (tag, licence, paper, origin, test-time size).

        Args:
            **extra: Further keys of the root, which timm ignores.

        Returns:
            A JSON value that `from_config` reads back.

        Raises:
            UsageError: The model has a fixed input size that is not the one of `preprocessing`.
        """
        model = self.build_meta()
        registry: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
        fixed = bool(registry.get("fixed_input_size")) and not _is_flexible(self.model_args, model)
        size = _image_size(self.model_args.get("img_size"), registry["input_size"][1:])
        if fixed and size != self.preprocessing.input_size[1:]:
            raise UsageError(
                f"{self.name}: built for images of {size[0]}x{size[1]} pixels, but its preprocessing makes "
                f"{'x'.join(map(str, self.preprocessing.input_size[1:]))}",
                hint='give model_args {"img_size": ...} the size of the preprocessing',
                subject=self.name,
            )
        preprocessing = self.preprocessing.model_dump(mode="json")
        config: dict[str, Any] = {
            "architecture": self.name,
            "num_classes": self.num_classes,
            "num_features": getattr(model, "num_features", None),
            "global_pool": _global_pool(model),
            "model_args": self.model_args,
            "label_names": list(self.label_names) if self.label_names else None,
            "pretrained_cfg": {
                **preprocessing,
                "fixed_input_size": fixed,
                "num_classes": self.num_classes,
                "first_conv": registry.get("first_conv"),
                "classifier": registry.get("classifier"),
            },
            **extra,
        }
        return {key: value for key, value in config.items() if value is not None and value != {}}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], subject: str) -> Architecture:
        """Read a config.json, which may come from a stranger.

        Arguments that only repeat timm's default are dropped, so that two exports of one architecture are equal.

        Args:
            config: The parsed file.
            subject: The folder or repository, for messages.

        Returns:
            The architecture.

        Raises:
            UntrustedInputError: A key or value is not allowed, or timm cannot build the model.
        """
        check_config(config, subject)
        try:
            architecture = _parse_config(config, subject)
            architecture = _without_default_pool(architecture)
            _ = architecture.shapes
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UntrustedInputError(
                f"{subject}: config.json: {where}: {first['msg']}",
                hint="the file is not a timm config",
                subject=subject,
            ) from error
        except UsageError as error:
            raise UntrustedInputError(
                f"{subject}: config.json: {error.message}", hint=error.hint, subject=subject
            ) from error
        return architecture


def _without_default_pool(architecture: Architecture) -> Architecture:
    """The same architecture without naming its pooling, where that is timm's default."""
    pool = architecture.model_args.get("global_pool")
    default = architecture.model_copy(update={"model_args": _without(architecture.model_args, "global_pool")})
    try:
        return default if pool is not None and _global_pool(default.build_meta()) == pool else architecture
    except UsageError:  # its other arguments need this pooling: a ViT without a class token
        return architecture


def number_among(name: str, arguments: Mapping[str, Any], argument: Literal["in_chans", "num_classes"]) -> int | None:
    """How many input channels or classes arguments of `timm.create_model` ask for.

    Args:
        name: The network, for the message.
        arguments: The arguments.
        argument: Which of them.

    Returns:
        The number, or None where it is not among them.

    Raises:
        UsageError: It is no such number.
    """
    number, least = arguments.get(argument), 1 if argument == "in_chans" else 0  # without classes there is no head
    if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < least):
        what = "channels" if argument == "in_chans" else "classes"
        raise UsageError(
            f"{name}: {argument}={number!r} is no number of {what}", hint=f"give a number from {least} on", subject=name
        )
    return number


def registry_entry(name: str) -> Any:
    """What timm's registry knows about an architecture.

    Args:
        name: The name without a pretrained tag.

    Returns:
        timm's pretrained configuration: classes, input size, whether the input size is fixed.

    Raises:
        UsageError: timm has no such architecture.
    """
    import timm

    found = timm.get_pretrained_cfg(name, allow_unregistered=False) if timm.is_model(name) and "." not in name else None
    if found is None:
        raise UsageError(f"{name}: no architecture of timm", hint="see timm.list_models(), without tags", subject=name)
    return found


def _parse_config(config: Mapping[str, Any], subject: str) -> Architecture:
    """What `config` says, in the words of `Architecture`; its keys are already checked."""
    import timm
    from timm.models import PretrainedCfg

    name = config["architecture"]
    registry = timm.get_pretrained_cfg(name, allow_unregistered=False) if timm.is_model(name) else None
    if registry is None:
        raise UntrustedInputError(
            f"{subject}: config.json names the architecture {name!r}, which this timm does not know",
            hint=f"timm {timm.__version__} is installed; a newer one may know it",
            subject=subject,
        )
    given = PretrainedCfg(**config["pretrained_cfg"])
    for key in ("first_conv", "classifier"):
        value = config["pretrained_cfg"].get(key)
        if value is not None and _plain(value) != _plain(getattr(registry, key)):
            raise UntrustedInputError(
                f"{subject}: config.json: pretrained_cfg.{key} is {value!r}, but {name} has {getattr(registry, key)!r}",
                hint="export the model again with timm",
                subject=subject,
            )
    arguments = _without(config.get("model_args") or {}, "num_classes")
    channels = arguments.pop("in_chans", given.input_size[0])
    if channels != registry.input_size[0]:
        arguments["in_chans"] = channels
    for key, numbers in (("mean", given.mean), ("std", given.std)):
        if len(numbers) not in {1, channels}:
            raise UntrustedInputError(
                f"{subject}: config.json: pretrained_cfg.{key} has {len(numbers)} numbers for {channels} channels",
                hint="give it one number for each channel",
                subject=subject,
            )
    size = tuple(given.input_size[1:])
    if given.fixed_input_size and not _is_flexible(arguments):
        size = _image_size(arguments.get("img_size"), size)
        arguments.setdefault("img_size", list(size))
    fixed = given.fixed_input_size or registry.fixed_input_size
    if fixed and _image_size(arguments.get("img_size"), (0, 0)) == tuple(registry.input_size[1:]):
        arguments.pop("img_size")  # the default
    num_classes = config.get("num_classes", given.num_classes)
    return Architecture(
        name=name,
        num_classes=num_classes,
        model_args=arguments,
        preprocessing=Preprocessing(
            input_size=(channels, *size),
            mean=tuple(given.mean),
            std=tuple(given.std),
            interpolation=given.interpolation,
            crop_pct=given.crop_pct,
            crop_mode=given.crop_mode,
        ),
        label_names=_label_names(config, num_classes),
    )


def _label_names(config: Mapping[str, Any], count: int) -> tuple[str, ...] | None:
    """The names in the order of the outputs; None when there are none, or when some output has no name."""
    names = config.get("label_names") or config["pretrained_cfg"].get("label_names")
    if isinstance(names, Mapping):
        names = [names[str(index)] for index in range(len(names)) if str(index) in names]
    return tuple(names) if names and len(names) == count else None


def _image_size(value: int | Sequence[int] | None, default: Sequence[int]) -> tuple[int, int]:
    height, width = (value, value) if isinstance(value, int) else (value or default)
    return height, width


def _is_flexible(arguments: Mapping[str, Any], model: nn.Module | None = None) -> bool:
    """Whether the arguments, or the model as timm built it, free a model of a fixed input size."""
    strict = getattr(getattr(model, "patch_embed", None), "strict_img_size", True)
    dynamic = getattr(model, "dynamic_img_size", False)
    return bool(arguments.get("dynamic_img_size", dynamic)) or not arguments.get("strict_img_size", strict)


def _without(arguments: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name != key}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _global_pool(model: nn.Module) -> str | None:
    """The pooling before the classifier, where the model tells it."""
    for owner in (getattr(model, "head", None), model):
        pool = getattr(owner, "global_pool", None)
        pool = getattr(pool, "pool_type", pool)
        if isinstance(pool, str) and pool:
            return pool
    return None
