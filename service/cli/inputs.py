"""Reads what commands are given: models in a store, files of rows, schemas."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from service.cli.console import naming
from service.errors import DataError

if TYPE_CHECKING:
    from service.data.cells import CellReader
    from service.data.kinds import Schema
    from service.files.readers import Rows
    from service.scoring.scorer import Scorer
    from service.store.store import Store


def scorer_of(store: str, model: str | None, device: str) -> Scorer:
    from service.store.loading import load_scorer

    return load_scorer(existing(store), model, device)


def existing(root: str) -> Store:
    """The store at a URL, or in an existing folder."""
    from service.settings import read_settings
    from service.store.store import Store
    from service.system.files import is_url

    if is_url(root):
        return Store(root, read_settings().cache())
    if not Path(root).is_dir():
        raise DataError(f"{root}: no such folder")
    return Store(root)


def rows_for(reader: CellReader, path: Path, key: str | None) -> Rows:
    """A file's rows, with a table's columns in the model's order; errors name the file."""
    from service.files.readers import Rows, read
    from service.files.tables import is_table, read_raw

    if key is not None or not is_table(path):
        return read(path, key)
    table = read_raw(path)
    with naming(path):
        return Rows(reader.table(table), reader.names)


def checked_rows(path: Path, rows: Rows, scorer: Scorer) -> np.ndarray:
    """A file's rows as the model reads them; errors name the file."""
    with naming(path):
        return scorer.rows(rows.array)


def schema_in(path: Path, known: Sequence[str]) -> Schema:
    """The column kinds in a schema file, which may name only known columns, each once."""
    from pydantic import ValidationError

    from service.data.kinds import Schema

    try:
        given = Schema.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(f"{path}: not a schema file written by `vouch schema`") from error
    names = [column.name for column in given.columns]
    absent = [name for name in names if name not in known]
    if absent or len(set(names)) < len(names):
        raise DataError(
            f"{path}: " + (f"column {absent[0]!r} is not in the data" if absent else "names a column twice")
        )
    return given
