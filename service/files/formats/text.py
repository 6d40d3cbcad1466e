"""CSV and JSON Lines: a row is a record of text, kept unchanged."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from service.data.cells import CellReader
from service.errors import DataError, Fault, InputError, RowError, first_fault
from service.files.formats.base import RECORD, VECTOR, Reader, ReadRequest, RowRange, Scan, readable
from service.files.locations import CHUNK, InputFile
from service.files.tables import check_header

MOST_HEADER = 2**20  # bytes
BOM = b"\xef\xbb\xbf"


class Csv:
    """CSV with a header, separated by commas, semicolons or tabs. `header` is its first record."""

    def scan(self, file: InputFile, request: ReadRequest) -> Scan:
        """Read the text once, to find its records and hash it."""
        with file.open() as source:
            text = source.read(MOST_HEADER).removeprefix(BOM)
        header = first_record(text)
        with readable("line 1"):
            names = names_of(header)
        check_header("the file", names)
        request.check_columns(names)
        return scanned_lines(file, request, delimiter_of(header), header)

    def reader(self, file: InputFile, header: str) -> Reader:
        return LineReader(file, delimiter_of(header))

    def cells(self, raw: pa.Table, header: str, reader: CellReader) -> pa.Table:
        """The columns that the model reads, as text."""
        names = names_of(header)
        rows = parsed(raw.column(RECORD).to_pylist(), delimiter_of(header), len(names))
        request = names if reader.names is None else reader.names
        columns = list(zip(*rows, strict=True)) or [()] * len(names)
        return pa.table({name: pa.array(columns[names.index(name)], pa.string()) for name in request})

    def write(self, raw: pa.Table, header: str) -> bytes:
        return b"".join([header.encode(), *ended(raw, line_end(header))])

    def write_beside(self, raw: pa.Table, scores: pa.Table, header: str) -> bytes:
        """As `write`, with further cells after each record."""
        end, delimiter = line_end(header), delimiter_of(header)
        more: list[str] = []  # one text per row, which may itself hold line ends
        # csv.writer quotes cells that hold a character of the line terminator.
        writer = csv.writer(Lines(more), delimiter=delimiter, lineterminator="\r\n")
        writer.writerow(scores.column_names)
        writer.writerows(zip(*(column.to_pylist() for column in scores.columns), strict=True))
        records = [header.encode(), *ended(raw, end)]
        return b"".join(
            record.rstrip(b"\r\n") + (delimiter + cells + end).encode()
            for record, cells in zip(records, more, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Lines:
    """A file object for csv.writer that keeps each row as a string of its own."""

    rows: list[str]

    def write(self, row: str) -> None:
        """Keep a row without its line end."""
        self.rows.append(row.removesuffix("\r\n"))


class JsonLines:
    """JSON Lines: each row is an object keyed by column name, or a list of numbers."""

    def scan(self, file: InputFile, request: ReadRequest) -> Scan:
        """Read the text once, to find its lines and hash it."""
        return scanned_lines(file, request, None, "")

    def reader(self, file: InputFile, header: str) -> Reader:
        return LineReader(file, None)

    def cells(self, raw: pa.Table, header: str, reader: CellReader) -> pa.Table:
        """One column of lists: the cells as numbers."""
        lines = raw.column(RECORD).to_pylist()
        faults: list[Fault] = []
        rows = [reader.row(decoded(row, line), row, faults) for row, line in enumerate(lines) if not faults]
        if faults:
            raise first_fault(InputError("some rows cannot be read", faults))
        values = np.array(rows, dtype=np.float64).reshape(len(rows), reader.features)
        return pa.table({VECTOR: pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), reader.features)})

    def write(self, raw: pa.Table, header: str) -> bytes:
        return b"".join(ended(raw, "\n"))

    def write_beside(self, raw: pa.Table, scores: pa.Table, header: str) -> bytes:
        """As `write`, with further fields in each object.

        Raises:
            RowError: a row is not an object.
        """
        lines = []
        for row, (line, more) in enumerate(zip(raw.column(RECORD).to_pylist(), scores.to_pylist(), strict=True)):
            text = line.rstrip()
            if not text.startswith(b"{"):
                raise RowError(row, "is a list, so fields cannot be added")
            comma = b"" if text[1:-1].strip() == b"" else b", "
            lines.append(text[:-1] + comma + json.dumps(more).encode()[1:] + b"\n")
        return b"".join(lines)


class LineReader:
    """Reads the records of a text file by their byte ranges."""

    def __init__(self, file: InputFile, delimiter: str | None) -> None:
        self.source, self.delimiter = file.open(), delimiter

    def rows(self, row_range: RowRange) -> pa.Table:
        with readable(f"rows from {row_range.first} on"):
            self.source.seek(row_range.offset)
            text = self.source.read(row_range.size)
        found = records_in(text, self.delimiter, is_last=True)
        if len(found.starts) != row_range.rows:
            raise DataError(f"rows from {row_range.first} on cannot be read: the file changed since it was planned")
        records = [text[start:end] for start, end in zip(found.starts.tolist(), found.ends.tolist(), strict=True)]
        return pa.table({RECORD: pa.array(records, pa.large_binary())})

    def close(self) -> None:
        self.source.close()


# Records among bytes


@dataclass(frozen=True, slots=True)
class Records:
    """Where records start and end in some bytes, shape (N,) each, without blank lines.

    The first `used` bytes hold whole records.
    """

    starts: np.ndarray
    ends: np.ndarray
    used: int


def records_in(text: bytes, delimiter: str | None, is_last: bool) -> Records:
    """Find CSV records, whose quoted cells may hold line ends, or lines if `delimiter` is None.

    An unfinished record is left for the next bytes; at the end of the file it counts as a record.
    """
    if delimiter is None or b'"' not in text:
        ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n")) + 1
    else:
        ends = np.array(quoted_ends(text, delimiter), dtype=np.int64)
    used = int(ends[-1]) if len(ends) else 0
    if is_last and used < len(text):
        used, ends = len(text), np.append(ends, len(text))
    starts = np.concatenate([ends[:0], [0], ends[:-1]])[: len(ends)]
    there = ends - starts > 2
    for at in np.flatnonzero(~there).tolist():
        there[at] = bool(text[starts[at] : ends[at]].strip(b"\r\n"))
    return Records(starts[there], ends[there], used)


def quoted_ends(text: bytes, delimiter: str) -> list[int]:
    """Offsets at which records end, found by the same parser that will read them."""
    lines = text.split(b"\n")[:-1]
    up_to = np.cumsum([len(line) + 1 for line in lines]).tolist()
    ends: list[int] = []
    at = 0
    while at < len(lines):
        rest = (lines[line].decode("latin-1") + "\n" for line in range(at, len(lines)))
        reader = csv.reader(rest, delimiter=delimiter, strict=True)
        try:
            for _ in reader:
                ends.append(up_to[at + reader.line_num - 1])
            break
        except csv.Error:
            at += reader.line_num
            if at == len(lines):  # perhaps inside a quoted cell that ends in the next bytes
                break
            # Not valid CSV: what was read becomes a record of its own, refused later with its row number.
            ends.append(up_to[at - 1])
    return ends


def scanned_lines(file: InputFile, request: ReadRequest, delimiter: str | None, header: str) -> Scan:
    """Find the byte range of each row range, and hash the file. The header is not a row."""
    content = hashlib.sha256()
    begins: list[int] = []
    rows, offset, rest = 0, 0, b""
    with file.open() as source:
        chunk = source.read(CHUNK)
        content.update(chunk)
        offset = len(header.encode()) + (len(BOM) if chunk.startswith(BOM) else 0)
        chunk = chunk[offset:]
        while chunk or rest:
            text = rest + chunk
            following = source.read(CHUNK)
            content.update(following)
            found = records_in(text, delimiter, is_last=not following)
            begins += (offset + found.starts[-rows % request.rows :: request.rows]).tolist()
            rows, offset, rest, chunk = rows + len(found.starts), offset + found.used, text[found.used :], following
    ranges = tuple(
        RowRange(row_range.first, row_range.rows, begin, end - begin)
        for row_range, begin, end in zip(request.ranges(rows), begins or [offset], [*begins[1:], offset], strict=True)
    )
    digest = f"sha256:{content.hexdigest()}" if file.is_local else file.version()
    return Scan(rows=rows, digest=digest, header=header, ranges=ranges)


def ended(raw: pa.Table, end: str) -> Iterator[bytes]:
    """Records with their line ends; the last record of a file may have had none."""
    for record in raw.column(RECORD).to_pylist():
        yield record if record.endswith(b"\n") else record + end.encode()


# CSV


def first_record(text: bytes) -> str:
    """The header, with its line end.

    Raises:
        DataError: the file is empty, or the header is not UTF-8.
    """
    first = text.partition(b"\n")[0]
    guess = first.decode("latin-1")
    found = records_in(text, delimiter_of(guess), is_last=True)
    if not len(found.starts):
        raise DataError("is empty, expected a header and rows")
    header = text[: found.ends[0]]
    try:
        return header.decode() if header.endswith(b"\n") else header.decode() + "\n"
    except UnicodeDecodeError:
        raise DataError("line 1 is not UTF-8 text") from None


def delimiter_of(header: str) -> str:
    return max(",;\t", key=header.count)


def line_end(header: str) -> str:
    return "\r\n" if header.endswith("\r\n") else "\n"


def names_of(header: str) -> list[str]:
    (cells,) = csv.reader([header.strip("\r\n")], delimiter=delimiter_of(header), strict=True)
    return [name.strip() for name in cells]


def parsed(records: Sequence[bytes], delimiter: str, width: int) -> list[list[str]]:
    """The cells of CSV records.

    Raises:
        RowError: a record is malformed or has another number of cells.
    """
    reader = csv.reader((text_of(row, record) for row, record in enumerate(records)), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    try:
        for cells in reader:
            if len(cells) != width:
                raise RowError(len(rows), f"has {len(cells)} cells, the header has {width}")
            rows.append(cells)
    except csv.Error:
        raise RowError(len(rows), "is not a CSV record: misplaced quote") from None
    return rows


def text_of(row: int, record: bytes) -> str:
    """A record's text.

    Raises:
        RowError: it is not UTF-8.
    """
    try:
        return record.decode()
    except UnicodeDecodeError:
        raise RowError(row, "is not UTF-8 text") from None


# JSON


def decoded(row: int, line: bytes) -> Any:
    """A line's JSON value; NaN and Infinity, which Python writes, are accepted.

    Raises:
        RowError: it is not JSON.
    """
    try:
        return msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError):
        pass
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise RowError(row, "is not JSON") from None
