"""Reads what commands are given: models in a store, files of rows, schemas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from service.cli.console import err, naming
from service.cli.options import RepeatOptions, TableOptions, split_names
from service.data.table import MISSING, is_missing
from service.errors import DataError

if TYPE_CHECKING:
    from service.data.cells import CellReader, RawTable
    from service.data.inputs import InputSpec
    from service.data.kinds import Schema
    from service.data.survey import Survey
    from service.files.dialect import TextOptions
    from service.files.readers import Rows
    from service.scoring.scorer import Scorer
    from service.scoring.version import Reference
    from service.store.store import Store
    from service.training.repeats import Repeats


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


@dataclass(frozen=True)
class FileRows:
    """A file's rows as a model's reader has read them, shape (N, D + C) or (N, ...), and its raw table if it is one."""

    rows: Rows
    reader: CellReader
    raw: RawTable | None = None

    def of_model(self, path: Path, spec: InputSpec) -> np.ndarray:
        """The rows, checked (`Scorer.read`); errors name the file."""
        with naming(path, self.raw):
            return spec.read(self.rows.array, self.reader)


def rows_for(
    reader: CellReader, path: Path, key: str | None, text: TextOptions | None = None, skip_bad: bool = False
) -> FileRows:
    """A file's rows, with a table's columns in the model's order, or a folder's images; errors name the file and the line.

    If `skip_bad`, images that cannot be read are passed over.
    """
    from service.files.dialect import AS_SHOWN
    from service.files.image_folders import ImageOptions
    from service.files.readers import Rows, read
    from service.files.tables import is_table, read_raw
    from service.system.processes import without_garbage_collection

    if key is not None or not is_table(path):
        size = (reader.shape[0], reader.shape[1]) if len(reader.shape) > 1 else None
        rows = read(
            path, key, images=ImageOptions(size, reader.images.mode, reader.images, skip_bad, learns_range=False)
        )
        for note in rows.notes:
            err.print(f"note: {note}", highlight=False, markup=False)
        return FileRows(replace(rows, array=reader.padded(rows.array)), reader)
    with without_garbage_collection():
        raw = read_raw(path, options=text or AS_SHOWN, known=reader.names or (), as_text=bool(reader.reading.formats))
    tell(path, raw)
    with naming(path, raw):
        return FileRows(Rows(reader.table(raw), reader.names), reader, raw)


def rows_for_all(
    reader: CellReader, paths: Sequence[Path], key: str | None, text: TextOptions, skip_bad: bool = False
) -> FileRows:
    """The rows of a file, or several images one after the other, by the paths that were given.

    Raises:
        DataError: one of several paths is no image.
    """
    from service.files.images import SUFFIXES
    from service.files.readers import Rows
    from service.files.tables import is_table

    if len(paths) == 1:
        return rows_for(reader, paths[0], key, text, skip_bad)
    names: list[str] = []
    arrays = []
    for path in paths:
        if is_table(path) or not (path.is_dir() or path.suffix.lower() in SUFFIXES):
            raise DataError(f"{path}: of several paths each must be an image, or a folder of images")
    for path in paths:
        found = rows_for(reader, path, key, text, skip_bad)
        assert found.rows.names is not None
        names += [str(path / name) if path.is_dir() else str(path) for name in found.rows.names]
        arrays.append(found.rows.array)
        if arrays[-1].shape[1:] != arrays[0].shape[1:]:
            sizes = (" x ".join(map(str, one.shape[1:])) for one in (arrays[-1], arrays[0]))
            raise DataError(f"{path}: has {' pixels, others '.join(sizes)}")
    return FileRows(Rows(np.concatenate(arrays), names=tuple(names)), reader)


def group_cells(path: Path, name: str, raw: RawTable | None) -> np.ndarray:
    """The cells of the column that says which rows belong together, as text; None where there is none."""
    if raw is None or name not in raw.names:
        raise DataError(f"{path}: has no column {name!r}")
    cells = raw.column(name)
    listed = cells.tolist() if isinstance(cells, np.ndarray) else cells
    texts = (None if is_missing(cell) else str(cell).strip() for cell in listed)
    return np.array([text if text and text.lower() not in MISSING else None for text in texts], dtype=object)


def repeated(path: Path, rows: np.ndarray, spec: InputSpec, options: RepeatOptions, raw: RawTable | None) -> Repeats:
    """Which rows of a file, shape (N, D), are not a draw of their own."""
    from service.training.repeats import Repeats

    if options.group is None:
        return Repeats.of(rows, options.repeats, spec.kind == "image")
    if options.repeats != "auto":
        raise DataError("--group and --repeats: use one of them, not both")
    return Repeats.by_column(group_cells(path, options.group, raw))


def check_unseen(models: Store, reference: Reference, rows: np.ndarray, trained_rows: str) -> None:
    """Raise if rows, shape (N, D), are among those that a version was trained on, unless that is allowed."""
    fingerprints = models.fingerprints(reference)
    if fingerprints is None:
        err.print(f"note: {reference} keeps no fingerprints: whether it was trained on these rows cannot be told")
    elif trained_rows == "refuse":
        fingerprints.check_unseen(rows, str(reference))


def tell(path: Path, raw: RawTable) -> None:
    """Say what was decided about a file's text."""
    if raw.notes:
        err.print(f"{path}: {'; '.join(raw.notes)}", markup=False, highlight=False)


def table_from(
    path: Path, data: TableOptions, columns: str | None, schema: Path | None, must_fit: bool = True
) -> tuple[RawTable, Survey]:
    """A file to train on: its raw cells, and what its columns are; errors name the file and the line."""
    from service.data.survey import surveyed
    from service.files.tables import read_raw
    from service.system.processes import without_garbage_collection

    with without_garbage_collection():
        raw = read_raw(path, split_names(columns), data.text_options())
    tell(path, raw)
    kinds = None if schema is None else schema_in(schema, [*raw.names, *raw.left_out])
    with naming(path, raw), without_garbage_collection():
        return raw, surveyed(raw, data.detection(), data.kept(), kinds, must_fit)


def schema_in(path: Path, known: Sequence[str]) -> Schema:
    """The column kinds in a schema file, which may name only known columns, each once."""
    from pydantic import ValidationError

    from service.data.kinds import Schema

    try:
        given = Schema.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, problem["loc"]))
        raise DataError(f"{path}: not a schema file as `vouch schema` writes it: {place}: {problem['msg']}") from error
    names = [column.name for column in given.columns]
    absent = [name for name in names if name not in known]
    if absent or len(set(names)) < len(names):
        raise DataError(
            f"{path}: " + (f"column {absent[0]!r} is not in the data" if absent else "names a column twice")
        )
    return given
