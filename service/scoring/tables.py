"""Scores and rows for people and spreadsheets: lists, CSV and JSON lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.data.cells import RawTable
from service.data.columns import NO_VALUE, plain
from service.data.inputs import InputSpec
from service.data.table import is_missing
from service.errors import DataError
from service.scoring.reasons import words
from service.scoring.scores import ExplainedScores, Scores
from service.validity.conformal import Discoveries

SCORE_COLUMNS = (
    *("verdict", "side", "certain", "reliable", "log_likelihood", "std_error", "ess", "khat"),
    *("num_samples", "percentile", "p_value"),
)
DIAGNOSTICS = ("ess", "khat", "num_samples")  # of the estimate; the command line leaves them out unless asked
BLAMED_COLUMNS = ("column", "value", "log_likelihood", "p_value", "expected")
INTERVAL = ("expected_low", "expected_high")


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
        value, low, high = spec.rounded(column, np.array([value, low, high])).tolist()
        what: dict[str, Any] = {"mean": value, "interval": [low, high]}
    else:
        what = {"most_likely": spec.cell(column, value), "probability": probability}
    place: dict[str, Any] = {}
    if spec.kind == "image":
        row, at, channel = spec.pixel(column)
        place = {"pixel": [row, at]} | ({"channel": channel} if channel else {})
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


def score_lists(scores: Scores, discoveries: Discoveries | None = None) -> tuple[list[str], Iterator[list[Any]]]:
    """Names of a score's fields, and their values by row, None for NaN.

    With `missing` and `violations` if the model accepts missing cells.
    """
    names, columns = list(SCORE_COLUMNS), [getattr(scores, name) for name in SCORE_COLUMNS]
    if scores.spec.reads_missing:
        names, columns = [*names, "missing", "violations"], [*columns, scores.missing, violation_texts(scores)]
    if scores.rule is not None:
        names = [*names, "combined_p_value", *(f"p_value_{name}" for name in scores.rule.statistics)]
        columns = [*columns, scores.combined_p_value, *scores.evidence.T]
    if discoveries is not None:
        names, columns = [*names, "discovery"], [*columns, discoveries.chosen]
    if scores.grouping is not None:
        names, columns = [*names, "group"], [*columns, scores.group_names]
    names, columns = [*names, "reason"], [*columns, scores.reasons()]
    if scores.records is not None:
        names, columns = [*names, "record"], [*columns, scores.records]
    lists = [column.tolist() if isinstance(column, np.ndarray) else column for column in columns]
    # NaN alone differs from itself.
    return names, ([None if value != value else value for value in row] for row in zip(*lists, strict=True))  # noqa: PLR0124


def violation_texts(scores: Scores) -> list[str | None]:
    """What is wrong with each row, in words: column and message of each violation; None if nothing is."""
    return [words(found) or None for found in scores.violations()]


def scores_csv(scores: Scores, ids: Sequence[Any] | None = None, discoveries: Discoveries | None = None) -> str:
    """The scores as CSV, with each row's index or id, and five fields for each suspicious column."""
    names, rows = score_lists(scores, discoveries)
    header, keys = ["row" if ids is None else "id", *names], range(len(scores)) if ids is None else ids
    table = ([key, *row] for key, row in zip(keys, rows, strict=True))
    if isinstance(scores, ExplainedScores):
        number = scores.columns.shape[1]
        header += [f"blamed_{rank}_{name}" for rank in range(1, number + 1) for name in BLAMED_COLUMNS]
        blamed = blamed_columns(scores, scores.spec)
        table = (row + blamed_cells(columns, number) for row, columns in zip(table, blamed, strict=True))
    return as_csv(header, table)


def blamed_cells(blamed: list[dict[str, Any]], number: int, with_interval: bool = False) -> list[Any]:
    """A row's suspicious columns as CSV cells."""
    cells: list[Any] = []
    for one in blamed:
        expected = one["expected"]
        most = expected["most_likely"] if "most_likely" in expected else expected["mean"]
        interval = expected.get("interval", [None, None]) if with_interval else []
        cells += [one["name"], one["value"], one["log_likelihood"], one["p_value"], most, *interval]
    width = len(BLAMED_COLUMNS) + (len(INTERVAL) if with_interval else 0)
    return cells + [None] * (number * width - len(cells))


# Beside the file that was scored


@dataclass(frozen=True, slots=True)
class Origin:
    """The file that rows came from, for tables of their scores.

    Attributes:
        key: what `keys` are: `line` of the file, `file` of images or, where neither is known, `row` from 0.
        kept: columns to carry through, by name.
        texts: the file's own words in columns of text.
        is_full: whether the estimate's diagnostics are shown.
    """

    key: str
    keys: Sequence[int] | Sequence[str]
    kept: Mapping[str, Sequence[Any]]
    texts: Mapping[str, Sequence[Any]]
    is_full: bool

    @staticmethod
    def of(
        raw: RawTable | None,
        rows: int,
        keep: Sequence[str] = (),
        is_full: bool = False,
        files: Sequence[str] | None = None,
    ) -> Origin:
        """The origin of the first `rows` rows of a file, or of images in these files.

        Raises:
            DataError: the file has no such column to keep.
        """
        names = () if raw is None else raw.names
        if absent := [name for name in keep if name not in names]:
            raise DataError(f"has no column {absent[0]!r} to keep")
        if raw is None and files is not None:
            return Origin("file", files[:rows], {}, {}, is_full)
        if raw is None:
            return Origin("row", range(rows), {}, {}, is_full)
        found = {name: cells[:rows] for name, cells in zip(raw.names, raw.columns, strict=True)}
        texts = {name: cells for name, cells in found.items() if not isinstance(cells, np.ndarray)}
        keys = range(rows) if raw.lines is None else raw.lines[:rows].tolist()
        kept = {name: [kept_cell(cell) for cell in found[name]] for name in keep}
        return Origin("row" if raw.lines is None else "line", keys, kept, texts, is_full)

    def listed(self, scores: Scores, discoveries: Discoveries | None) -> tuple[list[str], Iterator[list[Any]]]:
        """Names of a row's fields, and their values by row."""
        names, rows = score_lists(scores, discoveries)
        shown = [at for at, name in enumerate(names) if self.is_full or name not in DIAGNOSTICS]
        if twice := [name for name in self.kept if name in names or name == self.key]:
            raise DataError(f"cannot keep column {twice[0]!r}: a column of the scores has the same name")
        kept = zip(*self.kept.values(), strict=True) if self.kept else ([] for _ in self.keys)
        header = [self.key, *self.kept, *(names[at] for at in shown)]
        return header, (
            [key, *more, *(row[at] for at in shown)] for key, more, row in zip(self.keys, kept, rows, strict=True)
        )

    def blamed(self, scores: ExplainedScores) -> list[list[dict[str, Any]]]:
        """The most suspicious columns of each row, text as the file has it."""
        found = blamed_columns(scores, scores.spec)
        for row, columns in enumerate(found):
            for one in columns:
                text = self.texts.get(str(one["name"]), ())
                if len(text) and (isinstance(one["value"], str | bool) or one["value"] == NO_VALUE):
                    one["value"] = text[row].strip() if isinstance(text[row], str) else text[row]
        return found


def kept_cell(cell: Any) -> Any:
    """A cell of a column that is carried through; whole numbers without a decimal point."""
    if is_missing(cell):
        return None
    return plain(float(cell)) if isinstance(cell, float) else cell


def file_scores_csv(scores: Scores, origin: Origin, discoveries: Discoveries | None = None) -> str:
    """The scores of a file as CSV, with seven fields for each suspicious column."""
    header, table = origin.listed(scores, discoveries)
    if isinstance(scores, ExplainedScores):
        number, fields = scores.columns.shape[1], (*BLAMED_COLUMNS, *INTERVAL)
        header += [f"blamed_{rank}_{name}" for rank in range(1, number + 1) for name in fields]
        blamed = origin.blamed(scores)
        table = (row + blamed_cells(columns, number, True) for row, columns in zip(table, blamed, strict=True))
    return as_csv(header, table)


def file_scores_json_lines(scores: Scores, origin: Origin, discoveries: Discoveries | None = None) -> str:
    """The scores of a file as JSON lines."""
    names, rows = origin.listed(scores, discoveries)
    documents = [dict(zip(names, row, strict=True)) for row in rows]
    if isinstance(scores, ExplainedScores):
        for document, columns in zip(documents, origin.blamed(scores), strict=True):
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
