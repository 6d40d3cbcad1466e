"""Compressed bodies: gzip and zstd in, within the budgets of bytes; gzip out, where the client asks for it."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from backports import zstd

from service.errors import MalformedError, MediaTypeError, TooLargeError
from service.system.cancellation import CheckCancelled
from service.web.media_types import JSON, PROBLEM
from service.web.negotiation import parsed_range, weight

PIECE, SLICE = 2**16, 2**14  # bytes that are inflated at a time, and from which
MOST_MEMBERS = 1_000  # of a body: empty ones cost time, and inflate to nothing that could be counted
ZSTD_WINDOW_LOG = 23  # 8 MiB, which RFC 8878 asks of every decoder; a frame that needs more is refused
MEMORY = {"gzip": 2**16, "zstd": 2**ZSTD_WINDOW_LOG}  # bytes that a decoder holds
ALIASES = {"x-gzip": "gzip"}
MOST_RATIO = 100  # of a stream: bytes for each compressed byte, beyond the budget of a body
SMALLEST = 10_000  # bytes of an answer; fewer are sent sooner as they are
LEVEL = 1  # twice as fast as the next, and all but as small for JSON
IN_LOOP = 2**16  # bytes of an answer that are compressed on the event loop


class CodingError(MediaTypeError):
    """A Content-Encoding that cannot be read."""


class Decoder(Protocol):
    """What zlib's and zstd's decoders have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def coding_of(header: str) -> str | None:
    """The coding that a Content-Encoding header names, None for none; a body that is compressed twice is refused.

    Raises:
        CodingError: it cannot be read.
    """
    names = [name for part in header.split(",") if (name := part.strip().lower()) not in ("", "identity")]
    if not names:
        return None
    name = ALIASES.get(names[0], names[0])
    if len(names) > 1 or name not in MEMORY:
        raise CodingError("the body's Content-Encoding cannot be read: send gzip or zstd, or leave it out")
    return name


class Inflater:
    """Inflates a body that arrives in parts, a bounded piece at a time; a body of several members or frames, too."""

    def __init__(self, coding: str) -> None:
        self.coding = coding
        self.decoder, self.members = self.new(), 1

    def new(self) -> Decoder:
        """A decoder for one member or frame."""
        if self.coding == "zstd":
            return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG})
        return zlib.decompressobj(16 + zlib.MAX_WBITS)

    def pieces(self, data: bytes | bytearray) -> Iterator[bytes]:
        """What the next part of the body inflates to.

        Raises:
            MalformedError: it is not what its Content-Encoding says.
        """
        view = memoryview(data)
        try:
            for start in range(0, len(view), SLICE):
                yield from self.pieces_of(bytes(view[start : start + SLICE]))
        except (zlib.error, zstd.ZstdError):
            raise MalformedError(
                f"the body is not {self.coding}, as its Content-Encoding says: send it without that header, or compressed"
            ) from None

    def pieces_of(self, rest: bytes) -> Iterator[bytes]:
        """What a slice of the body inflates to. It is short, since each of its members copies what follows it."""
        while True:
            if self.decoder.eof:
                if not rest:
                    return
                self.members += 1
                if self.members > MOST_MEMBERS:
                    raise TooLargeError(f"the body has more than {MOST_MEMBERS:,} members or frames: send it as one")
                self.decoder = self.new()
            piece = self.decoder.decompress(rest, PIECE)
            rest = self.decoder.unused_data if self.decoder.eof else getattr(self.decoder, "unconsumed_tail", b"")
            if piece:
                yield piece
            elif not rest and not self.decoder.eof:
                return

    def end(self) -> None:
        """Raise if the body ended too early."""
        if not self.decoder.eof:
            raise MalformedError(f"the {self.coding} body is cut short: send the whole of it")


def inflated(
    body: bytes | bytearray, coding: str, most: int, check: CheckCancelled, hold: Callable[[int], None]
) -> bytearray:
    """The body that a compressed one holds, of at most so many bytes.

    Raises:
        MalformedError: it is not compressed so.
        TooLargeError: it holds more.
    """
    inflater, whole = Inflater(coding), bytearray()
    for piece in inflater.pieces(body):
        check()
        if len(whole) + len(piece) > most:
            raise TooLargeError(f"the body inflates to more than {most:,} bytes, which is the limit: send fewer rows")
        hold(len(piece))
        whole += piece
    inflater.end()
    return whole


def accepts_gzip(accept_encoding: str) -> bool:
    """Whether an Accept-Encoding header asks for gzip."""
    return "gzip" in accept_encoding and weight("gzip", [parsed_range(part) for part in accept_encoding.split(",")]) > 0


def is_worth_packing(headers: Mapping[str, str]) -> bool:
    """Whether an answer becomes much smaller: long texts do; arrays of floats, pictures and short texts do not.

    Parts of a file, and files with a tag for their very bytes, stay as they are.
    """
    is_text = headers.get("content-type", "").startswith((JSON, PROBLEM, "text/"))
    is_long = is_text and int(headers.get("content-length", "0")) >= SMALLEST
    is_fixed = "content-encoding" in headers or "content-range" in headers or headers.get("etag", "").startswith('"')
    return is_long and not is_fixed


async def gzipped(body: bytes) -> bytes:
    """An answer's body, compressed; a large one in a thread."""
    if len(body) <= IN_LOOP:
        return compress(body)
    return await asyncio.to_thread(compress, body)


def compress(body: bytes) -> bytes:
    return zlib.compress(body, LEVEL, 16 + zlib.MAX_WBITS)
