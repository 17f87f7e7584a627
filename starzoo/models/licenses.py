"""The most restrictive license of a star's sources. This is no legal advice."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["AND", "Licensed", "Licensing", "combine", "is_identifier", "license_of_sources"]

AND = " AND "
"""Between several licenses of one model, as SPDX writes it."""

_ORDER = (
    ("cc0-1.0", "unlicense", "pddl", "wtfpl"),
    ("mit", "isc", "zlib", "ms-pl", "bsd", "bsd-2-clause", "bsd-3-clause", "bsl-1.0", "cc-by-2.0", "cc-by-3.0"),
    ("cc-by-4.0", "cdla-permissive-2.0", "apache-2.0"),
    ("lgpl-3.0", "mpl-2.0", "epl-2.0", "odbl", "cc-by-sa-3.0", "cc-by-sa-4.0", "gpl-2.0", "gpl-3.0", "agpl-3.0"),
    ("cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0"),
    ("cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"),
)
"""From the freest to the most restrictive: public domain, permissive, with patents, copyleft, non-commercial, both."""

_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
_COPYLEFT, _NON_COMMERCIAL, _BOTH = 3, 4, 5
_RANKS = {license: rank for rank, licenses in enumerate(_ORDER) for license in licenses}


@dataclass(frozen=True)
class Licensing:
    """What follows from the licenses of some sources.

    Attributes:
        license: The most restrictive one, which the star may have; None where a source states none, or an unknown one.
        question: Why a person must decide before the star is published; empty where nothing stands against it.
        conflict: Why no star of these sources may be published at all; empty where one may.
        floor: The most restrictive license among those that are known: a person may not decide for less.
    """

    license: str | None
    question: str = ""
    conflict: str = ""
    floor: str | None = None

    def allows(self, chosen: str) -> bool:
        """Whether a person may decide for a license."""
        floor = _RANKS.get(self.floor or "", -1)
        if floor in {_COPYLEFT, _BOTH}:
            return chosen == self.floor
        return _RANKS.get(chosen, _COPYLEFT) >= floor


def is_identifier(text: str) -> bool:
    """Whether a text is the identifier of a license, known here or not, as the Hub writes it."""
    return bool(_IDENTIFIER.fullmatch(text))


class Licensed(Protocol):
    """A model whose origin and license are known."""

    @property
    def repo(self) -> str | None:
        """Its repository, or None for a local folder."""

    @property
    def license(self) -> str | None:
        """The license that its card states, or None."""


def license_of_sources(sources: Iterable[Licensed]) -> Licensing:
    """Find the license of a star."""
    return combine([source.license for source in sources if source.repo or source.license])


def combine(licenses: Sequence[str | None]) -> Licensing:
    """Find the license of something that is made of several others."""
    known = {_strictest(license) for license in licenses if license}
    if forbidding := sorted(license for license in known if "-nd" in license and AND not in license):
        return Licensing(None, conflict=f"{forbidding[0]} allows no changed versions, and a star is one")
    strict = [license for license in sorted(known) if _RANKS.get(license) in {_COPYLEFT, _BOTH}]
    if len(strict) > 1:
        return Licensing(None, conflict=f"{strict[0]} and {strict[1]} each demand that the whole has their own terms")
    limiting = [license for license in sorted(known) if _RANKS.get(license) == _NON_COMMERCIAL]
    if limiting and strict and _RANKS[strict[0]] == _COPYLEFT:
        return Licensing(None, conflict=f"{strict[0]} allows commercial use to all, {limiting[0]} to none")
    parts = [[part for part in license.split(AND) if part in _RANKS] for license in sorted(known)]
    least = [min(known_parts, key=_RANKS.__getitem__) for known_parts in parts if known_parts]
    floor = max(least, key=_RANKS.__getitem__, default=None)
    if strange := sorted(license for license in known if license not in _RANKS):
        why = "which is not known here" if AND not in strange[0] else "of which a person must say what they come to"
        return Licensing(None, question=f"a source has the license {strange[0]!r}, {why}", floor=floor)
    missing = sum(license is None for license in licenses)
    if missing:
        state = "states" if missing == 1 else "state"
        return Licensing(None, question=f"{missing} of {len(licenses)} sources {state} no license", floor=floor)
    if floor and _RANKS[floor] >= _NON_COMMERCIAL:
        return Licensing(floor, question=f"the sources forbid commercial use ({floor})", floor=floor)
    return Licensing(floor, floor=floor)


def _strictest(license: str) -> str:
    """The strictest of the licenses of one model; all of them where that cannot be said."""
    several = license.lower().split(AND.lower())
    return several[0] if len(several) == 1 else combine(several).license or AND.join(several)
