"""`score_table`: an Arrow table of rows in, an Arrow table of their scores out.

Every engine calls it, and may be any that hands out Arrow tables: a local process, Ray, Spark's `mapInArrow`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from service.data.inputs import InputSpec
from service.errors import DataError, InputError, RowError, first_fault
from service.files.formats.base import is_list, readable
from service.files.tables import table_of
from service.scoring.scorer import ExplainedScores, Scorer, Scores
from service.scoring.tables import BLAMED_COLUMNS, SCORE_COLUMNS, blamed_columns, cells_of
from service.validity.band import Band, percentiles_of
from service.validity.conformal import Tail

BATCH_CELLS, LEAST_BATCH, MOST_BATCH = 2**19, 256, 8_192  # rows that are scored at a time, so that memory is bounded


@dataclass(frozen=True, slots=True)
class Judging:
    """How rows are judged, as `Scorer.score` has it, and how many columns are blamed."""

    percentiles: tuple[float, float] | None = None
    combined: bool = False
    false_alarm: float | None = None
    tail: Tail = "both"
    explain: int = 0

    def band(self, scorer: Scorer) -> Band:
        """The band that rows are judged by, where that is the rule.

        Raises:
            CalibrationError: there are too few validation rows for it.
        """
        if self.false_alarm is not None and not self.combined:
            return scorer.calibration.band(percentiles_of(self.false_alarm, self.tail))
        return scorer.calibration.band(self.percentiles)

    @property
    def p_value_column(self) -> str:
        """The column of scores that holds the one-sided p-value: small for strange rows alone."""
        return "combined_p_value" if self.combined else "low_p_value"


def score_table(
    scorer: Scorer,
    table: pa.Table,
    judging: Judging = Judging(),
    on_batch: Callable[[int, int], None] = lambda rows, invalid: None,
) -> pa.Table:
    """The scores of a table's rows, in their order, the same as the service's to the last bit.

    Columns are found by the model's names, others are passed over; a model whose columns have no names takes all of them in
    their order, or the only column of lists. Numbers may come as text. The answer has the columns of `vouch score`'s CSV,
    `low_p_value`, which is small only for unlikely rows, and `missing`, where the model reads holes.

    Args:
        on_batch: told after every few thousand rows how many there were, and how many are invalid.

    Raises:
        DataError: a column is absent.
        RowError: a row cannot be read; rows count from 0 in the table.
    """
    with readable("the table"):
        rows = rows_of(scorer.model.input, table)
    size = int(np.clip(BATCH_CELLS // scorer.model.input.features, LEAST_BATCH, MOST_BATCH))
    parts = []
    for start in range(0, max(1, len(rows)), size):
        scores = scorer.score(
            rows[start : start + size],
            judging.percentiles,
            explain=judging.explain,
            combined=judging.combined,
            false_alarm=judging.false_alarm,
            tail=judging.tail,
        )
        parts.append(as_table(scores, scorer.model.input))
        on_batch(len(scores), int((~scores.valid).sum()))
    return pa.concat_tables(parts)


def rows_of(spec: InputSpec, table: pa.Table) -> np.ndarray:
    """A table's rows as the model reads them, shape (B, D), float32.

    Raises:
        DataError, RowError.
    """
    lists = [at for at, one in enumerate(table.schema) if is_list(one.type)]
    if lists and (spec.columns is None or table.num_columns == 1):
        array = array_of_lists(spec, table.column(lists[0])) if len(lists) == 1 else None
        if array is None:
            raise DataError(f"has {len(lists)} columns of lists, expected one")
    else:
        array = array_of_columns(spec, table)
    try:
        return spec.rows(array)
    except InputError as error:
        raise first_fault(error) from None


def array_of_columns(spec: InputSpec, table: pa.Table) -> np.ndarray:
    """Named columns as numbers, shape (B, D)."""
    names = tuple(table.column_names if spec.columns is None else spec.columns)
    absent = [name for name in names if name not in table.column_names]
    if absent:
        raise DataError(f"has no column {absent[0]!r}")
    twice = [name for name in names if table.column_names.count(name) > 1]
    if twice:
        raise DataError(f"has two columns {twice[0]!r}")
    return spec.array(table_of(table.select(names)))


def array_of_lists(spec: InputSpec, column: pa.ChunkedArray) -> np.ndarray:
    """A column of lists of numbers as an array, shape (B, D)."""
    lists = column.combine_chunks()
    if not (pa.types.is_integer(lists.type.value_type) or pa.types.is_floating(lists.type.value_type)):
        raise DataError("the column of lists does not hold numbers")
    lengths = lists.value_lengths().fill_null(-1).to_numpy() if len(lists) else np.zeros(0)
    wrong = np.flatnonzero(lengths != spec.features)
    if wrong.size:
        row = int(wrong[0])
        has = "is missing" if lengths[row] < 0 else f"has {int(lengths[row])} features"
        raise RowError(row, f"{has}, the model reads {spec.features}")
    values = lists.flatten()
    if values.null_count:
        values = values.cast("float64").fill_null(float("nan"))
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(-1, spec.features)


def as_table(scores: Scores, spec: InputSpec) -> pa.Table:
    """Scores as Arrow columns; NaN for no khat is null."""
    columns: dict[str, Any] = {name: getattr(scores, name) for name in SCORE_COLUMNS}
    columns["verdict"], columns["side"] = (pa.array(columns[name], pa.string()) for name in ("verdict", "side"))
    columns["khat"] = pa.array(scores.khat, from_pandas=True)
    columns["low_p_value"] = scores.low_p_value
    if spec.reads_holes:
        columns["missing"] = scores.missing
    if scores.rule is not None:
        columns["combined_p_value"] = scores.combined_p_value
        columns |= {f"p_value_{name}": scores.evidence[:, at] for at, name in enumerate(scores.rule.statistics)}
    if isinstance(scores, ExplainedScores):
        columns |= blamed(scores, spec)
    return pa.table(columns)


def blamed(scores: ExplainedScores, spec: InputSpec) -> dict[str, pa.Array]:
    """Five columns for each column to blame; values of columns are text, since one column holds those of many."""
    number = scores.columns.shape[1]
    rows = [cells_of(columns, number) for columns in blamed_columns(scores, spec)]
    names = [f"blamed_{place}_{name}" for place in range(1, number + 1) for name in BLAMED_COLUMNS]
    found = {}
    for at, name in enumerate(names):
        cells = [row[at] for row in rows]
        if name.endswith(("log_likelihood", "p_value")):
            found[name] = pa.array(cells, pa.float64())
        else:
            found[name] = pa.array([None if cell is None else str(cell) for cell in cells], pa.string())
    return found
