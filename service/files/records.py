"""The records of a CSV file by column, with the line of each; columns of plain numbers as arrays.

A column becomes an array piece by piece, while its text is in the processor's cache: that takes a third of the time, and
a tenth of the memory, of keeping millions of short texts. It stays text wherever the text says more than the numbers do.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from service.data.cells import Cells
from service.data.table import FLOAT32_MAX
from service.errors import DataError
from service.files.dialect import DamagedTextError, Dialect
from service.system.cancellation import CheckCancelled, never_cancelled

if TYPE_CHECKING:
    from _csv import Reader

MAX_COLUMNS = 10_000
CHUNK = 1_024  # records at a time
MIN_ROW_NAMES = 3
ODD_LINES = 20  # shown in an error
NUMBERS, WITH_EMPTY = msgspec.json.Decoder(list[float]), msgspec.json.Decoder(list[float | None])
MOST_SHARED = 50_000  # different texts of a column that are kept only once


@dataclass(frozen=True, slots=True)
class Records:
    """A file's first record, the others by column, some of them again as text, and the line in which each begins.

    `skipped` are the lines that are not divided as the first record is, each with its number of cells.
    """

    first: list[str]
    columns: list[Cells]
    sample: list[tuple[str, ...]]
    lines: np.ndarray
    skipped: list[tuple[int, int]] = field(default_factory=list)


def read_records(
    text: str,
    dialect: Dialect,
    has_header: bool,
    as_text: bool,
    drops_blank: bool = False,
    check: CheckCancelled = never_cancelled,
    skips_ragged: bool = False,
) -> Records:
    """Read all records.

    Args:
        has_header: whether the first record is none of the rows.
        as_text: whether all columns stay text.
        drops_blank: whether rows of several cells, all of them empty, are dropped as blank lines are.
        check: called for every thousand records; raises to end the work.
        skips_ragged: whether lines that are not divided as the first record is are passed over.

    Raises:
        DataError: lists the lines that are not divided as the first record is.
    """
    found = one_pass(text, dialect, has_header, None if as_text else (), drops_blank, check)
    if again := {at for at, column in enumerate(found.columns) if column.is_broken}:
        found = one_pass(text, dialect, has_header, again, drops_blank, check)
    if found.wrong and not skips_ragged:
        raise DataError(ragged(found.wrong, len(found.first)))
    columns = [column.cells() for column in found.columns]
    return Records(found.first, columns, found.sample, found.lines, found.wrong)


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass over the records found: as `Records`, with columns that may have to be read again."""

    first: list[str]
    sample: list[tuple[str, ...]]
    columns: list[Column]
    lines: np.ndarray
    wrong: list[tuple[int, int]]


def one_pass(
    text: str,
    dialect: Dialect,
    has_header: bool,
    as_text: Collection[int] | None,
    drops_blank: bool,
    check: CheckCancelled,
) -> Pass:
    """Read all records; the columns `as_text`, or all if None, stay text."""
    source = io.StringIO(text, newline="")
    for _ in range(dialect.skipped):
        source.readline()
    reader = dialect.reader(source)
    wrong: list[tuple[int, int]] = []  # line, number of cells
    blank: list[tuple[int, int]] = []  # the same, of those without any value
    columns: list[Column] = []
    sample: list[tuple[str, ...]] = []
    lines: list[np.ndarray] = []
    expected = 0
    try:
        first = next((cells for cells in reader if cells), None)
        if first is None:
            raise DataError("is empty, expected a header and rows")
        if len(first) > MAX_COLUMNS:
            raise DataError(f"has {len(first):,} columns, at most {MAX_COLUMNS:,} are supported")
        for rows, places in chunks(reader, dialect.skipped, [] if has_header else [first], dialect.separator):
            check()
            if not columns:
                expected = len(first) + (has_header and has_one_more(first, rows))
                columns = [Column(as_text is not None and at not in as_text) for at in range(expected)]
            good, is_good = rows, np.ones(len(rows), dtype=bool)
            if set(map(len, rows)) != {expected}:
                is_good = np.array([len(row) == expected for row in rows])
                good = [row for row in rows if len(row) == expected]
                odd = ((int(place), row) for row, place in zip(rows, places, strict=True) if len(row) != expected)
                for line, row in odd:
                    (blank if is_blank(row) else wrong).append((line, len(row)))
            if drops_blank and expected > 1 and not all(map(any, good)):
                there = [at for at, row in enumerate(good) if any(row)]
                good, is_good[np.flatnonzero(is_good)] = (
                    [good[at] for at in there],
                    np.isin(np.arange(len(good)), there),
                )
            by_column = list(zip(*good, strict=True))
            sample = sample or by_column
            lines.append(places[is_good])
            for column, cells in zip(columns, by_column, strict=False):
                column.add(cells)
    except csv.Error as error:
        raise DamagedTextError(f"line {dialect.skipped + reader.line_num}: {reason_of(error)}") from None
    of_rows = np.concatenate(lines) if lines else np.zeros(0, dtype=np.int64)
    if not drops_blank and len(of_rows):
        # A line of spaces is blank; one of too few separators, among the rows and not below them, is a row.
        wrong = sorted([*wrong, *(one for one in blank if one[1] > 1 and one[0] < of_rows[-1])])
    return Pass(first, sample, columns, of_rows, wrong)


def ragged(wrong: Sequence[tuple[int, int]], expected: int) -> str:
    """The lines with another number of cells than the header, in words."""
    (line, cells), others = wrong[0], wrong[1:]
    more = f" ({len(others):,} more such lines: {listed_lines(others, ODD_LINES - 1)})" if others else ""
    return (
        f"line {line} has {cells} cells, the header has {expected}{more}: correct the file, or say what separates its "
        "cells by --sep, or pass over such lines by --on-bad-row skip"
    )


def skipped(wrong: Sequence[tuple[int, int]]) -> str:
    """The lines that were passed over, in words."""
    count = f"{len(wrong):,} lines" if len(wrong) > 1 else "1 line"
    return f"{count} passed over, not divided as the header is: {listed_lines(wrong, ODD_LINES)}"


def listed_lines(wrong: Sequence[tuple[int, int]], most: int) -> str:
    return ", ".join(str(line) for line, _ in wrong[:most]) + (", ..." if len(wrong) > most else "")


def reason_of(error: csv.Error) -> str:
    reasons = {"unexpected end of data": "a quote is opened and never closed", "expected after": "a misplaced quote"}
    return next((words for part, words in reasons.items() if part in str(error)), str(error))


def chunks(
    reader: Reader, skipped: int, before: list[list[str]], separator: str
) -> Iterator[tuple[list[list[str]], np.ndarray]]:
    """Records that are not blank, a few thousand at a time, with the lines in which they begin.

    `before` are records that were read already, each on one line.
    """
    if before:
        yield before, np.array([reader.line_num + skipped])
    while True:
        last = reader.line_num + skipped
        rows = list(islice(reader, CHUNK))
        if not rows:
            return
        count = reader.line_num + skipped - last
        if count == len(rows):
            places = np.arange(last + 1, last + 1 + count)
        else:  # blank lines, or records of several
            places = starts(rows, last)
            check_quotes(rows, places, separator)
        if not all(rows):
            there = [at for at, row in enumerate(rows) if row]
            rows, places = [rows[at] for at in there], places[there]
        if rows:
            yield rows, places


def check_quotes(rows: Sequence[Sequence[str]], places: np.ndarray, separator: str) -> None:
    """Raise if a quoted cell holds several whole records: its quote is a sign of the text, and was never meant to open one.

    Raises:
        DamagedTextError: names the line.
    """
    for row, place in zip(rows, places.tolist(), strict=True):
        for cell in row:
            inner = cell.split("\n")[1:-1] if "\n" in cell else []
            if inner and all(line.count(separator) == len(row) - 1 > 0 for line in inner):
                raise DamagedTextError(
                    f"line {place}: a quote is opened that spans {len(inner)} whole rows: double or remove it"
                )


def starts(rows: Sequence[Sequence[str]], last: int) -> np.ndarray:
    """The lines in which records begin, some of which hold line ends."""
    heights = [1 + sum(cell.count("\n") + cell.count("\r") - cell.count("\r\n") for cell in row) for row in rows]
    return last + 1 + np.cumsum([0, *heights[:-1]])


@dataclass
class Column:
    """A column being read: pieces of numbers for as long as all cells are plain numbers, or text.

    `is_broken` says that it turned out to be text after some pieces had become numbers: it has to be read again.
    """

    is_number: bool
    is_broken: bool = False
    pieces: list[np.ndarray] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    shared: dict[str, str] | None = field(default_factory=dict)

    def add(self, cells: tuple[str, ...]) -> None:
        if self.is_number:
            numbers = numbers_of(cells)
            if numbers is not None:
                self.pieces.append(numbers)
                return
            self.is_number, self.is_broken = False, bool(self.pieces)
        if self.is_broken:
            return
        if self.shared is None:
            self.texts.extend(cells)
            return
        self.texts.extend(map(self.shared.setdefault, cells, cells))
        if len(self.shared) > MOST_SHARED:
            self.shared = None

    def cells(self) -> Cells:
        return np.concatenate(self.pieces) if self.pieces else self.texts


def numbers_of(cells: Sequence[str]) -> np.ndarray | None:
    """Cells as numbers, NaN where they are empty; None if any is not a plain number, or says more than its number."""
    empty = 0
    numbers = fast_numbers(cells)
    if numbers is None:
        empty = cells.count("")
        if empty == len(cells):
            return None
        try:
            numbers = fast_numbers(cells, empty)
            numbers = np.array([float(cell) if cell else math.nan for cell in cells]) if numbers is None else numbers
        except ValueError:
            return None
        if "_" in "".join(cells):
            return None
    finite = np.isfinite(numbers)
    if len(cells) - int(finite.sum()) != empty or (np.abs(numbers[finite]) > FLOAT32_MAX).any():
        return None
    if (numbers[finite] == np.rint(numbers[finite])).all() and any(cell[:1] == "0" and len(cell) > 1 for cell in cells):
        return None  # perhaps codes
    return numbers


def has_one_more(first: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether all rows have a cell more than the header: an empty last one, or the row numbers that R writes before it."""
    if not rows or len(first) < 2 or set(map(len, rows)) != {len(first) + 1}:
        return False
    if not any(row[-1].strip() for row in rows):
        return True
    return len(rows) >= MIN_ROW_NAMES and [row[0].strip() for row in rows[:1000]] == list(
        map(str, range(1, min(1000, len(rows)) + 1))
    )


def is_blank(cells: Sequence[str]) -> bool:
    return not any(cell.strip() for cell in cells)


def fast_numbers(cells: Sequence[str], empty: int = 0) -> np.ndarray | None:
    """Cells as numbers by a JSON parser, which takes a fifth of `float`'s time; None if JSON writes some differently.

    A cell with a comma would be two numbers, and the empty cell that could make up for it is none.
    """
    try:
        if empty:
            numbers = WITH_EMPTY.decode("[" + ",".join([cell or "null" for cell in cells]) + "]")
            return (
                np.array(numbers, np.float64) if numbers.count(None) == empty and len(numbers) == len(cells) else None
            )
        plain = NUMBERS.decode("[" + ",".join(cells) + "]")
    except (msgspec.DecodeError, UnicodeEncodeError):
        return None
    return np.array(plain, np.float64) if len(plain) == len(cells) else None
