from __future__ import annotations

import pytest

from starzoo.models.licenses import combine_licenses


@pytest.mark.parametrize(
    ("licenses", "license"),
    [
        (["mit", "mit"], "mit"),
        (["mit", "Apache-2.0", "cc0-1.0"], "apache-2.0"),
        (["bsd-3-clause", "gpl-3.0"], "gpl-3.0"),
        (["apache-2.0"], "apache-2.0"),
        (["MIT AND apache-2.0", "mit"], "apache-2.0"),
        (["apache-2.0 AND gpl-3.0"], "gpl-3.0"),
    ],
)
def test_the_most_restrictive_license_of_the_sources(licenses: list[str], license: str) -> None:
    found = combine_licenses(licenses)
    assert (found.license, found.needs_decision, found.conflict) == (license, "", "")


@pytest.mark.parametrize(
    ("licenses", "license", "question"),
    [
        (["mit", None, None], None, "2 of 3 sources state no license"),
        (["mit", "other"], None, "a source has the license 'other', which is not known here"),
        (["mit AND cc-by-nc-4.0"], "cc-by-nc-4.0", "the sources forbid commercial use (cc-by-nc-4.0)"),
        *(
            ([pair, "mit"], None, f"a source has the license '{pair}', of which a person must say what they come to")
            for pair in ("gpl-3.0 AND cc-by-nc-4.0", "mit AND cc-by-nd-4.0", "gpl-3.0 AND mpl-2.0", "mit AND other")
        ),
        (["mit", "cc-by-nc-4.0"], "cc-by-nc-4.0", "the sources forbid commercial use (cc-by-nc-4.0)"),
        (["cc-by-nc-4.0", "cc-by-nc-sa-4.0"], "cc-by-nc-sa-4.0", "the sources forbid commercial use (cc-by-nc-sa-4.0)"),
    ],
)
def test_c18_what_a_person_must_decide(licenses: list[str | None], license: str | None, question: str) -> None:
    found = combine_licenses(licenses)
    assert (found.license, found.needs_decision, found.conflict) == (license, question, "")


@pytest.mark.parametrize(
    "licenses",
    [
        ["mit", "cc-by-nd-4.0"],
        ["cc-by-nc-nd-4.0"],
        ["gpl-3.0", "cc-by-sa-4.0"],
        ["gpl-3.0", "cc-by-nc-4.0"],
        ["cc-by-sa-4.0", "cc-by-nc-sa-4.0", None],
    ],
)
def test_c18_licenses_that_exclude_each_other(licenses: list[str | None]) -> None:
    found = combine_licenses(licenses)
    assert found.conflict
    assert found.license is None


@pytest.mark.parametrize(
    ("licenses", "floor", "allowed", "refused"),
    [
        (
            ["gpl-3.0 AND cc-by-nc-4.0", "mit"],
            "gpl-3.0",
            ["gpl-3.0"],
            ["mit", "apache-2.0"],
        ),
        (
            ["cc-by-nc-4.0", "openrail"],
            "cc-by-nc-4.0",
            ["cc-by-nc-4.0", "cc-by-nc-sa-4.0"],
            ["mit", "gpl-3.0", "openrail"],
        ),
        (["agpl-3.0", None], "agpl-3.0", ["agpl-3.0"], ["mit", "lgpl-3.0", "gpl-3.0", "cc-by-nc-4.0", "openrail"]),
        (["agpl-3.0"], "agpl-3.0", ["agpl-3.0"], ["lgpl-3.0"]),
        (["cc-by-nc-sa-4.0", "mit"], "cc-by-nc-sa-4.0", ["cc-by-nc-sa-4.0"], ["cc-by-nc-4.0", "cc-by-nc-sa-3.0"]),
        (["mit", "openrail"], "mit", ["mit", "apache-2.0", "openrail", "gpl-3.0"], ["cc0-1.0"]),
        ([None, None], None, ["cc0-1.0", "mit", "openrail"], []),
    ],
)
def test_c18_a_person_may_not_decide_for_less_than_a_source_demands(
    licenses: list[str | None], floor: str | None, allowed: list[str], refused: list[str]
) -> None:
    found = combine_licenses(licenses)
    assert found.minimum == floor
    assert [license for license in (*allowed, *refused) if found.permits(license)] == allowed
