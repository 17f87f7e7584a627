"""Differences of JSON values, each with its path."""

from __future__ import annotations

import pytest

from starzoo.text import json_differences


@pytest.mark.parametrize(
    ("then", "now", "words"),
    [
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, "a.c was 2, now 3"),
        ({"a": 1, "b": 2}, {"b": 3, "a": 4}, "a was 1, now 4"),
        ({"a": {"b": "x"}}, {"a": {}}, 'a.b was "x", now null'),
        ({}, {"a": [1]}, "a was null, now [1]"),
        ({"a": {"b": 1}}, {"a": 3}, 'a was {"b": 1}, now 3'),
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 2}]}, ""),
        ({"a": None}, {}, ""),
    ],
)
def test_the_first_difference_in_words(then: object, now: object, words: str) -> None:
    assert next(json_differences(then, now), "") == words


def test_every_difference_has_its_path() -> None:
    old, new = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 0, "c": 2}, "d": 4}
    assert [*json_differences(old, new)] == ["a.b was 1, now 0", "d was 3, now 4"]
