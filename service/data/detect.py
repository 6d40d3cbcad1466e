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
from typing import Literal

import numpy as np

from service.data.cells import Cells, RawTable
from service.data.columns import BOOLEANS, PAIRS
from service.data.numbers import PLAIN, Decimal, NumberFormat, format_of, plain_number
from service.data.table import FLOAT32_MAX, MAX_TEXT, MISSING, Kind, Table
from service.errors import DataError

NEARLY_ALL = 0.9  # share of numbers among a column's present cells that makes the rest bad cells
MOSTLY, FEW_TOKENS = 0.5, 3  # so does this share, if the rest are only a few different texts beside many numbers
MANY_NUMBERS = 20
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
        bad: what is neither a number nor a spelling of a missing cell, in a column of numbers.
        is_boolean: the texts mean true and false; each is spelled in its most frequent way.
        is_code: the texts are digits that are no number, such as 00217.
        misread: why the numbers could mean something else.
    """

    cells: np.ndarray = field(repr=False)
    format: NumberFormat = PLAIN
    missing: tuple[Token, ...] = ()
    bad: tuple[Token, ...] = ()
    is_boolean: bool = False
    is_code: bool = False
    misread: str = ""


@dataclass(frozen=True, slots=True)
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

    @property
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
        raise DataError(
            f"column {name!r}: {numbers:,} numbers and {listed(column.bad, place)}{more}: correct the file, or use "
            "--bad-cells missing, --bad-cells category, or --na-values for what means a missing cell"
        )


def listed(tokens: Sequence[Token], place: Callable[[int], str], most: int = 5) -> str:
    """Tokens in words, the most frequent first."""
    ordered = sorted(tokens, key=lambda token: (-token.count, token.row))
    shown = ", ".join(f"{one.count:,} x {quoted(one.text)}, first in {place(one.row)}" for one in ordered[:most])
    rest = sum(one.count for one in ordered[most:])
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
        word
        for one in texts
        if one.share(given.words) >= NEARLY_ALL
        for word in (text.lower() for text in one.odd)
        if word in AMBIGUOUS
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
    """A column of texts: the plain numbers among them, float64 with NaN, shape (N,), and all `odd` others, by text."""

    texts: Sequence[str] = field(repr=False)
    numbers: np.ndarray = field(repr=False)
    odd: dict[str, Token]

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
        odd: dict[str, Token] = {}
        has_underscores = "_" in "".join(texts)
        if not has_underscores and (numbers := plain_numbers(texts)) is not None:
            return Counted(texts, numbers, odd)
        for start in range(0, len(texts), CHUNK):
            chunk = texts[start : start + CHUNK]
            try:
                some = [] if has_underscores else list(map(float, chunk))
            except ValueError:
                some = []
            if not some or not math.isfinite(sum(some)):
                some = [number_or_token(text, start + at, odd) for at, text in enumerate(chunk)]
            values += some
        return Counted(texts, np.array(values, dtype=np.float64), odd)

    @staticmethod
    def of_words(texts: list[str]) -> Counted:
        counts, known = Counter(texts), dict[str, float]()
        odd: dict[str, Token] = {}
        for text, count in counts.items():  # in the order in which they come first
            number = plain_number(text)
            known[text] = math.nan if number is None or math.isinf(number) else number
            if math.isnan(known[text]):
                before = odd.get(text.strip())
                odd[text.strip()] = Token(
                    text.strip(), count + (before.count if before else 0), before.row if before else -1
                )
        if len(odd) == len(counts):
            return Counted(texts, np.full(len(texts), np.nan), odd)
        return Counted(texts, np.array([known[text] for text in texts], dtype=np.float64), odd)

    def placed(self, tokens: Sequence[Token]) -> tuple[Token, ...]:
        """Tokens with their first row, which is looked up only for those that are shown."""
        return tuple(token if token.row >= 0 else replace(token, row=self.row_of(token.text)) for token in tokens)

    def row_of(self, text: str) -> int:
        return next(row for row, cell in enumerate(self.texts) if cell.strip() == text)

    def unread(self, missing: frozenset[str]) -> dict[str, int]:
        """The odd texts that do not mean a missing cell, with their counts, at most DECIDING."""
        others = [(text, token.count) for text, token in self.odd.items() if text.lower() not in missing]
        return dict(others[:DECIDING])

    def share(self, missing: frozenset[str]) -> float:
        """Share of plain numbers among the cells that are not missing."""
        numbers = int((~np.isnan(self.numbers)).sum())
        others = sum(token.count for text, token in self.odd.items() if text.lower() not in missing)
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


def number_or_token(text: str, row: int, odd: dict[str, Token]) -> float:
    """A finite plain number, or NaN and a token among `odd`."""
    number = plain_number(text)
    if number is not None and math.isfinite(number):
        return number
    name = text.strip()
    before = odd.get(name)
    odd[name] = Token(name, 1, row) if before is None else replace(before, count=before.count + 1)
    return math.nan


def from_texts(
    column: Counted, given: Detection, kind: Kind | None, decimal: Decimal | None, numeric_words: set[str]
) -> DetectedColumn:
    """Decide what a column of texts is."""
    missing = [token for text, token in column.odd.items() if text and text.lower() in given.words]
    if kind in ("category", "boolean") or is_code(column, missing, given.words):
        return as_words(column, given, numeric_words, is_code=kind not in ("category", "boolean"))
    numbers = as_numbers(column, given, decimal)
    wants_numbers = kind in ("real", "positive", "count", "ordinal")
    if wants_numbers or are_numbers(column, numbers):
        if not numbers.bad or given.bad_cells == "stop" or wants_numbers:
            return numbers
        if given.bad_cells == "missing":
            return replace(numbers, missing=(*numbers.missing, *numbers.bad), bad=())
    return as_words(column, given, numeric_words)


def are_numbers(column: Counted, read: DetectedColumn) -> bool:
    """Whether so many cells are numbers that the others are bad cells."""
    there = read.cells[~np.isnan(read.cells)]
    bad = sum(token.count for token in read.bad)
    if not len(there):
        return False
    share = len(there) / (len(there) + bad)
    distinct = len(set(there[:CHUNK].tolist()))
    if distinct <= MANY_NUMBERS and any(token.count >= max(2, USED_SHARE * len(column.texts)) for token in read.bad):
        return False  # grades such as 0, 1, 2, 3+
    return share >= NEARLY_ALL or (share >= MOSTLY and len(read.bad) <= FEW_TOKENS and distinct > MANY_NUMBERS)


def as_numbers(column: Counted, given: Detection, decimal: Decimal | None) -> DetectedColumn:
    """The column read as numbers, in the format that suits most of its cells."""
    unread = column.unread(given.words)
    is_plain = not unread and (decimal != "," or "." not in "".join(column.texts))
    style, is_sure = PLAIN, True
    if not is_plain:
        stripped = dict.fromkeys(text.strip() for text in column.texts[: 4 * DECIDING])
        deciding = [text for text in (*unread, *stripped) if text.lower() not in given.words]
        style, is_sure = format_of(deciding[: 2 * DECIDING], decimal)
    elif decimal == ",":
        style = NumberFormat(decimal=",")
    values, odd = column.numbers, list(column.odd.values())
    if not is_plain:
        values, odd = read_by(style, column)
    too_large = np.flatnonzero(np.abs(values) > FLOAT32_MAX)
    values = np.where(np.abs(values) > FLOAT32_MAX, np.nan, values)
    huge = [Token(column.texts[row].strip(), 1, int(row)) for row in too_large.tolist()]
    missing = [token for token in odd if token.text and token.text.lower() in given.words]
    bad = [token for token in odd if token.text and token.text.lower() not in given.words]
    values, sentinels = without_sentinels(values, given)
    return DetectedColumn(
        values,
        style,
        column.placed([*missing, *sentinels][:10]),
        column.placed(bad[:100]) + tuple(bad[100:]) + tuple(huge),
        misread="" if is_sure else f"{ambiguous(unread)} may mean two numbers: say --decimal . or --decimal ,",
    )


def ambiguous(texts: Collection[str]) -> str:
    """The text whose marks can be read in two ways."""
    return quoted(next((text for text in texts if "," in text or "." in text), next(iter(texts), "")))


def read_by(style: NumberFormat, column: Counted) -> tuple[np.ndarray, list[Token]]:
    """The column's numbers in a format, with the texts that are none."""
    known: dict[str, float] = {}
    odd: dict[str, Token] = {}
    values = np.zeros(len(column.texts))
    for row, text in enumerate(column.texts):
        number = known.get(text)
        if number is None:
            read = style.read(text.strip())
            number = known[text] = math.nan if read is None or math.isinf(read) else read
        values[row] = number
        if math.isnan(number):
            name = text.strip()
            before = odd.get(name)
            odd[name] = Token(name, 1, row) if before is None else replace(before, count=before.count + 1)
    return values, list(odd.values())


def without_sentinels(values: np.ndarray, given: Detection) -> tuple[np.ndarray, list[Token]]:
    """Numbers without those that the user declared to mean a missing cell, such as -999."""
    tokens = []
    for text in given.missing:
        number = plain_number(text)
        if number is not None and (equal := values == number).any():
            tokens.append(Token(text, int(equal.sum()), int(equal.argmax())))
            values = np.where(equal, np.nan, values)
    return values, tokens


def is_code(column: Counted, missing: Sequence[Token], words: Collection[str]) -> bool:
    """Whether the texts are digits that are no number: some begin with a zero."""
    numbers = column.numbers[~np.isnan(column.numbers)]
    if len(column.odd) - ("" in column.odd) > len(missing) or (numbers != np.rint(numbers)).any():
        return False
    texts = {text for text in set(map(str.strip, column.texts)) - column.odd.keys() if text.lower() not in words}
    return any(text[0] == "0" and len(text) > 1 for text in texts) and all(map(str.isdigit, texts))


def as_words(column: Counted, given: Detection, numeric_words: set[str], is_code: bool = False) -> DetectedColumn:
    """The column as texts; true and false if all of its texts are spellings of them."""
    least = max(2, USED_SHARE * len(column.texts))
    named = [token for text, token in column.odd.items() if text and text.lower() in given.words]
    used = {
        token.text
        for token in named
        if token.text.lower() in AMBIGUOUS - numeric_words
        and token.text.lower() not in {text.strip().lower() for text in given.missing}
        and token.count >= least
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
    missing = [token for token in named if token.text not in used]
    return DetectedColumn(cells, missing=column.placed(missing[:10]), is_boolean=is_boolean, is_code=is_code)


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
    values, sentinels = without_sentinels(np.where(wrong, np.nan, values), given)
    if given.bad_cells == "missing":
        return DetectedColumn(values, missing=(*sentinels, *bad))
    return DetectedColumn(values, missing=tuple(sentinels), bad=tuple(bad))
