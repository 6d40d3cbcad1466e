"""Parse requests: bytes to rows.

Numbers are parsed straight into typed lists and arrays. Only if that fails, the body is checked cell by cell, to say what
is wrong and where. Errors name an unknown column, and repeat nothing else of the input.
"""

from __future__ import annotations

import codecs
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from service.data.cells import CellReader, RawTable, shortened
from service.data.inputs import InputSpec
from service.errors import (
    DataError,
    Fault,
    InputError,
    MalformedError,
    MediaTypeError,
    RowError,
    TooLargeError,
    summary,
)
from service.files.dialect import DamagedTextError
from service.files.images import MEDIA_TYPES
from service.files.text_tables import csv_table
from service.web.batch import MAX_PIXELS, Batch, Limits, check_row_count
from service.web.forms import files_in
from service.web.images import MAX_ENCODED, MOST_WARNINGS, decoded_text, parse_images, rows_of_instances
from service.web.json_chunks import MAX_ELEMENT, field_chunks
from service.web.media_types import CSV, FORM, JSON, NDJSON, NPY, type_of

ROW_TYPES = (JSON, NPY, CSV, FORM, *MEDIA_TYPES)  # JSON lines are read by `streaming.py`
MAX_HEADER = 10_000  # bytes of an npy header, which holds a type and a shape
NPY_KINDS = "uif"
MAX_DIMENSIONS = 4  # rows of images with colours
NUMBER_BYTES = 64  # of a number in JSON, with the space around it, at most
LINES = 2, 1_000  # of a CSV body: so many for each row that is accepted, and so many more
PYTHON_2 = re.compile(rb"\dL\b")  # a long integer in an npy header, which numpy would fix with a warning


class FlatBody(msgspec.Struct, forbid_unknown_fields=True):
    """Rows as flat lists."""

    instances: list[list[float]]


class NestedBody(msgspec.Struct, forbid_unknown_fields=True):
    """Rows as nested lists, one per image."""

    instances: list[list[list[float]]]


class DeepBody(msgspec.Struct, forbid_unknown_fields=True):
    """Rows as nested lists, one per image with colours."""

    instances: list[list[list[list[float]]]]


class LatentsBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of /decode."""

    latents: list[list[float]]


Body = bytes | bytearray
FLAT = msgspec.json.Decoder(FlatBody)
NESTED = msgspec.json.Decoder(NestedBody)
DEEP = msgspec.json.Decoder(DeepBody)
LATENTS = msgspec.json.Decoder(LatentsBody)
ROW = msgspec.json.Decoder(list[float])
SURROGATE = re.compile("[\ud800-\udfff]")  # half a character: an answer that contains it could not be encoded
STARTS = re.compile(rb'\s*\{\s*"instances"\s*:\s*((?:\[\s*){1,4})')


def parse_rows(body: Body, content_type: str, spec: InputSpec, reader: CellReader, limits: Limits) -> Batch:
    """Parse rows from a body of any supported type.

    Raises:
        MediaTypeError, MalformedError, TooLargeError, InputError.
    """
    kind, warning = type_of(content_type, body, ROW_TYPES)
    batch = rows_of(kind, body, content_type, spec, reader, limits)
    return batch if warning is None else replace(batch, warnings=(warning, *batch.warnings))


def rows_of(kind: str, body: Body, content_type: str, spec: InputSpec, reader: CellReader, limits: Limits) -> Batch:
    """Parse rows from a body of a known type."""
    match kind:
        case "application/json":
            return with_warnings(parse_json(unmarked(body), spec, reader, limits), spec)
        case "application/x-npy":
            array = parse_npy(body, spec.features, limits.max_rows)
            batch = Batch(spec.read(reader.padded(array), reader))
        case "multipart/form-data":
            return parse_form(body, content_type, spec, reader, limits)
        case "text/csv":
            batch = parse_table(body, spec, reader, limits)
        case _:
            return parse_images([body], spec, reader.images, limits)
    check_row_count(len(batch), limits.max_rows)
    limits.hold(batch.rows.nbytes)
    return with_warnings(batch, spec)


def unmarked(body: Body) -> Body:
    """A text without the mark of UTF-8 that some programs begin it with.

    Raises:
        MalformedError: it is in UTF-16, as some of them write it.
    """
    if body[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise MalformedError("the body is text in UTF-16: send it in UTF-8")
    return body[len(codecs.BOM_UTF8) :] if body.startswith(codecs.BOM_UTF8) else body


def with_warnings(batch: Batch, spec: InputSpec) -> Batch:
    """Add a warning if pixels look wrongly scaled."""
    if spec.kind == "image" and 0 < batch.rows.max(initial=0) <= 1:
        warning = "all values are at most 1; pixels should be 0 to 255"
        return replace(batch, warnings=(*batch.warnings, warning))
    return batch


# JSON


def parse_json(body: Body, spec: InputSpec, reader: CellReader, limits: Limits) -> Batch:
    """The instances of a JSON body, with their ids if they have any; a chunk of the body at a time."""
    parts: list[np.ndarray] = []
    ids: list[Any] = []
    notes: list[str] = []
    largest = max(MAX_ELEMENT if spec.kind == "table" else MAX_ENCODED, NUMBER_BYTES * spec.features)
    for chunk, displaced in field_chunks(body, "instances", limits.max_rows, limits.check, largest):
        try:
            array = parse_numbers(chunk, spec, limits.max_rows)
            if array is None:
                array, some, more = explained(chunk, spec, reader, limits, displaced)
                notes += more
            else:
                array, some = reader.padded(array), None
            parts.append(spec.read(array, reader))
        except InputError as error:
            raise error.after(len(ids)) from None
        limits.hold(parts[-1].nbytes)
        ids += some or [None] * len(array)
    if not parts:
        raise no_rows("instances")
    rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return Batch(rows, ids if any(one is not None for one in ids) else None, tuple(notes[:MOST_WARNINGS]))


def parse_numbers(body: Body, spec: InputSpec, max_rows: int) -> np.ndarray | None:
    """The instances as an array, if they are lists of numbers of the right length; otherwise None."""
    if spec.has_text:
        return None
    starts = STARTS.match(body)
    is_nested = len(spec.shape) > 1 and starts is not None and starts[1].count(b"[") > 2
    try:
        if not is_nested:
            rows = FLAT.decode(body).instances
            check_row_count(len(rows), max_rows)
            return np.array(rows, dtype=np.float64) if set(map(len, rows)) == {spec.features} else None
        images = (NESTED if len(spec.shape) == 2 else DEEP).decode(body).instances
        check_row_count(len(images), max_rows)
        if not images or {shape_of(image, len(spec.shape)) for image in images} != {spec.shape}:
            return None
        return np.array(images, dtype=np.float64).reshape(-1, spec.features)
    except (msgspec.DecodeError, RecursionError, OverflowError):
        return None


def shape_of(nested: list[Any], depth: int) -> tuple[int, ...] | None:
    """The shape of nested lists; None if they have none."""
    if depth == 1:
        return (len(nested),)
    inner = {shape_of(one, depth - 1) for one in nested}
    only = inner.pop() if len(inner) == 1 else None
    return None if only is None else (len(nested), *only)


def explained(
    body: Body, spec: InputSpec, reader: CellReader, limits: Limits, displaced: int = 0
) -> tuple[np.ndarray, list[Any] | None, list[str]]:
    """The slow path: rows with named columns, or images in base64, their ids and notes, or what is wrong with which row."""
    instances = field_of(loaded(body, displaced), "instances")
    check_row_count(len(instances), limits.max_rows)
    if spec.kind == "image" and any(isinstance(one, str) for one in instances):
        rows, notes = rows_of_instances(instances, spec, reader, limits)
        return rows, None, notes
    return reader.rows(instances), ids_of(instances, reader), []


def loaded(body: Body, displaced: int = 0) -> Any:
    """Decode any JSON, including Python's NaN and Infinity, so that an error can name them."""
    try:
        return json.loads(body, parse_int=integer)
    except RecursionError:
        raise TooLargeError("the body has lists or objects that are too deep") from None
    except ValueError as error:
        place = f" at byte {error.pos + displaced}" if isinstance(error, json.JSONDecodeError) else ""
        raise MalformedError(
            f"the body is not JSON{place}: send an object in JSON, or JSON lines as {NDJSON}"
        ) from None


def integer(digits: str) -> int | float:
    """Parse an integer; one of 400 digits or more is beyond every float, and long before Python's own limit."""
    return int(digits) if len(digits) < 400 else math.inf


def field_of(document: Any, name: str) -> list[Any]:
    """The list in a body's only field."""
    if not isinstance(document, dict) or name not in document:
        raise InputError(f'expected an object with the field "{name}"')
    if len(document) > 1:
        raise InputError(f'expected no fields besides "{name}"')
    rows = document[name]
    if not isinstance(rows, list) or not rows:
        raise no_rows(name)
    return rows


def no_rows(field: str) -> InputError:
    return InputError(f'"{field}" must be a list with at least one row')


def ids_of(instances: list[Any], reader: CellReader) -> list[Any] | None:
    """The ids of rows that are objects, with None for rows without one; None if no row has an id."""
    if reader.names is None or "id" in reader.names:
        return None
    ids = [instance.get("id") if isinstance(instance, dict) else None for instance in instances]
    if not any(one is not None for one in ids):
        return None
    faults = [
        Fault("id must be text or a number", row, "id", "at most 256 characters, or a finite number")
        for row, one in enumerate(ids)
        if not is_id(one)
    ]
    if faults:
        raise InputError(summary(faults), faults)
    return ids


def is_id(value: Any) -> bool:
    """Whether a value is None, short text, or a number that JSON can represent."""
    if isinstance(value, str):
        return len(value) <= 256 and not SURROGATE.search(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or (is_number and abs(value) < 2**63)  # false for NaN and infinity


def parse_simple_rows(lines: Sequence[bytes], spec: InputSpec) -> np.ndarray | None:
    """Lines as an array, shape (B, D), if all are lists of numbers of the right length; otherwise None."""
    if spec.has_text:
        return None
    try:
        rows = [ROW.decode(line) for line in lines]
    except (msgspec.DecodeError, RecursionError, OverflowError):
        return None
    return np.array(rows, dtype=np.float64) if set(map(len, rows)) == {spec.features} else None


def parse_row(line: bytes, spec: InputSpec, reader: CellReader, max_pixels: int = MAX_PIXELS) -> tuple[np.ndarray, Any]:
    """Parse one JSON row, shape (1, D + C), and its id; errors call it row 0."""
    simple = parse_simple_rows([line], spec)
    if simple is not None:
        return spec.read(reader.padded(simple), reader), None
    instance = loaded(line)
    if spec.kind == "image" and isinstance(instance, str):
        return spec.rows(decoded_text(instance, 0, spec, reader.images, max_pixels).pixels[None]), None
    faults: list[Fault] = []
    cells = reader.row(instance, 0, faults)
    if faults:
        raise InputError(summary(faults), faults)
    ids = ids_of([instance], reader)
    return spec.read(np.array([cells], dtype=np.float64), reader), ids[0] if ids else None


def parse_latents(body: Body, content_type: str, latents: int, limits: Limits) -> tuple[np.ndarray, str | None]:
    """Parse the latents of /decode, shape (B, L), float64, from JSON or npy; and a warning, if there is one."""
    kind, warning = type_of(content_type, body, (JSON, NPY))
    array = (
        parse_npy(body, latents, limits.max_rows)
        if kind == NPY
        else parse_json_latents(unmarked(body), latents, limits)
    )
    check_row_count(len(array), limits.max_rows)
    limits.hold(8 * array.size)
    return array, warning


def parse_json_latents(body: Body, latents: int, limits: Limits) -> np.ndarray:
    """The latents of a JSON body, a chunk of it at a time."""
    parts: list[np.ndarray] = []
    count = 0
    for chunk, displaced in field_chunks(body, "latents", limits.max_rows, limits.check):
        try:
            rows = LATENTS.decode(chunk).latents
            check_row_count(len(rows), limits.max_rows)
            if set(map(len, rows)) != {latents}:
                raise msgspec.ValidationError
            parts.append(np.array(rows, dtype=np.float64))
        except (msgspec.DecodeError, RecursionError, OverflowError):
            try:
                parts.append(explained_latents(chunk, latents, displaced))
            except InputError as error:
                raise error.after(count) from None
        count += len(parts[-1])
    if not parts:
        raise no_rows("latents")
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def explained_latents(body: Body, latents: int, displaced: int) -> np.ndarray:
    """The slow path for latents: read them as rows of unnamed numbers, or raise what is wrong with which row."""
    reader = CellReader((latents,), None, None, reads_text=False)
    return reader.rows(field_of(loaded(body, displaced), "latents"))


# Arrays, images, tables


def parse_npy(body: Body, features: int, max_rows: int) -> np.ndarray:
    """Parse an npy file into an array that is a view of the body; pickled objects are refused.

    The header is checked against the body's length before anything is allocated.
    """
    stream = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(stream)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = reader(stream, max_header_size=MAX_HEADER)
    except Exception:  # the header is a Python literal: hostile bytes can make its tokenizer raise anything
        raise MalformedError(
            "the body is not an npy file of version 1 or 2: expected one that numpy.save wrote"
        ) from None
    if PYTHON_2.search(body, 0, stream.tell()):
        raise MalformedError("npy header from Python 2; save the array with Python 3")
    if len(shape) > MAX_DIMENSIONS or not all(type(length) is int and length >= 0 for length in shape):
        raise MalformedError("npy header has an invalid shape: save the array again, with numpy.save")
    if dtype.hasobject:
        raise MalformedError("npy file contains pickled objects, which are never loaded; expected numbers")
    if dtype.kind not in NPY_KINDS:
        raise InputError(
            f"the array contains {dtype.name if len(dtype.name) < 20 else 'other'} values, expected numbers"
        )
    content = memoryview(body)[stream.tell() :]
    if math.prod(shape) * dtype.itemsize != len(content):
        raise MalformedError(f"npy header does not match the data size of {len(content):,} bytes: send the whole file")
    if not shape or math.prod(shape) == 0:
        raise InputError(f"the array is empty, expected (rows, {features})")
    check_row_count(shape[0], max_rows)
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def parse_form(body: Body, content_type: str, spec: InputSpec, reader: CellReader, limits: Limits) -> Batch:
    """The images of a form, each a row with its file's name as its id, or the rows of the only other file in it.

    Raises:
        MalformedError, MediaTypeError, TooLargeError, InputError.
    """
    limits.hold(len(body))  # of which the files are a copy
    files = files_in(body, content_type, limits.max_rows, limits.check)
    if all(one.is_image for one in files):
        contents, names = [one.content for one in files], [one.name for one in files]
        return parse_images(contents, spec, reader.images, limits, names)
    if len(files) > 1:
        raise InputError("the form has several files that are not all images: send images, or one file of rows")
    if files[0].kind == FORM:
        raise MediaTypeError("the file of the form is a form itself: send the files in one form")
    return parse_rows(files[0].content, files[0].kind, spec, reader, limits)


def check_lines(body: Body, max_rows: int) -> None:
    """Raise if a CSV body has too many lines, or one that is too long, before any of it is decoded."""
    most, end = LINES[0] * max_rows + LINES[1], b"\n" if b"\n" in body else b"\r"
    if body.count(end) > most:
        raise TooLargeError(f"the body has more than {most:,} lines, at most {max_rows:,} rows are accepted")
    at = 0
    while at >= 0:
        start, at = at, body.find(end, at + 1, at + MAX_ELEMENT)
        if at < 0 and len(body) - start > MAX_ELEMENT:
            raise TooLargeError(f"a line of the body has more than {MAX_ELEMENT:,} bytes, which is the limit")


def parse_table(body: Body, spec: InputSpec, reader: CellReader, limits: Limits) -> Batch:
    """Parse a CSV body, whose header names the model's columns in any order."""
    table = raw_table(body, reader, limits)
    try:
        return Batch(spec.read(reader.table(table), reader), lines=table.lines)
    except RowError as error:
        raise error.as_input_error() from None
    except DataError as error:
        raise unread(error) from None


def raw_table(body: Body, reader: CellReader, limits: Limits) -> RawTable:
    """The cells of a CSV body, as they are written; an unknown or an absent column is an error."""
    if reader.names is None:
        raise MediaTypeError("the model's columns have no names; send application/json or application/x-npy")
    check_lines(body, limits.max_rows)
    try:
        table = csv_table(body, known=reader.names, as_text=bool(reader.reading.formats), check=limits.check)
        if unknown := reader.unknown(table.names):
            known, some = reader.known(), unknown[: InputError.MAX_FAULTS]
            raise InputError(
                f"unknown column {shortened(unknown[0])!r}; expected {known}",
                [Fault("unknown column", None, shortened(name), known) for name in some],
            )
        reader.check_is_whole(table)
        return table
    except DamagedTextError as error:
        raise MalformedError(f"the body is not a CSV table: {error}") from None
    except RowError as error:
        raise error.as_input_error() from None
    except DataError as error:
        raise unread(error) from None


def unread(error: DataError) -> InputError:
    """What is wrong with a table in a body, without the advice for files."""
    return InputError(f"the body: {str(error).partition(': correct the file')[0]}")
