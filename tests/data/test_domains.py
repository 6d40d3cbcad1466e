"""What training rows never held, and what breaks it."""

import numpy as np
import pyarrow as pa
import pytest

from service.data.beside import Constant, LastDate
from service.data.domains import Domains, counted, is_lowest
from service.data.inputs import InputSpec, Mixed
from service.data.kinds import ColumnKind, Schema
from service.data.learn import learn
from service.data.numbers import PLAIN
from service.data.table import IS_INFINITE, IS_TEXT, Table, unreadable_cells

ROWS = 200
KINDS = {
    "height": "real",
    "load": "positive",
    "visits": "count",
    "grade": "ordinal",
    "city": "category",
    "hours": "count",
}


def table():
    random = np.random.default_rng(0)
    height = random.normal(170, 9, ROWS)
    height[:20] = np.nan
    return Table(
        tuple(KINDS),
        (
            height,
            np.exp(random.normal(size=ROWS)),
            random.poisson(3.0, ROWS).astype(float),
            random.integers(1, 6, ROWS).astype(float),
            random.choice(["Bern", "Chur"], ROWS).astype(object),
            np.clip(random.poisson(40.0, ROWS), 20, 45).astype(float),  # many work the most hours that are allowed
        ),
    )


@pytest.fixture(scope="module")
def spec():
    kinds = Schema(columns=tuple(ColumnKind(name=name, kind=kind) for name, kind in KINDS.items()))
    transform = Mixed(columns=learn(kinds, table()))
    return InputSpec(kind="table", shape=(6,), columns=tuple(KINDS), transform=transform, precision="float64")


@pytest.fixture(scope="module")
def domains(spec):
    beside = (
        Constant(name="unit", value=7.0, never_missing=True),
        LastDate(name="day", pattern="iso", latest="2024-05-06"),
    )
    return Domains.learnt(spec, spec.array(table()), beside)


USUAL = {
    "height": 171.5,
    "load": 1.25,
    "visits": 3,
    "grade": 4,
    "city": "Bern",
    "hours": 40,
    "unit": 7,
    "day": "2024-05-01",
}


def told(spec, domains, **changes):
    """The first violation of the usual row with changes, as (column, kind); None if there is none."""
    reader = spec.reader(beside=domains.beside)
    rows = spec.read(reader.rows([USUAL | changes]), reader)
    found = domains.violations(spec, domains.codes(spec, rows)[0])
    return (found[0].column, found[0].kind) if found else None


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({}, None),
        ({"height": None}, None),  # some training rows had none
        ({"height": -3.5}, "negative"),
        ({"height": 300.25}, None),  # a number of a column without limits is for log p(x) to judge
        ({"height": "tall"}, "unreadable"),
        ({"height": float("inf")}, "unreadable"),
        ({"height": "1e39"}, "unreadable"),
        ({"height": True}, "unreadable"),
        ({"load": None}, "never_missing"),
        ({"load": 0}, "out_of_range"),
        ({"visits": -3}, "negative"),
        ({"visits": 7.5}, "not_an_integer"),
        ({"visits": 400}, None),
        ({"grade": 2.5}, "not_an_integer"),
        ({"grade": 9}, "out_of_range"),
        ({"grade": "good"}, "unreadable"),
        ({"city": "Atlantis"}, "unseen_category"),
        ({"city": 7}, "unseen_category"),
        ({"hours": 46}, "out_of_range"),
        ({"hours": 39}, None),
        ({"unit": 9999}, "constant_changed"),
        ({"unit": "seven"}, "constant_changed"),
        ({"unit": "7.0"}, None),
        ({"unit": None}, "never_missing"),
        ({"day": "2031-01-01"}, None),
        ({"day": "soon"}, None),
    ],
)
def test_what_breaks_a_domain_is_named_by_column_and_kind(spec, domains, change, kind):
    assert told(spec, domains, **change) == (None if kind is None else (next(iter(change)), kind))


def test_a_constant_may_be_left_out_and_arrays_do_not_have_it(spec, domains):
    reader = spec.reader(beside=domains.beside)
    without = {name: cell for name, cell in USUAL.items() if name not in ("unit", "day")}
    rows = spec.read(reader.rows([without]), reader)
    assert rows.shape == (1, 8)
    assert not domains.codes(spec, rows).any()
    assert np.array_equal(spec.read(reader.padded(rows[:, :6]), reader), rows)


def test_equal_cells_of_other_types_are_read_each_for_itself(spec, domains):
    reader = spec.reader(beside=domains.beside)
    assert reader.column_beside(domains.beside[0], [7, 7.0, "7", True, 1, 1.0]).tolist() == [0, 0, 0, 1, 1, 1]


def test_a_column_of_several_values_is_no_constant():
    assert Constant.of("unit", np.array([7.0, np.nan, 7.0])).never_missing is False
    assert Constant.of("unit", np.array([7.0, 8.0])) is None
    assert Constant.of("unit", np.array([np.nan])) is None


def test_later_dates_are_told_of_and_not_counted(spec, domains):
    reader = spec.reader(beside=domains.beside)
    days = ["2024-05-06", "2024-05-06 00:00:01", "2031-01-01", "1999-01-01", None]
    rows = spec.read(reader.rows([USUAL | {"day": day} for day in days]), reader)
    codes = domains.codes(spec, rows)
    assert domains.notes(codes) == ["later in 'day' than the last training row, 2024-05-06: 2 of 5 rows"]
    assert not counted(codes).any()
    assert not any(domains.violations(spec, row) for row in codes)


@pytest.mark.parametrize(
    ("cells", "latest", "later"),
    [
        (np.array(["03.12.2021", "31.01.2022", None], dtype=object), "31.01.2022", "01.02.2022"),
        (np.array(["2021-12-03T10:00:00Z", "2022-01-31T10:00:00+02:00"], dtype=object), None, "2022-01-31T09:00:00"),
        (np.array([1.6e9, 1.7e9, np.nan]), "1700000000.0", 1_700_000_001),
    ],
)
def test_dates_are_compared_as_they_are_written(cells, latest, later):
    one = LastDate.of("day", cells)
    assert latest in (None, one.latest)
    assert one.found(later, frozenset(), frozenset(), PLAIN) == 2.0
    assert one.found(cells[0], frozenset(), frozenset(), PLAIN) == 0.0
    assert LastDate.of("day", np.array([None, "x"], dtype=object)) is None


def test_of_few_rows_nothing_is_concluded(spec):
    few = Domains.learnt(spec, spec.array(table())[20:39])
    assert all(one == type(one)() for one in few.columns)


def test_rows_without_any_value_and_with_unreadable_cells_are_the_lowest(spec, domains):
    reader = spec.reader(beside=domains.beside)
    nothing = dict.fromkeys(USUAL)
    rows = spec.read(reader.rows([USUAL, nothing, USUAL | {"load": "x"}, nothing | {"city": "Bern"}]), reader)
    codes = domains.codes(spec, rows)
    assert is_lowest(codes, 6).tolist() == [False, True, True, False]
    (only,) = domains.violations(spec, codes[1])
    assert (only.column, only.kind) == (None, "no_value")


def test_a_cell_that_cannot_be_read_is_a_nan_that_stays_one_wherever_rows_go():
    rows = np.array([[1.0, np.nan, IS_TEXT, IS_INFINITE]])
    journeys = {
        "float32": lambda given: given.astype(np.float32),
        "and back": lambda given: given.astype(np.float32).astype(np.float64),
        "lists": lambda given: np.array(given.tolist()),
        "parts": lambda given: np.concatenate([given[:, :2], given[:, 2:]], axis=1),
        "where": lambda given: np.where(given > 0, given, given),
        "Arrow": lambda given: np.asarray(pa.array(given[0]).to_numpy())[None],
    }
    for name, journey in journeys.items():
        there = journey(rows)
        assert np.isnan(there).tolist() == [[False, True, True, True]], name
        assert unreadable_cells(there, "text").tolist() == [[False, False, True, False]], name
        assert unreadable_cells(there, "infinite").tolist() == [[False, False, False, True]], name
