"""starzoo: one star model for a zoo of independently trained timm models.

The public names below are imported on first use, so that `import starzoo` stays instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starzoo.config import RunConfig as RunConfig
    from starzoo.config import load_config as load_config
    from starzoo.data.preprocessing import Preprocessing as Preprocessing
    from starzoo.errors import StarzooError as StarzooError
    from starzoo.evaluate.results import Evaluation as Evaluation
    from starzoo.hub.upload import list_stars as list_stars
    from starzoo.models.architecture import Architecture as Architecture
    from starzoo.models.pull import pull as pull
    from starzoo.models.sources import Source as Source
    from starzoo.models.sources import load_source as load_source
    from starzoo.models.training import architecture_for as architecture_for
    from starzoo.models.training import train_zoo as train_zoo
    from starzoo.star.domain import StarDomain as StarDomain
    from starzoo.star.fit import ResumeOptions as ResumeOptions
    from starzoo.star.star import Star as Star
    from starzoo.star.star import load_star as load_star
    from starzoo.symmetry.permutation import Permutation as Permutation
    from starzoo.symmetry.spec import PermutationSpec as PermutationSpec
    from starzoo.workflows.align import align_models as align_models
    from starzoo.workflows.cards import render_card as render_card
    from starzoo.workflows.evaluate import evaluate_star as evaluate_star
    from starzoo.workflows.fit import PublishOptions as PublishOptions
    from starzoo.workflows.fit import fit_star as fit_star
    from starzoo.workflows.inspect import inspect_model as inspect_model
    from starzoo.workflows.plan import plan_star as plan_star
    from starzoo.workflows.predict import join_star as join_star
    from starzoo.workflows.predict import predict_images as predict_images
    from starzoo.workflows.publish import publish_star as publish_star
    from starzoo.workflows.quickstart import quickstart as quickstart
    from starzoo.workflows.verify import verify_star as verify_star

__version__ = "0.1.0"

_HOME = {
    "Architecture": "starzoo.models.architecture",
    "Evaluation": "starzoo.evaluate.results",
    "Permutation": "starzoo.symmetry.permutation",
    "PermutationSpec": "starzoo.symmetry.spec",
    "Preprocessing": "starzoo.data.preprocessing",
    "PublishOptions": "starzoo.workflows.fit",
    "ResumeOptions": "starzoo.star.fit",
    "RunConfig": "starzoo.config",
    "Source": "starzoo.models.sources",
    "Star": "starzoo.star.star",
    "StarDomain": "starzoo.star.domain",
    "StarzooError": "starzoo.errors",
    "align_models": "starzoo.workflows.align",
    "architecture_for": "starzoo.models.training",
    "evaluate_star": "starzoo.workflows.evaluate",
    "fit_star": "starzoo.workflows.fit",
    "inspect_model": "starzoo.workflows.inspect",
    "join_star": "starzoo.workflows.predict",
    "list_stars": "starzoo.hub.upload",
    "load_config": "starzoo.config",
    "load_source": "starzoo.models.sources",
    "load_star": "starzoo.star.star",
    "plan_star": "starzoo.workflows.plan",
    "predict_images": "starzoo.workflows.predict",
    "pull": "starzoo.models.pull",
    "publish_star": "starzoo.workflows.publish",
    "quickstart": "starzoo.workflows.quickstart",
    "render_card": "starzoo.workflows.cards",
    "train_zoo": "starzoo.models.training",
    "verify_star": "starzoo.workflows.verify",
}

__all__ = ["__version__"]
__all__ += list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'starzoo' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
