"""A cache of permutation specifications, one per architecture.

A specification depends on the architecture with its arguments and input size, on timm and torch, and on the rules that
found it. All of them make up the name of its file: nothing in the cache is ever out of date, and it may be deleted at
any time.
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
from starzoo.files import cache_folder
from starzoo.models.architecture import Architecture
from starzoo.models.timm_folder import write_text
from starzoo.symmetry import PermutationSpec, infer

__all__ = ["cached_spec", "spec_cache_version"]


def cached_spec(architecture: Architecture, *, pin_output: bool = True) -> PermutationSpec:
    """The permutation symmetries of an architecture, from the cache if it was traced before."""
    path = cache_folder("specs") / f"{architecture.name}-{_key(architecture, pin_output)}.json"
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, StarzooError):
        return _read(path)  # unless it is not there, or damaged
    spec = infer(architecture.build_uninitialized(), architecture.example_input(), pin_output=pin_output)
    with suppress(StarzooError):  # a home that cannot be written costs a trace each time, and nothing else
        write_text(path, json.dumps(spec.to_json(), separators=(",", ":")))
    return spec


def _read(path: Path) -> PermutationSpec:
    spec = PermutationSpec.from_json(json.loads(path.read_text(encoding="utf-8")))
    if not sum(term.size for terms in spec.axes.values() for term in terms):
        raise ValueError("it says nothing of any tensor")
    return spec


def _key(architecture: Architecture, pin_output: bool) -> str:
    what = [
        architecture.name,
        architecture.num_classes,
        architecture.model_args,
        architecture.preprocessing.input_size,
        pin_output,
        spec_cache_version(),
    ]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:24]


@cache
def spec_cache_version() -> str:
    """What found the symmetries: timm, torch, and a hash of the rules and of how a network is made."""
    digest = hashlib.sha256()
    rules = Path(starzoo.symmetry.__file__).parent
    networks = [Path(__file__).with_name(f"{name}.py") for name in ("architecture", "timm_config", "skip_init")]
    for path in (*sorted(rules.rglob("*.py")), *networks):  # the networks decide what buffers hold
        digest.update(path.read_bytes())
    return f"timm {version('timm')}, torch {version('torch')}, rules {digest.hexdigest()[:12]}"
