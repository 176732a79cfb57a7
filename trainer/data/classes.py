"""Names of classes: one spelling for each, and the numbers that may be written for them."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache

from server.errors import UserError

AG_NEWS_CLASSES = ("World", "Sports", "Business", "Sci/Tech")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_WHOLE = re.compile(r"(-?\d{1,18})\.0+")


@lru_cache(maxsize=10_000)
def class_name(written: str) -> str:
    """Returns the one spelling of a class in rows: its trimmed name, a whole number without decimals."""
    name = trimmed(written)
    return str(int(whole[1])) if (whole := _WHOLE.fullmatch(name)) else name


def trimmed(written: str) -> str:
    """Returns a name in composed form (NFC), with nothing invisible around it."""
    name = unicodedata.normalize("NFC", written)
    start, end = 0, len(name)
    while start < end and _is_invisible(name[start]):
        start += 1
    while start < end and _is_invisible(name[end - 1]):
        end -= 1
    return name[start:end]


def class_numbers(source: str, names: Sequence[str], *, numbered_from: int | None) -> dict[str, int]:
    """Returns the place of each class by what may be written for it: its name, or its number unless names are numbers.

    UserError when two names are the same class.
    """
    places: dict[str, int] = {}
    for place, name in enumerate(names):
        if (earlier := places.setdefault(class_name(name), place)) != place:
            raise UserError(f"{source}: {names[earlier]!r} and {name!r} are the same class; leave one out")
    if numbered_from is not None and not any(_NUMBER.fullmatch(name) for name in places):
        places.update({str(numbered_from + place): place for place in range(len(names))})
    return places


def order_classes(found: Iterable[str], *, ag_news: bool) -> tuple[tuple[str, ...], dict[str, int]]:
    """Returns the names of the classes found in training rows, in order, and the place of each by what the rows hold.

    Rows known to be AG News get its names for their numbers. UserError when two classes look the same.
    """
    rows = set(found)
    layouts = [AG_NEWS_CLASSES, *([str(start + place) for place in range(4)] for start in (0, 1))]
    for layout in layouts if ag_news else ():
        if rows == set(layout):
            return AG_NEWS_CLASSES, {name: place for place, name in enumerate(layout)}
    names = tuple(sorted(rows, key=float if all(map(_NUMBER.fullmatch, rows)) else str))
    _check_alike(names)
    return names, {name: place for place, name in enumerate(names)}


def code_points(name: str) -> str:
    """Shows a name with the code points of its invisible characters."""
    return "".join(
        f"<U+{ord(char):04X}>" if _is_ignorable(char) or (char.isspace() and char != " ") else char for char in name
    )


def _check_alike(names: Iterable[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        visible = "".join(" " if char.isspace() else char for char in name if not _is_ignorable(char))
        if (other := seen.setdefault(visible, name)) != name:
            raise UserError(
                f"classes {code_points(other)} and {code_points(name)} look the same; write one of them in all rows"
            )


def _is_invisible(char: str) -> bool:
    return char.isspace() or unicodedata.category(char) in ("Cf", "Cc")


def _is_ignorable(char: str) -> bool:
    return unicodedata.category(char) in ("Cf", "Cc") or 0xFE00 <= ord(char) <= 0xFE0F  # variation selectors
