"""The forms that files of rows have, by their endings."""

from __future__ import annotations

from service.files.arrays import Npy, Npz
from service.files.form import Cut, Form, Reader, Survey, Wanted
from service.files.lines import Csv, JsonLines
from service.files.parquet import Parquet

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
