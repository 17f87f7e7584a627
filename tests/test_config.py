"""Configurations: what is refused, in one line that names the key."""

from __future__ import annotations

import pytest

from starzoo.config import EvalConfig, load_config
from starzoo.errors import UsageError


def test_a_split_that_is_named_twice_is_measured_once() -> None:
    assert EvalConfig(splits=("test", "train", "test")).splits == ("test", "train")
    assert load_config(evaluate={"splits": ["test", "test"]}).evaluate.splits == ("test",)


def test_no_split_at_all_is_refused() -> None:
    with pytest.raises(UsageError, match=r"configuration evaluate\.splits: .* at least 1 item"):
        load_config(overrides=["evaluate.splits=[]"])
