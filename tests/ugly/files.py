"""Files as people have them: one table of 1,000 rows, written in the ways of many programs, and files to be refused.

Every `Habit` writes the same rows, so a model trained on any of these files is the model trained on all of them.
"""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 1_000
Cells = list[str | None]  # of a column; None: missing
MISSING_SHARE = 0.02

# What a reader should find: a column's kind by name. `id`, `day`, `note` and `same` are left out.
KINDS = {
    "height": "real",
    "income": "positive",
    "growth": "real",
    "visits": "count",
    "zip": "category",
    "city": "category",
    "member": "boolean",
    "grade": "ordinal",
}
IGNORED = ("id", "day", "note", "same")


def columns() -> dict[str, Cells]:
    """The rows as plain text, by column: tall people live in Zürich and earn more."""
    random = np.random.default_rng(20)
    factor = random.normal(size=ROWS)
    height = 170 + 9 * factor + 2 * random.normal(size=ROWS)
    income = np.exp(8.5 + 0.5 * factor + 0.3 * random.normal(size=ROWS))
    growth = 2.0 * factor + random.normal(size=ROWS)
    visits = random.poisson(np.exp(1.5 + 0.6 * factor))
    city = np.where(factor > 0.4, "Zürich", np.where(factor < -0.6, "Genève", "Bern"))
    code = np.where(factor > 0.4, "08001", np.where(factor < -0.6, "01201", "03000"))
    member = np.where(factor + 0.5 * random.normal(size=ROWS) > 0, "yes", "no")
    grade = np.clip(np.rint(3 + factor), 1, 5).astype(int)
    day = [datetime.date(2023, 1, 1) + datetime.timedelta(days=int(at)) for at in random.integers(0, 700, ROWS)]
    found: dict[str, Cells] = {
        "id": [f"P-{at:05d}" for at in range(ROWS)],
        "height": [f"{value:.1f}" for value in height],
        "income": [f"{value:.2f}" for value in income],
        "growth": [f"{value:.2f}" for value in growth],
        "visits": [str(value) for value in visits],
        "zip": code.tolist(),
        "city": city.tolist(),
        "member": member.tolist(),
        "grade": [str(value) for value in grade],
        "day": [str(one) for one in day],
        "note": [f"seen {at} times" for at in random.permutation(ROWS)],
        "same": ["7"] * ROWS,
    }
    for name in KINDS:
        gone = random.random(ROWS) < MISSING_SHARE
        found[name] = [None if at else cell for cell, at in zip(found[name], gone, strict=True)]
    return found


VALID = {
    "id": "P-20001", "height": "178.3", "income": "6512.40", "growth": "1.72", "visits": "7", "zip": "08001",
    "city": "Zürich", "member": "yes", "grade": "4", "day": "2024-03-05", "note": "seen once", "same": "7",
}  # fmt: skip
SPOILT = VALID | {"height": "1783.0", "income": "9999999.00"}

Spelling = Callable[[str], str]
Columns = dict[str, Cells]


def text(
    found: Columns,
    separator: str = ",",
    missing: str = "",
    spellings: dict[str, Spelling] | None = None,
    end: str = "\n",
    **more: Any,
) -> str:
    """The rows as CSV, cells spelled by column; `more` goes to csv.writer."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=separator, lineterminator=end, **more)
    writer.writerow(found)
    spelled = [
        [missing if cell is None else (spellings or {}).get(name, str)(cell) for cell in cells]
        for name, cells in found.items()
    ]
    writer.writerows(zip(*spelled, strict=True))
    return buffer.getvalue()


def decimal_comma(cell: str) -> str:
    return cell.replace(".", ",")


def grouped(thousands: str, decimal: str, before: str = "", after: str = "") -> Spelling:
    """Thousands in groups, with a currency or unit."""

    def spelled(cell: str) -> str:
        number = f"{float(cell):,.2f}"
        return before + number.replace(",", "_").replace(".", decimal).replace("_", thousands) + after

    return spelled


COMMAS = dict.fromkeys(("height", "income", "growth"), decimal_comma)


def frame(found: Columns) -> pd.DataFrame:
    """The rows as pandas infers them."""
    numbers = ("height", "income", "growth", "visits", "grade")
    cells = {
        name: [None if cell is None else float(cell) if name in numbers else cell for cell in one]
        for name, one in found.items()
    }
    cells["member"] = [None if cell is None else cell == "yes" for cell in found["member"]]
    return pd.DataFrame(cells)


def parquet(data: pd.DataFrame | pa.Table) -> bytes:
    buffer = io.BytesIO()
    if isinstance(data, pa.Table):
        pq.write_table(data, buffer)
    else:
        data.to_parquet(buffer)
    return buffer.getvalue()


def typed(found: Columns) -> bytes:
    """Parquet with nulls, whole numbers, decimals, a dictionary, dates, and columns of no single values."""
    rows = len(found["id"])

    def numbers(name: str, kind: pa.DataType) -> pa.Array:
        return pa.array([None if cell is None else float(cell) for cell in found[name]], pa.float64()).cast(kind)

    return parquet(
        pa.table(
            {
                "id": pa.array(found["id"]),
                "height": numbers("height", pa.float64()),
                "income": pa.array([None if c is None else __import__("decimal").Decimal(c) for c in found["income"]]),
                "growth": numbers("growth", pa.float64()),
                "visits": numbers("visits", pa.int32()),
                "zip": pa.array(found["zip"]).dictionary_encode(),
                "city": pa.array(found["city"], pa.large_string()),
                "member": pa.array([None if cell is None else cell == "yes" for cell in found["member"]]),
                "grade": numbers("grade", pa.int8()),
                "day": pa.array([datetime.date.fromisoformat(str(cell)) for cell in found["day"]]),
                "tags": pa.array([["a", "b"]] * rows),
                "raw": pa.array([b"\x00\x01"] * rows),
                "at": pa.array([{"x": 1.0}] * rows),
            }
        )
    )


def json_rows(found: Columns) -> list[dict[str, Any]]:
    numbers = ("height", "income", "growth", "visits", "grade")
    listed = [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]
    for row in listed:
        for name in numbers:
            row[name] = None if row[name] is None else float(row[name])
        row["member"] = None if row["member"] is None else row["member"] == "yes"
    return listed


@dataclass(frozen=True)
class Habit:
    """A way to write the rows, and the flags that it needs.

    Attributes:
        write: rows by column to a file's bytes.
        suffix: the file's extension.
        flags: of the command line.
        by_http: whether a body of it can be POSTed as text/csv.
        has_unit: whether only a model that was trained on such a file reads it: 12 is not 12 %.
    """

    write: Callable[[Columns], bytes]
    suffix: str = ".csv"
    flags: tuple[str, ...] = ()
    by_http: bool = True
    has_unit: bool = False


def written(encoding: str = "utf-8", **options: Any) -> Callable[[Columns], bytes]:
    return lambda found: text(found, **options).encode(encoding)


def spelled(name: str, spelling: Spelling, **options: Any) -> Habit:
    return Habit(written(spellings={name: spelling}, **options))


def renamed_first(name: str) -> Callable[[Columns], bytes]:
    """With a first column of row numbers, called so."""
    return lambda found: text({name: [str(at) for at in range(len(found["id"]))], **found}).encode()


def row_names(found: Columns) -> bytes:
    """As R's write.table does: a name before each row, and none for their column."""
    lines = text(found).splitlines()
    return "\n".join([lines[0], *(f'"{at}",{line}' for at, line in enumerate(lines[1:], start=1))]).encode()


def long_cells(found: Columns) -> bytes:
    return text(found | {"note": ["x" * 200_000, *found["note"][1:]]}).encode()


def awkward_notes(found: Columns, **options: Any) -> bytes:
    notes: Cells = [f'said "{at}", and\nleft; or so | more' for at in range(len(found["note"]))]
    return text(found | {"note": notes}, **options).encode()


def yes_no(true: str, false: str) -> Spelling:
    return lambda cell: true if cell == "yes" else false


def day_as(pattern: str) -> Spelling:
    return lambda cell: datetime.date.fromisoformat(cell).strftime(pattern)


def day_and_time(cell: str) -> str:
    return f"{day_as('%m/%d/%Y')(cell)} 1:30 PM"


def epoch(cell: str) -> str:
    return str(int(datetime.datetime.fromisoformat(cell).replace(tzinfo=datetime.UTC).timestamp()))


def named_ts(found: Columns) -> bytes:
    return text(
        {("ts" if name == "day" else name): cells for name, cells in found.items()}, spellings={"ts": epoch}
    ).encode()


MISSING_WORDS = (
    *("#N/A", "<NA>", "NaN", "nan", "NULL", "null", "None", "N/A", "n/a", "NA", "?", "-", "--", ".", "\\N", "(null)"),
    *("#DIV/0!", "#VALUE!", "#REF!", "n.a.", "-1.#IND", "NaT"),
)

HABITS: dict[str, Habit] = {
    "plain": Habit(written()),
    "lines end as on Windows": Habit(written(end="\r\n")),
    "lines end as on old Macs": Habit(written(end="\r")),
    "a byte order mark": Habit(written("utf-8-sig")),
    "Excel's Unicode text": Habit(written("utf-16", separator="\t"), ".txt"),
    "UTF-16 without a mark": Habit(written("utf-16-le")),
    "latin 1": Habit(written("latin-1")),
    "Windows' encoding and semicolons": Habit(written("cp1252", separator=";")),
    "Mac's encoding, said": Habit(written("mac_roman"), flags=("--encoding", "mac_roman"), by_http=False),
    "semicolons": Habit(written(separator=";")),
    "tabs": Habit(written(separator="\t"), ".tsv"),
    "tabs in a .txt": Habit(written(separator="\t"), ".txt"),
    "bars": Habit(written(separator="|")),
    "a separator that is said": Habit(written(separator="~"), flags=("--sep", "~"), by_http=False),
    "packed": Habit(lambda found: gzip.compress(text(found).encode()), ".csv.gz", by_http=False),
    "packed tabs": Habit(lambda found: gzip.compress(text(found, "\t").encode()), ".tsv.gz", by_http=False),
    "a line sep=;": Habit(lambda found: ("sep=;\r\n" + text(found, ";", end="\r\n")).encode()),
    "comments at the top": Habit(lambda found: ("# exported, by a sensor\n# v2\n" + text(found)).encode()),
    "everything quoted": Habit(written(quoting=csv.QUOTE_ALL)),
    "apostrophes for quotes": Habit(written(quoting=csv.QUOTE_ALL, quotechar="'")),
    "quotes, separators and line ends in cells": Habit(awkward_notes),
    "quotes escaped by backslashes": Habit(lambda found: awkward_notes(found, doublequote=False, escapechar="\\")),
    "spaces around cells": Habit(lambda found: text(found).replace(",", " , ").encode()),
    "a separator at the end of each line": Habit(lambda found: text(found).replace("\n", ",\n").encode()),
    "blank lines at the end": Habit(lambda found: (text(found) + "\n\n \n").encode()),
    "lines of separators at the end": Habit(lambda found: (text(found) + ",,\n").encode()),
    "cells of 200,000 characters": Habit(long_cells),
    "the index of a data frame": Habit(renamed_first("")),
    "the index of a data frame, read and written again": Habit(renamed_first("Unnamed: 0")),
    "row names": Habit(row_names),
    "decimal commas": Habit(written(separator=";", spellings=COMMAS)),
    "decimal commas in quotes": Habit(written(spellings=COMMAS)),
    "decimal commas, said": Habit(written(separator=";", spellings=COMMAS), flags=("--decimal", ","), by_http=False),
    "points between thousands": Habit(written(separator=";", spellings=COMMAS | {"income": grouped(".", ",")})),
    "spaces between thousands": Habit(written(separator=";", spellings=COMMAS | {"income": grouped("\u202f", ",")})),
    "commas between thousands": spelled("income", grouped(",", ".")),
    "apostrophes between thousands": spelled("income", grouped("'", ".")),
    "dollars": spelled("income", grouped(",", ".", "$")),
    "euros": Habit(written(separator=";", spellings=COMMAS | {"income": grouped(".", ",", "", " €")})),
    "a currency's code": spelled("income", grouped(",", ".", "CHF ")),
    "percent": Habit(written(spellings={"growth": lambda cell: f"{cell} %"}), has_unit=True),
    "centimetres": Habit(written(spellings={"height": lambda cell: f"{cell} cm"}), has_unit=True),
    "accountants' negatives": spelled("growth", lambda cell: f"({cell[1:]})" if cell.startswith("-") else cell),
    "typographers' minus": spelled("growth", lambda cell: cell.replace("-", "\u2212")),
    "a plus sign": spelled("growth", lambda cell: cell if cell.startswith("-") else f"+{cell}"),
    "a minus at the end": spelled("growth", lambda cell: f"{cell[1:]}-" if cell.startswith("-") else cell),
    "powers of ten": spelled("income", lambda cell: f"{float(cell):.8e}"),
    "whole numbers with a point": spelled("visits", lambda cell: f"{cell}.0"),
    "True and False": spelled("member", yes_no("True", "False")),
    "TRUE and FALSE": spelled("member", yes_no("TRUE", "FALSE")),
    "true and false": spelled("member", yes_no("true", "false")),
    "Y and N": spelled("member", yes_no("Y", "N")),
    "on and off": spelled("member", yes_no("on", "off")),
    "German days": spelled("day", day_as("%d.%m.%Y")),
    "American days": spelled("day", day_as("%m/%d/%Y")),
    "American days and times": spelled("day", day_and_time),
    "named months": spelled("day", day_as("%d-%b-%Y")),
    "days without marks": spelled("day", day_as("%Y%m%d")),
    "times of day": spelled("day", lambda cell: f"{int(cell[-2:]) % 24:02d}:{int(cell[5:7]):02d}:00"),
    "epochs": Habit(named_ts, by_http=False),
    "no header, said": Habit(
        lambda found: text(found).partition("\n")[2].encode(), flags=("--no-header",), by_http=False
    ),
    "lines of JSON": Habit(
        lambda found: "".join(json.dumps(row) + "\n" for row in json_rows(found)).encode(), ".jsonl", by_http=False
    ),
    "packed lines of JSON": Habit(
        lambda found: gzip.compress("".join(json.dumps(row) + "\n" for row in json_rows(found)).encode()),
        ".jsonl.gz",
        by_http=False,
    ),
    "a list in JSON": Habit(lambda found: json.dumps(json_rows(found), indent=1).encode(), ".json", by_http=False),
    "text for numbers in JSON": Habit(
        lambda found: "".join(
            json.dumps(dict(zip(found, row, strict=True))) + "\n" for row in zip(*found.values(), strict=True)
        ).encode(),
        ".jsonl",
        by_http=False,
    ),
    "Parquet": Habit(lambda found: parquet(frame(found)), ".parquet", by_http=False),
    "Parquet with an index": Habit(lambda found: parquet(frame(found).set_index("id")), ".parquet", by_http=False),
    "Parquet with a nameless index": Habit(
        lambda found: parquet(
            frame(found).iloc[::-1].iloc[::-1].set_axis([f"r{at}" for at in range(len(found["id"]))])
        ),
        ".parquet",
        by_http=False,
    ),
    "Parquet with types of all kinds": Habit(typed, ".pq", by_http=False),
    **{f"{word} for a missing cell": Habit(written(missing=word)) for word in MISSING_WORDS},
    "a number for a missing cell, said": Habit(written(missing="-999"), flags=("--na-values", "-999")),
}


@dataclass(frozen=True)
class Refusal:
    """A file that cannot be trained on as it is: what the one line says, and with which flags it can."""

    content: bytes
    says: str
    suffix: str = ".csv"
    flags: tuple[str, ...] = ()
    remedies: tuple[tuple[str, ...], ...] = field(default_factory=tuple)


def with_cell(name: str, row: int, cell: str) -> bytes:
    found = columns()
    found[name][row] = cell
    return text(found).encode()


def ragged() -> bytes:
    lines = text(columns()).splitlines()
    lines[9] += ",more"
    lines[19] = lines[19].rpartition(",")[0]
    return "\n".join(lines).encode()


BAD = ("--bad-cells", "missing"), ("--bad-cells", "category")
REFUSALS: dict[str, Refusal] = {
    "an empty file": Refusal(b"", "is empty"),
    "a header alone": Refusal(text(columns()).partition("\n")[0].encode() + b"\n", "a header but no rows"),
    "no header": Refusal(text(columns()).partition("\n")[2].encode(), "--no-header", remedies=(("--no-header",),)),
    "the same name twice": Refusal(text(columns()).replace("height", "income", 1).encode(), "columns 3 and 4|2 and 3"),
    "a column without a name": Refusal(text(columns()).replace("height", "", 1).encode(), "column 2 has no name"),
    "ragged lines": Refusal(ragged(), "line 10 has 13 cells, the header has 12 .*20"),
    "an open quote": Refusal(text(columns()).encode() + b'"P-9,1\n', "a quote is opened and never closed"),
    "a word among numbers": Refusal(with_cell("income", 10, "oops"), "1 x 'oops', first in line 12", remedies=BAD),
    "infinity": Refusal(with_cell("income", 10, "inf"), "1 x 'inf', first in line 12", remedies=BAD),
    "more than float32 holds": Refusal(with_cell("income", 10, "9e39"), "'9e39', first in line 12", remedies=BAD),
    "a censored number": Refusal(with_cell("growth", 10, "<0.05"), "'<0.05', first in line 12", remedies=BAD),
    "a percent among numbers": Refusal(with_cell("growth", 10, "12 %"), "'12 %', first in line 12", remedies=BAD),
    "a decimal comma among points": Refusal(with_cell("growth", 10, "1,5"), "'1,5', first in line 12", remedies=BAD),
    "a date among numbers": Refusal(with_cell("growth", 10, "2024-01-05"), "'2024-01-05', first in line 12"),
    "an underscore in a number": Refusal(with_cell("income", 10, "1_000"), "'1_000', first in line 12", remedies=BAD),
    "numbers that may mean two": Refusal(
        text(
            {"a": [f"{at % 9 + 1},{at:03d}" for at in range(100, 400)], "b": [str(at % 7) for at in range(300)]}, ";"
        ).encode(),
        "may mean two numbers: say --decimal",
        remedies=(("--decimal", ","), ("--decimal", ".")),
    ),
    "a workbook": Refusal(b"PK\x03\x04 no csv", "read_excel", ".xlsx"),
    "a workbook that is called .csv": Refusal(b"PK\x03\x04 no csv", "is a .xlsx or .zip file by its content"),
    "Parquet that is called .csv": Refusal(b"PAR1 no csv PAR1", "is a .parquet file by its content"),
    "an archive": Refusal(b"PK\x03\x04", "unzip", ".zip"),
    "no gzip": Refusal(text(columns()).encode(), "is not a gzip file", ".csv.gz"),
    "no text": Refusal(bytes(range(256)) * 40, "is not a text file"),
    "not in the encoding that was said": Refusal(
        text(columns()).encode("latin-1"), "is not utf-8 text", flags=("--encoding", "utf-8")
    ),
    "broken JSON": Refusal(b'{"a": 1}\n{"a": \n', "line 2 is not JSON", ".jsonl"),
    "lists among objects": Refusal(b'{"a": 1}\n[1]\n', "line 2 is not an object", ".jsonl"),
    "only columns that say nothing": Refusal(
        text({name: cells for name, cells in columns().items() if name in IGNORED}).encode(), "no usable column"
    ),
}

ODD_TOKENS = (
    *MISSING_WORDS,
    *("inf", "-inf", "Infinity", "1e400", "9e39", "oops", "error", "tbd", "<0.05", ">100", "1,5", "1.2.3", "1_000"),
    *("12 %", "$5", "(5)", "0x1F", "½", "''", "true", "2024-01-01", "12:30", "E-17", "*", "#", "None.", "nan%", "~5"),
)
