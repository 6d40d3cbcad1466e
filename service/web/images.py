"""Images in requests: bytes of any format, or text in base64."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from service.data.cells import CellReader
from service.data.image_reading import ImageReading
from service.data.inputs import InputSpec
from service.errors import Fault, InputError, MalformedError, MediaTypeError, summary
from service.files.images import FROM_STRANGERS, Decoded, decode, png
from service.web.batch import Batch, Limits, check_row_count

MAX_ENCODED = 2**24  # bytes of an image in base64
MOST_WARNINGS = 20
ENCODED = re.compile(rb'"[A-Za-z0-9+/=:;,]{40}')


def data_uri(row: np.ndarray, spec: InputSpec) -> str:
    """An image, shape (D,), as a PNG file in a data URI, which instances of JSON may be."""
    image = np.rint(row.reshape(spec.shape)).astype(np.uint8)
    return f"data:image/png;base64,{base64.b64encode(png(image)).decode()}"


def decoded_text(text: str, number: int, spec: InputSpec, reading: ImageReading, max_pixels: int) -> Decoded:
    """The image that an instance of JSON is in base64, perhaps as a data URI.

    Raises:
        InputError: the text is no image that can be read; says which instance.
    """
    try:
        content = base64.b64decode(text.rpartition(",")[2], validate=True)
        return decode(content, reading, spec.shape, max_pixels, FROM_STRANGERS)
    except ValueError:
        fault = Fault("text that is not base64", number, None, "an image in base64, or a list of pixels")
        raise InputError(summary([fault]), [fault]) from None
    except InputError as error:
        fault = Fault(str(error), number, None, "an image in base64, or a list of pixels")
        # The body can be read, but for this row.
        kind = InputError if isinstance(error, MalformedError) else type(error)
        raise kind(summary([fault]), [fault]) from None


def rows_of_instances(
    instances: Sequence[Any], spec: InputSpec, reader: CellReader, limits: Limits
) -> tuple[np.ndarray, list[str]]:
    """Rows of JSON that are images in base64 or lists of pixels, shape (B, D), and what decoding changed, in words.

    Raises:
        InputError: says which instance cannot be read, and why.
    """
    rows = np.zeros((len(instances), spec.features), np.float32)
    limits.hold(rows.nbytes)
    notes: list[str] = []
    for number, instance in enumerate(instances):
        limits.check()
        if isinstance(instance, str):
            found = decoded_text(instance, number, spec, reader.images, limits.max_pixels)
            rows[number] = found.pixels.ravel()
            notes += [f"image {number}: {note}" for note in found.notes]
            continue
        try:
            rows[number] = reader.rows([instance])[0]
        except InputError as error:
            raise error.after(number) from None
    return rows, notes


def has_encoded(body: bytes | bytearray, spec: InputSpec) -> bool:
    """Whether a JSON body for a model of images may hold some in base64, which take long to decode."""
    return spec.kind == "image" and ENCODED.search(body) is not None


def parse_images(
    contents: Sequence[bytes | bytearray],
    spec: InputSpec,
    reading: ImageReading,
    limits: Limits,
    names: Sequence[str] | None = None,
) -> Batch:
    """Decode images, each into one row; `names` are their ids.

    Raises:
        MediaTypeError: the model reads no images.
        InputError: says which image cannot be read, and why.
    """
    if spec.kind != "image":
        raise MediaTypeError("the model does not read images; send application/json, application/x-npy or text/csv")
    check_row_count(len(contents), limits.max_rows)
    rows, warnings = [], list[str]()
    for number, content in enumerate(contents):
        limits.check()
        try:
            found = decode(content, reading, spec.shape, limits.max_pixels, FROM_STRANGERS)
        except InputError as error:
            if len(contents) == 1:
                raise
            raise type(error)(f"image {number}: {error}", [Fault(str(error), number)]) from None
        rows.append(found.pixels)
        limits.hold(found.pixels.nbytes)
        warnings += [note if len(contents) == 1 else f"image {number}: {note}" for note in found.notes]
    return Batch(spec.rows(np.stack(rows)), None if names is None else list(names), tuple(warnings[:MOST_WARNINGS]))
