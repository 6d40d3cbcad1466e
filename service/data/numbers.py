"""Numbers as people and programs write them: decimal marks, thousands separators, units.

    ["1.234,5", "12,25", "7"]  ->  `format_of`: decimal comma, thousands "."  ->  `NumberFormat.read`: 1234.5, 12.25, 7.0

A column's format is decided by all of its cells together, since one cell may be ambiguous: 1,234 is 1234 or 1.234.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from typing import Literal, NamedTuple

from service.system.frozen import Frozen

Decimal = Literal[".", ","]
SPACES = "\u00a0\u2009\u202f"  # no-break, thin, and narrow no-break space
MINUS = str.maketrans("\u2212\u2013" + SPACES + "\u2019", "--   '")
# fmt: off
CURRENCIES = (
    "US$", "R$", "$", "€", "£", "¥", "₹", "₽", "₩", "₺", "₫", "฿", "USD", "EUR", "GBP", "CHF", "JPY", "CNY", "INR",
    "AUD", "CAD", "SEK", "NOK", "DKK", "PLN", "CZK", "BRL", "Fr.", "Rs.", "kr.", "kr", "zł", "Kč", "Euro", "euros",
    "EURO",
)
UNITS = (
    "%", "‰", "°C", "°F", "°", "kg", "mg", "µg", "g", "t", "lbs", "lb", "oz", "km", "cm", "mm", "µm", "nm", "m", "in",
    "ft", "mi", "ms", "µs", "s", "sec", "min", "h", "hrs", "days", "years", "yrs", "kV", "mV", "V", "mA", "A", "kWh",
    "MWh", "Wh", "MW", "kW", "mW", "W", "GHz", "MHz", "kHz", "Hz", "TB", "GB", "MB", "kB", "KB", "ml", "hl", "l", "L",
    "hPa", "kPa", "MPa", "Pa", "mbar", "bar", "psi", "ppm", "ppb", "dB", "lx", "rpm", "kJ", "J", "kcal", "cal", "Nm",
    "N", "km/h", "m/s", "mph", "mg/l", "mg/dl", "g/l", "µS/cm", "l/min", "m²", "m2", "km²", "m³", "m3", "W/m²",
    "W/m2", "pts", "px",
)
# fmt: on
CURRENCY, UNIT = ("(?:" + "|".join(map(re.escape, names)) + ")" for names in (CURRENCIES, UNITS))
# Each part ends where the next one begins, so that no text is searched twice.
WRITTEN = re.compile(
    rf"(?P<open>\()?(?P<sign>[+-])?(?: ?(?P<prefix>{CURRENCY}))? ?(?P<late_sign>[+-])?"
    rf"(?P<number>[.,]?\d(?:[\d.,']| (?=\d))*(?:[eE][+-]?\d+)?)(?: ?(?P<suffix>{CURRENCY}|{UNIT}))?(?P<close>\))?"
)
MOST_CHARACTERS = 60  # of a written number
NEARLY_ALL, FEW_ODD = 0.9, 0.1
MARKS: tuple[Decimal, ...] = (",", ".")
# Digits after a mark that cannot be a group of thousands.
DECIMALS = {
    mark: re.compile(rf"{re.escape(mark)}(\d{{1,2}}|\d{{4,}})(?!\d)|(^|\D)0{re.escape(mark)}\d") for mark in MARKS
}
MIN_UNIT_NUMBERS = 10  # distinct numbers; with fewer, 5m and 6m are more likely codes than metres


class NumberFormat(Frozen):
    """How the numbers of a column are written.

    Attributes:
        decimal: the decimal mark.
        thousands: the separator of groups of three digits; empty if there is none.
        unit: a currency sign, % or a unit such as kg; it changes no number: 12 % is 12.
    """

    decimal: Decimal = "."
    thousands: Literal["", ",", ".", " ", "'"] = ""
    unit: str = ""

    def read(self, text: str) -> float | None:
        """The number that stripped text means in this format; None if it means none. Infinity is a number, NaN is not."""
        if self.decimal == "." and not self.thousands:
            number = plain_number(text)
        else:  # most cells are digits with perhaps a sign, and need no more
            digits = self.digits(text.removeprefix("-"))
            number = None if digits is None else float(digits) * (-1.0 if text.startswith("-") else 1.0)
        if number is not None:
            return number
        parts = parts_of(text)
        if parts is None or (parts.unit and parts.unit != self.unit):
            return None
        digits = self.digits(parts.digits)
        return None if digits is None else parts.sign * float(digits)

    def digits(self, text: str) -> str | None:
        """The digits as Python writes them; None if they are not in this format."""
        if not pattern_of(self.decimal, self.thousands).fullmatch(text):
            return None
        if self.thousands:
            text = text.replace(self.thousands, "")
        return text.replace(",", ".") if self.decimal == "," else text

    def __str__(self) -> str:
        """The format in words; empty for the plain one."""
        words = []
        if self.decimal == ",":
            words.append("decimal comma")
        if self.thousands:
            names = {" ": "spaces", "'": "apostrophes", ",": "commas", ".": "points"}
            words.append(f"{names[self.thousands]} between thousands")
        if self.unit:
            words.append(f"in {self.unit}")
        return ", ".join(words)


PLAIN = NumberFormat()
Shape = tuple[Decimal, Literal["", ",", ".", " ", "'"]]
SHAPES: tuple[Shape, ...] = (
    (".", ""), (",", ""), (".", ","), (",", "."), (".", " "), (",", " "), (".", "'"), (",", "'"),
)  # fmt: skip


class Parts(NamedTuple):
    """What a written number consists of: its sign, its digits with their marks, and its unit."""

    sign: int
    digits: str
    unit: str


def parts_of(text: str) -> Parts | None:
    """The parts of a written number, None if the text is none. (5) and 5- are minus five, as accountants write it."""
    if len(text) > MOST_CHARACTERS or not any(map(str.isdigit, text)):
        return None
    text = " ".join(text.translate(MINUS).split())
    late = text.endswith("-") and text[:-1].rstrip()[-1:].isdigit()
    found = WRITTEN.fullmatch(text[:-1].rstrip() if late else text)
    if found is None or bool(found["open"]) != bool(found["close"]):
        return None
    signs = [found["sign"], found["late_sign"], "-" if found["open"] else None, "-" if late else None]
    given = [sign for sign in signs if sign]
    if len(given) > 1 or (found["prefix"] and found["suffix"]):
        return None
    unit = (found["prefix"] or found["suffix"] or "").replace(" ", "")
    return Parts(-1 if given == ["-"] else 1, found["number"], unit)


@cache
def pattern_of(decimal: str, thousands: str) -> re.Pattern[str]:
    fraction = rf"(?:{re.escape(decimal)}\d*)?(?:[eE][+-]?\d+)?"
    bare = rf"(?:\d+{fraction}|{re.escape(decimal)}\d+(?:[eE][+-]?\d+)?)"
    if not thousands:
        return re.compile(bare)
    mark = re.escape(thousands)
    return re.compile(rf"(?:[1-9]\d{{0,2}}(?:{mark}\d{{3}})+{fraction}|{bare})")


def plain_number(text: str) -> float | None:
    """Text that Python reads as a number, infinity included; None for NaN, underscores and all else."""
    try:
        number = float(text)
    except ValueError:
        return None
    return None if math.isnan(number) or "_" in text else number


def format_of(
    texts: Collection[str], decimal: Decimal | None = None, expected: NumberFormat = PLAIN
) -> tuple[NumberFormat, bool]:
    """The format in which most of these distinct, stripped texts are numbers, and whether there is no other such format.

    Args:
        decimal: the decimal mark, if it is known from other columns or from the user.
        expected: the format to prefer if it reads nearly as many as any other; then formats without thousands.
    """
    parts = [found for found in map(parts_of, texts) if found is not None]
    counts = readable_counts([one.digits for one in parts])
    allowed = {shape: count for shape, count in counts.items() if decimal is None or shape[0] == decimal}
    usual = (expected.decimal, expected.thousands)
    marked = {one.digits for one in parts if set(one.digits) & set(",.' ")}
    if allowed.get(usual, 0) >= NEARLY_ALL * max(allowed.values(), default=0):
        # A few odd cells do not turn the points of all others into separators of thousands.
        readable = [text for text in marked if pattern_of(*usual).fullmatch(text)]
        kept = values_in(readable, usual)
        allowed = {shape: count for shape, count in allowed.items() if values_in(readable, shape) == kept}
    most = max(allowed.values(), default=0)
    best = [shape for shape, count in allowed.items() if count == most]
    chosen = usual if usual in best else next(iter(best), (".", ""))
    if chosen[1] and are_alike_in_groups(marked, chosen, len(parts)):
        chosen = (chosen[0], "")  # addresses, telephones, pairs
    numbers = values_in(marked, chosen)
    is_sure = usual in best or all(values_in(marked, shape) == numbers for shape in best)
    unit = unit_of(parts, expected)
    return NumberFormat(decimal=chosen[0], thousands=chosen[1], unit=unit), is_sure


def are_alike_in_groups(texts: Collection[str], shape: Shape, total: int) -> bool:
    """Whether all numbers are grouped in the same way, as identifiers are: three groups or more, or whole ones of three."""
    if len(texts) < MIN_UNIT_NUMBERS or len(texts) < total or any(shape[0] in text for text in texts):
        return False
    groups = [text.split(shape[1]) for text in texts]
    same = {len(one) for one in groups}
    return len(same) == 1 and (same.pop() > 2 or all(len(one[0]) == 3 for one in groups))


def readable_counts(digits: Iterable[str]) -> dict[Shape, int]:
    """How many texts each shape of numbers reads."""
    texts = list(digits)
    return {shape: sum(pattern_of(*shape).fullmatch(text) is not None for text in texts) for shape in SHAPES}


def values_in(texts: Iterable[str], shape: Shape) -> list[str | None]:
    one = NumberFormat(decimal=shape[0], thousands=shape[1])
    return [one.digits(text) for text in texts]


def unit_of(parts: Collection[Parts], expected: NumberFormat) -> str:
    """The unit that all numbers share, or that is expected; a currency sign may be left out in some cells."""
    units = Counter(one.unit for one in parts)
    unit, count = max(
        ((unit, count) for unit, count in units.items() if unit), key=lambda item: item[1], default=("", 0)
    )
    if not unit or unit == expected.unit:
        return expected.unit
    share = count / len(parts)
    if unit in CURRENCIES:
        return unit if count + units[""] >= NEARLY_ALL * len(parts) else expected.unit
    if share < NEARLY_ALL or (unit not in ("%", "‰") and len({one.digits for one in parts}) < MIN_UNIT_NUMBERS):
        return expected.unit
    return unit


def decimal_of(columns: Iterable[Mapping[str, int]]) -> Decimal | None:
    """The decimal mark of a file: what the columns that are unambiguous use; None if they do not tell, or differ.

    Args:
        columns: for each column its distinct stripped texts, with their counts.
    """
    found: set[Decimal] = set()
    for texts in columns:
        shape, is_sure = format_of(list(texts))
        readable = sum(shape.read(text) is not None for text in texts)
        if readable < NEARLY_ALL * len(texts):
            continue  # dates, versions, addresses
        certain = {
            mark
            for mark in MARKS
            if sum(DECIMALS[mark].search(text) is not None for text in texts) > FEW_ODD * len(texts)
        }
        if is_sure and shape.decimal in certain:
            found.add(shape.decimal)
    return found.pop() if len(found) == 1 else None
