"""Match class names of models and data, in any order and Unicode form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from unicodedata import normalize

from starzoo.errors import IncompatibleError

__all__ = ["list_names", "match_names"]

_SHOWN = 3


def match_names(names: Sequence[str], others: Sequence[str], *, owner: str, subject: str) -> list[int]:
    """Find the names of one list in another; names are compared in Unicode's composed form (NFC)."""
    ours, theirs = ([normalize("NFC", name) for name in each] for each in (names, others))
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
    for name, count in Counter(ours).items():
        if count > 1:
            raise IncompatibleError(
                subject,
                f"cannot match the classes of {owner} by name: {count} are called {name!r}",
                hint="give every class its own name, or the same list of names to all",
            )
    index = {name: number for number, name in enumerate(theirs)}
    return [index[name] for name in ours]


def list_names(names: Iterable[str]) -> str:
    """A few names in brackets after a blank, or nothing: ` (cat, dog, …)`."""
    listed = list(names)
    return f" ({', '.join([*listed[:_SHOWN], *(['…'] if len(listed) > _SHOWN else [])])})" if listed else ""
