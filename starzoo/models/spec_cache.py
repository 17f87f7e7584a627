"""A cache of permutation specifications, one per architecture.

A specification depends on the architecture with its arguments and input size, on timm and torch, and on the rules that
found it. The name of its file is a hash of all of them, so that nothing in the cache is ever out of date.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path

import starzoo.symmetry
from starzoo.errors import StarzooError
from starzoo.files import cache_folder, write_text
from starzoo.models.architecture import Architecture
from starzoo.symmetry import PermutationSpec, infer

__all__ = ["cached_spec", "spec_cache_version"]


def cached_spec(architecture: Architecture, *, pin_output: bool = True) -> PermutationSpec:
    """Return the permutation symmetries of an architecture, from the cache if it was traced before."""
    path = cache_folder("specs") / f"{architecture.name}-{_key(architecture, pin_output)}.json"
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, StarzooError):
        return _read(path)  # unless it is missing or damaged
    spec = infer(architecture.build_uninitialized(), architecture.example_input(), pin_output=pin_output)
    with suppress(StarzooError):  # a cache that cannot be written costs a trace each time
        write_text(path, json.dumps(spec.to_json(), separators=(",", ":")))
    return spec


def _read(path: Path) -> PermutationSpec:
    spec = PermutationSpec.from_json(json.loads(path.read_text(encoding="utf-8")))
    if not sum(term.size for terms in spec.axes.values() for term in terms):
        raise ValueError("it has no axes")
    return spec


def _key(architecture: Architecture, pin_output: bool) -> str:
    inputs = [
        architecture.name,
        architecture.num_classes,
        architecture.model_args,
        architecture.preprocessing.input_size,
        pin_output,
        spec_cache_version(),
    ]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:24]


@cache
def spec_cache_version() -> str:
    """Return the versions of timm and torch, and a hash of the rules and of how a network is built."""
    digest = hashlib.sha256()
    rules = Path(starzoo.symmetry.__file__).parent
    networks = [Path(__file__).with_name(f"{name}.py") for name in ("architecture", "timm_registry", "skip_init")]
    for path in (*sorted(rules.rglob("*.py")), *networks):  # the networks decide what buffers hold
        digest.update(path.read_bytes())
    return f"timm {version('timm')}, torch {version('torch')}, rules {digest.hexdigest()[:12]}"
