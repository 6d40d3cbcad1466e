"""Request bytes to rows: what is read is what was sent, and what cannot be read is refused without being repeated."""

import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.data.inputs import Grey, InputSpec, Mixed, Standard
from service.data.kinds import infer
from service.data.learn import learn
from service.errors import InputError, MalformedError, MediaTypeError, TooLargeError
from service.files.images import png
from service.files.tables import read_table
from service.web import parsing
from service.web.batch import Limits
from service.web.media_types import media_type
from service.web.parsing import parse_latents, parse_npy, parse_row, parse_rows, parse_simple_rows
from service.web.problems import status_of
from tests.models import COLUMNS, ROW, digits, made, write
from tests.tools import npy, png_bomb
from tests.web.attacks import JSON_BODIES, NPY_BODIES, SECRET, instances

IMAGES = InputSpec(kind="image", shape=(8, 8), transform=Grey())
NAMES = ("a", "b", "c")
NUMBERS = InputSpec(kind="table", shape=(3,), columns=NAMES, transform=Standard(center=(0.0,) * 3, scale=(1.0,) * 3))
NAMELESS = InputSpec(kind="table", shape=(3,), transform=Standard(center=(0.0,) * 3, scale=(1.0,) * 3))
JSON, NPY, CSV = "application/json", "application/x-npy", "text/csv"


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """The input of a model of a mixed table with holes."""
    table = read_table(write(tmp_path_factory.mktemp("people") / "people.csv", made(300)))
    return InputSpec(kind="table", shape=(7,), columns=COLUMNS, transform=Mixed(columns=learn(infer(table), table)))


def parsed(body, kind=JSON, spec=IMAGES, max_rows=1000, max_pixels=4_000_000):
    reader, limits = replace(spec.reader(), is_strict=True), Limits(max_rows, max_pixels)
    return parse_rows(body.encode() if isinstance(body, str) else body, kind, spec, reader, limits)


def refused(status, *arguments, **options):
    """The error of a body that is not read, which repeats nothing of it."""
    with pytest.raises(InputError) as caught:
        parsed(*arguments, **options)
    error = caught.value
    assert status_of(error)[0] == status
    assert len(error.faults) <= InputError.MAX_FAULTS
    said = [
        str(error),
        *(str(part) for fault in error.faults for part in (fault.message, fault.column, fault.expected)),
    ]
    assert SECRET not in "".join(said)
    assert all(len(text) < 500 for text in said)
    return error


# Attacks


@pytest.mark.parametrize("name", JSON_BODIES)
def test_json_that_cannot_be_read_is_refused(name):
    body, status = JSON_BODIES[name]
    refused(status, body)


@pytest.mark.parametrize("name", NPY_BODIES)
def test_an_npy_file_that_cannot_be_read_is_refused(name):
    body, status = NPY_BODIES[name]
    refused(status, body, NPY)


CSV_BODIES = {
    "empty": ("", 422),
    "spaces": ("  \n \n", 422),
    "a header alone": ("a,b,c\n", 422),
    "an absent column": ("a,b\n1,2\n", 422),
    "a column twice": ("a,b,c,c\n1,2,3,3\n", 422),
    "a short line": ("a,b,c\n1,2,3\n1,2\n", 422),
    "a long line": ("a,b,c\n1,2,3,4\n", 422),
    "text": (f"a,b,c\n1,2,{SECRET}\n", 422),
    "an empty cell": ("a,b,c\n1,,3\n", 422),
    "infinity": ("a,b,c\n1,inf,3\n", 422),
    "1e39": ("a,b,c\n1,1e39,3\n", 422),
    "an open quote": (f'a,b,c\n1,2,"{SECRET}\n', 400),
    "a quote in a cell": ('a,b,c\n1,2,"3"4\n', 400),
    "not UTF-8": (b"a,b,c\n1,2,\xff\n", 422),
    "half of UTF-16": ("a,b,c\n1,2,3\n".encode("utf-16")[:-1], 400),
    "no text": (b"a,b,c\n1,2,\0\0\0\n", 400),
    "a number of 200,000 digits": ("a,b,c\n1,2," + "3" * 200_000 + "\n", 422),
}


@pytest.mark.parametrize("name", CSV_BODIES)
def test_csv_that_cannot_be_read_is_refused(name):
    body, status = CSV_BODIES[name]
    refused(status, body, CSV, NUMBERS)


def test_an_unknown_column_is_named_and_cut_where_it_is_long():
    for body, kind in (
        (f"a,b,c,{'x' * 5000}\n1,2,3,4\n", CSV),
        (instances(dict.fromkeys([*NAMES, "x" * 5000], 1)), JSON),
    ):
        (fault,) = refused(422, body, kind, NUMBERS).faults
        assert fault.message == "unknown column"
        assert fault.column == "x" * 80 + "..."
        assert fault.expected == "a, b, c"


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/jsonx", "application/x-www-form-urlencoded", "image/heic", SECRET]
)
def test_another_content_type_is_refused_with_the_header_that_would_have_worked(kind):
    problem = str(refused(415, "{}", kind))
    assert "its body looks like application/json: send -H 'content-type: application/json'" in problem
    assert SECRET not in problem


@pytest.mark.parametrize("kind", ["", " ", "application/octet-stream", "binary/octet-stream; x=1"])
def test_a_body_without_a_type_is_what_its_bytes_plainly_are(kind):
    expected = parsed(npy(digits()[:2]), NPY).rows
    for body in (npy(digits()[:2]), json.dumps({"instances": digits()[:2].tolist()}).encode()):
        batch = parsed(body, kind)
        np.testing.assert_array_equal(batch.rows, expected)
        assert "it was read as application/" in batch.warnings[0]
    assert "read as image/png" in parsed(png(digits()[0]), kind).warnings[0]
    for unclear in (
        b"",
        b"1,2,3",
        b"a,b,c\n1,2,3\n",
        b"\x93NUMP",
        b"\x89PNG",
        b"RIFF1234WAVE",
        b"\xff\xd8",
        SECRET.encode(),
    ):
        assert "no content type that says what its body is" in str(refused(415, unclear, kind))


@pytest.mark.parametrize(
    ("alias", "kind"),
    [("image/jpg", "image/jpeg"), ("IMAGE/X-PNG ; a=b", "image/png"), ("application/jsonl", "application/x-ndjson"),
     ("text/json; charset=utf-8", "application/json"), ("application/csv", "text/csv"), ("", ""), ("a/b", "a/b")],
)  # fmt: skip
def test_a_type_is_known_by_its_other_names(alias, kind):
    assert media_type(alias) == kind


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", '"utf8"', "us-ascii", "UTF8 "])
def test_text_in_utf_8_is_read(charset):
    parsed(json.dumps({"instances": digits()[:1].tolist()}).encode(), f"application/json; charset={charset}")
    parsed(png(digits()[0]), "image/png; charset=binary")


@pytest.mark.parametrize("charset", ["latin-1", "iso-8859-1", "utf-16", "x", "windows-1252"])
@pytest.mark.parametrize("kind", ["application/json", "text/csv"])
def test_text_in_another_charset_is_refused(kind, charset):
    assert f"send the body in UTF-8, and -H 'content-type: {kind}'" in str(
        refused(415, "{}", f"{kind};charset={charset}")
    )


def test_a_text_may_begin_with_a_mark_and_not_be_in_utf_16():
    text = json.dumps({"instances": digits()[:1].tolist()})
    assert len(parsed(text.encode("utf-8-sig"), "application/json")) == 1
    assert len(parsed(text.encode("utf-8-sig"), "")) == 1
    for encoding in ("utf-16-le", "utf-16-be"):
        body = ("\ufeff" + text).encode(encoding)
        assert "send it in UTF-8" in str(refused(400, body, "application/json"))


def test_images_are_for_models_of_images_and_csv_for_columns_with_names():
    refused(415, png(digits()[0]), "image/png", NUMBERS)
    refused(415, "a,b,c\n1,2,3\n", CSV, NAMELESS)
    refused(415, "a,b,c\n1,2,3\n", CSV, IMAGES)
    refused(400, b"hello", "image/jpeg")
    refused(400, b"", "image/png")
    refused(413, png_bomb(30_000, 30_000), "image/png")
    refused(422, png_bomb(9, 8), "image/png")
    refused(413, png(digits()[0]), "image/png", max_pixels=63)


def test_more_rows_than_the_deployment_accepts_are_refused_in_every_type():
    rows = np.ones((11, 3))
    bodies = {
        JSON: instances(*rows.tolist()),
        NPY: npy(rows),
        CSV: "a,b,c\n" + "1,2,3\n" * 11,
    }
    for kind, body in bodies.items():
        assert len(parsed(body, kind, NUMBERS, max_rows=11)) == 11
        assert "11 rows, at most 10" in str(refused(413, body, kind, NUMBERS, max_rows=10))
    by_name = instances(*[dict.fromkeys(NAMES, 1)] * 11)
    refused(413, by_name, spec=NUMBERS, max_rows=10)
    nested = instances(*np.ones((11, 8, 8)).tolist())
    refused(413, nested, max_rows=10)
    with pytest.raises(TooLargeError):
        parse_latents(json.dumps({"latents": rows.tolist()}).encode(), JSON, 3, Limits(10))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "b", "id", "x"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(json_values, max_size=4), st.sampled_from([NUMBERS, NAMELESS, IMAGES]))
def test_any_json_is_read_or_refused(rows, spec):
    try:
        batch = parsed(json.dumps({"instances": rows}), spec=spec)
    except InputError:
        return
    assert batch.rows.shape == (len(rows), spec.features)
    assert batch.rows.dtype == np.float32
    assert np.isfinite(batch.rows).all()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.sampled_from([JSON, NPY, CSV, "image/png", "image/jpeg"]))
def test_any_bytes_are_read_or_refused(body, kind):
    for content in (body, npy(np.ones((2, 3)))[: len(body)] + body, b"a,b,c\n" + body, b'{"instances": [' + body):
        try:
            batch = parsed(content, kind, NUMBERS)
        except InputError:
            continue
        assert np.isfinite(batch.rows).all()


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 127), st.integers(0, 255))
def test_an_npy_file_with_any_byte_of_its_header_changed_is_read_or_refused(place, byte):
    body = bytearray(npy(np.ones((2, 3))))
    body[place] = byte
    try:
        batch = parsed(bytes(body), NPY, NUMBERS)
    except InputError:
        return
    assert batch.rows.shape[1] == 3


# What is read


finite = st.floats(-3e38, 3e38, allow_nan=False)
rows_of_three = st.lists(
    st.lists(finite | st.integers(-(2**60), 2**60), min_size=3, max_size=3), min_size=1, max_size=5
)


@given(rows_of_three)
def test_the_fast_way_reads_what_the_slow_way_reads(rows):
    body = instances(*rows).encode()
    fast = parsing.parse_numbers(body, NUMBERS, 10)
    slow, ids, _ = parsing.explained(body, NUMBERS, NUMBERS.reader(), Limits(10))
    np.testing.assert_array_equal(fast, slow)
    assert ids is None
    by_name = instances(*[dict(zip(NAMES, row, strict=True)) for row in rows])
    by_csv = "c,b,a\n" + "".join(",".join(map(repr, row[::-1])) + "\n" for row in rows)
    expected = parsed(body, spec=NUMBERS).rows
    np.testing.assert_array_equal(parsed(by_name, spec=NUMBERS).rows, expected)
    np.testing.assert_array_equal(parsed(by_csv, CSV, NUMBERS).rows, expected)
    np.testing.assert_array_equal(parsed(npy(np.array(rows, dtype=float)), NPY, NUMBERS).rows, expected)
    np.testing.assert_array_equal(parse_simple_rows([json.dumps(row).encode() for row in rows], NUMBERS), slow)


def test_images_come_flat_nested_or_encoded():
    expected = digits()[:3].reshape(3, 64)
    for rows in (expected, digits()[:3]):
        np.testing.assert_array_equal(parsed(instances(*rows.tolist())).rows, expected)
        np.testing.assert_array_equal(parsed(npy(rows), NPY).rows, expected)
    np.testing.assert_array_equal(parsed(png(digits()[0]), "image/png").rows, expected[:1])
    assert parsed(npy(np.full((1, 64), 0.5)), NPY).warnings
    assert not parsed(npy(np.zeros((1, 64))), NPY).warnings


@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i4", "<u8", "<f2", ">f4", "<f8"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_an_npy_file_of_any_number_type_and_order_is_read(dtype, order, version):
    array = np.array([[1, 2, 3], [4, 5, 6]], dtype=dtype, order=order)
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=version)
    found = parse_npy(buffer.getvalue(), 3, 10)
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype
    assert not found.flags.owndata  # a view of the body


def test_a_content_type_may_have_parameters_and_capitals():
    for kind in ("application/json; charset=utf-8", "Application/JSON", " application/json ;x=y"):
        assert len(parsed(instances([1, 2, 3]), kind, NUMBERS)) == 1


def test_csv_may_have_a_byte_order_mark_quotes_and_lines_of_any_end():
    expected = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    for body in (
        "a,b,c\n1,2,3\n4,5,6",
        "\ufeffa,b,c\r\n1,2,3\r\n4,5,6\r\n",
        '"c","b","a"\n"3","2","1"\n6,5,4\n',
    ):
        assert parsed(body, CSV, NUMBERS).rows.tolist() == expected


def test_mixed_rows_are_read_alike_by_name_by_position_and_as_csv(people):
    expected = parsed(instances(ROW), spec=people).rows
    np.testing.assert_array_equal(parsed(instances(list(ROW.values())), spec=people).rows, expected)
    line = ",".join(ROW) + "\n" + ",".join(map(str, ROW.values()))
    np.testing.assert_array_equal(parsed(line, CSV, people).rows, expected)
    holed = parsed(instances({**ROW, "city": None, "age": None}), spec=people).rows
    assert np.isnan(holed[0]).tolist() == [name in ("city", "age") for name in COLUMNS]
    np.testing.assert_array_equal(
        np.delete(holed, [COLUMNS.index("city"), COLUMNS.index("age")]),
        np.delete(expected, [COLUMNS.index("city"), COLUMNS.index("age")]),
    )


def test_a_fault_says_its_row_and_column_and_the_first_twenty_are_told(people):
    error = refused(422, instances(ROW, {**ROW, "age": SECRET}), spec=people)
    (fault,) = error.faults
    assert (fault.row, fault.column) == (1, "age")
    assert "row 1, column age" in str(error)
    error = refused(422, instances(*[[SECRET] * 3] * 30), spec=NAMELESS)
    assert [(fault.row, fault.column) for fault in error.faults] == [divmod(at, 3) for at in range(20)]
    assert "and others" in str(error)


# Ids


def row_with(identity):
    return dict.fromkeys(NAMES, 1.0) | {"id": identity}


@pytest.mark.parametrize("identity", ["x", "", "x" * 256, "\u20ac", 7, -7, 1.5, 0, 2**63 - 1])
def test_an_id_comes_along(identity):
    batch = parsed(instances(row_with(identity), dict.fromkeys(NAMES, 1.0)), spec=NUMBERS)
    assert batch.ids == [identity, None]
    assert parse_row(json.dumps(row_with(identity)).encode(), NUMBERS, NUMBERS.reader())[1] == identity


@pytest.mark.parametrize(
    "identity", ["x" * 257, "\ud800", True, False, [], {}, [1], math.nan, math.inf, -math.inf, 2**63, -(2**63), 10**400]
)
def test_an_id_that_could_not_come_back_is_refused(identity):
    error = refused(422, instances(row_with("good"), row_with(identity)), spec=NUMBERS)
    assert [(fault.row, fault.column) for fault in error.faults] == [(1, "id")]


def test_without_ids_there_are_none_and_a_column_may_be_called_id():
    assert parsed(instances(dict.fromkeys(NAMES, 1.0)), spec=NUMBERS).ids is None
    spec = InputSpec(kind="table", shape=(2,), columns=("id", "b"), transform=Standard(center=(0, 0), scale=(1, 1)))
    batch = parsed(instances({"id": 5, "b": 6}), spec=spec)
    assert batch.ids is None
    assert batch.rows.tolist() == [[5.0, 6.0]]


# Lines and latents


def test_lines_of_which_one_is_no_plain_row_are_not_read_together():
    good = b"[1, 2, 3]"
    assert parse_simple_rows([good, b" [4.0,5,6] "], NUMBERS).tolist() == [[1, 2, 3], [4, 5, 6]]
    for bad in (
        b"[1, 2]",
        b"[1, 2, 3",
        b'{"a": 1, "b": 2, "c": 3}',
        b"[1, 2, true]",
        b"[1, 2, NaN]",
        b"null",
        b"",
        b"[" * 50_000,
    ):
        assert parse_simple_rows([good, bad], NUMBERS) is None  # fmt: skip


@pytest.mark.parametrize(
    "line", [b"", b"{", b"7", b"[]", b"[1, 2]", b"[1, 2, NaN]", b'{"a": 1}', b"[1, 2, 3] [1, 2, 3]"]
)
def test_a_line_that_is_no_row_is_refused(line):
    with pytest.raises(InputError):
        NUMBERS.rows(parse_row(line, NUMBERS, NUMBERS.reader())[0])


def test_latents_are_read_from_json_and_npy():
    latents = np.array([[0.5, -1.0], [3.0, 1e10]])
    body = json.dumps({"latents": latents.tolist()}).encode()
    for sent, kind in ((body, "application/json; charset=utf-8"), (npy(latents), NPY)):
        read, warning = parse_latents(sent, kind, 2, Limits(10))
        np.testing.assert_array_equal(read, latents)
        assert warning is None
    assert "read as application/x-npy" in parse_latents(npy(latents), "", 2, Limits(10))[1]


@pytest.mark.parametrize(
    "body",
    ["", "null", "[]", "{}", '{"latents": []}', '{"latents": [[]]}', '{"latents": [[1]]}', '{"latents": [[1, 2, 3]]}',
     '{"latents": [[1, "x"]]}', '{"latents": [[1, null]]}', '{"latents": [[1, NaN]]}', '{"latents": [[1, true]]}',
     '{"latents": [1, 2]}', '{"latents": [[1, 2]], "x": 1}', '{"instances": [[1, 2]]}', '{"latents": {"0": [1, 2]}}'],
)  # fmt: skip
def test_latents_that_cannot_be_read_are_refused(body):
    with pytest.raises(InputError):
        parse_latents(body.encode(), JSON, 2, Limits(10))
    with pytest.raises(MediaTypeError):
        parse_latents(body.encode(), CSV, 2, Limits(10))
    with pytest.raises((MalformedError, InputError)):
        parse_latents(body.encode(), NPY, 2, Limits(10))


def test_npy_holds_positions_of_text_categories_and_no_other_numbers(people):
    (row,) = parsed(instances(ROW), spec=people).rows
    city = COLUMNS.index("city")
    known = len(people.transform.columns[city].values)
    for position in (0, known):  # the last one means a value never seen
        row[city] = position
        np.testing.assert_array_equal(parsed(npy(row[None]), NPY, people).rows, row[None])
    for position in (0.5, -1, known + 1):
        row[city] = position
        refused(422, npy(row[None]), NPY, people)
