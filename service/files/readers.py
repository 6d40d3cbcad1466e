"""Data files to arrays: npz, npy, csv, parquet, idx (plain or gzipped), folders of images.

Every reader raises a `DataError` that names the file and the place it cannot read.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from service.data.detect import detect
from service.data.image_reading import ImageReading
from service.errors import DataError, RowError
from service.files.dialect import AS_SHOWN, TextOptions
from service.files.image_folders import AS_THEY_ARE, ImageOptions, read_folder
from service.files.images import SUFFIXES
from service.files.tables import TABLES, as_data_error, check_supported, is_table, read_raw

NPZ_KEYS = ("x_train", "X", "x", "data", "images", "arr_0")
IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
GIB = 2**30
MAX_UNPACKED = 16 * GIB


@dataclass(frozen=True, slots=True)
class Rows:
    """Numbers from a file: an array of shape (N, D), (N, H, W) or (N, H, W, 3), and the column names if the file has any.

    Of images: the `names` of their files, how they were read, and `notes` on what was left out and what was changed.
    """

    array: np.ndarray
    columns: tuple[str, ...] | None = None
    names: tuple[str, ...] | None = None
    images: ImageReading | None = None
    notes: tuple[str, ...] = ()

    @property
    def are_images(self) -> bool:
        """Whether the rows are images: grey ones of shape (H, W), or coloured ones of (H, W, 3)."""
        return self.array.ndim == 3 or (self.array.ndim == 4 and self.array.shape[3] == 3)

    def digest(self) -> str:
        """sha256 of the numbers, their type, shape and names; the card records it for the training data."""
        content = hashlib.sha256(f"{self.array.dtype.str}{self.array.shape}{self.columns}".encode())
        content.update(np.ascontiguousarray(self.array).data)
        return f"sha256:{content.hexdigest()}"


def read(
    path: Path,
    key: str | None = None,
    columns: Sequence[str] | None = None,
    options: TextOptions = AS_SHOWN,
    images: ImageOptions = AS_THEY_ARE,
) -> Rows:
    """Read a data file, an image, or a folder of images.

    Args:
        key: array of an .npz file to read; default: x_train, X, ... or the only one.
        columns: columns of a table to read, in this order; default: all.
        images: how images are read.

    Raises:
        DataError: the file is missing, malformed or empty, or holds values that are not finite numbers.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if key is not None and path.suffix != ".npz":
        raise DataError(f"{path}: --key works only with .npz files")
    check_supported(path)
    with as_data_error(path):
        rows = dispatch(path, key, columns, options, images)
    if columns is not None and rows.columns is None:
        raise DataError(f"{path}: --columns needs a file whose columns have names")
    return checked(path, rows)


def dispatch(
    path: Path, key: str | None, columns: Sequence[str] | None, options: TextOptions, images: ImageOptions
) -> Rows:
    """Call the reader for the file's extension."""
    suffix = path.suffix.lower()
    if suffix in SUFFIXES or (path.is_dir() and not is_table(path)):
        folder = read_folder(path, images)
        return Rows(folder.pixels, None, folder.names, folder.reading, folder.notes)
    if suffix == ".npz":
        return Rows(read_npz(path, key))
    if suffix == ".npy":
        return Rows(np.load(path, allow_pickle=False))
    if is_table(path):
        raw = read_raw(path, columns, options)
        found = detect(raw)
        found.check_bad_cells(raw.place)
        try:
            return Rows(found.table.numbers(), found.names)
        except RowError as error:
            place = f"{raw.place(error.row)}, column {error.column!r}"
            raise DataError(f"{place}: {error.problem} (choose columns with --columns)") from None
    if "idx" in path.name or "ubyte" in path.name:
        return Rows(read_idx(path))
    raise DataError(
        f"{path}: unsupported format, expected {TABLES}, .npz, .npy, an idx file (.gz), an image or a folder of images"
    )


def checked(path: Path, rows: Rows) -> Rows:
    """Return the rows; raise unless there are some and all are finite numbers."""
    array = rows.array
    if array.dtype.kind not in "uifb":
        raise DataError(f"{path}: holds {array.dtype} values, expected numbers")
    if array.ndim == 1:
        array = array[:, None]
    if array.size == 0 or array.ndim > 4 or (array.ndim == 4 and array.shape[3] != 3):
        raise DataError(
            f"{path}: has shape {array.shape}, expected (rows, columns), (rows, height, width) or "
            "(rows, height, width, 3), not empty"
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
    return replace(rows, array=array)


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
        chosen = chosen_array(names, key)
        if chosen is None:
            raise DataError(f"{path}: choose an array with --key: {', '.join(names)}")
        return np.asarray(arrays[chosen])


def chosen_array(names: Sequence[str], key: str | None) -> str | None:
    """Name of the array to read: `key`, or the only one, or one with a usual name. None if there is no such array."""
    if key is not None:
        return key if key in names else None
    return names[0] if len(names) == 1 else next((name for name in NPZ_KEYS if name in names), None)


def read_idx(path: Path) -> np.ndarray:
    """An idx file, the format in which MNIST was published, plain or gzipped."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        zeros, kind, dimensions = struct.unpack(">HBB", file.read(4))
        if zeros != 0 or kind not in IDX_TYPES or not 1 <= dimensions <= 3:
            raise DataError(f"{path}: not an idx file of 1 to 3 dimensions")
        shape = struct.unpack(f">{dimensions}I", file.read(4 * dimensions))
        dtype = np.dtype(IDX_TYPES[kind])
        size = math.prod(shape) * dtype.itemsize
        if size > MAX_UNPACKED:
            raise DataError(f"{path}: claims to hold {size / GIB:.0f} GiB, expected at most {MAX_UNPACKED // GIB}")
        content = file.read(size + 1)
    if len(content) != size:
        raise DataError(f"{path}: its header says {size} bytes, it holds {'more' if len(content) > size else 'fewer'}")
    return np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="))
