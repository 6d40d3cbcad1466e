"""CSV and JSON Lines: a row is a record of text, kept unchanged."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import msgspec
import numpy as np
import pyarrow as pa

from service.data.cells import CellReader
from service.data.numbers import Decimal
from service.errors import DataError, Fault, InputError, RowError, first_fault
from service.files.dialect import Dialect, TextOptions, decoded, encoding_of
from service.files.formats.base import RECORD, VECTOR, Reader, ReadRequest, RowRange, Scan, readable
from service.files.locations import CHUNK, InputFile
from service.files.records import has_one_more
from service.files.tables import DECIMAL
from service.files.text_tables import check_header, check_is_header, mark_of, named
from service.system.frozen import Frozen

MOST_HEADER = 2**20  # bytes
JUDGED = 1_000  # records that say how the file is written
WIDE = "utf_8"  # of a file whose line ends are not single bytes
HEAD = '{"record":'
BOM = b"\xef\xbb\xbf"


class TextHead(Frozen):
    """What is needed to read and write the records of a CSV file.

    Attributes:
        record: the header with its line end; empty if the file has none.
        names: of the columns.
        decimal: the decimal mark of the file's numbers, if it shows.
    """

    record: str
    names: tuple[str, ...]
    dialect: Dialect = Dialect()
    encoding: str = "utf-8"
    decimal: Decimal | None = None

    @staticmethod
    def of(header: str) -> TextHead:
        """The head that a scan found; runs planned by older versions kept only the record."""
        if header.startswith(HEAD):
            return TextHead.model_validate_json(header)
        separator = max(",;\t", key=header.count)
        (cells,) = csv.reader([header.strip("\r\n")], delimiter=separator, strict=True)
        return TextHead(
            record=header, names=tuple(name.strip() for name in cells), dialect=Dialect(separator=separator)
        )

    @property
    def line_end(self) -> str:
        return "\r\n" if self.record.endswith("\r\n") else "\n"

    def bytes_of(self, text: str) -> bytes:
        return text.encode(self.encoding, errors="replace")

    def source(self, file: InputFile) -> IO[bytes]:
        """The file, in an encoding whose line ends are single bytes."""
        if self.encoding != WIDE:
            return file.open()
        with file.open() as opened:
            text, _ = decoded(opened.read())
        return io.BytesIO(text.encode())


class Csv:
    """CSV in any dialect: a row is a record of text, kept unchanged. UTF-16 and UTF-32 are rewritten as UTF-8."""

    def scan(self, file: InputFile, request: ReadRequest) -> Scan:
        """Read the text once, to find its records and hash it."""
        with readable("the file"):
            head, start = head_of(file, request.text, request.spec.columns or ())
        request.check_columns(list(head.names))
        return scanned_lines(file, request, head, start)

    def reader(self, file: InputFile, header: str) -> Reader:
        head = TextHead.of(header)
        return LineReader(head.source(file), head.dialect)

    def cells(self, raw: pa.Table, header: str, reader: CellReader) -> pa.Table:
        """The columns that the model reads, as text."""
        head = TextHead.of(header)
        rows = parsed(raw.column(RECORD).to_pylist(), head)
        request = head.names if reader.names is None else reader.names
        columns = list(zip(*rows, strict=True)) or [()] * len(head.names)
        table = pa.table({name: pa.array(columns[head.names.index(name)], pa.string()) for name in request})
        return table if head.decimal is None else table.replace_schema_metadata({DECIMAL: head.decimal})

    def write(self, raw: pa.Table, header: str) -> bytes:
        head = TextHead.of(header)
        return b"".join([head.bytes_of(head.record), *ended(raw, head.line_end)])

    def write_beside(self, raw: pa.Table, scores: pa.Table, header: str) -> bytes:
        """As `write`, with further cells after each record.

        Raises:
            DataError: the file already has such columns, or no header.
        """
        head = TextHead.of(header)
        check_new_columns(scores, head.names)
        if not head.record:
            raise DataError("has no header to add the names of verdict columns to")
        more: list[str] = []  # one text per row, which may itself hold line ends
        # csv.writer quotes cells that hold a character of the line terminator.
        dialect = head.dialect
        writer = csv.writer(Lines(more), delimiter=dialect.separator, quotechar=dialect.quote, lineterminator="\r\n")
        writer.writerow(scores.column_names)
        writer.writerows(zip(*(column.to_pylist() for column in scores.columns), strict=True))
        records = [head.bytes_of(head.record), *ended(raw, head.line_end)]
        return b"".join(
            record.rstrip(b"\r\n") + head.bytes_of(dialect.separator + cells + head.line_end)
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
        return scanned_lines(file, request, None, 0)

    def reader(self, file: InputFile, header: str) -> Reader:
        return LineReader(file.open(), None)

    def cells(self, raw: pa.Table, header: str, reader: CellReader) -> pa.Table:
        """One column of lists: the cells as numbers."""
        lines = raw.column(RECORD).to_pylist()
        faults: list[Fault] = []
        rows = [reader.row(json_value(row, line), row, faults) for row, line in enumerate(lines) if not faults]
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
            document = json_value(row, line)
            if not isinstance(document, dict):
                raise RowError(row, "is a list, so fields cannot be added")
            check_new_columns(scores, document)
            comma = b"" if text[1:-1].strip() == b"" else b", "
            lines.append(text[:-1] + comma + json.dumps(more).encode()[1:] + b"\n")
        return b"".join(lines)


class LineReader:
    """Reads the records of a text file by their byte ranges."""

    def __init__(self, source: IO[bytes], dialect: Dialect | None) -> None:
        self.source, self.dialect = source, dialect

    def rows(self, row_range: RowRange) -> pa.Table:
        with readable(f"rows from {row_range.first} on"):
            self.source.seek(row_range.offset)
            text = self.source.read(row_range.size)
        found = records_in(text, self.dialect, is_last=True)
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


def records_in(text: bytes, dialect: Dialect | None, is_last: bool) -> Records:
    """Find CSV records, whose quoted cells may hold line ends, or lines if `dialect` is None.

    An unfinished record is left for the next bytes; at the end of the file it counts as a record.
    """
    if dialect is None or dialect.quote.encode() not in text:
        ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n")) + 1
    else:
        ends = np.array(quoted_ends(text, dialect), dtype=np.int64)
    used = int(ends[-1]) if len(ends) else 0
    if is_last and used < len(text):
        used, ends = len(text), np.append(ends, len(text))
    starts = np.concatenate([ends[:0], [0], ends[:-1]])[: len(ends)]
    there = ends - starts > 2
    for at in np.flatnonzero(~there).tolist():
        there[at] = bool(text[starts[at] : ends[at]].strip(b"\r\n"))
    return Records(starts[there], ends[there], used)


def quoted_ends(text: bytes, dialect: Dialect) -> list[int]:
    """Offsets at which records end, found by the same parser that will read them."""
    lines = text.split(b"\n")[:-1]
    up_to = np.cumsum([len(line) + 1 for line in lines]).tolist()
    ends: list[int] = []
    at = 0
    while at < len(lines):
        rest = (lines[line].decode("latin-1") + "\n" for line in range(at, len(lines)))
        reader = dialect.reader(rest)
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


def scanned_lines(file: InputFile, request: ReadRequest, head: TextHead | None, start: int) -> Scan:
    """Find the byte range of each row range, and hash the file. Rows begin after `start` bytes."""
    content = hashlib.sha256()
    begins: list[int] = []
    dialect = None if head is None else head.dialect
    rows, offset, rest = 0, start, b""
    with file.open() if head is None else head.source(file) as source:
        chunk = source.read(CHUNK)
        content.update(chunk)
        if head is None and chunk.startswith(BOM):
            offset = len(BOM)
        chunk = chunk[offset:]
        while chunk or rest:
            text = rest + chunk
            following = source.read(CHUNK)
            content.update(following)
            found = records_in(text, dialect, is_last=not following)
            begins += (offset + found.starts[-rows % request.rows :: request.rows]).tolist()
            rows, offset, rest, chunk = rows + len(found.starts), offset + found.used, text[found.used :], following
    ranges = tuple(
        RowRange(row_range.first, row_range.rows, begin, end - begin)
        for row_range, begin, end in zip(request.ranges(rows), begins or [offset], [*begins[1:], offset], strict=True)
    )
    digest = f"sha256:{content.hexdigest()}" if file.is_local else file.version()
    return Scan(rows=rows, digest=digest, header="" if head is None else head.model_dump_json(), ranges=ranges)


def ended(raw: pa.Table, end: str) -> Iterator[bytes]:
    """Records with their line ends; the last record of a file may have had none."""
    for record in raw.column(RECORD).to_pylist():
        yield record if record.endswith(b"\n") else record + end.encode()


# CSV


def head_of(file: InputFile, options: TextOptions, known: Collection[str]) -> tuple[TextHead, int]:
    """A CSV file's head, by its first megabyte, and the bytes that come before its rows.

    Raises:
        DataError: the file is empty, its header does not name its columns, or it is no text.
    """
    content = file.sample(MOST_HEADER)
    encoding = options.encoding or encoding_of(content)
    is_wide = codecs.lookup(encoding).name.startswith(("utf-16", "utf-32"))
    mark = len(BOM) if content.startswith(BOM) else 0
    if is_wide:
        with file.open() as opened:
            content, mark = decoded(opened.read(), options.encoding)[0].encode(), 0
    encoding = WIDE if is_wide else "utf-8" if encoding == "utf-8-sig" else encoding
    content = content[mark:]
    text = content.decode(encoding, errors="ignore" if len(content) >= MOST_HEADER - mark else "strict")
    dialect = Dialect.of(text, options)
    lines = text.splitlines(keepends=True)
    start = mark + len("".join(lines[: dialect.skipped]).encode(encoding))
    rest = content[start - mark :]
    found = records_in(rest, dialect, is_last=True)
    if not len(found.starts):
        raise DataError("is empty, expected a header and rows")
    records = [
        rest[begin:end].decode(encoding) for begin, end in zip(found.starts[:JUDGED], found.ends[:JUDGED], strict=True)
    ]
    rows = [cells for record in records for cells in rows_in(record, dialect)]
    record = records[0] if records[0].endswith("\n") else records[0] + "\n"
    if options.header is False:
        names, record = [f"c{at}" for at in range(1, len(rows[0]) + 1)], ""
    else:
        start += int(found.ends[0])
        names = [name.strip() for name in rows[0]]
        if has_one_more(names, rows[1:]):
            columns = list(zip(*rows[1:], strict=True))
            names, _, _ = named(names, [*columns], columns)
        check_header(names)
        if options.header is None and not set(known) & set(names):
            check_is_header(names, list(zip(*rows[1:], strict=False)))
    decimal = options.decimal or mark_of([*zip(*(row for row in rows[1:] if len(row) == len(names)), strict=True)])
    return TextHead(record=record, names=tuple(names), dialect=dialect, encoding=encoding, decimal=decimal), start


def rows_in(record: str, dialect: Dialect) -> list[list[str]]:
    """A record's cells; nothing if it is damaged, which is said when it is scored."""
    try:
        return [cells for cells in dialect.reader(io.StringIO(record, newline="")) if cells]
    except csv.Error:
        return []


def parsed(records: Sequence[bytes], head: TextHead) -> list[list[str]]:
    """The cells of CSV records.

    Raises:
        RowError: a record is malformed or has another number of cells.
    """
    reader = head.dialect.reader(text_of(row, record, head.encoding) for row, record in enumerate(records))
    rows: list[list[str]] = []
    try:
        for cells in reader:
            if len(cells) != len(head.names):
                raise RowError(len(rows), f"has {len(cells)} cells, the header has {len(head.names)}")
            rows.append(cells)
    except csv.Error:
        raise RowError(len(rows), "is not a CSV record: misplaced quote") from None
    return rows


def text_of(row: int, record: bytes, encoding: str) -> str:
    """A record's text.

    Raises:
        RowError: it is not in the file's encoding.
    """
    try:
        return record.decode(encoding)
    except UnicodeDecodeError:
        raise RowError(row, f"is not {encoding.upper()} text") from None


def check_new_columns(scores: pa.Table, names: Collection[str]) -> None:
    """Raise if a file that gets verdict columns has them already, as from an earlier run."""
    known = [name for name in scores.column_names if name in names]
    if known:
        raise DataError(f"already has a column {known[0]!r}: filter the file that it was made from")


# JSON


def json_value(row: int, line: bytes) -> Any:
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
