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
from service.files.formats.base import LINE, READ, RECORD, Reader, ReadRequest, RowRange, Scan, readable
from service.files.formats.text_records import cells_of, lines_of, records_in, rows_in
from service.files.locations import CHUNK, InputFile
from service.files.records import has_one_more, ragged, skipped
from service.files.tables import DECIMAL
from service.files.text_tables import check_header, check_is_header, mark_of, named
from service.system.frozen import Frozen

MOST_HEADER = 2**20  # bytes
JUDGED = 1_000  # records that say how the file is written
WIDE = "utf_8"  # of a file whose line ends are not single bytes
HEAD = '{"record":'


class TextHead(Frozen):
    """What is needed to read and write the records of a CSV file.

    Attributes:
        record: the header with its line end; empty if the file has none.
        names: of the columns.
        decimal: the decimal mark of the file's numbers, if it shows.
        skips: whether records with another number of cells are passed over.
    """

    record: str
    names: tuple[str, ...]
    dialect: Dialect = Dialect()
    encoding: str = "utf-8"
    decimal: Decimal | None = None
    skips: bool = False

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
        return LineReader(head.source(file), head.dialect, head if head.skips else None)

    def cells(self, raw: pa.Table, header: str, reader: CellReader) -> pa.Table:
        """The columns that the model reads, as text."""
        head = TextHead.of(header)
        rows = parsed(raw.column(RECORD).to_pylist(), head)
        request = head.names if reader.names is None else reader.read_among(head.names)
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
            raise first_fault(InputError("some rows cannot be read: see what was expected", faults))
        width = reader.features + len(reader.beside)
        values = np.array(rows, dtype=np.float64).reshape(len(rows), width)
        return pa.table({READ: pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), width)})

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
    """Reads the records of a text file by their byte ranges; with a head, only those that are divided as it is."""

    def __init__(self, source: IO[bytes], dialect: Dialect | None, head: TextHead | None = None) -> None:
        self.source, self.dialect, self.head = source, dialect, head

    def rows(self, row_range: RowRange) -> pa.Table:
        with readable(f"rows from {row_range.first} on"):
            self.source.seek(row_range.offset)
            text = self.source.read(row_range.size)
        found = records_in(text, self.dialect, is_last=True)
        if self.head is not None:
            counts = cells_of(text, found, self.head.dialect, self.head.encoding)
            found = found.only(counts == len(self.head.names))
        if len(found.starts) != row_range.rows:
            raise DataError(f"rows from {row_range.first} on cannot be read: the file changed since it was planned")
        records = [text[start:end] for start, end in zip(found.starts.tolist(), found.ends.tolist(), strict=True)]
        table = pa.table({RECORD: pa.array(records, pa.large_binary())})
        if not row_range.line:  # of a run that was planned by an older version
            return table
        return table.append_column(LINE, pa.array(lines_of(text, found, row_range.line), pa.int64()))

    def close(self) -> None:
        self.source.close()


def scanned_lines(file: InputFile, request: ReadRequest, head: TextHead | None, start: int) -> Scan:
    """Find the byte range of each row range, and hash the file. Rows begin after `start` bytes.

    Raises:
        DataError: lists the records that are not divided as the head is, unless these are passed over.
    """
    content = hashlib.sha256()
    begins: list[tuple[int, int]] = []  # byte, line
    wrong: list[tuple[int, int]] = []  # line, number of cells
    dialect = None if head is None else head.dialect
    rows, offset, rest, line = 0, start, b"", 1
    with file.open() if head is None else head.source(file) as source:
        chunk = source.read(CHUNK)
        content.update(chunk)
        if head is None and chunk.startswith(codecs.BOM_UTF8):
            offset = len(codecs.BOM_UTF8)
        line += chunk.count(b"\n", 0, offset)
        chunk = chunk[offset:]
        while chunk or rest:
            text = rest + chunk
            following = source.read(CHUNK)
            content.update(following)
            found = records_in(text, dialect, is_last=not following)
            used = found.used
            if head is not None and (head.skips or request.checks_rows):
                counts = cells_of(text, found, head.dialect, head.encoding)
                if (is_wrong := counts != len(head.names)).any():
                    lines = lines_of(text, found, line)[is_wrong].tolist()
                    wrong += zip(lines, counts[is_wrong].tolist(), strict=True)
                    found = found.only(~is_wrong)
            chosen = found.only(slice(-rows % request.rows, None, request.rows))
            begins += zip((offset + chosen.starts).tolist(), lines_of(text, chosen, line).tolist(), strict=True)
            line += text.count(b"\n", 0, used)
            rows, offset, rest, chunk = rows + len(found.starts), offset + used, text[used:], following
    if wrong and head is not None and not head.skips:
        raise DataError(ragged(wrong, len(head.names)))
    begins, end = begins or [(offset, line)], (offset, line)
    ranges = tuple(
        RowRange(row_range.first, row_range.rows, begin, after - begin, at_line)
        for row_range, (begin, at_line), (after, _) in zip(
            request.ranges(rows), begins, [*begins[1:], end], strict=True
        )
    )
    return Scan(
        rows=rows,
        digest=f"sha256:{content.hexdigest()}" if file.is_local else file.version(),
        header="" if head is None else head.model_dump_json(),
        ranges=ranges,
        skipped=skipped(wrong) if wrong else None,
    )


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
    mark = len(codecs.BOM_UTF8) if content.startswith(codecs.BOM_UTF8) else 0
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
    head = TextHead(
        record=record,
        names=tuple(names),
        dialect=dialect,
        encoding=encoding,
        decimal=decimal,
        skips=options.bad_rows == "skip",
    )
    return head, start


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
