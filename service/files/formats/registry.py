"""The forms that files of rows have, by their endings."""

from __future__ import annotations

from service.files.formats.base import Cut, Form, Reader, Survey, Wanted
from service.files.formats.numpy import Npy, Npz
from service.files.formats.parquet import Parquet
from service.files.formats.text import Csv, JsonLines

FORMS: dict[str, Form] = {
    ".csv": Csv(),
    ".jsonl": JsonLines(),
    ".ndjson": JsonLines(),
    ".npy": Npy(),
    ".npz": Npz(),
    ".parquet": Parquet(),
    ".pq": Parquet(),
}

__all__ = ["FORMS", "Csv", "Cut", "Form", "JsonLines", "Npy", "Npz", "Parquet", "Reader", "Survey", "Wanted"]
