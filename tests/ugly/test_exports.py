"""Small files of programs and people in several countries, each with what its columns are."""

import numpy as np
import pytest

from service.data.cells import CellReader, Reading
from service.data.detect import Detection
from service.data.learn import plain_number
from service.data.numbers import NumberFormat, parts_of
from service.data.survey import surveyed
from service.errors import DataError
from service.files.dialect import decoded
from service.files.json_tables import json_table
from service.files.text_tables import csv_table

RANDOM = np.random.default_rng(7)
N = 60
DAYS = [f"{1 + at % 28:02d}.{1 + at % 12:02d}.2024" for at in range(N)]
WHOLE = RANDOM.integers(1, 9_999, N).tolist()
CENTS = (RANDOM.random(N) * 40).round(2).tolist()


def german(number):
    return f"{number:,}".replace(",", "_").replace(".", ",").replace("_", ".")


def lines(header, *columns, separator=";"):
    rows = [separator.join(map(str, row)) for row in zip(*columns, strict=True)]
    return "\n".join([header, *rows]).encode()


def read(content, **options):
    return surveyed(csv_table(content), Detection(**options))


def kinds(survey):
    return {column.name: column.kind for column in survey.schema.columns}


def test_days_versions_and_addresses_do_not_tell_the_decimal_mark():
    for other in (DAYS, [f"1.2.{at}" for at in range(N)], [f"10.0.7.{at}" for at in range(N)]):
        table = read(lines("x;Menge;p", other, map(german, WHOLE), map(german, CENTS))).table
        assert table.column("Menge").tolist() == WHOLE
        assert table.column("p").tolist() == CENTS
        table = read(lines("x,Preis", other, (f'"{german(cell)}"' for cell in CENTS), separator=",")).table
        assert table.column("Preis").tolist() == CENTS


def test_points_that_may_stand_between_thousands_are_asked_about():
    content = lines("Ort;Einwohner", ["A", "B", "C"] * 20, map(german, WHOLE))
    with pytest.raises(DataError, match=r"'Einwohner'.* may mean two numbers: say --decimal"):
        read(content)
    assert read(content, decimal=",").table.column("Einwohner").tolist() == WHOLE


def test_tabs_and_semicolons_separate_although_cells_have_commas():
    content = lines("time;T, °C;p, hPa", range(N), map(german, CENTS), (f"98{at % 9},{at % 7}" for at in range(N)))
    assert kinds(read(content))["T, °C"] in ("real", "count", "positive")
    content = lines(
        "Last, First\tCity, State",
        ["Doe, Ann", "Roe, Bob"] * 30,
        ["Bern, BE", "Chur, GR", "Zug, ZG"] * 20,
        separator="\t",
    )
    assert csv_table(content).names == ("Last, First", "City, State")


def test_cells_that_are_too_many_are_no_row_names():
    for content in (
        lines("time,temp", DAYS, CENTS, ["OK"] * N, separator=","),
        lines("name,wert", ["P1"] * N, map(german, CENTS), separator=","),
    ):
        with pytest.raises(DataError, match="line 2 has 3 cells, the header has 2"):
            csv_table(content)
    assert csv_table(b"a,b\n1,2,\n").names == ("a", "b")  # a separator at the end


def test_a_first_row_with_a_missing_cell_is_no_header():
    with pytest.raises(DataError, match="--no-header"):
        csv_table(b"5.1,?,1.4,x\n" + b"4.9,3.0,1.4,y\n5.0,3.1,1.5,x\n" * 10)


def test_what_stands_above_the_header_is_refused():
    for top in ("Logger export\n\n", "% comment\n"):
        with pytest.raises(DataError, match="line"):
            csv_table(top.encode() + lines("state;alarm", [0, 1] * 30, [1, 0] * 30))


def test_one_bad_byte_does_not_turn_a_file_into_another_encoding():
    with pytest.raises(DataError, match="line 22 is not UTF-8 text, as the rest is"):
        decoded(("stadt,n\n" + "Zürich,1\n" * 20).encode() + "Köln,2\n".encode("cp1252"))
    for text in ("T (°C),Leitf. µS/cm\n1,2\n", "Cost (£m)\n1\n", "¿Cuántos años?\n3\n", "„so“;1\n"):
        assert decoded(text.encode("cp1252")) == (text, "cp1252")


def test_numbers_of_things_are_no_quantities():
    for cells in (
        [f"192.168.178.{at}" for at in range(100, 100 + N)],
        [f"1.200.{300 + at}" for at in range(N)],
        [f"612 34{at % 10} {600 + at}" for at in range(N)],
        [f"{120 + at} {124 + at}" for at in range(N)],
        [f"{10_000 + 7 * at}DE" for at in range(N)],
    ):
        assert kinds(read(lines("c;x", cells, CENTS)))["c"] in ("ignored", "category"), cells[0]


def test_times_without_marks_are_left_out():
    for cells in (
        [f"2024{1 + at % 12:02d}{1 + at % 28:02d}{at % 24:02d}" for at in range(N)],
        [f"2024{1 + at % 12:02d}{1 + at % 28:02d}{at % 24:02d}3015" for at in range(N)],
        [1_700_000_000_000 + 86_400_123 * at * (at % 3) for at in range(N)],
    ):
        assert kinds(read(lines("c;x", cells, CENTS)))["c"] == "ignored", cells[0]


def test_a_slip_of_the_unit_is_told_and_does_not_drop_the_column():
    cells = [f"{cell} kg" for cell in CENTS]
    for slip in ("850 g", "12.5"):
        with pytest.raises(DataError, match=f"59 numbers and 1 x '{slip}', first in line 7"):
            read(lines("c;x", [*cells[:5], slip, *cells[6:]], WHOLE))


def test_blank_rows_are_no_rows_to_train_on_but_rows_to_score():
    content = b"a,b\n1.5,2.5\n,\n3.5,4.5\n"
    raw = csv_table(content)
    assert len(raw) == 2
    assert raw.lines.tolist() == [2, 4]
    assert len(csv_table(content, known=("a", "b"))) == 3


def test_a_models_own_format_holds_where_the_file_does_not_tell():
    column = plain_number("n", np.arange(5.0))
    grouped = Reading(formats={"n": NumberFormat(decimal=",", thousands=".")})
    for reading, text, number in ((grouped, b"n;x\n2.231;1\n", 2231.0), (Reading(), b"n;x\n2.231;1\n", 2.231)):
        reader = CellReader((1,), ("n",), (column,), True, reading)
        raw = csv_table(text, known=("n",), as_text=bool(reading.formats))
        assert reader.table(raw).tolist() == [[number]]
    reader = CellReader((1,), ("n",), (column,), True, Reading(), is_strict=True)
    with pytest.raises(DataError, match="text, expected a number"):
        reader.table(csv_table(b"n;x\n1,234;1\n", known=("n",)))


def test_a_long_cell_is_no_number_and_takes_no_time():
    for text in ("1" + " " * 5_000 + "x" * 7, "7" * 5_000 + "kg", "1" + " " * 40 + "x"):
        assert parts_of(text) is None


def test_json_in_other_forms_is_read_or_refused_in_words():
    for text in (
        '{"data": [{"a": 1}, {"a": 2}]}',
        '[{"a": 1}, {"a": 2}]',
        '[\n {"a": 1},\n {"a": 2}\n]',
        '{"a": 1}\n{"a": 2}\n',
    ):
        assert list(json_table(text.encode()).column("a")) == [1, 2], text
    with pytest.raises(DataError, match="one JSON object, expected a list of objects"):
        json_table(b'{"a": {"0": 1}, "b": {"0": 2}}')


def test_backslashes_are_text_unless_they_stand_before_a_quote():
    raw = csv_table(b'a,b\n"says \\"hi\\", there",CORP\\anna\n')
    assert [list(column) for column in raw.columns] == [['says "hi", there'], ["CORP\\anna"]]
    raw = csv_table(b'a,b\n"C:\\data\\",5\n')
    assert raw.columns[0] == ["C:\\data\\"]


def test_a_category_that_is_spelled_like_another_columns_missing_cell_is_one():
    elements = ["Na", "K", "Ca"] * 20
    survey = read(lines("element;x", elements, ["NA", *CENTS[1:]]))
    assert survey.table.column("element").tolist() == elements
