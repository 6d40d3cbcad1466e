"""`score_table`: an Arrow table of rows in, an Arrow table of their scores out.

Every engine calls it, and so can anything that provides Arrow tables: a local process, Ray, Spark's `mapInArrow`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from service.data.cells import CellReader, RawTable
from service.errors import DataError, InputError, RowError, first_fault
from service.files.formats.base import READ, is_list, readable
from service.files.tables import raw_of
from service.scoring.options import DEFAULT, ScoreOptions
from service.scoring.scorer import Scorer
from service.scoring.scores import ExplainedScores, Scores
from service.scoring.tables import BLAMED_COLUMNS, SCORE_COLUMNS, Origin, blamed_cells, violation_texts

BATCH_CELLS, LEAST_BATCH, MOST_BATCH = 2**19, 256, 8_192  # bounds the rows scored at a time, and so memory


def p_value_column(options: ScoreOptions) -> str:
    """Name of the score column with the one-sided p-value, which is small only for strange rows."""
    return "combined_p_value" if options.rule == "combined" else "low_p_value"


def score_table(
    scorer: Scorer,
    table: pa.Table,
    options: ScoreOptions = DEFAULT,
    on_batch: Callable[[int, int], None] = lambda rows, invalid: None,
) -> pa.Table:
    """Score a table's rows, in order; scores equal the service's bit for bit.

    Columns are matched by the model's names, and others are ignored; a model without column names takes all columns in
    order, or the only column of lists. Numbers may be given as text. The result has the columns of `vouch score`'s CSV,
    `low_p_value`, which is small only for unlikely rows, and `missing` if the model reads missing cells.

    Args:
        on_batch: called after every few thousand rows with their number and how many of them are invalid.

    Raises:
        DataError: a column is missing.
        RowError: a row cannot be read; rows count from 0 in the table.
    """
    with readable("the table"):
        raw = raw_cells(scorer, table)
        rows = rows_of(scorer, table, raw, scorer.judging_reader(options.strict))
    size = int(np.clip(BATCH_CELLS // scorer.model.input.features, LEAST_BATCH, MOST_BATCH))
    parts = []
    for start in range(0, max(1, len(rows)), size):
        scores = scorer.score_read(rows[start : start + size], options)
        origin = Origin.of(None if raw is None else raw.part(start, start + size), len(scores))
        parts.append(as_table(scores, origin))
        on_batch(len(scores), int((~scores.valid).sum()))
    return pa.concat_tables(parts)


def raw_cells(scorer: Scorer, table: pa.Table) -> RawTable | None:
    """The cells of a table that the model reads; None if its rows are lists.

    Raises:
        DataError: two columns have the same name.
    """
    spec = scorer.model.input
    lists = [at for at, one in enumerate(table.schema) if is_list(one.type)]
    if lists and (spec.columns is None or table.num_columns == 1):
        return None
    wanted = table.column_names if spec.columns is None else scorer.reader.read_among(table.column_names)
    names = [name for name in table.column_names if name in wanted]
    if twice := [name for name in names if table.column_names.count(name) > 1]:
        raise DataError(f"has two columns {twice[0]!r}")
    return raw_of(table.select(names), "refuse")


def rows_of(scorer: Scorer, table: pa.Table, raw: RawTable | None, reader: CellReader) -> np.ndarray:
    """A table's rows as the model reads them, shape (B, D + C).

    Raises:
        DataError, RowError.
    """
    spec = scorer.model.input
    lists = [at for at, one in enumerate(table.schema) if is_list(one.type)]
    if raw is not None:
        array = reader.table(raw)
    elif len(lists) == 1:
        is_read = table.column_names[lists[0]] == READ
        array = array_of_lists(table.column(lists[0]), spec.features + (len(reader.beside) if is_read else 0))
        array = array if is_read else reader.padded(array)
    else:
        raise DataError(f"has {len(lists)} columns of lists, expected one")
    try:
        return spec.read(array, reader)
    except InputError as error:
        raise first_fault(error) from None


def array_of_lists(column: pa.ChunkedArray, width: int) -> np.ndarray:
    """A column of lists of numbers as an array, shape (B, width)."""
    lists = column.combine_chunks()
    if not (pa.types.is_integer(lists.type.value_type) or pa.types.is_floating(lists.type.value_type)):
        raise DataError("the column of lists does not hold numbers")
    lengths = lists.value_lengths().fill_null(-1).to_numpy() if len(lists) else np.zeros(0)
    wrong = np.flatnonzero(lengths != width)
    if wrong.size:
        row = int(wrong[0])
        has = "is missing" if lengths[row] < 0 else f"has {int(lengths[row])} features"
        raise RowError(row, f"{has}, the model reads {width}")
    values = lists.flatten()
    if values.null_count:
        values = values.cast("float64").fill_null(float("nan"))
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(-1, width)


def as_table(scores: Scores, origin: Origin) -> pa.Table:
    """Scores as an Arrow table; a missing khat (NaN) becomes null."""
    columns: dict[str, Any] = {name: getattr(scores, name) for name in SCORE_COLUMNS}
    columns["verdict"], columns["side"] = (pa.array(columns[name], pa.string()) for name in ("verdict", "side"))
    columns["khat"] = pa.array(scores.khat, from_pandas=True)
    columns["low_p_value"] = scores.low_p_value
    if scores.spec.reads_missing:
        columns["missing"] = scores.missing
        columns["violations"] = pa.array(violation_texts(scores), pa.string())
        columns["unreadable"] = scores.unreadable
    if scores.grouping is not None:
        columns["group"] = pa.array(scores.group_names, pa.string())
    if scores.rule is not None:
        columns["combined_p_value"] = scores.combined_p_value
        columns |= {f"p_value_{name}": scores.evidence[:, at] for at, name in enumerate(scores.rule.statistics)}
    columns["reason"] = pa.array(scores.reasons(), pa.string())
    if isinstance(scores, ExplainedScores):
        columns |= blamed(scores, origin)
    return pa.table(columns)


def blamed(scores: ExplainedScores, origin: Origin) -> dict[str, pa.Array]:
    """Five columns for each column to blame; values are text, since they come from columns of all types."""
    number = scores.columns.shape[1]
    rows = [blamed_cells(columns, number) for columns in origin.blamed(scores)]
    names = [f"blamed_{place}_{name}" for place in range(1, number + 1) for name in BLAMED_COLUMNS]
    found = {}
    for at, name in enumerate(names):
        cells = [row[at] for row in rows]
        if name.endswith(("log_likelihood", "p_value")):
            found[name] = pa.array(cells, pa.float64())
        else:
            found[name] = pa.array([None if cell is None else str(cell) for cell in cells], pa.string())
    return found
