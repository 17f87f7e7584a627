"""Class names that are matched: in any order and any Unicode form, and never by guessing."""

from __future__ import annotations

import unicodedata

import pytest

from starzoo.data.class_names import list_names, match_names
from starzoo.errors import IncompatibleError


def match(names: list[str], others: list[str]) -> list[int]:
    return match_names(names, others, owner="seed-0", subject="photos")


def test_t03_names_are_matched_in_any_order() -> None:
    names, others = ["ant", "bee", "cat"], ["cat", "ant", "bee"]
    assert match(names, names) == [0, 1, 2]
    assert [others[index] for index in match(names, others)] == names
    assert [names[index] for index in match(others, names)] == others


def test_t03_accents_are_the_same_in_both_unicode_forms() -> None:
    names = ["café", "señor", "ångström"]
    decomposed = [unicodedata.normalize("NFD", name) for name in names]
    assert decomposed != names
    assert match(names, decomposed) == [0, 1, 2]
    assert match(decomposed, names[::-1]) == [2, 1, 0]


def test_t03_other_sets_of_names_are_refused_with_what_is_missing_on_each_side() -> None:
    message = r"photos: expected the classes of seed-0, got others: 2 missing \(bee, cat\), 1 unknown \(dog\)"
    with pytest.raises(IncompatibleError, match=message) as caught:
        match(["ant", "bee", "cat"], ["dog", "ant"])
    assert (caught.value.exit_code, caught.value.subject) == (5, "photos")
    with pytest.raises(IncompatibleError, match=r"0 missing, 4 unknown \(b, c, d, …\)"):
        match(["a"], ["a", "b", "c", "d", "e"])


def test_t03_a_name_of_two_classes_is_matched_only_in_an_equal_list() -> None:
    names = ["crane", "maillot", "crane", "dog"]  # as ImageNet has two cranes
    assert match(names, names) == [0, 1, 2, 3]
    with pytest.raises(IncompatibleError, match=r"photos: cannot match the classes of seed-0 by name: 2 .* 'crane'"):
        match(names, names[::-1])
    with pytest.raises(IncompatibleError, match=r"1 missing \(crane\), 0 unknown"):
        match(names, ["crane", "maillot", "dog"])


def test_a_few_names_are_listed() -> None:
    assert [list_names("abcd"[:count]) for count in (0, 1, 3, 4)] == ["", " (a)", " (a, b, c)", " (a, b, c, …)"]
