"""The Parquet format."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet as pq

from service.data.cells import CellReader
from service.errors import DataError
from service.files.formats.base import Reader, ReadRequest, RowRange, Scan, is_list, readable
from service.files.locations import InputFile

BUFFER = 2**20  # bytes of a column read at a time, instead of a whole row group's
STEP_CELLS = 2**18  # cells decoded at a time


class Parquet:
    """Parquet: raw rows are the file's own table."""

    def scan(self, file: InputFile, request: ReadRequest) -> Scan:
        with readable("the file"), file.open() as source, pq.ParquetFile(source) as parquet:
            schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
        if not any(is_list(field.type) for field in schema):
            request.check_columns(schema.names)
        return Scan(rows=rows, digest=file.digest(), ranges=request.ranges(rows))

    def reader(self, file: InputFile, header: str) -> Reader:
        return ParquetReader(file)

    def cells(self, raw: pa.Table, header: str, reader: CellReader) -> pa.Table:
        return raw

    def write(self, raw: pa.Table, header: str) -> bytes:
        """A file with the schema of the one that the rows came from."""
        sink = io.BytesIO()
        pq.write_table(raw, sink, write_page_checksum=True)
        return sink.getvalue()

    def write_beside(self, raw: pa.Table, scores: pa.Table, header: str) -> bytes:
        for name in scores.column_names:
            if name in raw.column_names:
                raise DataError(f"already has a column {name!r}")
            raw = raw.append_column(name, scores.column(name))
        return self.write(raw, header)


class ParquetReader:
    """Reads row ranges of a Parquet file, decoding pieces smaller than a row group.

    Rows between ranges are decoded and dropped; going back restarts at the range's row group.
    """

    def __init__(self, file: InputFile) -> None:
        self.source = file.open()
        with readable("the file"):
            self.parquet = pq.ParquetFile(
                self.source, buffer_size=BUFFER, pre_buffer=False, page_checksum_verification=True
            )
            meta = self.parquet.metadata
            self.starts = np.cumsum([0, *(meta.row_group(at).num_rows for at in range(meta.num_row_groups))])
        self.pieces: Iterator[Any] = iter(())
        self.at, self.rest = -1, self.parquet.schema_arrow.empty_table()

    def rows(self, row_range: RowRange) -> pa.Table:
        with readable(f"rows from {row_range.first} on"):
            if not 0 <= self.at <= row_range.first or self.group(self.at) < self.group(row_range.first):
                self.start(self.group(row_range.first))
            self.skip(row_range.first - self.at)
            return self.take(row_range.rows)

    def group(self, row: int) -> int:
        """The row group that holds a row."""
        return int(np.searchsorted(self.starts, row, "right")) - 1

    def start(self, group: int) -> None:
        """Restart decoding at a row group."""
        self.pieces = self.decoded(group)
        self.at, self.rest = int(self.starts[group]), self.parquet.schema_arrow.empty_table()

    def decoded(self, group: int) -> Iterator[Any]:
        """Pieces of the rows from a row group on. Their boundaries depend on nothing else, so results do not either."""
        step = max(1, STEP_CELLS // max(1, len(self.parquet.schema_arrow)))
        for number in range(group, len(self.starts) - 1):
            yield from self.parquet.iter_batches(batch_size=step, row_groups=[number], use_threads=False)

    def skip(self, rows: int) -> None:
        self.at += rows
        while rows > len(self.rest):
            rows -= len(self.rest)
            self.rest = self.next_piece()
        self.rest = self.rest.slice(rows)

    def next_piece(self) -> pa.Table:
        return pa.Table.from_batches([next(self.pieces)]).cast(self.parquet.schema_arrow)

    def take(self, rows: int) -> pa.Table:
        taken, missing = [self.rest], rows - len(self.rest)
        while missing > 0:
            taken.append(self.next_piece())
            missing -= len(taken[-1])
        together = pa.concat_tables(taken)
        self.at, self.rest = self.at + rows, together.slice(rows)
        return together.slice(0, rows)

    def close(self) -> None:
        self.parquet.close()
        self.source.close()
