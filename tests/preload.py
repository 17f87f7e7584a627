"""What the processes of the tests import, imported once: a fork server starts with this module."""

from __future__ import annotations

import importlib

from PIL import Image

from starzoo.data.records import _load_digits

MODULES = (
    "pytest",
    "starzoo.cli.main",
    "starzoo.model_cards",
    "starzoo.models.unpickle",
    "starzoo.report.plots",
    "starzoo.workflows.fit",
    # what a run imports when it gets there
    "accelerate",
    "datasets",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "rich.table",
    "sklearn.datasets",
    "timm.optim",
    "torch._dynamo",
)

for _module in MODULES:
    importlib.import_module(_module)
Image.init()  # finds all formats
_load_digits()  # encodes all images
