"""Check that models fit together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from starzoo.errors import IncompatibleError, UsageError
from starzoo.models.architecture import INPUT_FIELDS, Architecture, HasArchitecture
from starzoo.models.class_order import match_classes
from starzoo.models.sources import Source
from starzoo.models.timm_folder import WEIGHTS_FILE

__all__ = ["check_architectures", "check_compatible", "check_have_classes"]


def check_compatible(sources: Sequence[Source]) -> None:
    """Make sure that models differ in nothing but their weights."""
    check_architectures(sources)
    names: dict[str, str] = {}
    for source in sources:
        first = names.setdefault(source.record.files[WEIGHTS_FILE], source.name)
        if first != source.name:
            raise UsageError(
                f"{first} and {source.name}",
                "expected different models, got the same weights twice",
                hint="give every model once, as a source or as a held-out",
            )


def check_architectures(models: Sequence[HasArchitecture]) -> None:
    """Make sure that models are of one architecture, for the same classes and preprocessing."""
    for model in models[1:]:
        for what, ours, theirs in _differences(models[0].architecture, model.architecture):
            hint = "give models of one architecture, trained for the same classes and preprocessing"
            sizes = [one.architecture.preprocessing.input_size for one in (models[0], model)]
            if what.startswith("input_size") and sizes[0][0] == sizes[1][0]:
                hint = f"give --image-size {max(max(size[1:]) for size in sizes)} to use them at one size"
            raise IncompatibleError(
                f"{models[0].name} and {model.name}", f"cannot be combined: {what} {ours} and {theirs}", hint=hint
            )
    named = [model for model in models if model.architecture.label_names]
    for model in named[1:]:
        match_classes(model, named[0].architecture.label_names, named[0].name)


def check_have_classes(models: Sequence[HasArchitecture]) -> None:
    """Make sure that models classify: images say nothing of one without a classifier."""
    for model in models:
        if not model.architecture.num_classes:
            raise IncompatibleError(
                model.name,
                "has no classifier (num_classes is 0), so that no star can be fitted or measured",
                hint="give models with a classifier; `inspect`, and `align` without --dataset, take this one",
            )


def _differences(first: Architecture, second: Architecture) -> Iterator[tuple[str, object, object]]:
    ours, theirs = first.preprocessing, second.preprocessing
    pairs: list[tuple[str, object, object]] = [
        ("the architectures are", first.name, second.name),
        ("the class counts are", first.num_classes, second.num_classes),
        *((f"{field} of the preprocessing is", getattr(ours, field), getattr(theirs, field)) for field in INPUT_FIELDS),
    ]
    different = [(what, a, b) for what, a, b in pairs if a != b]
    yield from different
    if not different and first.network != second.network:
        yield "the model arguments are", first.model_args, second.model_args
