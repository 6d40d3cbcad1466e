"""Any format in a gzip file."""

from __future__ import annotations

import gzip
from dataclasses import dataclass

import pyarrow as pa

from service.data.cells import CellReader
from service.files.formats.base import Format, Reader, ReadRequest, Scan, readable
from service.files.locations import InputFile, UnpackedFile


@dataclass(frozen=True, slots=True)
class Packed:
    """A packed format. Its ranges count bytes of what was packed."""

    inner: Format

    def scan(self, file: InputFile, request: ReadRequest) -> Scan:
        with readable("the file"):
            return self.inner.scan(UnpackedFile(file.path, file.name), request)

    def reader(self, file: InputFile, header: str) -> Reader:
        return self.inner.reader(UnpackedFile(file.path, file.name), header)

    def cells(self, raw: pa.Table, header: str, reader: CellReader) -> pa.Table:
        return self.inner.cells(raw, header, reader)

    def write(self, raw: pa.Table, header: str) -> bytes:
        return gzip.compress(self.inner.write(raw, header), mtime=0)  # no time: the same rows give the same bytes

    def write_beside(self, raw: pa.Table, scores: pa.Table, header: str) -> bytes:
        return gzip.compress(self.inner.write_beside(raw, scores, header), mtime=0)
