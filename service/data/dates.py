"""Recognises columns of dates and times, which a model of rows learns nothing from."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import date, datetime, time
from functools import partial

import numpy as np

LOOKED_AT = 200  # distinct values
NEARLY_ALL = 0.95
TIME = re.compile(r"(\d{1,2}):([0-5]\d)(:[0-5]\d([.,]\d+)?)?( ?[ap]\.?m\.?)?", re.IGNORECASE)
DAY_FORMATS = (
    *("%d/%m/%Y", "%m/%d/%Y", "%Y/%m/%d", "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y%m%d", "%Y-%m", "%m/%Y", "%Y/%m"),
    *("%d/%m/%y", "%m/%d/%y", "%d.%m.%y", "%d-%b-%Y", "%d-%b-%y", "%b %d %Y", "%d %b %Y", "%B %d %Y", "%d %B %Y"),
    *("%b-%y", "%b %Y", "%B %Y", "%Y-%b-%d", "%Y.%m.%d"),
)
WEEKDAY = re.compile(r"(mon|tue|wed|thu|fri|sat|sun)[a-z]*,? ", re.IGNORECASE)
ZONE = re.compile(r" ?(z|utc|gmt|[a-z]{3,4}|[+-]\d\d:?\d\d)$", re.IGNORECASE)
NAMED = re.compile(
    r"(^|_|\b)(time|timestamp|ts|epoch|date|datetime|created|updated|modified|zeit|datum|zeitstempel|fecha|hora|heure|utc)"
    r"(_|\b|$)|(_at|_on|time|date|login)$"
)
COMPACT = {8: "%Y%m%d", 10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}  # by the number of digits
MODERN_MS, FEW = (1_100_000_000_000, 2_100_000_000_000), 20  # from 2004 to 2036, whatever the column is called
EPOCHS = {  # 1990 to 2100, by unit
    "seconds": (631_152_000, 4_102_444_800),
    "milliseconds": (631_152_000_000, 4_102_444_800_000),
    "microseconds": (631_152_000_000_000, 4_102_444_800_000_000),
    "nanoseconds": (631_152_000_000_000_000, 4_102_444_800_000_000_000),
}


def date_reason(values: Sequence[str]) -> str:
    """Why distinct texts are dates or times; empty if they are not."""
    some = list(values[:LOOKED_AT])
    if share(is_time, some) >= NEARLY_ALL:
        return "times of day"
    if share(is_iso, some) >= NEARLY_ALL:
        return "dates"
    is_some_day = any(share(partial(is_day, pattern=pattern), some) >= NEARLY_ALL for pattern in DAY_FORMATS)
    return "dates" if is_some_day else ""


def share(test: Callable[[str], bool], texts: Sequence[str]) -> float:
    return sum(map(test, texts)) / max(1, len(texts))


def is_time(text: str) -> bool:
    return TIME.fullmatch(text) is not None


def is_iso(text: str) -> bool:
    """Whether the text is a date, or a date and a time, in ISO 8601; a bare year is a number."""
    if text.isdigit() and len(text) < 8:
        return False
    for read in (datetime.fromisoformat, date.fromisoformat, time.fromisoformat):
        try:
            read(text)
        except ValueError:
            continue
        return True
    return False


def is_day(text: str, pattern: str) -> bool:
    """Whether the text is a day in this format, perhaps with its weekday and a time of day and zone."""
    text = WEEKDAY.sub("", text).replace(",", "")
    day, found = text, re.search(r"[ T]\d{1,2}:", text)
    if found is not None:
        day, rest = text[: found.start()], text[found.start() + 1 :]
        if not (is_time(rest) or is_time(ZONE.sub("", rest))):
            return False
    try:
        datetime.strptime(day, pattern)  # only to see whether it parses
    except ValueError:
        return False
    return True


def reads_as(text: str, pattern: str) -> bool:
    """Whether the text is a time in this format, in a year from 1900 to 2100."""
    try:
        return 1900 <= datetime.strptime(text, pattern).year <= 2100
    except ValueError:
        return False


def number_date_reason(name: str, values: np.ndarray) -> str:
    """Why numbers, without NaN, are dates: days such as 20240131, or an epoch by name and range; empty if they are not."""
    if not len(values) or (values != np.rint(values)).any():
        return ""
    distinct = np.unique(values)
    if (pattern := COMPACT.get(len(str(int(distinct[0]))), "")) and distinct[0] > 0:
        places = np.linspace(0, len(distinct) - 1, min(LOOKED_AT, len(distinct))).astype(int)
        some = [str(int(value)) for value in distinct[places]]
        if share(partial(reads_as, pattern=pattern), some) >= NEARLY_ALL:
            return "dates without marks"
    low, high = MODERN_MS
    if len(distinct) > FEW and low <= distinct[0] and distinct[-1] <= high:
        return "times, as milliseconds since 1970"
    if NAMED.search(name.lower()):
        for unit, (low, high) in EPOCHS.items():
            if low <= distinct[0] and distinct[-1] <= high:
                return f"times, as {unit} since 1970"
    return ""
