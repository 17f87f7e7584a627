"""Match the class names of models and data, in any order and Unicode form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from unicodedata import normalize

from starzoo.errors import IncompatibleError

__all__ = ["list_names", "match_names"]

_MAX_SHOWN = 3


def match_names(names: Sequence[str], others: Sequence[str], *, owner: str, subject: str) -> list[int]:
    """Return the index of every name in `others`; names are compared in Unicode's composed form (NFC)."""
    ours, theirs = ([normalize("NFC", name) for name in group] for group in (names, others))
    if ours == theirs:
        return list(range(len(ours)))
    missing, unknown = Counter(ours) - Counter(theirs), Counter(theirs) - Counter(ours)
    if missing or unknown:
        raise IncompatibleError(
            subject,
            f"expected the classes of {owner}, got others: {missing.total()} missing"
            f"{list_names(missing)}, {unknown.total()} unknown{list_names(unknown)}",
            hint="give models and images of the same classes, under the same names",
        )
    index = {name: number for number, name in enumerate(theirs)}
    if len(index) < len(ours):
        name, count = Counter(ours).most_common(1)[0]
        raise IncompatibleError(
            subject,
            f"cannot match the classes of {owner} by name: {count} are called {name!r}",
            hint="give every class its own name, or the same list of names to all",
        )
    return [index[name] for name in ours]


def list_names(names: Iterable[str]) -> str:
    """Return the first names in brackets after a space, ` (cat, dog, …)`; nothing if there are none."""
    listed = list(names)
    more = ["…"] if len(listed) > _MAX_SHOWN else []
    return f" ({', '.join([*listed[:_MAX_SHOWN], *more])})" if listed else ""
