"""Scores and rows for people and spreadsheets: lists, CSV and JSON lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from service.data.inputs import InputSpec
from service.scoring.scores import ExplainedScores, Scores
from service.validity.conformal import Discoveries

SCORE_COLUMNS = (
    *("verdict", "side", "certain", "reliable", "log_likelihood", "std_error", "ess", "khat"),
    *("num_samples", "percentile", "p_value"),
)
BLAMED_COLUMNS = ("column", "value", "log_likelihood", "p_value", "expected")


def blamed_columns(scores: ExplainedScores, spec: InputSpec) -> list[list[dict[str, Any]]]:
    """The most suspicious columns of each row: the value, how unlikely it is, and what was expected."""
    of_cells = ("columns", "cells", "column_log_likelihood", "column_std_error", "column_reliable", "column_p_value")
    of_others = ("expected", "expected_low", "expected_high", "expected_probability")
    rows = zip(*(getattr(scores, name).tolist() for name in (*of_cells, *of_others)), strict=True)
    return [[blamed_column(spec, *cell) for cell in zip(*row, strict=True) if cell[0] >= 0] for row in rows]


def blamed_column(
    spec: InputSpec, column: int, cell: float, log_likelihood: float, std_error: float, reliable: bool, p_value: float,
    *expected: float,
) -> dict[str, Any]:  # fmt: skip
    """One suspicious column; `expected` is a mean or a category, the interval's ends, and a category's probability."""
    value, low, high, probability = expected
    if np.isnan(probability):
        what: dict[str, Any] = {"mean": value, "interval": [low, high]}
    else:
        what = {"most_likely": spec.cell(column, value), "probability": probability}
    place = {"pixel": list(divmod(column, spec.shape[-1]))} if spec.kind == "image" else {}
    return {
        "name": spec.column(column),
        **place,
        "value": spec.cell(column, cell),
        "log_likelihood": log_likelihood,
        "std_error": std_error,
        "reliable": reliable,
        "p_value": p_value,
        "expected": what,
    }


def score_lists(
    scores: Scores, spec: InputSpec, discoveries: Discoveries | None = None
) -> tuple[list[str], Iterator[list[Any]]]:
    """Names of a score's fields, and their values by row, None for NaN; with `missing` if the model accepts such cells."""
    names = [*SCORE_COLUMNS, *(["missing"] if spec.reads_missing else [])]
    columns = [getattr(scores, name) for name in names]
    if scores.rule is not None:
        names = [*names, "combined_p_value", *(f"p_value_{name}" for name in scores.rule.statistics)]
        columns = [*columns, scores.combined_p_value, *scores.evidence.T]
    if discoveries is not None:
        names, columns = [*names, "discovery"], [*columns, discoveries.chosen]
    lists = [column.tolist() if isinstance(column, np.ndarray) else column for column in columns]
    # NaN alone differs from itself.
    return names, ([None if value != value else value for value in row] for row in zip(*lists, strict=True))  # noqa: PLR0124


def scores_csv(
    scores: Scores, spec: InputSpec, ids: Sequence[Any] | None = None, discoveries: Discoveries | None = None
) -> str:
    """The scores as CSV, with each row's index or id, and five fields for each suspicious column."""
    names, rows = score_lists(scores, spec, discoveries)
    header, keys = ["row" if ids is None else "id", *names], range(len(scores)) if ids is None else ids
    table = ([key, *row] for key, row in zip(keys, rows, strict=True))
    if isinstance(scores, ExplainedScores):
        number = scores.columns.shape[1]
        header += [f"blamed_{rank}_{name}" for rank in range(1, number + 1) for name in BLAMED_COLUMNS]
        blamed = blamed_columns(scores, spec)
        table = (row + blamed_cells(columns, number) for row, columns in zip(table, blamed, strict=True))
    return as_csv(header, table)


def blamed_cells(blamed: list[dict[str, Any]], number: int) -> list[Any]:
    """A row's suspicious columns as CSV cells."""
    cells: list[Any] = []
    for one in blamed:
        expected = one["expected"]
        most = expected["most_likely"] if "most_likely" in expected else expected["mean"]
        cells += [one["name"], one["value"], one["log_likelihood"], one["p_value"], most]
    return cells + [None] * (number * len(BLAMED_COLUMNS) - len(cells))


def scores_json_lines(scores: Scores, spec: InputSpec, discoveries: Discoveries | None = None) -> str:
    """The scores as JSON lines."""
    names, rows = score_lists(scores, spec, discoveries)
    documents = [{"row": index, **dict(zip(names, row, strict=True))} for index, row in enumerate(rows)]
    if isinstance(scores, ExplainedScores):
        for document, columns in zip(documents, blamed_columns(scores, spec), strict=True):
            document["columns"] = columns
    return "".join(json.dumps(document) + "\n" for document in documents)


def rows_csv(rows: np.ndarray, spec: InputSpec) -> str:
    """Rows, shape (N, D), as CSV with the column names as header."""
    return as_csv(spec.columns or [f"x{index}" for index in range(spec.features)], spec.cells(rows))


def as_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()
