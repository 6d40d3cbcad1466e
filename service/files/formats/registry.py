"""File formats of rows, by file extension."""

from __future__ import annotations

from service.files.formats.base import Format, Reader, ReadRequest, RowRange, Scan
from service.files.formats.numpy import Npy, Npz
from service.files.formats.parquet import Parquet
from service.files.formats.text import Csv, JsonLines

FORMATS: dict[str, Format] = {
    ".csv": Csv(),
    ".jsonl": JsonLines(),
    ".ndjson": JsonLines(),
    ".npy": Npy(),
    ".npz": Npz(),
    ".parquet": Parquet(),
    ".pq": Parquet(),
}

__all__ = [
    "FORMATS",
    "Csv",
    "Format",
    "JsonLines",
    "Npy",
    "Npz",
    "Parquet",
    "ReadRequest",
    "Reader",
    "RowRange",
    "Scan",
]
