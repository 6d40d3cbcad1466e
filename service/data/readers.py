"""Data files to arrays: npz, npy, csv, parquet, idx (plain or gzipped), folders of images.

Every reader raises `DataError` with the file's name and the place for what it cannot read.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import math
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.data.images import read_image
from service.errors import DataError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".tif", ".tiff"}
NPZ_KEYS = ("x_train", "X", "x", "data", "images", "arr_0")
IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
GIB = 2**30
MAX_UNPACKED = 16 * GIB


@dataclass(frozen=True, slots=True)
class Rows:
    """Numbers from a file: an array of shape (N, D) or (N, H, W), and the columns' names if the file has any."""

    array: np.ndarray
    columns: tuple[str, ...] | None = None

    def digest(self) -> str:
        """sha256 of the numbers, their type and shape: what the card says a model was trained on."""
        content = hashlib.sha256(f"{self.array.dtype.str}{self.array.shape}{self.columns}".encode())
        content.update(np.ascontiguousarray(self.array).data)
        return f"sha256:{content.hexdigest()}"


def read(path: Path, key: str | None = None, columns: Sequence[str] | None = None) -> Rows:
    """Read a data file or a folder of images.

    Args:
        key: which array of an npz file; by default x_train, X, ... or the only one.
        columns: which columns of a table, in this order; by default all.

    Raises:
        DataError: not there, not what its name says, empty, or with values that are no finite numbers.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if key is not None and path.suffix != ".npz":
        raise DataError(f"{path}: --key picks an array of an .npz file, this is none")
    suffix = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    with readable(path):
        rows = dispatch(path, suffix.lower(), key, columns)
    if columns is not None and rows.columns is None:
        raise DataError(f"{path}: --columns needs a file whose columns have names")
    return checked(path, rows)


def dispatch(path: Path, suffix: str, key: str | None, columns: Sequence[str] | None) -> Rows:
    """Call the reader for the file's ending."""
    if path.is_dir():
        return Rows(read_folder(path))
    if suffix == ".npz":
        return Rows(read_npz(path, key))
    if suffix == ".npy":
        return Rows(np.load(path, allow_pickle=False))
    if suffix == ".csv":
        return read_csv(path, columns)
    if suffix in (".parquet", ".pq"):
        return read_parquet(path, columns)
    if "idx" in path.name or "ubyte" in path.name:
        return Rows(read_idx(path))
    raise DataError(
        f"{path}: unknown kind of file, expected .npz, .npy, .csv, .parquet, an idx file (.gz) or a folder of images"
    )


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what libraries raise over a bad file into one clear line."""
    try:
        yield
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"{path}: the file claims to hold more than fits into memory") from error
    except Exception as error:  # a damaged file raises whatever its library comes upon
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: cannot be read: {reason}") from error


def checked(path: Path, rows: Rows) -> Rows:
    """The rows, if there are any and they are finite numbers."""
    array = rows.array
    if array.dtype.kind not in "uifb":
        raise DataError(f"{path}: holds {array.dtype} values, expected numbers")
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim > 3 or array.size == 0:
        raise DataError(
            f"{path}: has shape {array.shape}, expected (rows, columns) or (rows, height, width), not empty"
        )
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            wrong = ~np.isfinite(array.astype(np.float32))
        if wrong.any():
            place = np.argwhere(wrong)[0]
            where = f"row {place[0]}, column {named_column(rows, tuple(place[1:]))}"
            raise DataError(f"{path}: {where}: missing, infinite or too large for float32; expected a finite number")
    return Rows(array, rows.columns)


def named_column(rows: Rows, index: tuple[int, ...]) -> str:
    """A column's name, or its position."""
    return rows.columns[index[0]] if rows.columns else ",".join(str(int(i)) for i in index)


def read_npz(path: Path, key: str | None) -> np.ndarray:
    """One array of an npz file."""
    with np.load(path, allow_pickle=False) as arrays:
        unpacked = sum(info.file_size for info in arrays.zip.infolist())
        if unpacked > MAX_UNPACKED:
            raise DataError(f"{path}: unpacks to {unpacked / GIB:.0f} GiB, expected at most {MAX_UNPACKED // GIB}")
        names = list(arrays)
        if key is None:
            key = names[0] if len(names) == 1 else next((name for name in NPZ_KEYS if name in names), None)
        if key is None or key not in names:
            raise DataError(f"{path}: choose an array with --key: {', '.join(names)}")
        return np.asarray(arrays[key])


def read_idx(path: Path) -> np.ndarray:
    """An idx file, the format that MNIST was published in, plain or gzipped."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        zeros, kind, dimensions = struct.unpack(">HBB", file.read(4))
        if zeros != 0 or kind not in IDX_TYPES or not 1 <= dimensions <= 3:
            raise DataError(f"{path}: is no idx file of 1 to 3 dimensions")
        shape = struct.unpack(f">{dimensions}I", file.read(4 * dimensions))
        dtype = np.dtype(IDX_TYPES[kind])
        size = math.prod(shape) * dtype.itemsize
        if size > MAX_UNPACKED:
            raise DataError(f"{path}: claims to hold {size / GIB:.0f} GiB, expected at most {MAX_UNPACKED // GIB}")
        content = file.read(size + 1)
    if len(content) != size:
        raise DataError(f"{path}: its header says {size} bytes, it holds {'more' if len(content) > size else 'fewer'}")
    return np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def read_folder(path: Path) -> np.ndarray:
    """All images of a folder, in the order of their names, grey: shape (N, H, W), uint8."""
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
    if not files:
        raise DataError(f"{path}: the folder holds no images")
    images: list[np.ndarray] = []
    for file in files:
        with readable(file):
            image = read_image(file.read_bytes()).pixels
        if images and image.shape != images[0].shape:
            raise DataError(
                f"{file}: is {size_text(image)}, the first image ({files[0].name}) is {size_text(images[0])}"
            )
        images.append(image)
    return np.stack(images)


def size_text(image: np.ndarray) -> str:
    """28 x 28."""
    return " x ".join(str(length) for length in image.shape)


def read_csv(path: Path, columns: Sequence[str] | None) -> Rows:
    """A CSV file with a header, commas, semicolons or tabs; every cell of the chosen columns a number."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        first = file.readline()
        file.seek(0)
        delimiter = max(",;\t", key=first.count)
        return parse_csv(str(path), csv.reader(file, delimiter=delimiter, strict=True), columns)


def parse_csv(
    source: str, lines: Iterator[list[str]], columns: Sequence[str] | None = None, *, exactly: bool = False
) -> Rows:
    """Lines of cells, the header first, to numbers.

    Args:
        source: names the lines in errors, which repeat neither a cell nor a header.
        columns: those to read, in this order.
        exactly: no others may be there.
    """
    header = [name.strip() for name in next(lines, [])]
    if not header:
        raise DataError(f"{source}: is empty, expected a header and rows")
    if exactly and len(header) > len(columns or header):
        raise DataError(f"{source}: has {len(header):,} columns, expected {', '.join(columns or ())}")
    counts = Counter(header)
    twice = {name for name in header if counts[name] > 1}
    if twice:
        place = [position for position, name in enumerate(header, start=1) if name in twice]
        raise DataError(f"{source}: columns {place[0]} and {place[1]} have the same name")
    if all(is_number(name) for name in header):
        raise DataError(f"{source}: line 1 holds numbers, expected a header with the columns' names")
    chosen = list(columns) if columns is not None else header
    absent = [name for name in chosen if name not in header]
    if absent:
        raise DataError(f"{source}: has no column {absent[0]!r}")
    picks = [header.index(name) for name in chosen]
    values: list[list[float]] = []
    for number, cells in enumerate(lines, start=2):
        if not cells:
            continue
        if len(cells) != len(header):
            raise DataError(f"{source}: line {number} has {len(cells)} cells, the header has {len(header)}")
        values.append([number_in(source, number, header[pick], cells[pick]) for pick in picks])
    return Rows(np.array(values, dtype=np.float64).reshape(len(values), len(picks)), tuple(chosen))


def number_in(source: str, line: int, column: str, text: str) -> float:
    """The number in a cell."""
    try:
        number = float(text)
    except ValueError:
        what = "an empty cell" if not text.strip() else "text"
        raise DataError(
            f"{source}: line {line}, column {column}: {what}, expected a number (choose columns with --columns)"
        ) from None
    if "_" in text or not math.isfinite(number):
        raise DataError(f"{source}: line {line}, column {column}: expected a finite number")
    return number


def is_number(text: str) -> bool:
    """Whether the text reads as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_parquet(path: Path, columns: Sequence[str] | None) -> Rows:
    """A Parquet file whose chosen columns are numeric and without nulls; needs the extra vouch[parquet]."""
    try:
        from pyarrow import ArrowException
        from pyarrow import parquet as pq
    except ImportError as error:
        raise DataError(f"{path}: reading Parquet needs the extra: pip install 'vouch[parquet]'") from error
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        absent = [name for name in columns or () if name not in names]
        if absent:
            raise DataError(f"{path}: has no column {absent[0]!r}, it has {', '.join(names)}")
        table = file.read(columns=list(columns) if columns is not None else None)
    except ArrowException as error:
        raise DataError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from error
    chosen = list(columns) if columns is not None else table.column_names
    arrays = []
    for name in chosen:
        values = table.column(name)
        if values.null_count:
            row = values.is_null().to_pylist().index(True)
            raise DataError(f"{path}: row {row}, column {name!r}: missing, expected a number")
        array = values.to_numpy()
        if array.dtype.kind not in "uifb":
            raise DataError(f"{path}: column {name!r} holds {values.type}, expected numbers (choose with --columns)")
        arrays.append(array.astype(np.float64))
    return Rows(np.stack(arrays, axis=1), tuple(chosen))
