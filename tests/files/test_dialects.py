"""Text files in the ways that people and programs write them: numbers, dialects, encodings, lines, at every door."""

import gzip

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.data.numbers import NumberFormat, format_of
from service.errors import DataError
from service.files.dialect import Dialect, TextOptions, decoded
from service.files.formats.registry import FORMATS, ReadRequest
from service.files.locations import InputFile
from service.files.records import numbers_of
from service.files.tables import raw_of, read_raw, read_table
from service.files.text_tables import csv_table
from tests.files.test_formats import SPEC

WRITTEN = {
    "plain": ({}, ["1.5", "-2", "3e2"], [1.5, -2.0, 300.0]),
    "comma": ({"decimal": ","}, ["1,5", "-2", "3e2", ",5"], [1.5, -2.0, 300.0, 0.5]),
    "both": ({"decimal": ",", "thousands": "."}, ["1.234,5", "12,25", "1.234.567"], [1234.5, 12.25, 1234567.0]),
    "English": ({"thousands": ","}, ["1,234.5", "12", "1,234,567"], [1234.5, 12.0, 1234567.0]),
    "French": ({"decimal": ",", "thousands": " "}, ["1\u202f234,5", "7,1", "1 234"], [1234.5, 7.1, 1234.0]),
    "Swiss": ({"thousands": "'"}, ["1'234.5", "1\u2019234", "5.5"], [1234.5, 1234.0, 5.5]),
    "dollars": ({"unit": "$"}, ["$5", "$ 7.5", "($2.25)", "-$1"], [5.0, 7.5, -2.25, -1.0]),
    "percent": ({"unit": "%"}, ["12 %", "3.5%"], [12.0, 3.5]),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_numbers_are_read_in_the_format_that_their_column_shows(name):
    fields, texts, numbers = WRITTEN[name]
    style, is_sure = format_of(texts)
    assert is_sure
    assert style == NumberFormat(**fields)
    assert [style.read(text) for text in texts] == numbers


def test_what_may_mean_two_numbers_is_not_sure_until_the_mark_is_known():
    texts = ["1,234", "5", "12"]
    assert not format_of(texts)[1]
    assert [format_of(texts, mark)[0].read("1,234") for mark in (".", ",")] == [1234.0, 1.234]
    assert format_of([f"{at}.125" for at in range(40)] + ["1,5"])[0] == NumberFormat()  # one odd cell of forty


def test_no_format_reads_what_is_no_number():
    for text in (
        "",
        "oops",
        "1_000",
        "1.2.3",
        "12:30",
        "2024-01-05",
        "0x1F",
        "--5",
        "1,,2",
        "(5",
        "5)",
        "1e",
        "$",
        "%",
    ):
        for fields, *_ in WRITTEN.values():
            assert NumberFormat(**fields).read(text) is None, (text, fields)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(st.floats(allow_nan=False, width=32).map(repr), st.text("0123456789.,-e_ +", max_size=6)), min_size=1
    )
)
def test_fast_numbers_are_what_float_makes_of_each_cell(cells):
    """Or the cells stay text, and are looked at one by one."""
    numbers = numbers_of(tuple(cells))
    if numbers is not None:
        assert numbers.tolist() == pytest.approx(
            [float(cell) if cell else np.nan for cell in cells], rel=0, abs=0, nan_ok=True
        )
        assert not any("_" in cell for cell in cells)


def test_a_file_is_read_line_by_line_whatever_is_in_its_cells():
    body = b'a;note;b\n1,5;"two\nlines";x\n\n2,5;plain;y\n"3,5";"a "" quote";z\n'
    raw = csv_table(body)
    assert raw.lines.tolist() == [2, 5, 6]
    assert [list(column) for column in raw.columns] == [
        ["1,5", "2,5", "3,5"], ["two\nlines", "plain", 'a " quote'], ["x", "y", "z"],
    ]  # fmt: skip
    assert raw.decimal == ","


def test_columns_that_turn_out_to_be_text_are_text_from_the_first_row():
    lines = [f"{at},{at}.5" for at in range(5_000)]
    lines[4_500] = "4500,4500.5x"
    raw = csv_table(("a,b\n" + "\n".join(lines)).encode())
    assert isinstance(raw.columns[0], np.ndarray)
    assert raw.columns[1][:2] == ["0.5", "1.5"]
    assert raw.columns[1][4_500] == "4500.5x"


def test_encodings_are_found():
    text = "stadt;größe\nZürich;1,5\nKöln;2\n"
    for encoding, name in (
        ("utf-8", ""),
        ("utf-8-sig", ""),
        ("utf-16", "utf-16"),
        ("utf-16-be", "utf-16-be"),
        ("cp1252", "cp1252"),
    ):
        assert decoded(text.encode(encoding)) == (text, name)
    assert decoded("город;цена\nМосква;12\nКазань;3\nСамара;5\n".encode("cp1251"))[1] == "cp1251"  # noqa: RUF001
    with pytest.raises(DataError, match="line 2 is not utf-8 text"):
        decoded(b"a\n\xff\n", "utf-8")


def test_a_separator_is_what_divides_most_lines_alike():
    for text, separator in (
        ("a,b\n1,2\n", ","), ("a;b\n1,5;2\n3,5;4\n", ";"), ("a\tb\n1\t2\n", "\t"), ("a|b\n1|2\n", "|"), ("a b\n1 2\n", " "),
        ("a\n1,5\n2,5\n", ";"), ("sep=|\na|b\n1|2\n", "|"), ("name\nanne mary\nbob\ncarl\n", ","),
    ):  # fmt: skip
        assert Dialect.of(text).separator == separator, text
    assert Dialect.of("a;b\n1;2\n", TextOptions(separator=",")).separator == ","


def test_a_folder_of_parquet_is_one_table(tmp_path):
    for at in range(2):
        pq.write_table(pa.table({"a": [1.0 + at, 2.0], "b": ["x", "y"]}), tmp_path / f"{at}.parquet")
    table = read_table(tmp_path)
    assert table.column("a").tolist() == [1.0, 2.0, 2.0, 2.0]


def test_the_index_in_parquets_metadata_is_no_column(tmp_path):
    frame = pd.DataFrame({"a": [1.0, 2.0]}, index=pd.Index([7, 9], name="who"))
    frame.to_parquet(tmp_path / "a.parquet")
    raw = read_raw(tmp_path / "a.parquet")
    assert raw.names == ("a",)
    assert raw.left_out == {"who": "the index of a data frame"}
    assert read_raw(tmp_path / "a.parquet", ["who"]).names == ("who",)  # unless it is asked for


TEXT = "a;b;ort\n1,5;2;Zürich\n3,5;4;Köln\n"
PACKED = {
    "plain.csv": TEXT.encode(),
    "latin.csv": TEXT.encode("cp1252"),
    "wide.csv": TEXT.encode("utf-16"),
    "packed.csv.gz": gzip.compress(TEXT.encode()),
    "tabs.tsv": TEXT.replace(";", "\t").encode(),
    "index.csv": ";a;b;ort\n0;1,5;2;Zürich\n1;3,5;4;Köln\n".encode(),
    "sep.csv": ("sep=;\n" + TEXT).encode(),
    "comments.csv": ("# from a sensor\n" + TEXT).encode(),
}


@pytest.mark.parametrize("name", PACKED)
def test_every_dialect_is_filtered_and_its_rows_are_kept(name, tmp_path):
    (tmp_path / name).write_bytes(PACKED[name])
    file = InputFile(str(tmp_path / name), name)
    kind = FORMATS[file.suffix]
    scan = kind.scan(file, ReadRequest(SPEC, None, 1))
    assert scan.rows == 2
    reader = kind.reader(file, scan.header)
    raw = pa.concat_tables([reader.rows(row_range) for row_range in scan.ranges])
    reader.close()
    cells = raw_of(kind.cells(raw, scan.header, SPEC.reader()))
    np.testing.assert_array_equal(SPEC.reader().table(cells), [[1.5, 2.0], [3.5, 4.0]])
    content = kind.write(raw, scan.header)
    plain = gzip.decompress(content) if name.endswith(".gz") else content
    again = gzip.decompress(PACKED[name]) if name.endswith(".gz") else PACKED[name]
    kept = again if name != "wide.csv" else TEXT.encode()
    assert kept.endswith(plain)  # all but what came before the header
    scores = pa.table({"vouch_verdict": ["valid", "invalid"]})
    beside = kind.write_beside(raw, scores, scan.header)
    (tmp_path / f"again-{name}").write_bytes(beside)
    found = read_raw(tmp_path / f"again-{name}")
    assert found.column("vouch_verdict") == ["valid", "invalid"]
    with pytest.raises(DataError, match="already has a column 'vouch_verdict'"):
        kind.write_beside(
            raw, scores, kind.scan(InputFile(str(tmp_path / f"again-{name}"), name), ReadRequest(SPEC, None, 9)).header
        )


# Lines that are not divided as the header is


RAGGED = {
    "plain": (b"a,b\n1,2\n\n3,4,5\n6\n7,8\n", [4, 5], [[1, 2], [7, 8]]),
    "quoted": (b'a,b\n"1","2"\n"3\n","4",5\n7,8\n9,"10"6\n', [3], [[1, 2], [7, 8]]),
    "semicolons": (b"a;b\r\n1;2\r\n3\r\n7;8\r\n", [3], [[1, 2], [7, 8]]),
    "empty cells, too few": (b"a,b\n1,2\n,,\n7,8\n", [3], [[1, 2], [7, 8]]),
}


@pytest.mark.parametrize("name", ["plain", "semicolons", "empty cells, too few"])
def test_ragged_lines_are_listed_or_passed_over(tmp_path, name):
    content, lines, rows = RAGGED[name]
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=f"line {lines[0]} has .*--on-bad-row skip"):
        read_raw(tmp_path / "a.csv", known="ab")
    raw = read_raw(tmp_path / "a.csv", options=TextOptions(bad_rows="skip"), known="ab")
    assert np.stack([np.asarray(raw.column(one), float) for one in "ab"], axis=1).tolist() == rows
    assert f"passed over, not divided as the header is: {lines[0]}" in raw.notes[-1]


@pytest.mark.parametrize("name", RAGGED)
def test_data_sets_list_ragged_lines_before_they_are_read_or_pass_over_them(tmp_path, name):
    content, lines, rows = RAGGED[name]
    (tmp_path / "a.csv").write_bytes(content)
    file, kind = InputFile(str(tmp_path / "a.csv"), "a.csv"), FORMATS[".csv"]
    with pytest.raises(DataError, match=f"line {lines[0]} has "):
        kind.scan(file, ReadRequest(SPEC, None, 100))
    scan = kind.scan(file, ReadRequest(SPEC, None, 1, TextOptions(bad_rows="skip")))
    assert scan.rows == 2
    assert f"passed over, not divided as the header is: {lines[0]}" in scan.skipped
    reader = kind.reader(file, scan.header)
    raw = [reader.rows(one) for one in scan.ranges]
    reader.close()
    cells = pa.concat_tables([kind.cells(one, scan.header, SPEC.reader()) for one in raw])
    assert [[float(cell) for cell in row.values()] for row in cells.to_pylist()] == rows
    found = [one.column("vouch.line")[0].as_py() for one in raw]
    assert [content.splitlines()[line - 1].replace(b'"', b"")[:1] for line in found] == [b"1", b"7"]


def test_rows_of_json_that_are_not_like_the_first_are_listed_or_passed_over(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n[2]\n{"a": 3}\nnot json\n{"a": 4}\n')
    with pytest.raises(
        DataError, match=r"line 2 is not an object.* \(2 such rows: line 2, line 4\): .*--on-bad-row skip"
    ):
        read_raw(tmp_path / "a.jsonl")
    raw = read_raw(tmp_path / "a.jsonl", options=TextOptions(bad_rows="skip"))
    assert list(raw.column("a")) == [1, 3, 4]
    assert raw.lines.tolist() == [1, 3, 5]
    assert raw.notes == ("2 rows passed over that are not like the first: line 2, line 4",)
