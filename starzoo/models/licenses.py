"""The license of a model, and the most restrictive one of a star's sources. This is no legal advice."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from starzoo.errors import UntrustedInputError
from starzoo.files import open_file
from starzoo.models.record import ModelRecord
from starzoo.strict_yaml import YAML_LIMIT, front_matter, parse_yaml

__all__ = ["Licensing", "combine_licenses", "is_identifier", "license_of_sources", "read_license"]

_AND = " AND "
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

_COPYLEFT, _NON_COMMERCIAL, _BOTH = 3, 4, 5
_RANKS = {license: rank for rank, licenses in enumerate(_ORDER) for license in licenses}
_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
_MAX_LICENSES = 8  # of one model


@dataclass(frozen=True)
class Licensing:
    """The consequence of the licenses of some sources.

    Attributes:
        license: The most restrictive one, which the star may have; None where a source states none, or an unknown one.
        needs_decision: Why the user must choose a license before the star is published; empty where none is needed.
        conflict: Why no star of these sources may be published at all; empty where one may.
        minimum: The most restrictive license among those that are known, below which the user may not choose.
    """

    license: str | None
    needs_decision: str = ""
    conflict: str = ""
    minimum: str | None = None

    def permits(self, license: str) -> bool:
        """Whether the user may choose a license."""
        rank = _RANKS.get(self.minimum or "", -1)
        if rank in {_COPYLEFT, _BOTH}:
            return license == self.minimum
        return _RANKS.get(license, _COPYLEFT) >= rank


def is_identifier(text: str) -> bool:
    """Whether a text is the identifier of a license, known here or not, as the Hub writes it."""
    return bool(_IDENTIFIER.fullmatch(text))


def read_license(card: Path | None) -> str | None:
    """Read the license in the front matter of a model's card, as the Hub finds it."""
    if card is None or not card.is_file():
        return None
    try:
        with open_file(card, inside=[card.parent]) as file:
            block = front_matter(file.read(2 * YAML_LIMIT))
        matter = parse_yaml(block, str(card)) if block else None
    except UntrustedInputError:
        return None
    stated = matter.get("license") if isinstance(matter, dict) else None
    listed = stated if isinstance(stated, list) else [stated]
    licenses = [license for license in listed if isinstance(license, str) and is_identifier(license.lower())]
    return _AND.join(dict.fromkeys(licenses)) if 0 < len(licenses) == len(listed) <= _MAX_LICENSES else None


def license_of_sources(sources: Iterable[ModelRecord]) -> Licensing:
    """Find the license of a star."""
    return combine_licenses([source.license for source in sources if source.repo or source.license])


def combine_licenses(licenses: Sequence[str | None]) -> Licensing:
    """Find the license of something that is made of several others."""
    stated = sorted({_strictest(license) for license in licenses if license})
    if forbidding := [license for license in stated if "-nd" in license and _AND not in license]:
        return Licensing(None, conflict=f"{forbidding[0]} allows no changed versions, and a star is one")
    copyleft = [license for license in stated if _RANKS.get(license) in {_COPYLEFT, _BOTH}]
    if len(copyleft) > 1:
        return Licensing(
            None, conflict=f"{copyleft[0]} and {copyleft[1]} each demand that the whole has their own terms"
        )
    non_commercial = [license for license in stated if _RANKS.get(license) == _NON_COMMERCIAL]
    if non_commercial and copyleft and _RANKS[copyleft[0]] == _COPYLEFT:
        return Licensing(None, conflict=f"{copyleft[0]} allows commercial use to all, {non_commercial[0]} to none")
    parts = [[part for part in license.split(_AND) if part in _RANKS] for license in stated]
    freest = [min(known_parts, key=_RANKS.__getitem__) for known_parts in parts if known_parts]
    minimum = max(freest, key=_RANKS.__getitem__, default=None)
    if unknown := [license for license in stated if license not in _RANKS]:
        reason = "which is not known here" if _AND not in unknown[0] else "of which a person must say what they come to"
        return Licensing(None, f"a source has the license {unknown[0]!r}, {reason}", minimum=minimum)
    if missing := sum(license is None for license in licenses):
        state = "states" if missing == 1 else "state"
        return Licensing(None, f"{missing} of {len(licenses)} sources {state} no license", minimum=minimum)
    if minimum and _RANKS[minimum] >= _NON_COMMERCIAL:
        return Licensing(minimum, f"the sources forbid commercial use ({minimum})", minimum=minimum)
    return Licensing(minimum, minimum=minimum)


def _strictest(license: str) -> str:
    """Return the strictest of the licenses of one model, or all of them where that cannot be decided."""
    several = license.lower().split(_AND.lower())
    return several[0] if len(several) == 1 else combine_licenses(several).license or _AND.join(several)
