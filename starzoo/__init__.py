"""starzoo: one star model for a zoo of independently trained timm models.

The public names below are imported on first use, so that `import starzoo` stays instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starzoo.alignment import align_models as align_models
    from starzoo.architecture import Architecture as Architecture
    from starzoo.architecture import Preprocessing as Preprocessing
    from starzoo.config import RunConfig as RunConfig
    from starzoo.config import load_config as load_config
    from starzoo.errors import StarzooError as StarzooError
    from starzoo.evaluate.measures import Evaluation as Evaluation
    from starzoo.hub.pull import pull as pull
    from starzoo.hub.push import list_stars as list_stars
    from starzoo.inspection import inspect_model as inspect_model
    from starzoo.pipeline import evaluate_star as evaluate_star
    from starzoo.pipeline import fit_star as fit_star
    from starzoo.pipeline import publish_star as publish_star
    from starzoo.pipeline import quickstart as quickstart
    from starzoo.pipeline import render_card as render_card
    from starzoo.planning import plan_star as plan_star
    from starzoo.sources import Source as Source
    from starzoo.sources import load_source as load_source
    from starzoo.star.domain import StarDomain as StarDomain
    from starzoo.star.star import Star as Star
    from starzoo.star.star import load_star as load_star
    from starzoo.symmetry.permutation import Permutation as Permutation
    from starzoo.symmetry.spec import PermutationSpec as PermutationSpec
    from starzoo.using import join_star as join_star
    from starzoo.using import predict_images as predict_images
    from starzoo.verification import verify_star as verify_star
    from starzoo.zoo import architecture_for as architecture_for
    from starzoo.zoo import train_zoo as train_zoo

__version__ = "0.1.0"

_HOME = {
    "Architecture": "starzoo.architecture",
    "Evaluation": "starzoo.evaluate.measures",
    "Permutation": "starzoo.symmetry.permutation",
    "PermutationSpec": "starzoo.symmetry.spec",
    "Preprocessing": "starzoo.architecture",
    "RunConfig": "starzoo.config",
    "Source": "starzoo.sources",
    "Star": "starzoo.star.star",
    "StarDomain": "starzoo.star.domain",
    "StarzooError": "starzoo.errors",
    "align_models": "starzoo.alignment",
    "architecture_for": "starzoo.zoo",
    "evaluate_star": "starzoo.pipeline",
    "fit_star": "starzoo.pipeline",
    "inspect_model": "starzoo.inspection",
    "join_star": "starzoo.using",
    "list_stars": "starzoo.hub.push",
    "load_config": "starzoo.config",
    "load_source": "starzoo.sources",
    "load_star": "starzoo.star.star",
    "plan_star": "starzoo.planning",
    "predict_images": "starzoo.using",
    "pull": "starzoo.hub.pull",
    "publish_star": "starzoo.pipeline",
    "quickstart": "starzoo.pipeline",
    "render_card": "starzoo.pipeline",
    "train_zoo": "starzoo.zoo",
    "verify_star": "starzoo.verification",
}

__all__ = [
    "Architecture",
    "Evaluation",
    "Permutation",
    "PermutationSpec",
    "Preprocessing",
    "RunConfig",
    "Source",
    "Star",
    "StarDomain",
    "StarzooError",
    "__version__",
    "align_models",
    "architecture_for",
    "evaluate_star",
    "fit_star",
    "inspect_model",
    "join_star",
    "list_stars",
    "load_config",
    "load_source",
    "load_star",
    "plan_star",
    "predict_images",
    "publish_star",
    "pull",
    "quickstart",
    "render_card",
    "train_zoo",
    "verify_star",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'starzoo' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
