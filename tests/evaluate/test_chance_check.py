"""Models without label names are taken for models of the data only where they are better than chance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from starzoo.data.task import ImageTask
from starzoo.errors import IncompatibleError
from starzoo.evaluate.chance_check import name_classes
from starzoo.models.sources import Source, load_source


def unnamed(model: Source) -> Source:
    return replace(model, architecture=model.architecture.model_copy(update={"label_names": None}))


def test_a_trained_model_gets_the_names_of_the_data(digits_zoo: list[Path], data: ImageTask) -> None:
    [found] = name_classes([unnamed(load_source(str(digits_zoo[0])))], data)
    assert found.architecture.label_names == data.class_names


def test_a_model_that_guesses_is_refused(models: list[Source], data: ImageTask) -> None:
    with pytest.raises(IncompatibleError, match=r"is right on \d+ of 200 training images of digits, no better than"):
        name_classes([unnamed(models[0])], data)
