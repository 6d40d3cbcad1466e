"""File formats of rows, by file extension."""

from __future__ import annotations

from service.files.formats.base import Format, Reader, ReadRequest, RowRange, Scan
from service.files.formats.numpy import Npy, Npz
from service.files.formats.packed import Packed
from service.files.formats.parquet import Parquet
from service.files.formats.text import Csv, JsonLines

FORMATS: dict[str, Format] = {
    ".csv": Csv(),
    ".tsv": Csv(),
    ".txt": Csv(),
    ".csv.gz": Packed(Csv()),
    ".tsv.gz": Packed(Csv()),
    ".txt.gz": Packed(Csv()),
    ".jsonl.gz": Packed(JsonLines()),
    ".ndjson.gz": Packed(JsonLines()),
    ".jsonl": JsonLines(),
    ".ndjson": JsonLines(),
    ".npy": Npy(),
    ".npz": Npz(),
    ".parquet": Parquet(),
    ".pq": Parquet(),
}

# In a folder, .txt files are more likely notes on the data; one that is named is read.
IN_FOLDERS = frozenset(FORMATS) - {".txt", ".txt.gz"}

__all__ = [
    "FORMATS",
    "IN_FOLDERS",
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
