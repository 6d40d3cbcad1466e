"""Tables in JSON: lines or a list of objects by column name, or of lists of equal length, to raw cells."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from service.data.cells import RawTable
from service.data.table import ABSENT
from service.errors import DataError
from service.files.dialect import AS_SHOWN, TextOptions, decoded
from service.files.records import ODD_LINES
from service.files.text_tables import chosen_columns


def json_table(content: bytes, options: TextOptions = AS_SHOWN, columns: Sequence[str] | None = None) -> RawTable:
    """The raw cells of JSON Lines, or of a JSON list: objects by column name, or lists of equal length.

    Raises:
        DataError: says which line is wrong.
    """
    text, encoding = decoded(content, options.encoding)
    rows, lines = json_rows(text)
    rows, lines, passed_over = regular_rows(rows, lines, options.bad_rows == "skip")
    if isinstance(rows[0], list):
        width = len(rows[0])
        names = [f"c{at}" for at in range(1, width + 1)]
        cells = [list(column) for column in zip(*rows, strict=True)]
    else:
        names = list(dict.fromkeys(name for row in rows for name in row))
        cells = [[row.get(name, ABSENT) for row in rows] for name in names]
    found = dict(zip(names, cells, strict=True))
    left_out = {
        name: "lists or objects" for name in names if any(isinstance(cell, list | dict) for cell in found[name])
    }
    chosen = chosen_columns(names, columns)
    if columns is not None and (wrong := [name for name in chosen if name in left_out]):
        raise DataError(f"column {wrong[0]!r} holds {left_out[wrong[0]]}, expected single values: leave it out")
    chosen = [name for name in chosen if name not in left_out]
    notes = [f"read as {encoding} text; --encoding overrules"] if encoding else []
    return RawTable(
        tuple(chosen),
        tuple(found[name] for name in chosen),
        left_out,
        lines,
        options.decimal or ".",
        (*notes, *filter(None, [passed_over])),
    )


class NotJson:
    """A line that is not JSON."""


def regular_rows(
    rows: list[Any], lines: np.ndarray | None, skips: bool
) -> tuple[list[Any], np.ndarray | None, str | None]:
    """The rows that are objects, or lists of one length, as the first one is; and which were passed over, in words.

    Raises:
        DataError: there are no rows; or, unless it `skips` them, lists the rows that are otherwise.
    """
    first = next((row for row in rows if isinstance(row, dict | list)), None)
    if first is None:
        raise DataError("has no rows" if not rows else f"{place_of(lines, 0)} is not JSON")
    kind, width = type(first), len(first)
    odd = [at for at, row in enumerate(rows) if type(row) is not kind or (isinstance(row, list) and len(row) != width)]
    if not odd:
        return rows, lines, None
    shown = ", ".join(place_of(lines, at) for at in odd[:ODD_LINES]) + (", ..." if len(odd) > ODD_LINES else "")
    if not skips:
        row = rows[odd[0]]
        what = "a list" if kind is list else "an object"
        problem = (
            "is not JSON"
            if isinstance(row, NotJson)
            else f"is not {what}, expected objects by column name"
            if type(row) is not kind
            else f"has {len(row)} values, the first row has {width}"
        )
        more = f" ({len(odd):,} such rows: {shown})" if len(odd) > 1 else ""
        raise DataError(f"{place_of(lines, odd[0])} {problem}{more}: correct the file, or use --on-bad-row skip")
    wrong = set(odd)
    kept = [at for at in range(len(rows)) if at not in wrong]
    note = f"{len(odd):,} rows passed over that are not like the first: {shown}"
    return [rows[at] for at in kept], None if lines is None else lines[kept], note


def place_of(lines: np.ndarray | None, at: int) -> str:
    return f"row {at}" if lines is None else f"line {int(lines[at])}"


def json_rows(text: str) -> tuple[list[Any], np.ndarray | None]:
    """The rows, and their lines if each is on a line of its own."""
    if is_one_document(text):
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"is not JSON: {error}") from None
        lists = (
            [one for one in document.values() if isinstance(one, list)] if isinstance(document, dict) else [document]
        )
        if len(lists) != 1 or not all(isinstance(one, dict | list) for one in lists[0]):
            raise DataError("is one JSON object, expected a list of objects by column name, or one such object a line")
        return lists[0], None
    rows, lines = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            rows.append(json_value(line))
            lines.append(number)
    return rows, np.array(lines)


def is_one_document(text: str) -> bool:
    """Whether the text is one list or object, and not a row on each line."""
    first, _, rest = text.lstrip().partition("\n")
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return first[:1] in ("[", "{") and first.rstrip()[-1:] in ("[", "{", ",")
    cells = [*value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    return not rest.strip() and bool(cells) and all(isinstance(one, dict | list) for one in cells)


def json_value(line: str) -> Any:
    """A line's value; `NotJson` if it is none."""
    try:
        return msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError):
        pass
    try:
        return json.loads(line)  # with Python's NaN and Infinity
    except (ValueError, RecursionError):
        return NotJson()
