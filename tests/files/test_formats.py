"""The formats of files: cut, read in any order, and written as they were."""

import csv
import io
import json

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.data.cells import CellReader
from service.data.inputs import InputSpec, Standard
from service.data.learn import plain_number
from service.errors import DataError, RowError
from service.files.dialect import Dialect
from service.files.formats.base import READ
from service.files.formats.registry import FORMATS, IN_FOLDERS, ReadRequest, RowRange
from service.files.formats.text_records import records_in
from service.files.locations import InputFile, OutFolder, found

SPEC = InputSpec(kind="table", shape=(2,), columns=("a", "b"), transform=Standard(center=(0.0, 0.0), scale=(1.0, 1.0)))
NAMELESS = SPEC.model_copy(update={"columns": None})
ROWS = np.arange(46, dtype=np.float64).reshape(23, 2)


def written(folder, name):
    """The rows in a format."""
    path = folder / name
    if path.suffix == ".csv":
        path.write_text("b;a;note\r\n" + "".join(f'{b:g};{a:g};"it ""is""\r\n {a}"\r\n' for a, b in ROWS))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps({"b": b, "id": 7, "a": a}) for a, b in ROWS))
    elif path.suffix == ".npy":
        np.save(path, ROWS.astype(">f4") if "big" in name else np.asfortranarray(ROWS) if "fortran" in name else ROWS)
    elif path.suffix == ".npz":
        np.savez_compressed(path, other=np.ones(3), labels=np.array([f"r{at}" for at in range(23)]), X=ROWS)
    else:
        table = pa.table({"b": ROWS[:, 1], "id": [f"r{at}" for at in range(23)], "a": ROWS[:, 0]})
        pq.write_table(table.replace_schema_metadata({"made": "here"}), path, row_group_size=6)
    return InputFile(str(path), path.name)


@pytest.mark.parametrize(
    "name", ["a.csv", "a.jsonl", "a.npy", "a-big.npy", "a-fortran.npy", "a.npz", "a.parquet"]
)  # fmt: skip
def test_ranges_in_any_order_are_the_rows_and_are_written_as_they_were(tmp_path, name):
    file = written(tmp_path, name)
    kind, spec = FORMATS[file.suffix], NAMELESS if file.suffix in (".npy", ".npz") else SPEC
    scan = kind.scan(file, ReadRequest(spec, None, 5))
    assert [row_range[:2] for row_range in scan.ranges] == [(0, 5), (5, 5), (10, 5), (15, 5), (20, 3)]
    assert scan.digest.startswith("sha256:")
    reader = kind.reader(file, scan.header)
    raw = {at: reader.rows(scan.ranges[at]) for at in (1, 3, 0, 4, 2)}
    reader.close()
    cells = pa.concat_tables([kind.cells(raw[at], scan.header, spec.reader()) for at in range(5)])
    if "a" in cells.column_names:
        array = np.stack([np.array(cells.column(one).to_pylist(), float) for one in "ab"], axis=1)
    else:
        array = np.array(cells.column(0).to_pylist())
    assert np.array_equal(array, ROWS)
    together = pa.concat_tables([raw[at] for at in range(5)])
    content = kind.write(together, scan.header)
    check_content(content, (tmp_path / name).read_bytes(), file.suffix)
    some = kind.write(together.filter(pa.array(np.arange(23) % 3 == 1)), scan.header)
    again = tmp_path / ("again" + file.suffix)
    again.write_bytes(some)
    assert kind.scan(InputFile(str(again), again.name), ReadRequest(spec, None, 5)).rows == 8


def check_content(content, before, suffix):
    """The same bytes, or tables and arrays in which all is the same."""
    if suffix == ".parquet":
        ours, theirs = pq.read_table(io.BytesIO(content)), pq.read_table(io.BytesIO(before))
        assert ours.equals(theirs)
        assert ours.schema.metadata == theirs.schema.metadata
    elif suffix == ".npz":
        ours, theirs = np.load(io.BytesIO(content)), np.load(io.BytesIO(before))
        assert set(ours.files) == {"X", "labels"}
        assert all(
            np.array_equal(ours[one], theirs[one]) and ours[one].dtype == theirs[one].dtype for one in ours.files
        )
    elif suffix == ".npy":
        ours, theirs = np.load(io.BytesIO(content)), np.load(io.BytesIO(before))
        assert np.array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    else:
        assert content.rstrip(b"\n") == before.rstrip(b"\n")


def test_a_range_is_written_alike_whoever_read_before_it(tmp_path):
    """Also where row groups and ranges do not end together."""
    table = pa.table({"a": np.arange(5000.0), "b": [f"r{at % 7}" for at in range(5000)]})
    for name, groups in (("a.parquet", 1301), ("b.parquet", 5000)):
        pq.write_table(
            table.set_column(1, "b", table.column("b").dictionary_encode()), tmp_path / name, row_group_size=groups
        )
        file, kind = InputFile(str(tmp_path / name), name), FORMATS[".parquet"]
        ranges = [RowRange(at, 700) for at in range(0, 4900, 700)]
        reader = kind.reader(file, "")
        forward = [kind.write(reader.rows(row_range), "") for row_range in ranges]
        for row_range, content in zip(ranges, forward, strict=True):
            alone = kind.reader(file, "")
            assert kind.write(alone.rows(row_range), "") == content
            alone.close()
        reader.close()


cell = st.text(alphabet='ab",\n ;', max_size=6)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(cell, min_size=2, max_size=2), max_size=12), st.integers(1, 40))
def test_records_are_those_of_the_csv_parser_however_the_bytes_arrive(rows, step):
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    text = buffer.getvalue().encode()
    read = [row for row in Dialect().reader(io.StringIO(buffer.getvalue(), newline="")) if row]
    pieces, rest = [], b""
    for start in range(0, max(1, len(text)), step):
        rest += text[start : start + step]
        found_here = records_in(rest, Dialect(), is_last=start + step >= len(text))
        pieces += [rest[a:b] for a, b in zip(found_here.starts, found_here.ends, strict=True)]
        rest = rest[found_here.used :]
    assert [next(Dialect().reader(io.StringIO(piece.decode(), newline=""))) for piece in pieces] == read
    assert rest == b""


def test_a_lone_quote_spoils_its_own_record_and_no_other():
    text = b'a,b\n1,"2"x\n3,4\n5," 6\n7"\n8,9\n'
    found_here = records_in(text, Dialect(), is_last=True)
    pieces = [text[a:b] for a, b in zip(found_here.starts, found_here.ends, strict=True)]
    assert pieces == [b"a,b\n", b'1,"2"x\n', b"3,4\n", b'5," 6\n7"\n', b"8,9\n"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "is empty, expected a header and rows"),
        ("a.csv", b"a,c\n1,2\n", "has no column 'b'"),
        ("a.csv", b"1,2\n1,2\n", "line 1 reads like the other lines"),
        ("a.csv", b"\xff\xfe,b\n", "line 1 is not utf-16 text"),
        ("a.parquet", b"PAR1 no PAR1", "the file cannot be read: "),
        ("a.npy", b"no npy", "the file cannot be read: "),
        ("a.npz", b"no zip", "the file cannot be read: File is not a zip file"),
    ],
)
def test_a_damaged_file_is_known_before_its_rows_are_read(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    spec = NAMELESS if "np" in name else SPEC
    with pytest.raises(DataError, match=message):
        FORMATS[(tmp_path / name).suffix].scan(InputFile(str(tmp_path / name), name), ReadRequest(spec, None, 5))


def test_arrays_of_other_rows_are_refused(tmp_path):
    for name, array, message in (
        ("a.npy", np.zeros((3, 4)), r"its rows have shape \(4,\), the model reads \(rows, 2\)"),
        ("b.npy", np.array([["a", "b"]]), "expected numbers"),
        ("c.npy", np.array([[None, 1]], dtype=object), "pickled objects"),
    ):
        np.save(tmp_path / name, array, allow_pickle=True)
        with pytest.raises(DataError, match=message):
            FORMATS[".npy"].scan(InputFile(str(tmp_path / name), name), ReadRequest(NAMELESS, None, 5))
    whole = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "d.npy").write_bytes(whole[:-8])
    with pytest.raises(DataError, match="its header says 96 bytes, it holds 88"):
        FORMATS[".npy"].scan(InputFile(str(tmp_path / "d.npy"), "d.npy"), ReadRequest(NAMELESS, None, 5))
    for name, array, message in (
        ("f.npz", np.asfortranarray(np.zeros((1, 2))), None),
        ("g.npz", np.asfortranarray(np.zeros((3, 2))), "array X is in Fortran order"),
        ("h.npz", np.zeros(3, dtype=[("a", "f4"), ("b", "i8")]), "array X holds structured values"),
        ("i.npz", np.zeros((3, 2), dtype=np.longdouble), "expected numbers of at most 64 bits"),
    ):
        np.savez(tmp_path / name, X=array)
        if message is None:
            assert FORMATS[".npz"].scan(InputFile(str(tmp_path / name), name), ReadRequest(NAMELESS, None, 5)).rows == 1
            continue
        with pytest.raises(DataError, match=message):
            FORMATS[".npz"].scan(InputFile(str(tmp_path / name), name), ReadRequest(NAMELESS, None, 5))
    np.savez(tmp_path / "e.npz", u=ROWS, v=ROWS)
    with pytest.raises(DataError, match="choose an array with --key: u, v"):
        FORMATS[".npz"].scan(InputFile(str(tmp_path / "e.npz"), "e.npz"), ReadRequest(NAMELESS, None, 5))


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("a.csv", b"3,4,5\n", "^row 1 has 3 cells, the header has 2$"),
        ("a.csv", b'3,"4"5\n', "^row 1 is not a CSV record: misplaced quote$"),
        ("a.jsonl", b"{\n", "^row 1 is not JSON$"),
        ("a.jsonl", b"7\n", "^row 1 a number, expected a list, or an object by column name$"),
        ("a.jsonl", b"[1, 2, 3]\n", "^row 1 has 3 features, expected 2 features$"),
        ("a.jsonl", b'{"a": 1}\n', "^row 1, column 'b': missing column, expected a value, or null$"),
        ("a.jsonl", b'{"a": "one", "b": 2}\n', "^row 1, column 'a': text, expected a number$"),
        ("a.jsonl", b'{"a": true, "b": 2}\n', "^row 1, column 'a': text, expected a number$"),
    ],
)
def test_a_damaged_record_is_told_by_its_row(tmp_path, name, line, message):
    good = {"a.csv": (b"a,b\n", b"1,2\n\n"), "a.jsonl": (b"", b'{"a": 1, "b": 2}\n\n')}[name]
    (tmp_path / name).write_bytes(good[0] + good[1] + line + good[1])
    file, kind = InputFile(str(tmp_path / name), name), FORMATS[(tmp_path / name).suffix]
    scan = kind.scan(file, ReadRequest(SPEC, None, 100, checks_rows=False))
    assert scan.rows == 3
    raw = kind.reader(file, scan.header).rows(scan.ranges[0])
    with pytest.raises(RowError, match=message):
        kind.cells(raw, scan.header, SPEC.reader())


def test_missing_cells_and_numbers_too_large_are_told_from_each_other_in_json(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": NaN, "b": null}\n{"a": 1e999, "b": -1%s}\n' % (b"0" * 400))
    file, kind = InputFile(str(tmp_path / "a.jsonl"), "a.jsonl"), FORMATS[".jsonl"]
    raw = kind.reader(file, "").rows(kind.scan(file, ReadRequest(SPEC, None, 5)).ranges[0])
    column = plain_number("a", np.arange(3.0))
    reads_missing = CellReader((2,), ("a", "b"), (column, column), reads_text=True)
    first, second = kind.cells(raw, "", reads_missing).column(READ).to_pylist()
    assert np.isnan(first).all()
    assert second == [np.inf, -np.inf]
    with pytest.raises(RowError, match=r"^row 0, column 'a': a missing value"):
        kind.cells(raw, "", SPEC.reader())


def test_verdicts_stand_beside_the_rows(tmp_path):
    scores = pa.table({"v": ["valid", None], "p": [0.5, 1.0]})
    breaking = pa.table({"v": ["two\nlines", "\x0b\u2028"], "p": [0.5, 1.0]})
    (tmp_path / "a.csv").write_bytes(b'a;b\r\n1;"2"\r\n3;4')
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1, "b": 2} \n{"b":1,"a":2}')
    expected = {
        "a.csv": b'a;b;v;p\r\n1;"2";valid;0.5\r\n3;4;;1.0\r\n',
        "a.jsonl": b'{"a": 1, "b": 2, "v": "valid", "p": 0.5}\n{"b":1,"a":2, "v": null, "p": 1.0}\n',
    }
    for name, content in expected.items():
        file, kind = InputFile(str(tmp_path / name), name), FORMATS[(tmp_path / name).suffix]
        scan = kind.scan(file, ReadRequest(SPEC, None, 100))
        raw = kind.reader(file, scan.header).rows(scan.ranges[0])
        assert kind.write_beside(raw, scores, scan.header) == content
        (tmp_path / f"again-{name}").write_bytes(kind.write_beside(raw, breaking, scan.header))
        assert kind.scan(InputFile(str(tmp_path / f"again-{name}"), name), ReadRequest(SPEC, None, 100)).rows == 2


def test_files_are_found_in_folders_globs_and_afar(tmp_path):
    for name in ("b.csv", "a.csv", "x/c.csv", ".hidden.csv", "_SUCCESS", "notes.txt", "x/d.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"a,b\n1,2\n")
        fsspec.filesystem("memory").pipe_file(f"/found/{name}", b"a,b\n1,2\n")
    suffixes = IN_FOLDERS
    everything = ["a.csv", "b.csv", "x/c.csv", "x/d.parquet"]
    for root in (str(tmp_path), "memory://found"):
        assert [file.name for file in found(root, suffixes)] == everything
        assert [file.name for file in found(f"{root}/*.csv", suffixes)] == ["a.csv", "b.csv"]
        assert [file.name for file in found(f"{root}/**/*.csv", suffixes)][-1] == "x/c.csv"
        (one,) = found(f"{root}/x/c.csv", suffixes)
        assert one.name == "c.csv"
        with one.open() as file:
            assert file.read() == b"a,b\n1,2\n"
        assert one.digest() == found(f"{root}/x/c.csv", suffixes)[0].digest()
        for nothing, message in ((f"{root}/y", "no such file or folder"), (f"{root}/*.tsv", "holds no files")):
            with pytest.raises(DataError, match=message):
                found(nothing, suffixes)


def test_a_result_is_there_whole_or_not_at_all(tmp_path):
    for root in (str(tmp_path / "out"), "memory://out"):
        out = OutFolder(root)
        assert out.names() == set()
        out.write("a/b.txt", b"one")
        out.write("a/b.txt", b"two")
        assert out.read("a/b.txt") == b"two"
        assert out.names() == {"a/b.txt"}
        out.remove(".vouch/tmp")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file/a\.txt: cannot be written: "):
        OutFolder(str(tmp_path / "file")).write("a.txt", b"")
