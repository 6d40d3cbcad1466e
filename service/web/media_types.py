"""What a body is: by its Content-Type, which callers spell in many ways, or by its first bytes where that says nothing."""

from __future__ import annotations

import codecs
import mimetypes
import re
from collections.abc import Sequence

from service.errors import MediaTypeError

JSON, NPY, CSV, PNG = "application/json", "application/x-npy", "text/csv", "image/png"
NDJSON, PROBLEM = "application/x-ndjson", "application/problem+json"
FORM = "multipart/form-data"
FORMATS = {"json": JSON, "npy": NPY, "csv": CSV, "png": PNG, "ndjson": NDJSON}  # by the ending of a path
TEXTS = (JSON, NDJSON, CSV)
ALIASES = {
    "image/jpg": "image/jpeg", "image/pjpeg": "image/jpeg", "image/x-png": PNG, "image/tif": "image/tiff",
    "application/jsonl": NDJSON, "application/jsonlines": NDJSON, "application/x-jsonlines": NDJSON,
    "application/ndjson": NDJSON, "text/json": JSON, "application/csv": CSV, "text/x-csv": CSV,
    "application/npy": NPY, "application/x-numpy": NPY,
}  # fmt: skip
UNTOLD = ("", "application/octet-stream", "binary/octet-stream")  # which say nothing of what a body is
CHARSET = re.compile(r"""charset\s*=\s*["']?([^"';,]*)""", re.IGNORECASE)
UTF_8 = ("", "utf-8", "utf8", "us-ascii", "ascii")
SPACE = b" \t\r\n"
# What begins so is plainly of that type. A table of text begins like any other text: it is not guessed.
BEGINNINGS = (
    (b"\x93NUMPY", NPY), (b"\x89PNG\r\n\x1a\n", PNG), (b"\xff\xd8\xff", "image/jpeg"), (b"GIF8", "image/gif"),
    (b"{", JSON), (b"[", JSON),
)  # fmt: skip
LONGEST_BEGINNING = 4096  # bytes in which a body shows what it is, white space before it included
KNOWN = {
    *mimetypes.types_map.values(),
    "application/x-www-form-urlencoded",
    NDJSON,
    "text/json",
    "text/yaml",
    "application/x-zip",
}


def media_type(content_type: str) -> str:
    """The media type in a Content-Type, in lower case, without parameters, and by its usual name."""
    kind = content_type.partition(";")[0].strip().lower()
    return ALIASES.get(kind, kind)


def type_of(content_type: str, body: bytes | bytearray, accepted: Sequence[str]) -> tuple[str, str | None]:
    """The type of a body, and a warning if it was told by its bytes.

    Raises:
        MediaTypeError: the body is of none of the accepted types, or its text is not in UTF-8; says what to send.
    """
    declared = media_type(content_type)
    kind = likely_type(declared, body)
    if kind not in accepted:
        raise MediaTypeError(refusal(declared, body, accepted))
    check_charset(content_type, kind)
    if declared not in UNTOLD:
        return kind, None
    return kind, f"the request had no content type that says what its body is: it was read as {kind}"


def likely_type(declared: str, body: bytes | bytearray) -> str:
    """The media type of a body as declared or, where that says nothing, as its first bytes show; empty if they do not."""
    return (shown_by(body) or "") if declared in UNTOLD else declared


def shown_by(body: bytes | bytearray) -> str | None:
    """The type that a body plainly has by its first bytes, if any."""
    start = bytes(body[:LONGEST_BEGINNING]).removeprefix(codecs.BOM_UTF8)  # PowerShell and Excel begin a text with it
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "image/webp"
    for beginning, kind in BEGINNINGS:
        if (start.lstrip(SPACE) if kind == JSON else start).startswith(beginning):
            return kind
    return None


def check_charset(content_type: str, kind: str) -> None:
    """Raise if a text is in another encoding than UTF-8."""
    named = CHARSET.search(content_type) if kind in TEXTS else None
    if named is not None and named[1].strip().lower() not in UTF_8:
        raise MediaTypeError(
            f"the content type names another charset than UTF-8: send the body in UTF-8, and {header_line(kind)}"
        )


def refusal(declared: str, body: bytes | bytearray, accepted: Sequence[str]) -> str:
    """Why a type is refused: what came, the header that would have worked, and what is accepted."""
    if declared in UNTOLD:
        came = "the request has no content type that says what its body is"
    else:
        came = f"the content type is {declared if declared in KNOWN else 'not one that is accepted'}"
    likely = shown_by(body)
    hint = f"; its body looks like {likely}: send {header_line(likely)}" if likely and likely in accepted else ""
    return f"{came}{hint}; accepted: {', '.join(accepted)}"


def header_line(kind: str) -> str:
    """The option of curl that declares a type."""
    return f"-H 'content-type: {kind}'"
