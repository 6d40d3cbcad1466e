"""Large JSON bodies in chunks: what is read is what one decoder reads, and what is too much ends early."""

import json
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import DeadlineError, InputError, MalformedError, TooLargeError
from service.web import json_chunks
from service.web.json_chunks import CHUNK, Cursor, field_chunks

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
ROWS = st.lists(
    st.lists(JSON_VALUES, max_size=5) | st.dictionaries(st.text(max_size=5), JSON_VALUES, max_size=5) | st.floats(0, 1)
)


def read(body, most=10**6, check=lambda: None, **options):
    """The rows of all chunks, and the chunks."""
    chunks = [chunk for chunk, _ in field_chunks(body, "instances", most, check, **options)]
    return [row for chunk in chunks for row in json.loads(chunk)["instances"]], chunks


@pytest.fixture
def small(monkeypatch):
    """Chunks of a few bytes, so that every body is a large one."""
    monkeypatch.setattr(json_chunks, "CHUNK", 16)


@settings(max_examples=300, deadline=None)
@given(rows=ROWS.filter(bool), indent=st.none() | st.integers(0, 2), ascii_only=st.booleans())
def test_the_chunks_hold_what_the_body_holds(rows, indent, ascii_only):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_chunks, "CHUNK", 16)
        body = json.dumps({"instances": rows}, indent=indent, ensure_ascii=ascii_only).encode()
        try:
            found, _ = read(body)
        except (TooLargeError, MalformedError):
            # Too deep; or a number as long as these windows of a few bytes, of which real ones hold thousands.
            assert depth(rows) > 8 or any(len(number) > 8 for number in body.decode().replace(",", " ").split())
        else:
            assert found == rows


def depth(value):
    """How many lists and objects are around the innermost value."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, dict | list) + max(map(depth, inner), default=0)


def test_large_bodies_are_divided_and_small_ones_are_not():
    rows = np.random.default_rng(0).random((2000, 30)).tolist()
    body = json.dumps({"instances": rows}).encode()
    found, chunks = read(body)
    assert found == rows
    assert len(chunks) > 10
    assert max(map(len, chunks)) < 2 * CHUNK
    assert read(b'{"instances": [[1]]}')[1] == [b'{"instances": [[1]]}']


@pytest.mark.parametrize(
    "text",
    ["{", "[", '{"instances"', '{"instances":', '{"instances": [', '{"instances": [[1', '{"instances": [[1]',
     '{"instances": [[1],', '{"instances": [[1]]', '{"instances": [[1]]} x', '{"instances": [[1]}',
     '{"instances": [[1] [2]]}', '{"instances": [,[1]]}', '{"instances": [[1],]}', '{"instances": ["a',
     '{"instances": ["a\\\\"', "nonsense that is long enough", "{1: 2, 3: 4, 5: 6}"],
)  # fmt: skip
def test_what_is_no_json_is_refused(small, text):
    with pytest.raises(InputError):
        read(text.encode() + b" " * 20)


@pytest.mark.parametrize(
    "text", ['{"other": [[1]]}', '{"instances": {}}', '{"instances": 7}', '[["instances"]]', '"instances"', "{}"]
)
def test_another_form_is_refused(small, text):
    with pytest.raises(InputError):
        read(text.encode() + b" " * 20)


def test_fields_besides_are_refused_wherever_they_stand(small):
    for text in ('{"instances": [[1, 2, 3]], "more": 1}', '{"more": 1, "instances": [[1, 2, 3]]}'):
        with pytest.raises(InputError, match="field"):
            read(text.encode())


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("empty lists", b'{"instances": [' + b"[]," * 5_000_000 + b"[]]}"),
        ("empty objects", b'{"instances": [' + b"{}," * 5_000_000 + b"{}]}"),
        ("numbers as rows", b'{"instances": [' + b"1," * 8_000_000 + b"1]}"),
        ("one long row", b'{"instances": [[' + b"1," * 8_000_000 + b"1]]}"),
        ("one long text", b'{"instances": ["' + b"x" * 16_000_000 + b'"]}'),
        ("escaped quotes", b'{"instances": ["' + b'\\"' * 8_000_000 + b'"]}'),
        ("backslashes", b'{"instances": ["' + b"\\" * 16_000_000 + b'"]}'),
        ("brackets", b'{"instances": [' + b"[" * 16_000_000),
        ("a long key", b'{"' + b"x" * 16_000_000 + b'": 1}'),
        ("white space", b'{"instances": [' + b" " * 16_000_000),
        ("one long number", b'{"instances": [[' + b"1" * 16_000_000 + b"]]}"),
        ("many keys", b'{"instances": [{' + b'"a":1,' * 2_500_000 + b'"a":1}]}'),
    ],
)
def test_a_body_of_16_mb_costs_neither_memory_nor_time(name, body):
    longest, last = 0.0, time.perf_counter()

    def check():
        nonlocal longest, last
        longest, last = max(longest, time.perf_counter() - last), time.perf_counter()

    tracemalloc.start()
    with pytest.raises(InputError):
        read(body, 10_000, check)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23, name
    assert time.perf_counter() - last < 5, name  # milliseconds on an idle machine


def test_the_deadline_is_seen_between_chunks():
    def late():
        raise DeadlineError("late")

    with pytest.raises(DeadlineError):
        read(json.dumps({"instances": [[0.5] * 100] * 1000}).encode(), check=late)


def test_too_many_rows_end_the_reading():
    rows = json.dumps({"instances": [[0.5] * 100] * 1000}).encode()
    with pytest.raises(TooLargeError, match="more than 999 rows"):
        read(rows, 999)
    assert len(read(rows, 1000)[0]) == 1000


def test_a_cursor_moves_over_any_value():
    for value in ({"a": [1, {"b": "]}"}]}, [[], [[]]], 'te\\"xt', 1.5e300, None, True):
        text = json.dumps(value).encode()
        cursor = Cursor(b"  " + text + b" , 1")
        cursor.value(1000)
        assert cursor.text[: cursor.at].strip() == text
        assert cursor.step(b",") == b","
