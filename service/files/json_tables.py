"""Tables in JSON: lines or a list of objects by column name, or of lists of equal length, to raw cells."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from service.data.cells import RawTable
from service.errors import DataError
from service.files.dialect import AS_SHOWN, TextOptions, decoded
from service.files.text_tables import chosen_columns


def json_table(content: bytes, options: TextOptions = AS_SHOWN, columns: Sequence[str] | None = None) -> RawTable:
    """The raw cells of JSON Lines, or of a JSON list: objects by column name, or lists of equal length.

    Raises:
        DataError: says which line is wrong.
    """
    text, encoding = decoded(content, options.encoding)
    rows, lines = json_rows(text)
    if not rows:
        raise DataError("has no rows")
    place: Callable[[int], str] = (lambda at: f"row {at}") if lines is None else (lambda at: f"line {int(lines[at])}")
    kind = type(rows[0])
    odd = next((at for at, row in enumerate(rows) if type(row) is not kind or not isinstance(row, dict | list)), None)
    if odd is not None:
        raise DataError(
            f"{place(odd)} is not {'an object' if kind is dict else 'a list'}, expected objects by column name"
        )
    if kind is list:
        width = len(rows[0])
        odd = next((at for at, row in enumerate(rows) if len(row) != width), None)
        if odd is not None:
            raise DataError(f"{place(odd)} has {len(rows[odd])} values, the first row has {width}")
        names = [f"c{at}" for at in range(1, width + 1)]
        cells = [list(column) for column in zip(*rows, strict=True)]
    else:
        names = list(dict.fromkeys(name for row in rows for name in row))
        cells = [[row.get(name) for row in rows] for name in names]
    found = dict(zip(names, cells, strict=True))
    left_out = {
        name: "lists or objects" for name in names if any(isinstance(cell, list | dict) for cell in found[name])
    }
    chosen = chosen_columns(names, columns)
    if columns is not None and (wrong := [name for name in chosen if name in left_out]):
        raise DataError(f"column {wrong[0]!r} holds {left_out[wrong[0]]}, expected single values: leave it out")
    chosen = [name for name in chosen if name not in left_out]
    notes = (f"read as {encoding} text; --encoding overrules",) if encoding else ()
    return RawTable(
        tuple(chosen), tuple(found[name] for name in chosen), left_out, lines, options.decimal or ".", notes
    )


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
            rows.append(json_value(line, number))
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


def json_value(line: str, number: int) -> Any:
    try:
        return msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError):
        pass
    try:
        return json.loads(line)  # with Python's NaN and Infinity
    except (ValueError, RecursionError):
        raise DataError(f"line {number} is not JSON") from None
