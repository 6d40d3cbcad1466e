"""`score_table`: the same scores as the Scorer's, whatever the cells came as, and rows that say where they are wrong."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pytest
from sklearn.datasets import load_wine

from service.datasets.scored import score_table
from service.errors import DataError, RowError
from service.files.tables import read_table
from service.scoring.options import ScoreOptions
from service.scoring.tables import SCORE_COLUMNS


def wine_table(rows=178, dtype=np.float64):
    data = load_wine()
    return pa.table({name: data.data[:rows, at].astype(dtype) for at, name in enumerate(data.feature_names)})


def same(table, scores):
    for name in ("log_likelihood", "std_error", "percentile", "p_value", "low_p_value", "ess"):
        assert np.array_equal(table.column(name).to_numpy(), getattr(scores, name))
    assert table.column("verdict").to_pylist() == scores.verdict
    assert table.column("side").to_pylist() == scores.side


def test_scores_are_those_of_the_scorer_to_the_bit(wine):
    table = wine_table()
    found = score_table(wine, table)
    same(found, wine.score(load_wine().data))
    assert set(SCORE_COLUMNS) <= set(found.column_names)
    assert len(score_table(wine, table.slice(0, 0))) == 0
    assert score_table(wine, table.slice(0, 0)).schema == found.schema


def test_cells_may_be_of_any_type_and_columns_in_any_order_beside_others(wine):
    table, scores = wine_table(dtype=np.float32), wine.score(load_wine().data.astype(np.float32))
    same(score_table(wine, table), scores)
    moved = table.select(table.column_names[::-1]).append_column("id", pa.array([f"r{at}" for at in range(178)]))
    same(score_table(wine, moved), scores)
    lists = pa.table({"row": list(load_wine().data.astype(np.float32))})
    same(score_table(wine, lists), scores)
    text = pa.table(
        {name: [repr(float(cell)) for cell in table.column(name).to_pylist()] for name in table.column_names}
    )
    same(score_table(wine, text), scores)


def test_text_and_holes_are_read_as_the_command_line_reads_them(people):
    table = read_table(people.csv).select(np.arange(20))
    scores = people.scorer.score(people.scorer.model.input.array(table))
    text = pa_csv.read_csv(
        people.csv,
        convert_options=pa_csv.ConvertOptions(column_types={name: pa.string() for name in table.names}),
    ).slice(0, 20)
    found = score_table(people.scorer, text)
    same(found, scores)
    assert found.column("missing").to_pylist() == scores.missing.tolist()
    # A batch's company makes no difference, not even where all of it reads as numbers.
    alone = pa.concat_tables([score_table(people.scorer, text.slice(at, 1)) for at in range(0, 20, 2)])
    assert alone.column("log_likelihood").to_pylist() == found.column("log_likelihood").to_pylist()[::2]
    typed = pa.table({name: pa.array(table.column(name).tolist(), from_pandas=True) for name in table.names})
    same(score_table(people.scorer, typed), scores)


def people_table(people):
    """Few rows, since each new pattern of holes costs as much as a thousand."""
    read = read_table(people.csv)
    return pa.table({name: pa.array(read.column(name).tolist()) for name in read.names}).slice(0, 12)


def test_columns_to_blame_come_as_text_beside_their_p_values(people):
    table = people_table(people)
    found = score_table(people.scorer, table, ScoreOptions(explain=2))
    assert {"blamed_1_column", "blamed_2_value", "blamed_1_p_value", "blamed_2_expected"} <= set(found.column_names)
    scores = people.scorer.score(people.scorer.model.input.array(read_table(people.csv))[:12], ScoreOptions(explain=2))
    names = [people.scorer.model.input.column(at) for at in scores.columns[:, 0]]
    assert found.column("blamed_1_column").to_pylist() == names
    assert found.column("blamed_1_p_value").to_pylist() == scores.column_p_value[:, 0].tolist()


def test_the_combined_rule_and_rates_are_passed_on(people):
    table = people_table(people)
    rows = people.scorer.model.input.array(read_table(people.csv))[:12]
    found = score_table(people.scorer, table, ScoreOptions("combined", false_alarm=0.1))
    scores = people.scorer.score(rows, ScoreOptions("combined", false_alarm=0.1))
    assert found.column("combined_p_value").to_pylist() == scores.combined_p_value.tolist()
    assert found.column("verdict").to_pylist() == scores.verdict
    found = score_table(people.scorer, table, ScoreOptions(false_alarm=0.02, tail="low"))
    assert (
        found.column("verdict").to_pylist()
        == people.scorer.score(rows, ScoreOptions(false_alarm=0.02, tail="low")).verdict
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda table: table.drop_columns("ash"), DataError, "^has no column 'ash', which the model reads$"),
        (lambda table: with_cell(table, 7, "ash", None), RowError, "^row 7, column 'ash': a missing value, expected"),
        (lambda table: with_cell(table, 7, "ash", 1e39), RowError, "^row 7, column 'ash': a number too large for float32"),
        (lambda table: with_cell(table, 7, "ash", float("inf")), RowError, "^row 7, column 'ash': infinity"),
        (lambda table: with_text(table, 7, "ash"), RowError, "^row 7, column 'ash': text, expected a number$"),
        (lambda table: pa.table({"row": [[1.0] * 13, [1.0] * 12]}), RowError, "^row 1 has 12 features, "),
        (lambda table: pa.table({"row": [[1.0] * 13, None]}), RowError, "^row 1 is missing, the model reads 13$"),
        (lambda table: pa.table({"row": [["a"] * 13]}), DataError, "does not hold numbers"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said_with_its_place(wine, change, error, message):
    with pytest.raises(error, match=message):
        score_table(wine, change(wine_table()))


def with_cell(table, row, name, cell):
    cells = table.column(name).to_pylist()
    cells[row] = cell
    return table.set_column(table.column_names.index(name), name, pa.array(cells, pa.float64()))


def with_text(table, row, name):
    cells = list(map(str, table.column(name).to_pylist()))
    cells[row] = "much"
    return table.set_column(table.column_names.index(name), name, pa.array(cells))


def test_a_model_without_names_takes_all_columns_in_their_order(digit_scorer):
    rows = np.random.default_rng(0).integers(0, 256, size=(5, 64)).astype(np.uint8)
    table = pa.table({f"p{at}": rows[:, at] for at in range(64)})
    expected = digit_scorer.score(rows.reshape(5, 8, 8))
    same(score_table(digit_scorer, table), expected)
    same(score_table(digit_scorer, pa.table({"label": [1] * 5, "image": list(rows)})), expected)
    assert json.dumps(score_table(digit_scorer, table).to_pylist())
