"""Tables in text: bytes of CSV or JSON Lines to raw cells, with the line of each row."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import islice

import numpy as np

from service.data.cells import Cells, RawTable
from service.data.dates import date_reason
from service.data.numbers import Decimal, decimal_of, parts_of, plain_number
from service.data.table import MISSING, is_index
from service.errors import DataError
from service.files.dialect import AS_SHOWN, Dialect, TextOptions, decoded
from service.files.records import MAX_COLUMNS, Records, is_blank, read_records, skipped
from service.system.cancellation import CheckCancelled, never_cancelled

HEAD = 2**22  # characters
MOSTLY = 0.5
JUDGED, DATED = 1_000, 100  # rows by which the header and the decimal mark are judged; of dates


def csv_table(
    content: bytes | bytearray,
    options: TextOptions = AS_SHOWN,
    columns: Sequence[str] | None = None,
    known: Collection[str] = (),
    as_text: bool = False,
    check: CheckCancelled = never_cancelled,
) -> RawTable:
    """A CSV file's raw cells.

    Args:
        columns: columns to read, in this order; default: all.
        known: columns that a model reads. If the first line names any of them, it is a header whatever it looks like, and
            what the file does not tell is as in the training file; blank rows are rows.
        as_text: whether all cells stay text, since the model reads numbers in a format of its own.
        check: called for every thousand rows; raises to end the work.

    Raises:
        DataError: says which line is wrong, and what to do.
    """
    text, encoding = decoded(content, options.encoding)
    notes = [f"read as {encoding} text; --encoding overrules"] if encoding else []
    dialect = Dialect.of(text, options)
    has_header = options.header is not False
    first_rows = dialect.first_rows(head_of(text))[has_header:]
    decimal = options.decimal or mark_of(list(zip(*first_rows, strict=False)))
    if decimal is None and dialect.separator == "," and not known:
        decimal = "."  # decimal commas would be in quotes, and would have shown
    may_be_grouped = decimal == "," or (decimal is None and dialect.separator != ",")
    found = read_records(
        text, dialect, has_header, as_text or may_be_grouped, not known, check, options.bad_rows == "skip"
    )
    check_is_divided(found, text, dialect)
    body, sample = list(found.columns), list(found.sample)
    if has_header:
        names, body, sample = named(found.first, body, sample)
        check_header(names)
        if options.header is None and not set(known) & set(names):
            check_is_header(names, sample)
    else:
        names = [f"c{at}" for at in range(1, len(found.first) + 1)]
    if not body or not len(body[0]):
        raise DataError("has a header but no rows")
    chosen = chosen_columns(names, columns)
    if str(dialect):
        notes.append(str(dialect))
    if found.skipped:
        notes.append(skipped(found.skipped))
    cells = tuple(body[names.index(name)] for name in chosen)
    return RawTable(tuple(chosen), cells, lines=found.lines, decimal=decimal, notes=tuple(notes), is_text=True)


def head_of(text: str) -> str:
    """The first lines of a text."""
    return "".join(islice(io.StringIO(text[:HEAD], newline=""), JUDGED))


def mark_of(columns: Collection[Sequence[str]]) -> Decimal | None:
    """The decimal mark of a file, by its first rows."""
    counted = []
    for cells in columns:
        texts = Counter(text for text in map(str.strip, cells[:JUDGED]) if text.lower() not in MISSING)
        written = [text for text in texts if parts_of(text) is not None]
        if written and 2 * len(written) > len(texts):
            counted.append(texts)
    return decimal_of(counted)


def named(
    header: list[str], body: list[Cells], sample: list[tuple[str, ...]]
) -> tuple[list[str], list[Cells], list[tuple[str, ...]]]:
    """Columns with their names: without empty ones at the end, and with the nameless first one that R writes."""
    names = [name.strip() for name in header]
    if len(body) == len(names) + 1:
        names = [*names, ""] if is_empty(body[-1]) else ["", *names]
    while len(names) > 1 and not names[-1] and (not body or is_empty(body[-1])):
        names, body, sample = names[:-1], body[:-1], sample[:-1]
    return names, body, sample


def is_empty(cells: Cells) -> bool:
    return not isinstance(cells, np.ndarray) and is_blank(cells)


def check_header(names: Sequence[str]) -> None:
    """Raise unless the first line names distinct columns; the first one may have no name."""
    if not names or (len(names) == 1 and not names[0]):
        raise DataError("is empty, expected a header and rows")
    if len(names) > MAX_COLUMNS:
        raise DataError(f"has {len(names):,} columns, at most {MAX_COLUMNS:,} are supported")
    nameless = [place for place, name in enumerate(names, start=1) if not name]
    if nameless and nameless[-1] > 1:
        raise DataError(f"line 1: column {nameless[-1]} has no name: name it in the header, or use --no-header")
    counts = Counter(names)
    twice = [place for place, name in enumerate(names, start=1) if counts[name] > 1]
    if twice:
        raise DataError(f"line 1: columns {twice[0]} and {twice[1]} have the same name: rename one of them")


def check_is_header(names: Sequence[str], sample: Sequence[Sequence[str]]) -> None:
    """Raise if the first line reads like the others: its cells are numbers, or dates, wherever theirs are.

    Raises:
        DataError: names the flags that help.
    """
    alike = different = repeated = 0
    for name, cells in zip(names, sample, strict=False):
        some = [text for text in map(str.strip, cells[:JUDGED]) if text.lower() not in MISSING]
        if not some or is_index(name):
            continue
        for test in (is_written_number, is_date):
            if sum(map(test, some[:DATED])) > 0.9 * len(some[:DATED]):
                if name.lower() not in MISSING:
                    alike, different = alike + test(name), different + (not test(name))
                break
        else:
            repeated += name in some
    texts = sum(bool(name) for name in names)
    if alike > different or (not alike and not different and texts and repeated == texts):
        raise DataError(
            "line 1 reads like the other lines, expected the columns' names: use --no-header if there are none, or "
            "--header if line 1 does name them"
        )


def check_is_divided(found: Records, text: str, dialect: Dialect) -> None:
    """Raise if a file that was read as one column has lines that some other sign divides alike.

    Raises:
        DataError: says to remove what stands above the header, or what separates cells.
    """
    if len(found.columns) > 1:
        return
    lines = [line for line in head_of(text).splitlines()[dialect.skipped :][1:] if line.strip()]
    for sign in ";\t|^~":
        if lines and sum(sign in line for line in lines) > MOSTLY * len(lines):
            line = dialect.skipped + 1
            raise DataError(
                f"line {line}: is not divided by {sign!r}, as the lines below it are: remove what stands above the header, "
                "or say what separates cells by --sep"
            )


def is_written_number(text: str) -> bool:
    return plain_number(text) is not None or parts_of(text) is not None


def is_date(text: str) -> bool:
    return bool(date_reason([text]))


def chosen_columns(names: Sequence[str], columns: Sequence[str] | None) -> list[str]:
    """The requested columns, or all.

    Raises:
        DataError: one is absent.
    """
    absent = [name for name in columns or () if name not in names]
    if absent:
        raise DataError(f"has no column {absent[0]!r}; its columns: {', '.join(map(repr, names[:20]))}")
    return list(names if columns is None else columns)
