"""Tables: what a column is taken for, what it learns, and the way to the network's numbers and back."""

import math

import numpy as np
import pytest
from scipy import stats

from service.data.cells import CellReader
from service.data.columns import CategoryColumn
from service.data.inputs import InputSpec, Mixed
from service.data.kinds import ColumnKind, Schema, infer
from service.data.learn import atoms_of, learn, learnt
from service.data.table import Table
from service.errors import DataError
from tests.tools import detected_cells

RNG = np.random.default_rng(0)


def text(*values):
    return detected_cells(list(values))


COLUMNS = {
    "income": (np.exp(RNG.normal(10, 1, 500)), "positive"),
    "height": (RNG.normal(170, 9, 500), "real"),
    "age": (RNG.integers(18, 80, 500).astype(float), "count"),
    "grade": (RNG.integers(1, 6, 500).astype(float), "ordinal"),
    "flag": (RNG.integers(0, 2, 500).astype(float), "binary"),
    "sex": (text(*RNG.choice(["f", "m"], 500)), "binary"),
    "city": (text(*RNG.choice(["Bern", "Basel", "Chur", "?"], 500)), "category"),
    "id": (np.arange(500.0), "ignored"),
    "name": (text(*(f"n{number}" for number in range(500))), "ignored"),
    "born": (text(*(f"19{number:02d}-05-17" for number in RNG.integers(10, 99, 500))), "ignored"),
    "day": (text(*(f"{number}.12.2020" for number in RNG.integers(1, 28, 500))), "ignored"),
    "same": (np.full(500, 3.0), "ignored"),
    "nothing": (np.full(500, np.nan), "ignored"),
}


@pytest.fixture(scope="module")
def table():
    return Table(tuple(COLUMNS), tuple(cells for cells, _ in COLUMNS.values()))


@pytest.fixture(scope="module")
def spec(table):
    columns = learn(infer(table), table)
    names = tuple(column.name for column in columns)
    return InputSpec(kind="table", shape=(len(names),), columns=names, transform=Mixed(columns=columns))


def test_kinds_are_inferred(table):
    assert {column.name: column.kind for column in infer(table).columns} == {
        name: kind for name, (_, kind) in COLUMNS.items()
    }
    reasons = {column.name: column.why for column in infer(table).columns}
    assert reasons["same"] == "constant"
    assert reasons["nothing"] == "empty"
    assert "identifier" in reasons["id"]
    assert reasons["born"] == reasons["day"] == "dates"


def test_missing_cells_are_known_by_their_text():
    assert np.isnan(text("1", "?", "", " NA ", "null", "2e3")).tolist() == [False, True, True, True, True, False]
    assert text("a", "?", "n/a").tolist() == ["a", None, None]
    assert text("1_000", "2").dtype == object  # Python's own way of writing numbers is nobody else's


def test_rows_come_back_from_the_networks_numbers(table, spec):
    rows = spec.rows(spec.array(table))
    np.testing.assert_allclose(spec.decode(spec.encode(rows).astype(np.float64)), rows, rtol=2e-5, equal_nan=True)
    holes = np.isnan(rows)
    assert holes.any()
    assert (np.isnan(spec.encode(rows)) == holes).all()  # no column of these has atoms


def test_text_that_was_never_seen_is_a_place_of_its_own(spec, table):
    one = table.select(np.array([0]))
    columns = list(one.columns)
    columns[one.names.index("city")] = text("Atlantis")
    rows = spec.array(Table(one.names, tuple(columns)))
    place = spec.columns.index("city")
    column = spec.transform.columns[place]
    assert column.values == tuple(sorted(column.values, key=lambda value: -(table.column("city") == value).sum()))
    assert spec.encode(spec.rows(rows))[0, place] == len(column.values) == 3
    assert 0 < column.unseen < 0.01


def test_a_category_that_reads_as_a_number_has_its_place_in_any_company():
    column = CategoryColumn(name="c", kind="category", values=("a", "1", "2.50", "1.0"), unseen=0.1)
    cells = ["2.5", "1", "01", "3", "a", ""]
    reader = CellReader((1,), ("c",), (column,), reads_text=True)
    together = reader.table(Table(("c",), (detected_cells(cells),)))[:, 0]
    alone = np.concatenate([reader.table(Table(("c",), (detected_cells([cell]),)))[:, 0] for cell in cells])
    assert np.array_equal(together, alone, equal_nan=True)
    assert together.tolist()[:5] == [2, 1, 1, 4, 0]


def test_a_number_as_text_is_a_fault_that_names_its_place(spec, table):
    columns = list(table.select(np.arange(3)).columns)
    columns[table.names.index("age")] = text("31", "old", "40")
    with pytest.raises(DataError, match="row 1, column 'age': text, expected a number"):
        spec.array(Table(table.names, tuple(columns)))


def test_values_that_come_too_often_are_atoms():
    hours = np.concatenate([np.full(470, 40.0), np.full(90, 50.0), RNG.integers(1, 99, 440)])
    assert atoms_of(hours).tolist() == [40.0, 50.0]
    gains = np.concatenate([np.zeros(900), np.exp(RNG.normal(8, 1, 100))])
    assert atoms_of(gains).tolist() == [0.0]
    assert not len(atoms_of(RNG.normal(size=1000)))
    assert not len(atoms_of(RNG.integers(17, 90, 1000).astype(float)))


def test_an_atom_is_a_category_and_no_number():
    gains = np.concatenate([np.zeros(900), np.exp(RNG.normal(8, 1, 100))])
    column = learnt(ColumnKind(name="gain", kind="real"), gains)
    x = column.encode(np.array([0.0, 1000.0, np.nan]))
    assert x[:, 0].tolist()[:2] == [0.0, 1.0]
    assert np.isnan(x).tolist() == [[False, True], [False, False], [True, True]]
    np.testing.assert_allclose(column.decode(x[:2]), [0.0, 1000.0])
    assert column.log_abs_det_jacobian(np.array([0.0, np.nan])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("kind", ["real", "positive"])
def test_the_density_of_a_column_is_that_of_its_numbers_by_the_change_of_variables(kind):
    values = np.exp(RNG.normal(2, 0.7, 4000))
    column = learnt(ColumnKind(name="x", kind=kind), values)
    grid = np.linspace(1e-3, 400.0, 2_000_001)
    density = (
        np.exp(stats.norm.logpdf(column.encode(grid)[:, 0]) + column.log_abs_det_jacobian(grid)) / column.resolution
    )
    outside = stats.norm.cdf(column.encode(grid[:1])[0, 0]) + stats.norm.sf(column.encode(grid[-1:])[0, 0])
    assert float(np.trapezoid(density, grid)) + outside == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("factor", [100.0, 1e-6])
def test_other_units_change_no_number_of_the_network_and_no_measure(factor):
    heights, incomes = RNG.normal(170, 9, 500).round(1), np.exp(RNG.normal(10, 1, 500)).round(2)
    for values, kind in ((heights, "real"), (incomes, "positive")):
        column = ColumnKind(name="x", kind=kind)
        one, other = learnt(column, values), learnt(column, factor * values)
        np.testing.assert_allclose(one.encode(values), other.encode(factor * values), atol=1e-5)
        # The smallest step is known to what float32 leaves of it; by how much it is wrong is the same for all rows.
        gap = one.log_abs_det_jacobian(values) - other.log_abs_det_jacobian(factor * values)
        np.testing.assert_allclose(gap, gap[0], atol=1e-6)
        assert abs(gap[0]) < 0.02


def test_numbers_that_no_column_can_hold_stay_finite(spec):
    is_text = np.array([getattr(column, "is_text", False) for column in spec.transform.columns])
    rows = np.where(is_text, 0.0, np.full((2, spec.features), 3e38))
    rows[1, ~is_text] = -3e38
    assert np.isfinite(spec.encode(spec.rows(rows))).all()
    assert np.isfinite(spec.log_abs_det_jacobian(spec.rows(rows))).all()


def test_a_schema_that_the_cells_contradict_is_refused(table):
    for name, kind, message in (
        ("city", "real", "'city' is text but declared as real"),
        ("height", "count", "'height' is not a count"),
        ("nothing", "real", "'nothing' is empty in the training rows"),
        ("nothing", "category", "'nothing' is empty in the training rows"),
    ):
        with pytest.raises(DataError, match=message):
            learn(Schema(columns=(ColumnKind(name=name, kind=kind),)), table)
    with pytest.raises(DataError, match="no usable column"):
        learn(Schema(columns=(ColumnKind(name="same", kind="ignored", why="constant"),)), table)


def test_a_category_keeps_only_its_commonest_values():
    cells = text(*(f"v{number % 400}" for number in range(1200)), "once")
    column = learnt(ColumnKind(name="c", kind="category"), cells)
    assert len(column.values) == 256
    assert column.unseen == pytest.approx((144 * 3 + 1 + 1) / 1203)
    assert math.isnan(column.encode(np.array([np.nan]))[0, 0])


def test_a_few_numbers_have_positions_and_others_lie_between_and_beyond_them():
    column = learnt(ColumnKind(name="g", kind="ordinal"), np.array([1.0, 2.0, 4.0] * 40))
    values = np.array([1.0, 4.0, 3.0, 5.5, 0.0, 9_999_999.0, np.nan])
    expected = [0.0, 2.0, 1.5, 3.0, -2 / 3, 2 + (9_999_999 - 4) / 1.5, np.nan]
    np.testing.assert_allclose(column.positions(values), expected)
