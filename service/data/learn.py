"""Columns learnt from training rows."""

from __future__ import annotations

import numpy as np

from service.data.columns import BOOLEANS, CategoryColumn, NumberColumn
from service.data.kinds import STEP_NOISE, ColumnKind, Schema, step_of
from service.data.scales import Straight, count_scale, number_scale
from service.data.table import Table, is_missing
from service.errors import DataError

F32, F64 = float(np.finfo(np.float32).eps), float(np.finfo(np.float64).eps)
CONSTANT = 1e-13  # standard deviation relative to the largest number, below which a column varies by rounding alone
MAX_CELLS = 256  # only so many values of a category get an index of their own: the most frequent ones
MIN_ATOM_SHARE, ATOM_EXCESS, ATOM_NEIGHBOURS, MAX_ATOMS = 0.01, 5.0, 5, 16


def learn(schema: Schema, table: Table) -> tuple[NumberColumn | CategoryColumn, ...]:
    """Learn the columns that are not ignored from training rows.

    Raises:
        DataError: cells do not fit their column's kind, or no column is left.
    """
    kept = [column for column in schema.columns if column.kind != "ignored"]
    if not kept:
        reasons = ", ".join(f"{column.name}: {column.why or 'ignored'}" for column in schema.columns[:10])
        raise DataError(f"no usable column ({reasons})")
    return tuple(learnt(column, table.column(column.name)) for column in kept)


def learnt(column: ColumnKind, cells: np.ndarray) -> NumberColumn | CategoryColumn:
    if column.kind in ("binary", "ordinal", "boolean", "category"):
        return learnt_category(column, cells)
    if cells.dtype == object:
        raise DataError(f"column {column.name!r} is text but declared as {column.kind}, which needs numbers")
    return learnt_number(column, cells)


def learnt_category(column: ColumnKind, cells: np.ndarray) -> CategoryColumn:
    is_text = cells.dtype == object
    there = [cell for cell in cells.tolist() if not is_missing(cell)]
    if not there:
        raise DataError(f"column {column.name!r} is empty in the training rows: set its kind to ignored")
    values, counts = np.unique(np.array(there, dtype=object if is_text else np.float64), return_counts=True)
    by_count = sorted(range(len(values)), key=lambda at: (-counts[at], values[at]))
    least = 2 if len(there) >= 50 else 1
    placed = [at for at in by_count[:MAX_CELLS] if counts[at] >= least] or by_count[:1]
    if column.kind != "category":
        placed.sort()
    others = len(there) - int(counts[placed].sum())
    names = tuple(values[at] if is_text else float(values[at]) for at in placed)
    if column.kind == "boolean":
        if not is_text or {BOOLEANS.get(str(name).lower()) for name in names} != {0, 1}:
            raise DataError(
                f"column {column.name!r} is declared as boolean, but its values are not all spellings of true and false, "
                "such as yes and no: use binary"
            )
        names = tuple(sorted(names, key=lambda word: BOOLEANS[str(word).lower()]))
    unseen = min(0.5, (others + 1) / (len(there) + 2))
    return CategoryColumn(name=column.name, kind=column.kind, values=names, unseen=unseen)


def learnt_number(column: ColumnKind, cells: np.ndarray) -> NumberColumn:
    values = cells[~np.isnan(cells)]
    if not len(values):
        raise DataError(f"column {column.name!r} is empty in the training rows: set its kind to ignored")
    if column.kind == "positive" and values.min() <= 0:
        raise DataError(f"column {column.name!r} is declared as positive, but has numbers that are not above 0")
    step = 1.0
    if column.kind == "count":
        step = step_of(values) or 1.0
        multiples = values / step
        if values.min() < 0 or (np.abs(multiples - np.rint(multiples)) > STEP_NOISE).any():
            raise DataError(f"column {column.name!r} is not a count: its numbers are not whole steps from 0")
    atoms = atoms_of(values)
    rest = values[~np.isin(values, atoms)]
    distinct = np.unique(rest)
    scale = count_scale(rest / step) if column.kind == "count" else number_scale(rest, column.kind)
    on_scale = scale.forward(rest / step)
    spread = float(on_scale.std())
    largest = float(np.abs(values).max())
    steps = np.diff(distinct)
    # Steps finer than what float32 resolves of the spread are noise of the last digits, such as that of 0.1 + 0.2.
    finest = max(float(values.std()) * F32, 4.0 * largest * F64, 1e-30)
    return NumberColumn(
        name=column.name,
        kind=column.kind,
        scale=scale,
        center=float(on_scale.mean()),
        spread=spread if spread > 1e-9 * max(1e-3, float(np.abs(on_scale).max())) else 1.0,
        resolution=max(float(steps.min()) if len(steps) else 1.0, finest),
        low=float(values.min()),
        high=float(values.max()),
        step=step,
        atoms=tuple(atoms.tolist()),
    )


def plain_number(name: str, cells: np.ndarray) -> NumberColumn:
    """A column of numbers that is only centred and scaled, without curved scale or atoms; its density is per unit."""
    values = cells[~np.isnan(cells)]
    if not len(values):
        raise DataError(f"column {name!r} is empty in the training rows: leave it out")
    spread = float(values.std())
    return NumberColumn(
        name=name,
        kind="real",
        scale=Straight(),
        center=float(values.mean()),
        spread=spread if spread > CONSTANT * max(1e-30, float(np.abs(values).max())) else 1.0,
        resolution=1.0,
        low=float(values.min()),
        high=float(values.max()),
    )


def atoms_of(values: np.ndarray) -> np.ndarray:
    """Values far more frequent than their neighbours that also hold MIN_ATOM_SHARE of the column, ascending."""
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= 2 * ATOM_NEIGHBOURS:
        return distinct[:0]
    candidates = np.flatnonzero(counts >= MIN_ATOM_SHARE * len(values))
    found = []
    for at in candidates[np.argsort(-counts[candidates], kind="stable")]:
        near = [*range(max(0, at - ATOM_NEIGHBOURS), at), *range(at + 1, min(len(counts), at + 1 + ATOM_NEIGHBOURS))]
        if counts[at] > ATOM_EXCESS * np.median(counts[near]) and counts[at] > ATOM_EXCESS:
            found.append(at)
    found = found[:MAX_ATOMS]
    left = len(values) - int(counts[found].sum())
    if left < 2 * ATOM_NEIGHBOURS:
        return distinct[:0]
    return np.sort(distinct[found])
