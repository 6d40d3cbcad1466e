"""From the raw cells of a file to a table to train on: what each column is, and how its cells were read."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from service.data.cells import RawTable, Reading
from service.data.detect import Detection, detect
from service.data.kinds import ColumnKind, Schema, infer_detected
from service.data.table import Table


@dataclass(frozen=True, slots=True)
class Survey:
    """A table with the kinds of its columns, and how its cells were read, for the card of a model."""

    table: Table
    schema: Schema
    reading: Reading

    def without(self, name: str) -> Survey:
        """The survey with a column left out, as one that says who a row is and not how."""
        kinds = (
            one if one.name != name else ColumnKind(name=name, kind="ignored", why="says which rows belong together")
            for one in self.schema.columns
        )
        return replace(self, schema=Schema(columns=tuple(kinds)))


def surveyed(
    raw: RawTable,
    options: Detection | None = None,
    keep: Collection[str] = (),
    schema: Schema | None = None,
    must_fit: bool = True,
) -> Survey:
    """Decide what the columns of a file are.

    Args:
        keep: columns that are not to be left out, whatever they look like.
        schema: kinds that are known; columns that it does not name are left out.
        must_fit: whether bad cells are an error; otherwise the schema's notes list them.

    Raises:
        DataError: a column of numbers has cells that are none; the error lists them.
    """
    given = options or Detection()
    if schema is not None:
        given = replace(given, kinds={column.name: column.kind for column in schema.columns})
    detected = detect(raw, given)
    kinds = infer_detected(detected, raw.place, keep, raw.left_out) if schema is None else schema
    if must_fit:
        used = {column.name for column in kinds.columns if column.kind != "ignored"}
        detected.only(used).check_bad_cells(raw.place)
    reading = Reading(missing=tuple(sorted(given.words)), ignored=tuple(sorted(raw.left_out)), formats=detected.formats)
    return Survey(detected.table, kinds, reading)
