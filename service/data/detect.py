"""Detects what the cells of each column of a file are: numbers, texts, true and false, and which are missing.

    raw cells  ->  `detect`: one decision for each column, by all of its cells  ->  `Detected`: cells, and what was odd

A column that is nearly all numbers is a column of numbers. What is not a number in it is either a usual spelling of a
missing cell (`MISSING`) or a bad cell, which whoever trains on the file must decide about: nothing is read silently.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np

from service.data.cells import Cells, RawTable
from service.data.columns import BOOLEANS, PAIRS
from service.data.numbers import CURRENCIES, PLAIN, Decimal, NumberFormat, format_of, pattern_of, plain_number
from service.data.table import FLOAT32_MAX, IS_INFINITE, IS_TEXT, MAX_TEXT, MISSING, Kind, Table
from service.errors import DataError

NEARLY_ALL = 0.9  # share of numbers among a column's present cells that makes the rest bad cells
MOSTLY, FEW_TOKENS = 0.5, 3  # so does this share, if the rest are only a few different texts beside many numbers
MANY_NUMBERS = 20
MOST_TOKENS = 10  # odd texts that are told of
USED_SHARE = 0.01  # of a column's cells: with more, a text is one of its values and no accident
CHUNK, SAMPLE, DECIDING = (
    4096,
    256,
    2_000,
)  # cells parsed together; looked at first; distinct texts that decide a format
AMBIGUOUS = frozenset({"none", "na", "nil", "missing", "unknown", "unbekannt", "undefined"})  # or names of categories

BadCells = Literal["stop", "missing", "category"]


@dataclass(frozen=True, slots=True)
class Token:
    """A text among a column's cells: how often it comes, and in which row first, from 0."""

    text: str
    count: int
    row: int


@dataclass(frozen=True, slots=True)
class DetectedColumn:
    """A column's cells, float64 with NaN or an object array of text with None, shape (N,), and how they were read.

    Attributes:
        missing: spellings of a missing cell, other than empty cells.
        bad: the most frequent cells that are neither a number nor a spelling of a missing cell, in a column of numbers.
        num_bad: how many cells are bad.
        is_boolean: the texts mean true and false; each is spelled in its most frequent way.
        is_code: the texts are digits that are no number, such as 00217.
        misread: why the numbers could mean something else.
    """

    cells: np.ndarray = field(repr=False)
    format: NumberFormat = PLAIN
    missing: tuple[Token, ...] = ()
    bad: tuple[Token, ...] = ()
    num_bad: int = 0
    is_boolean: bool = False
    is_code: bool = False
    misread: str = ""


@dataclass(frozen=True)
class Detection:
    """What a user may say about how cells are read.

    Attributes:
        missing: further texts that mean a missing cell, such as -999.
        decimal: the decimal mark; None: as the cells show.
        bad_cells: whether bad cells stop training, are missing, or make their column a category.
        kinds: kinds of columns that are known.
    """

    missing: tuple[str, ...] = ()
    decimal: Decimal | None = None
    bad_cells: BadCells = "stop"
    kinds: Mapping[str, Kind] = field(default_factory=dict)

    @cached_property
    def words(self) -> frozenset[str]:
        """All texts that mean a missing cell, in lower case."""
        return MISSING | {text.strip().lower() for text in self.missing}


@dataclass(frozen=True, slots=True)
class Detected:
    """The columns of a raw table, detected."""

    names: tuple[str, ...]
    columns: tuple[DetectedColumn, ...]

    @property
    def table(self) -> Table:
        return Table(self.names, tuple(column.cells for column in self.columns))

    @property
    def formats(self) -> dict[str, NumberFormat]:
        """The formats of numbers that are not plain, by column."""
        pairs = zip(self.names, self.columns, strict=True)
        return {name: column.format for name, column in pairs if column.format != PLAIN}

    def only(self, names: Collection[str]) -> Detected:
        """The columns with these names."""
        chosen = [at for at, name in enumerate(self.names) if name in names]
        return Detected(tuple(self.names[at] for at in chosen), tuple(self.columns[at] for at in chosen))

    def check_bad_cells(self, place: Callable[[int], str]) -> None:
        """Raise for the first column with bad cells.

        Raises:
            DataError: lists the bad cells of that column, with how many columns have some.
        """
        pairs = list(zip(self.names, self.columns, strict=True))
        for name, column in pairs:
            if column.misread:
                raise DataError(f"column {name!r}: {column.misread}")
        bad = [(name, column) for name, column in pairs if column.bad]
        if not bad:
            return
        name, column = bad[0]
        numbers = int((~np.isnan(column.cells)).sum())
        more = f" ({len(bad) - 1} more columns have such cells)" if len(bad) > 1 else ""
        cells = listed(column.bad, place, column.num_bad)
        raise DataError(
            f"column {name!r}: {numbers:,} numbers and {cells}{more}: correct the file, or use --bad-cells missing, "
            "--bad-cells category, or --na-values for what means a missing cell"
        )


def listed(tokens: Sequence[Token], place: Callable[[int], str], total: int = 0, most: int = 5) -> str:
    """Tokens in words, the most frequent first, and how many of a total are others."""
    ordered = sorted(tokens, key=lambda token: (-token.count, token.row))
    shown = ", ".join(f"{one.count:,} x {quoted(one.text)}, first in {place(one.row)}" for one in ordered[:most])
    rest = max(total, sum(one.count for one in ordered)) - sum(one.count for one in ordered[:most])
    return shown + (f", and {rest:,} others" if rest else "")


def quoted(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")


def detect(raw: RawTable, options: Detection | None = None) -> Detected:
    """Detect what the columns of a file are."""
    given = options or Detection()
    counted = [column if isinstance(column, np.ndarray) else Counted.of(column, raw.is_text) for column in raw.columns]
    texts = [one for one in counted if isinstance(one, Counted)]
    decimal = given.decimal or raw.decimal
    numeric_words = {
        word for one in texts if one.share(given.words) >= NEARLY_ALL for word in one.odd if word.lower() in AMBIGUOUS
    }
    columns = tuple(
        from_numbers(one, given)
        if isinstance(one, np.ndarray)
        else from_texts(one, given, given.kinds.get(name), decimal, numeric_words)
        for name, one in zip(raw.names, counted, strict=True)
    )
    return Detected(raw.names, columns)


# A column of texts


@dataclass(frozen=True, slots=True)
class Counted:
    """A column of texts: the plain numbers among them, float64 with NaN, shape (N,), and the counts of all `odd` others.

    Odd texts are stripped.
    """

    texts: Sequence[str] = field(repr=False)
    numbers: np.ndarray = field(repr=False)
    odd: dict[str, int]

    @staticmethod
    def of(cells: Cells, are_texts: bool = False) -> Counted:
        """Parse the cells as text, in the way that suits what the first of them are."""
        texts: list[str] = cells if are_texts and isinstance(cells, list) else [text_of(cell) for cell in cells]
        some = texts[:SAMPLE]
        are_numbers = 2 * sum(plain_number(text) is not None for text in some) > len(some)
        return Counted.of_numbers(texts) if are_numbers else Counted.of_words(texts)

    @staticmethod
    def of_numbers(texts: list[str]) -> Counted:
        values: list[float] = []
        odd: dict[str, int] = {}
        has_underscores = "_" in "".join(texts)
        if not has_underscores and (numbers := plain_numbers(texts)) is not None:
            return Counted(texts, numbers, odd)
        for start in range(0, len(texts), CHUNK):
            chunk = texts[start : start + CHUNK]
            numbers = None if has_underscores else plain_numbers(chunk)
            values += [finite_or_odd(text, odd) for text in chunk] if numbers is None else numbers.tolist()
        return Counted(texts, np.array(values, dtype=np.float64), odd)

    @staticmethod
    def of_words(texts: list[str]) -> Counted:
        counts, known = Counter(texts), dict[str, float]()
        odd: dict[str, int] = {}
        for text, count in counts.items():  # in the order in which they come first
            known[text] = finite_or_odd(text, odd, count)
        if all(map(math.isnan, known.values())):
            return Counted(texts, np.full(len(texts), np.nan), odd)
        return Counted(texts, np.array([known[text] for text in texts], dtype=np.float64), odd)

    def tokens(self, odd: Mapping[str, int]) -> tuple[Token, ...]:
        """The most frequent of some odd texts, with their first rows."""
        shown = sorted(odd.items(), key=lambda item: -item[1])[:MOST_TOKENS]
        return tuple(Token(text, count, self.row_of(text)) for text, count in shown)

    def row_of(self, text: str) -> int:
        return next(row for row, cell in enumerate(self.texts) if cell.strip() == text)

    def unread(self, missing: frozenset[str]) -> list[str]:
        """The odd texts that do not mean a missing cell."""
        return [text for text in self.odd if text.lower() not in missing]

    def share(self, missing: frozenset[str]) -> float:
        """Share of plain numbers among the cells that are not missing."""
        numbers = int((~np.isnan(self.numbers)).sum())
        others = sum(count for text, count in self.odd.items() if text.lower() not in missing)
        return numbers / max(1, numbers + others)


def plain_numbers(texts: Sequence[str]) -> np.ndarray | None:
    """The texts as numbers, if all of them are finite ones."""
    try:
        numbers = np.fromiter(map(float, texts), np.float64, len(texts))
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None


def text_of(cell: object) -> str:
    """A cell of a typed source as the text that a file would have."""
    if isinstance(cell, str):
        return cell
    if cell is None or cell != cell:  # noqa: PLR0124  # only NaN differs from itself
        return ""
    return str(cell).lower() if isinstance(cell, bool | np.bool_) else str(cell)


def finite_or_odd(text: str, odd: dict[str, int], count: int = 1) -> float:
    """A finite plain number; otherwise NaN, and the text is counted among `odd`."""
    number = plain_number(text)
    if number is not None and math.isfinite(number):
        return number
    name = text.strip()
    odd[name] = odd.get(name, 0) + count
    return math.nan


def from_texts(
    column: Counted, given: Detection, kind: Kind | None, decimal: Decimal | None, numeric_words: set[str]
) -> DetectedColumn:
    """Decide what a column of texts is."""
    if kind in ("category", "boolean") or is_code(column, given.words):
        return as_words(column, given, numeric_words, is_code=kind not in ("category", "boolean"))
    must_be = kind in ("real", "positive", "count", "ordinal")
    read = as_numbers(column, given, decimal, must_be)
    if read is None or not (must_be or are_numbers(read[0].cells, read[1])):
        return as_words(column, given, numeric_words)
    numbers = read[0]
    if numbers.bad and given.bad_cells == "missing":
        marked = with_bad_cells_marked(numbers.cells, column, given.words)
        return replace(numbers, cells=marked, missing=(*numbers.missing, *numbers.bad), bad=(), num_bad=0)
    becomes_words = numbers.bad and given.bad_cells == "category" and not must_be
    return as_words(column, given, numeric_words) if becomes_words else numbers


def with_bad_cells_marked(cells: np.ndarray, column: Counted, words: frozenset[str]) -> np.ndarray:
    """The cells of a column of numbers, in which those that cannot be read are told from missing ones."""
    cells, known = cells.copy(), dict[str, float]()
    for row in np.flatnonzero(np.isnan(cells)).tolist():
        text = column.texts[row]
        if text not in known:
            word = text.strip()
            number = plain_number(word)
            is_missing = not word or word.lower() in words
            known[text] = math.nan if is_missing else IS_TEXT if number is None else IS_INFINITE
        cells[row] = known[text]
    return cells


def are_numbers(cells: np.ndarray, bad: Mapping[str, int]) -> bool:
    """Whether so many cells are numbers that the others are bad cells."""
    there = cells[~np.isnan(cells)]
    if not len(there):
        return False
    share = len(there) / (len(there) + sum(bad.values()))
    distinct = len(set(there[:CHUNK].tolist()))
    if distinct <= MANY_NUMBERS and max(bad.values(), default=0) >= max(2, USED_SHARE * len(cells)):
        return False  # grades such as 0, 1, 2, 3+
    return share >= NEARLY_ALL or (share >= MOSTLY and len(bad) <= FEW_TOKENS and distinct > MANY_NUMBERS)


def as_numbers(
    column: Counted, given: Detection, decimal: Decimal | None, must_be: bool
) -> tuple[DetectedColumn, dict[str, int]] | None:
    """The column read as numbers, in the format that suits most of its cells; and its bad cells, with their counts.

    None if most of its cells are no numbers, unless it `must_be` a column of numbers.
    """
    unread = column.unread(given.words)
    is_plain = not unread and (decimal != "," or "." not in "".join(column.texts))
    if is_plain and decimal is None and has_doubtful_points(column.texts):
        unread = [next(text for text in column.texts if "." in text)]
    style, is_sure = PLAIN if decimal != "," else NumberFormat(decimal=","), not (is_plain and unread)
    if not is_plain:
        words = given.words
        some = dict.fromkeys([*unread[:DECIDING], *map(str.strip, column.texts[: 4 * DECIDING])])
        deciding = [text for text in some if text.lower() not in words][: 2 * DECIDING]
        style, is_sure = format_of(deciding, decimal)
        if not must_be and 2 * sum(style.read(text) is not None for text in deciding) < len(deciding):
            return None  # words
    values, odd = (column.numbers, column.odd) if is_plain else read_by(style, column)
    large = np.abs(values) > FLOAT32_MAX
    values = np.where(large, np.nan, values)
    missing = {text: count for text, count in odd.items() if text and text.lower() in given.words}
    bad = {text: count for text, count in odd.items() if text and text.lower() not in given.words}
    bad |= Counter(column.texts[row].strip() for row in np.flatnonzero(large).tolist())
    values, sentinels = without_sentinels(values, given)
    found = DetectedColumn(
        values,
        style,
        (*column.tokens(missing), *sentinels),
        column.tokens(bad),
        sum(bad.values()),
        misread="" if is_sure else f"{ambiguous(unread)} may mean two numbers: say --decimal . or --decimal ,",
    )
    return found, bad


def has_doubtful_points(texts: Sequence[str]) -> bool:
    """Whether numbers have points that may all be separators of thousands: 2.486 and 987, and no 2.5, 0.125 or 1234.5."""
    pointed = {text.strip().removeprefix("-") for text in texts if "." in text}
    if not pointed or not all(map(pattern_of(",", ".").fullmatch, pointed)):
        return False
    return not any(len(text) > 3 and text.strip().isdigit() for text in texts)


def ambiguous(texts: Collection[str]) -> str:
    """The text whose marks can be read in two ways."""
    return quoted(next((text for text in texts if "," in text or "." in text), next(iter(texts), "")))


def read_by(style: NumberFormat, column: Counted) -> tuple[np.ndarray, dict[str, int]]:
    """The column's numbers in a format, and the texts that are none, with their counts."""
    odd: dict[str, int] = {}
    values = []
    must_have_unit = bool(style.unit) and style.unit not in CURRENCIES
    for text in column.texts:
        number = style.read(text.strip())
        if number is None or math.isinf(number) or (must_have_unit and text.strip()[-1:].isdigit()):
            number, name = math.nan, text.strip()
            odd[name] = odd.get(name, 0) + 1
        values.append(number)
    return np.array(values, dtype=np.float64), odd


def without_sentinels(values: np.ndarray, given: Detection) -> tuple[np.ndarray, list[Token]]:
    """Numbers without those that the user declared to mean a missing cell, such as -999."""
    tokens = []
    for text in given.missing:
        number = plain_number(text)
        if number is not None and (equal := values == number).any():
            tokens.append(Token(text, int(equal.sum()), int(equal.argmax())))
            values = np.where(equal, np.nan, values)
    return values, tokens


def is_code(column: Counted, missing: Collection[str]) -> bool:
    """Whether the texts are digits that are no number: some begin with a zero."""
    numbers = column.numbers[~np.isnan(column.numbers)]
    if (numbers != np.rint(numbers)).any() or any(text.lower() not in missing for text in column.odd):
        return False
    texts = {text for text in set(map(str.strip, column.texts)) - column.odd.keys() if text.lower() not in missing}
    return any(text[0] == "0" and len(text) > 1 for text in texts) and all(map(str.isdigit, texts))


def as_words(column: Counted, given: Detection, numeric_words: set[str], is_code: bool = False) -> DetectedColumn:
    """The column as texts; true and false if all of its texts are spellings of them."""
    least = max(2, USED_SHARE * len(column.texts))
    said = {text.strip().lower() for text in given.missing}
    named = {text: count for text, count in column.odd.items() if text and text.lower() in given.words}
    used = {
        text
        for text, count in named.items()
        if count >= least and text.lower() in AMBIGUOUS - said and text not in numeric_words
    }
    known: dict[str, str | None] = {}
    for text in dict.fromkeys(column.texts):
        word = text.strip()
        known[text] = None if not word or (word.lower() in given.words and word not in used) else word[:MAX_TEXT]
    lower = {word.lower() for word in known.values() if word is not None}
    is_boolean = not is_code and lower in PAIRS
    if is_boolean:
        spelled = usual_spellings(column, known)
        known = {text: None if word is None else spelled[BOOLEANS[word.lower()]] for text, word in known.items()}
    cells = np.empty(len(column.texts), dtype=object)
    cells[:] = [known[text] for text in column.texts]
    missing = column.tokens({text: count for text, count in named.items() if text not in used})
    return DetectedColumn(cells, missing=missing, is_boolean=is_boolean, is_code=is_code)


def usual_spellings(column: Counted, known: Mapping[str, str | None]) -> dict[int, str]:
    """The most frequent words for false, 0, and true, 1."""
    counts = Counter(word for text in column.texts if (word := known[text]) is not None)
    spelled: dict[int, str] = {}
    for word, _ in counts.most_common():
        spelled.setdefault(BOOLEANS[word.lower()], word)
    return spelled


def from_numbers(values: np.ndarray, given: Detection) -> DetectedColumn:
    """A column that comes as numbers, as in Parquet."""
    values = np.asarray(values, dtype=np.float64)
    wrong = np.abs(values) > FLOAT32_MAX
    bad = [
        Token(str(value), int((values == value).sum()), int((values == value).argmax()))
        for value in np.unique(values[wrong])[:100].tolist()
    ]
    values, sentinels = without_sentinels(np.where(wrong, IS_INFINITE, values), given)
    if given.bad_cells == "missing":
        return DetectedColumn(values, missing=(*sentinels, *bad))
    return DetectedColumn(values, missing=tuple(sentinels), bad=tuple(bad), num_bad=int(wrong.sum()))
