"""npy and npz: a row is a slice of an array, kept bit for bit."""

from __future__ import annotations

import io
import math
import zipfile
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import pyarrow as pa

from service.data.cells import CellReader
from service.data.inputs import InputSpec
from service.errors import DataError
from service.files.formats.base import VECTOR, Reader, ReadRequest, RowRange, Scan, readable
from service.files.locations import CHUNK, InputFile
from service.files.readers import chosen_array
from service.system.frozen import Frozen

MOST_HEADER = 10_000  # bytes, for a dtype and a shape


class ArrayHead(Frozen):
    """An array's name, dtype and the shape of one row; `by_column` means Fortran order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    by_column: bool = False
    offset: int = 0

    @property
    def row_bytes(self) -> int:
        return int(np.dtype(self.dtype).itemsize * math.prod(self.shape))

    def array(self, column: pa.ChunkedArray) -> np.ndarray:
        """Raw rows as an array, shape (B, ...)."""
        content = b"".join(column.to_pylist())
        return np.frombuffer(content, self.dtype).reshape(-1, *self.shape)


class Heads(Frozen):
    """The array to score, first, and all arrays with the same number of rows."""

    rows: int
    arrays: tuple[ArrayHead, ...]
    is_compressed: bool = False


class Arrays:
    """Shared by both formats: the cells to score, and no columns for verdicts."""

    def cells(self, raw: pa.Table, header: str, reader: CellReader) -> pa.Table:
        return vectors(raw, Heads.model_validate_json(header))

    def write_beside(self, raw: pa.Table, scores: pa.Table, header: str) -> bytes:
        raise DataError("arrays have no columns for verdicts: see scores/")


class Npy(Arrays):
    """An .npy file: one array."""

    def scan(self, file: InputFile, request: ReadRequest) -> Scan:
        with readable("the file"), file.open() as source:
            rows, head = head_of(source, VECTOR)
            size = source.seek(0, io.SEEK_END) - head.offset
        if size != rows * head.row_bytes:
            raise DataError(f"its header says {rows * head.row_bytes:,} bytes, it holds {size:,}")
        check_shape(head, request.spec)
        heads = Heads(rows=rows, arrays=(head,))
        return Scan(rows=rows, digest=file.digest(), header=heads.model_dump_json(), ranges=request.ranges(rows))

    def reader(self, file: InputFile, header: str) -> Reader:
        return NpyReader(file, Heads.model_validate_json(header))

    def write(self, raw: pa.Table, header: str) -> bytes:
        (head,) = Heads.model_validate_json(header).arrays
        sink = io.BytesIO()
        np.save(sink, head.array(raw.column(VECTOR)), allow_pickle=False)
        return sink.getvalue()


class Npz(Arrays):
    """An .npz file: the array to score, and arrays with as many rows, such as labels, which are copied with it."""

    def scan(self, file: InputFile, request: ReadRequest) -> Scan:
        with readable("the file"), file.open() as source, zipfile.ZipFile(source) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            key = chosen_array(names, request.key)
            if key is None:
                raise DataError(f"choose an array with --key: {', '.join(names)}")
            found = {}
            for name in sorted(names, key=lambda name: name != key):
                with archive.open(f"{name}.npy") as member:
                    found[name] = head_of(member, name)
            rows = found[key][0]
            heads = tuple(head for count, head in found.values() if count == rows)
            is_compressed = archive.getinfo(f"{key}.npy").compress_type != zipfile.ZIP_STORED
        check_shape(heads[0], request.spec)
        for head in heads:
            if head.by_column:
                raise DataError(f"array {head.name} is in Fortran order: save it with np.ascontiguousarray")
        header = Heads(rows=rows, arrays=heads, is_compressed=is_compressed)
        return Scan(rows=rows, digest=file.digest(), header=header.model_dump_json(), ranges=request.ranges(rows))

    def reader(self, file: InputFile, header: str) -> Reader:
        return NpzReader(file, Heads.model_validate_json(header))

    def write(self, raw: pa.Table, header: str) -> bytes:
        """The same arrays, compressed if they were."""
        heads = Heads.model_validate_json(header)
        arrays: dict[str, Any] = {head.name: head.array(raw.column(head.name)) for head in heads.arrays}
        sink = io.BytesIO()
        (np.savez_compressed if heads.is_compressed else np.savez)(sink, allow_pickle=False, **arrays)
        return sink.getvalue()


@dataclass
class NpyReader:
    """Reads row ranges of an array in a file."""

    file: InputFile
    heads: Heads

    def __post_init__(self) -> None:
        self.source = self.file.open()

    def rows(self, row_range: RowRange) -> pa.Table:
        (head,) = self.heads.arrays
        with readable(f"rows from {row_range.first} on"):
            return pa.table({head.name: as_bytes(self.content(head, row_range), head, row_range.rows)})

    def content(self, head: ArrayHead, row_range: RowRange) -> bytes:
        """The bytes of a row range, row by row."""
        if not head.by_column:
            return exactly(self.source, head.offset + row_range.first * head.row_bytes, row_range.rows * head.row_bytes)
        dtype, length = np.dtype(head.dtype), math.prod(head.shape)
        parts = [
            exactly(
                self.source,
                head.offset + (column * self.heads.rows + row_range.first) * dtype.itemsize,
                row_range.rows * dtype.itemsize,
            )
            for column in range(length)
        ]
        # In Fortran order the first index varies fastest.
        array = np.frombuffer(b"".join(parts), dtype).reshape(*reversed(head.shape), row_range.rows)
        return array.transpose().tobytes()

    def close(self) -> None:
        self.source.close()


class NpzReader:
    """Reads row ranges of arrays in an archive: rows between ranges are skipped; going back restarts at row 0."""

    def __init__(self, file: InputFile, heads: Heads) -> None:
        self.source, self.heads = file.open(), heads
        with readable("the file"):
            self.archive = zipfile.ZipFile(self.source)
        self.members: dict[str, IO[bytes]] = {}
        self.at = math.inf

    def rows(self, row_range: RowRange) -> pa.Table:
        with readable(f"rows from {row_range.first} on"):
            if self.at > row_range.first:
                self.start()
            columns = {}
            for head in self.heads.arrays:
                member, skipped = self.members[head.name], int(row_range.first - self.at) * head.row_bytes
                while skipped:
                    skipped -= len(read_exactly(member, min(skipped, CHUNK)))
                columns[head.name] = as_bytes(
                    read_exactly(member, row_range.rows * head.row_bytes), head, row_range.rows
                )
            self.at = row_range.first + row_range.rows
            return pa.table(columns)

    def start(self) -> None:
        """Open every array at its first row."""
        self.members = {head.name: self.archive.open(f"{head.name}.npy") for head in self.heads.arrays}
        for member in self.members.values():
            head_of(member, "")
        self.at = 0

    def close(self) -> None:
        self.archive.close()
        self.source.close()


def head_of(source: IO[bytes], name: str) -> tuple[int, ArrayHead]:
    """Read an array's header: its number of rows, and what they are. Its bytes follow in `source`.

    Raises:
        DataError: it is not an array with rows of plain values.
    """
    version = np.lib.format.read_magic(source)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_column, dtype = read(source, max_header_size=MOST_HEADER)
    if dtype.hasobject:
        raise DataError(f"array {name} holds pickled objects, which are never loaded")
    if dtype.kind == "V":
        raise DataError(f"array {name} holds structured values, expected plain ones")
    if not shape or dtype.itemsize * math.prod(shape[1:]) == 0:
        return 0, ArrayHead(name=name, dtype=dtype.str, shape=())
    head = ArrayHead(
        name=name, dtype=dtype.str, shape=shape[1:], by_column=by_column and len(shape) > 1, offset=source.tell()
    )
    return shape[0], head


def check_shape(head: ArrayHead, spec: InputSpec) -> None:
    """Raise unless the array's rows are what the model reads.

    Raises:
        DataError: they have another shape or type.
    """
    if np.dtype(head.dtype).kind not in "uifb" or np.dtype(head.dtype).itemsize > np.dtype(float).itemsize:
        raise DataError(f"holds {np.dtype(head.dtype)} values, expected numbers of at most 64 bits")
    if head.shape not in ((spec.features,), spec.shape) and not (head.shape == () and spec.features == 1):
        raise DataError(f"its rows have shape {head.shape}, the model reads {spec.expected()}")


def vectors(raw: pa.Table, heads: Heads) -> pa.Table:
    """The array to score, as a column of lists."""
    head = heads.arrays[0]
    array = head.array(raw.column(head.name))
    native = array.astype(np.uint8) if array.dtype.kind == "b" else array.astype(array.dtype.newbyteorder("="))
    length = max(1, math.prod(head.shape))
    return pa.table({VECTOR: pa.FixedSizeListArray.from_arrays(pa.array(native.ravel()), length)})


def as_bytes(content: bytes, head: ArrayHead, rows: int) -> pa.Array:
    """Rows as an Arrow column of fixed-size bytes."""
    return pa.Array.from_buffers(pa.binary(head.row_bytes), rows, [None, pa.py_buffer(content)])


def exactly(source: IO[bytes], offset: int, size: int) -> bytes:
    source.seek(offset)
    return read_exactly(source, size)


def read_exactly(source: IO[bytes], size: int) -> bytes:
    """The next `size` bytes.

    Raises:
        DataError: the file ends too early.
    """
    content = source.read(size)
    if len(content) != size:
        raise DataError("the file ends in the middle of an array")
    return content
