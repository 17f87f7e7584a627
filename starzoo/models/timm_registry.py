"""Look up and build networks by their names in timm."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starzoo.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["TIMM_ERRORS", "TIMM_NAME", "build", "registry_entry", "resolve_name"]

TIMM_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError),
    *(MemoryError, RuntimeError, TypeError, ValueError),
)
"""What timm's constructors and filters raise for arguments that they do not expect."""

TIMM_NAME = re.compile(r"[A-Za-z0-9_]{1,120}(\.[\w.-]{1,120})?", re.ASCII)


def resolve_name(name: str) -> tuple[str, str]:
    """Return the current name of an architecture, and the tag of pretrained weights in the name or empty."""
    import timm

    listing = "see timm.list_models() for the names"
    architecture, tag = timm.models.split_model_name_tag(name) if TIMM_NAME.fullmatch(name) else ("", "")
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


def registry_entry(name: str) -> Any:
    """Return what timm's registry knows about an architecture, or about one of its tags."""
    import timm

    architecture, tag = resolve_name(name)
    try:
        return timm.get_pretrained_cfg(f"{architecture}.{tag}" if tag else architecture, allow_unregistered=False)
    except RuntimeError as error:
        tags = ", ".join(timm.models.get_arch_pretrained_cfgs(architecture)) or "none"
        raise UsageError(name, f"{error}", hint=f"timm knows the tags {tags}") from error


def build(name: str, arguments: Mapping[str, Any], **options: Any) -> nn.Module:
    """Build a network as `timm.create_model` does, in evaluation mode."""
    import timm

    try:
        model: nn.Module = timm.models.model_entrypoint(name)(**{"pretrained": False, **options}, **arguments)
    except TIMM_ERRORS as error:
        shown = {key: value for key, value in arguments.items() if key != "pretrained_model_args"}
        raise UsageError(
            name,
            f"timm cannot build it with {shown}: {str(error) or type(error).__name__}",
            hint="see timm.list_models() for names and the model's page for arguments",
        ) from error
    return model.eval()
