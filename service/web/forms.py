"""Forms: the files of a multipart/form-data body."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import PurePath

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header

from service.errors import InputError, MalformedError, TooLargeError
from service.files.images import FORMATS, FROM_STRANGERS, MEDIA_TYPES
from service.system.cancellation import CheckCancelled, never_cancelled
from service.web.media_types import CSV, FORM, JSON, NPY, UNTOLD, likely_type, media_type

# What a file is, by its suffix, where the form does not say.
BY_SUFFIX = {
    ".json": JSON,
    ".npy": NPY,
    ".csv": CSV,
    **{suffix: FORMATS[name][1][0] for name in FROM_STRANGERS for suffix in FORMATS[name][0]},
}
LONGEST_NAME = 256  # characters, as of an id
SLICE = 2**16  # bytes that are parsed at a time


@dataclass(frozen=True, slots=True)
class FormFile:
    """A file of a form: its name, its media type, and its bytes."""

    name: str
    kind: str
    content: bytes

    @property
    def is_image(self) -> bool:
        return self.kind in MEDIA_TYPES


def files_in(
    body: bytes | bytearray, content_type: str, most: int, check: CheckCancelled = never_cancelled
) -> list[FormFile]:
    """The files of a form, in order; `check` is called every few milliseconds of work.

    Raises:
        MalformedError: the body is not a form.
        TooLargeError: it has more than `most` files.
        InputError: it has no files, or something that is none.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if boundary is None:
        raise MalformedError("the form has no boundary; leave the Content-Type header to what makes the form")
    if b"--" + boundary + b"--" not in body:
        raise MalformedError("the form has no end: it is truncated, or has another boundary; send the whole of it")
    found: list[FormFile] = []

    def on_file(file: File) -> None:
        if len(found) >= most:
            raise TooLargeError(f"the form has more than {most:,} files: send fewer")
        name = (file.file_name or b"").decode("utf-8", "replace")[:LONGEST_NAME]
        kind = media_type(getattr(file, "content_type", None) or "")
        file.file_object.seek(0)
        content = file.file_object.read()
        if kind in UNTOLD:
            kind = BY_SUFFIX.get(PurePath(name).suffix.lower()) or likely_type(kind, content)
        found.append(FormFile(name, kind, content))

    def on_field(field: Field) -> None:
        raise InputError("the form has a field that is no file; send each image or table as a file: -F file=@NAME")

    try:
        whole = {"MAX_MEMORY_FILE_SIZE": sys.maxsize}  # a body is held in memory, and never written to a disk
        parser = FormParser(FORM, on_field, on_file, boundary=boundary, config=whole)
        for start in range(0, len(body), SLICE):
            check()
            parser.write(bytes(body[start : start + SLICE]))
        parser.finalize()
    except FormParserError as error:
        raise MalformedError("the body is not a form of type multipart/form-data: send one") from error
    if not found:
        raise InputError("the form has no files; send each image or table as a file: -F file=@NAME")
    return found
