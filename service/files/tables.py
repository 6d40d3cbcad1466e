"""Files with named columns to tables: CSV and its relatives, JSON Lines, Parquet."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from service.data.cells import Cells, RawTable
from service.data.detect import detect
from service.data.table import Table
from service.errors import DataError
from service.files.dialect import AS_SHOWN, TextOptions, unpacked
from service.files.json_tables import json_table
from service.files.text_tables import chosen_columns, csv_table

TEXT = (".csv", ".tsv", ".txt")
JSON = (".jsonl", ".ndjson", ".json")
PARQUET = (".parquet", ".pq")
DECIMAL = b"vouch.decimal"  # metadata of an Arrow table of text: the decimal mark of its numbers
TABLES = ".csv, .tsv, .txt, .jsonl (and .gz of them), .parquet"
# How to convert what is not read here; pandas and its readers are no dependencies.
CONVERTED = {
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods"), "read_excel"),
    **dict.fromkeys((".feather", ".arrow"), "read_feather"),
    **dict.fromkeys((".pkl", ".pickle"), "read_pickle"),
    **{".sav": "read_spss", ".dta": "read_stata", ".sas7bdat": "read_sas", ".h5": "read_hdf", ".orc": "read_orc"},
}
PACKED = {".zip": "unzip", ".bz2": "bunzip2", ".xz": "unxz", ".zst": "unzstd", ".7z": "7z x"}


def table_suffix(path: Path) -> str:
    """The extension in lower case that says how a table is read, without .gz; empty if it is no table."""
    if path.is_dir():
        has_parquet = any(file.suffix.lower() in PARQUET for file in path.iterdir())
        return ".parquet" if has_parquet else ""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    last = suffixes[-2] if suffixes[-1:] == [".gz"] and len(suffixes) > 1 else "".join(suffixes[-1:])
    return last if last in (*TEXT, *JSON, *PARQUET) else ""


def is_table(path: Path) -> bool:
    """Whether a file's columns have names."""
    return table_suffix(path) != ""


def check_supported(path: Path) -> None:
    """Raise for kinds of files that others read.

    Raises:
        DataError: says how to convert the file.
    """
    suffix = path.suffix.lower()
    if reader := CONVERTED.get(suffix):
        target = path.with_suffix(".csv").name
        command = f"pandas.{reader}({path.name!r}).to_csv({target!r}, index=False)"
        raise DataError(
            f'{path}: {suffix} files are not read: save it as CSV, or: python -c "import pandas; {command}"'
        )
    if unpack := PACKED.get(suffix):
        raise DataError(f"{path}: {suffix} files are not read: unpack it first, such as by `{unpack} {path.name}`")


@contextmanager
def as_data_error(path: Path) -> Iterator[None]:
    """Turn an error about a bad file into a one-line DataError that names the file."""
    try:
        yield
    except DataError as error:
        raise error if str(error).startswith(str(path)) else DataError(f"{path}: {error}") from error
    except MemoryError as error:
        raise DataError(f"{path}: the file is too large for memory") from error
    except Exception as error:  # a damaged file can make its library raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: cannot be read: {reason}") from error


def read_table(path: Path, columns: Sequence[str] | None = None, options: TextOptions = AS_SHOWN) -> Table:
    """Read a file like `read_raw`, and detect which columns hold numbers.

    Raises:
        DataError: also for a column of numbers with a cell that is none.
    """
    raw = read_raw(path, columns, options)
    found = detect(raw)
    with as_data_error(path):
        found.check_bad_cells(raw.place)
    return found.table


def read_raw(
    path: Path,
    columns: Sequence[str] | None = None,
    options: TextOptions = AS_SHOWN,
    known: Collection[str] = (),
    as_text: bool = False,
) -> RawTable:
    """Read the cells of a file, or of a folder of Parquet files, unchanged.

    Args:
        columns: columns to read, in this order; default: all.
        known: columns that a model reads; `as_text`: whether it reads numbers in a format of its own (see `csv_table`).

    Raises:
        DataError: the file is missing, malformed or has no rows.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    check_supported(path)
    suffix = table_suffix(path)
    with as_data_error(path):
        if suffix in PARQUET:
            table = parquet_table(path, columns)
        else:
            content = path.read_bytes()
            content = unpacked(content) if path.suffix.lower() == ".gz" else content
            check_is_text(path, content)
            is_json = suffix in JSON
            table = (
                json_table(content, options, columns)
                if is_json
                else csv_table(content, options, columns, known, as_text)
            )
            if is_json and known:  # a model reads a text as in other JSON, without a file to tell its decimal mark
                table = replace(table, decimal=options.decimal)
        if not len(table):
            raise DataError("has columns but no rows" if table.names else "has no usable column")
    return table


def check_is_text(path: Path, content: bytes) -> None:
    """Raise if a file is another kind of file by its first bytes."""
    kinds = {b"PK\x03\x04": ".xlsx or .zip", b"PAR1": ".parquet", b"\x1f\x8b": ".gz", b"\xd0\xcf\x11\xe0": ".xls"}
    for magic, suffix in kinds.items():
        if content.startswith(magic):
            raise DataError(f"is a {suffix} file by its content, not {path.suffix}: rename it")


def parquet_table(path: Path, columns: Sequence[str] | None) -> RawTable:
    """A Parquet file, or a folder of them with the same columns; needs the extra `parquet`."""
    try:
        import pyarrow as pa
        from pyarrow import parquet as pq
    except ImportError as error:
        raise DataError("reading Parquet needs the extra: pip install '.[parquet]'") from error
    paths = sorted(one for one in path.rglob("*") if one.suffix.lower() in PARQUET) if path.is_dir() else [path]
    tables = []
    for one in paths:
        file = pq.ParquetFile(one)
        chosen = chosen_columns(file.schema_arrow.names, columns)
        tables.append(file.read(columns=chosen).select(chosen))
        if tables[-1].schema.names != tables[0].schema.names:
            raise DataError(f"{one.name} has other columns than {paths[0].name}")
    together = pa.concat_tables(tables, promote_options="permissive")
    raw = raw_of(together, "refuse" if columns is not None else "leave out")
    return with_index_left_out(raw, together.schema.metadata or {}) if columns is None else raw


def with_index_left_out(raw: RawTable, metadata: dict[bytes, bytes]) -> RawTable:
    """A table without the columns that pandas' metadata call its index."""
    try:
        index = json.loads(metadata.get(b"pandas", b"{}")).get("index_columns", [])
    except ValueError:
        return raw
    names = [name for name in raw.names if name not in index]
    left_out = raw.left_out | {name: "the index of a data frame" for name in raw.names if name in index}
    return RawTable(tuple(names), tuple(raw.column(name) for name in names), left_out)


def raw_of(rows: Any, nested: str = "leave out") -> RawTable:
    """An Arrow table as raw cells.

    Args:
        nested: whether to `leave out` columns that hold no single values, or to `refuse` them.

    Raises:
        DataError: names the column.
    """
    left_out = {
        name: reason
        for name, one in zip(rows.column_names, rows.columns, strict=True)
        if (reason := reason_against(one.type))
    }
    if left_out and nested == "refuse":
        name, reason = next(iter(left_out.items()))
        raise DataError(f"column {name!r} holds {reason}, expected single values: leave it out")
    names = [name for name in rows.column_names if name not in left_out]
    decimal = (rows.schema.metadata or {}).get(DECIMAL, b"").decode() or None
    return RawTable(tuple(names), tuple(arrow_cells(rows.column(name)) for name in names), left_out, None, decimal)


def reason_against(kind: Any) -> str:
    """Why an Arrow column holds no cells; empty if it does."""
    from pyarrow import types

    if types.is_dictionary(kind):
        return reason_against(kind.value_type)
    if types.is_nested(kind):
        return "structs" if types.is_struct(kind) else "maps" if types.is_map(kind) else "lists"
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return "binary data"
    return "durations" if types.is_duration(kind) or types.is_interval(kind) else ""


def arrow_cells(values: Any) -> Cells:
    """An Arrow column's cells: numbers, booleans and text unchanged, anything else as text."""
    from pyarrow import types

    if types.is_decimal(values.type):
        values = values.cast("string")  # Arrow's own cast to float64 may be off by the last bit
        return np.array([math.nan if cell is None else float(cell) for cell in values.to_pylist()])
    if types.is_integer(values.type) or types.is_floating(values.type):
        return np.asarray(values.cast("float64", safe=False).fill_null(math.nan).to_numpy())
    cells = values.to_pylist()
    return [cell if cell is None or isinstance(cell, bool | int | float | str) else str(cell) for cell in cells]
