"""A timm architecture with its arguments and preprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, Self

from pydantic import Field, ValidationError

from starzoo.config import FrozenModel
from starzoo.data.preprocessing import Preprocessing
from starzoo.errors import UntrustedInputError, UsageError
from starzoo.models.network import Network
from starzoo.models.timm_config import TimmConfig
from starzoo.models.timm_registry import build, registry_entry, resolve_name

if TYPE_CHECKING:
    import torch
    from torch import nn

    from starzoo.symmetry.spec import PermutationSpec

__all__ = ["INPUT_FIELDS", "Architecture", "HasArchitecture", "number_among"]

INPUT_FIELDS = ("input_size", "mean", "std")
"""Fields of the preprocessing that decide the tensor which the network sees."""


class Architecture(FrozenModel):
    """One timm architecture with everything that decides its shapes and its input.

    Attributes:
        name: Its current name in timm, without a pretrained tag.
        num_classes: Number of outputs; 0 where it has no classifier.
        model_args: Further JSON arguments of `timm.create_model`.
        preprocessing: The image transform that belongs to the weights.
        label_names: One name per class, in the order of the outputs, or None when unknown.
    """

    name: str
    num_classes: int = Field(ge=0)
    model_args: dict[str, Any] = {}
    preprocessing: Preprocessing = Preprocessing()
    label_names: tuple[Annotated[str, Field(max_length=1000)], ...] | None = None

    @classmethod
    def from_registry(
        cls, name: str, *, model_args: Mapping[str, Any] | None = None, image_size: int | None = None
    ) -> Architecture:
        """Return an architecture of timm with its own classes and preprocessing.

        Args:
            name: The name that `timm.create_model` takes: with a tag, the classes and the input size are the tag's.
            model_args: Further JSON arguments of `timm.create_model`.
            image_size: Height and width in pixels; timm's own when not given.

        Returns:
            The architecture.

        Raises:
            UsageError: timm does not know the name, or the number of channels or classes is impossible.
        """
        registry = registry_entry(name)
        current, _ = resolve_name(name)
        arguments = dict(model_args or {})
        channels, height, width = registry.input_size
        classes = number_among(name, arguments, "num_classes")
        arguments.pop("num_classes", None)
        size = (image_size, image_size) if image_size else (height, width)
        if registry.fixed_input_size and size != tuple(registry_entry(current).input_size[1:]):
            arguments.setdefault("img_size", list(size))
        return cls(
            name=current,
            num_classes=registry.num_classes if classes is None else classes,
            model_args=arguments,
            preprocessing=Preprocessing(input_size=(number_among(name, arguments, "in_chans") or channels, *size)),
        )

    def build(self) -> nn.Module:
        """Build the model with random weights, in evaluation mode.

        Returns:
            The module, on the current default device.
        """
        return build(self.name, {"num_classes": self.num_classes, **self.model_args})

    def build_uninitialized(self) -> nn.Module:
        """Build the model without initializing its parameters, as a trace of its symmetries needs it, at any size.

        Returns:
            The module on the CPU, with initialized buffers.
        """
        from starzoo.models.skip_init import SkipInit

        with SkipInit():
            return self.build()

    def build_meta(self) -> nn.Module:
        """Build the model on the meta device: shapes without memory.

        Returns:
            The module on the meta device.
        """
        import torch

        with torch.device("meta"):
            return self.build()

    def example_input(self) -> torch.Tensor:
        """Return a batch of one zero image, shape (1, channels, height, width)."""
        import torch

        return torch.zeros(1, *self.preprocessing.input_size)

    @cached_property
    def network(self) -> Network:
        """Its layers and tensors: architectures with equal ones compute the same function of their weights."""
        return Network.describe(self.build_meta())

    @cached_property
    def spec(self) -> PermutationSpec:
        """Its permutation symmetries, traced once per machine."""
        from starzoo.models.spec_cache import cached_spec

        return cached_spec(self)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor of the state dict, by name."""
        return self.network.shapes

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy it with other values; `network` and `spec` are computed again where they may differ."""
        copy = super().model_copy(update=update, deep=deep)
        for name in {"network", "spec"} if set(update or ()) - {"label_names"} else ():
            copy.__dict__.pop(name, None)
        return copy

    def config(self, **extra: Any) -> dict[str, Any]:
        """Return the config.json of a folder or repository that plain timm loads.

        `pretrained_cfg` leaves out what timm's registry says about other weights of the same architecture (tag,
        license, paper, origin, test-time size).

        Args:
            **extra: Further keys of the root, that timm ignores.

        Returns:
            A JSON value that `from_config` reads back.

        Raises:
            UsageError: The model has a fixed input size that is not the one of `preprocessing`.
        """
        from timm.data import resolve_input_data_config  # type: ignore[attr-defined]  # lacks a re-export

        model = self.build_meta()
        registry: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
        size = tuple(resolve_input_data_config(model, pretrained_cfg=self._pretrained_cfg(registry))["input_size"][1:])
        if size != self.preprocessing.input_size[1:]:
            raise UsageError(
                self.name,
                f"built for images of {size[0]}x{size[1]} pixels, but its preprocessing makes "
                f"{'x'.join(map(str, self.preprocessing.input_size[1:]))}",
                hint='give model_args {"img_size": ...} the size of the preprocessing',
            )
        config: dict[str, Any] = {
            "architecture": self.name,
            "num_classes": self.num_classes,
            "num_features": getattr(model, "num_features", None),
            "global_pool": _global_pool(model),
            "model_args": self.model_args,
            "label_names": list(self.label_names) if self.label_names else None,
            "pretrained_cfg": self._pretrained_cfg(registry),
            **extra,
        }
        return {key: value for key, value in config.items() if value is not None and value != {}}

    def _pretrained_cfg(self, registry: Mapping[str, Any]) -> dict[str, Any]:
        accepts_any_size = self.model_args.get("dynamic_img_size") or not self.model_args.get("strict_img_size", True)
        return {
            **self.preprocessing.model_dump(mode="json"),
            "fixed_input_size": bool(registry.get("fixed_input_size")) and not accepts_any_size,
            "num_classes": self.num_classes,
            "first_conv": registry.get("first_conv"),
            "classifier": registry.get("classifier"),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], subject: str, *, image_size: int | None = None) -> Architecture:
        """Read a stranger's config.json, written by any version of timm, as timm reads it.

        Args:
            config: The parsed file.
            subject: The folder or repository, for messages.
            image_size: Height and width in pixels, in place of those that the file states.

        Returns:
            The architecture.

        Raises:
            UntrustedInputError: A key or value is not allowed, timm cannot build the model, or two values of the file
                contradict each other.
        """
        stated = TimmConfig.parse(config, subject).at_size(image_size)
        model = stated.build(subject)
        built = getattr(model, "num_classes", stated.num_classes)
        if built != stated.num_classes:
            raise UntrustedInputError(
                subject,
                f"config.json: class counts disagree: num_classes = {stated.num_classes}, but its arguments "
                f"build a classifier of {built}",
                hint="ask its author which is right, and correct it in config.json",
            )
        try:
            architecture = cls._of_model(model, stated)
            same = architecture.network == Network.describe(model)
        except (UsageError, ValidationError, ValueError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise UntrustedInputError(
                subject, f"config.json: {reason}", hint="the file is not a timm config"
            ) from error
        if not same:
            raise UntrustedInputError(
                subject,
                "config.json: timm builds another network from its pretrained_cfg than from its arguments",
                hint="export the model again with timm, with all its arguments in model_args",
            )
        return architecture

    @classmethod
    def _of_model(cls, model: nn.Module, stated: TimmConfig) -> Architecture:
        """Return the architecture of a network that timm built from a config.json."""
        from timm.data import resolve_input_data_config  # type: ignore[attr-defined]  # lacks a re-export

        data = resolve_input_data_config(model)
        channels, *size = data["input_size"]
        registry = registry_entry(stated.name)
        arguments = {key: value for key, value in stated.model_args.items() if key != "num_classes"}
        if channels != registry.input_size[0]:
            arguments["in_chans"] = channels
        default = registry.fixed_input_size and size == list(registry.input_size[1:])
        if stated.pretrained_cfg.get("fixed_input_size") and not default:
            arguments.setdefault("img_size", size)
        return cls(
            name=stated.name,
            num_classes=stated.num_classes,
            model_args=arguments,
            preprocessing=Preprocessing(**data),
            label_names=_label_names(stated.pretrained_cfg.get("label_names"), stated.num_classes),
        )


class HasArchitecture(Protocol):
    """A model whose name and architecture are known."""

    @property
    def name(self) -> str:
        """Its name in messages."""

    @property
    def architecture(self) -> Architecture:
        """Its architecture."""


def number_among(name: str, arguments: Mapping[str, Any], argument: Literal["in_chans", "num_classes"]) -> int | None:
    """Return the number of input channels or classes among arguments of `timm.create_model`."""
    number, minimum = arguments.get(argument), 1 if argument == "in_chans" else 0  # without classes there is no head
    if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < minimum):
        unit = "channels" if argument == "in_chans" else "classes"
        raise UsageError(name, f"{argument}={number!r} is no number of {unit}", hint=f"give a number from {minimum} on")
    return number


def _label_names(names: Any, count: int) -> tuple[str, ...] | None:
    """Return the names in the order of the outputs, or None where an output has no name of its own."""
    if isinstance(names, Mapping):
        names = [names.get(str(index)) for index in range(len(names))]
    if not isinstance(names, list | tuple) or len(names) != count or not count:
        return None
    texts = [str(name) for name in names if isinstance(name, str | int)]
    if texts == [f"LABEL_{index}" for index in range(count)]:  # what timm 0.6 writes for unknown names
        return None
    return tuple(texts) if len(texts) == count and all(texts) else None


def _global_pool(model: nn.Module) -> str | None:
    """Return the pooling before the classifier, where the model has it as an attribute."""
    for owner in (getattr(model, "head", None), model):
        pool = getattr(owner, "global_pool", None)
        pool = getattr(pool, "pool_type", pool)
        if isinstance(pool, str) and pool:
            return pool
    return None
