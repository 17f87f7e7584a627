from __future__ import annotations

import pytest

from starzoo.cli.parsing import parse_model_args, parse_seeds
from starzoo.errors import UsageError


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("0-9", list(range(10))),
        ("0,3,5-7", [0, 3, 5, 6, 7]),
        ("4", [4]),
        (" 2 , 0 - 1 ", [2, 0, 1]),
        ("3,1-3", [3, 1, 2]),
    ],
)
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["x", "", "5-3", "-1", "1,,2", "0-9x", "1.5", "0-999999999", "0-10000", "٣"])
def test_wrong_seeds(text):
    with pytest.raises(UsageError, match="expected seeds and ranges of seeds, got"):
        parse_seeds(text)


def test_model_args():
    assert parse_model_args('{"stem_width": 16, "stem_type": "deep"}') == {"stem_width": 16, "stem_type": "deep"}
    assert parse_model_args(None) == {}


@pytest.mark.parametrize("text", ["{", "[1]", "3", "stem_width=16", "[" * 100_000])
def test_wrong_model_args(text):
    with pytest.raises(UsageError, match="expected a JSON object, got"):
        parse_model_args(text)
