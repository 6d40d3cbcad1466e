"""Images in requests: bytes of any format, or text in base64."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from service.data.image_reading import ImageReading
from service.data.inputs import InputSpec
from service.errors import Fault, InputError, MediaTypeError, summary
from service.files.images import decode
from service.web.batch import Batch, Limits, check_row_count

MAX_ENCODED = 2**24  # bytes of an image in base64
MOST_WARNINGS = 20


def pixels_of(instance: Any, number: int, spec: InputSpec, reading: ImageReading, max_pixels: int) -> Any:
    """An instance of JSON, in which text is an image in base64, perhaps as a data URI: (H, W) or (H, W, 3) nested lists.

    Raises:
        InputError: the text is no image that can be read; says which instance.
    """
    if not isinstance(instance, str):
        return instance
    try:
        content = base64.b64decode(instance.rpartition(",")[2], validate=True)
        return decode(content, reading, spec.shape, max_pixels).pixels.tolist()
    except ValueError:
        fault = Fault("text that is not base64", number, None, "an image in base64, or a list of pixels")
        raise InputError(summary([fault]), [fault]) from None
    except InputError as error:
        fault = Fault(str(error), number)
        raise type(error)(summary([fault]), [fault]) from None


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
            found = decode(content, reading, spec.shape, limits.max_pixels)
        except InputError as error:
            if len(contents) == 1:
                raise
            raise type(error)(f"image {number}: {error}", [Fault(str(error), number)]) from None
        rows.append(found.pixels)
        limits.hold(found.pixels.nbytes)
        warnings += [note if len(contents) == 1 else f"image {number}: {note}" for note in found.notes]
    return Batch(spec.rows(np.stack(rows)), None if names is None else list(names), tuple(warnings[:MOST_WARNINGS]))
