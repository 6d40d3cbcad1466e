"""uvicorn's HTTP/1.1 protocol with the limits that it lacks.

They bound the size of a request's head and of what stands between and after the parts of a body. They also bound the time
for a head, for the rest of a body that was answered early, and for reading an answer. Without them a connection costs a
file descriptor, and any amount of memory, for as long as its client likes.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

TOO_LARGE = "431 Request Header Fields Too Large"
TOO_SLOW = "408 Request Timeout"


class LimitedProtocol(HttpToolsProtocol):
    """One connection; `protocol_with` sets the limits."""

    max_header_bytes: int
    header_timeout_s: float
    head_bytes = 0
    field_bytes = 0  # of the path and the headers of the head that is read
    reads_head = True
    head_timer: asyncio.TimerHandle | None = None
    rest_timer: asyncio.TimerHandle | None = None
    reader_timer: asyncio.TimerHandle | None = None
    resumed = 0  # how often there was room for more of an answer again
    between_bytes = 0  # since the last part of a body: chunk sizes, their extensions, trailers

    def connection_made(self, transport: Any) -> None:
        """Start the timer at once: a connection that never sends a head is closed, too."""
        super().connection_made(transport)
        self.start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self.stop_timer()
        self.stop_rest_timer()
        if self.reader_timer is not None:
            self.reader_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count the bytes of an unfinished head, and those between the parts of a body."""
        if self.reads_head:
            self.head_bytes += len(data)  # reset to 0 if this data completes the head
        else:
            self.between_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self.reads_head and self.head_bytes > self.max_header_bytes:
            self.refuse(TOO_LARGE)
        elif not self.reads_head and self.between_bytes > self.max_header_bytes + len(data):
            self.transport.abort()
        elif self.reads_head and self.head_bytes and self.head_timer is None:
            self.start_timer()
        elif not self.reads_head and not self.is_busy() and self.rest_timer is None:
            # The rest of a body that was answered early. uvicorn's timer restarts with every piece, or never starts.
            self.rest_timer = self.loop.call_later(self.header_timeout_s, self.transport.abort)

    def on_body(self, body: bytes) -> None:
        self.between_bytes = 0
        super().on_body(body)

    def on_message_begin(self) -> None:
        self.field_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self.field_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.field_bytes += len(name) + len(value) + 4  # of the colon and the line's end
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self.reads_head = False
        self.head_bytes = self.between_bytes = 0
        self.stop_timer()
        # A whole head can come at once, before its bytes are compared with the limit.
        app = self.app
        if self.field_bytes > self.max_header_bytes:
            self.app = head_too_large
        super().on_headers_complete()
        self.app = app

    def on_message_complete(self) -> None:
        """Expect the next head; until it begins, uvicorn's own timeout for idle connections applies."""
        super().on_message_complete()
        self.reads_head = True
        self.stop_rest_timer()

    def on_response_complete(self) -> None:
        """Watch the client read the answer, which stays in memory until then."""
        super().on_response_complete()
        if self.reader_timer is not None:
            self.reader_timer.cancel()
        self.watch_reader(math.inf)

    def pause_writing(self) -> None:
        """Watch the client read, too, while more of an answer waits for that."""
        super().pause_writing()
        if self.reader_timer is None:
            self.watch_reader(math.inf)

    def resume_writing(self) -> None:
        self.resumed += 1
        super().resume_writing()

    def watch_reader(self, before: float, resumed: int = 0) -> None:
        """Hang up on a client that reads nothing of its answer for `header_timeout_s`.

        It has read something if less of it is unread than before, or if there was room for more meanwhile.
        """
        self.reader_timer = None
        unread = self.transport.get_write_buffer_size()
        if unread >= before and self.resumed == resumed:
            self.transport.abort()
        elif unread:
            self.reader_timer = self.loop.call_later(self.header_timeout_s, self.watch_reader, unread, self.resumed)

    def is_busy(self) -> bool:
        return bool(self.pipeline) or (self.cycle is not None and not self.cycle.response_complete)

    def start_timer(self) -> None:
        self.head_timer = self.loop.call_later(self.header_timeout_s, self.head_timed_out)

    def stop_timer(self) -> None:
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None

    def stop_rest_timer(self) -> None:
        if self.rest_timer is not None:
            self.rest_timer.cancel()
            self.rest_timer = None

    def head_timed_out(self) -> None:
        """Refuse a late head, but not while an earlier request on the connection is being answered."""
        self.head_timer = None
        if self.is_busy():
            self.start_timer()
        else:
            self.refuse(TOO_SLOW)

    def refuse(self, status: str) -> None:
        """Answer with a status if a head has begun and no other answer is being written, and hang up."""
        self.stop_timer()
        if self.transport.is_closing():
            return
        if self.head_bytes and not self.is_busy():
            head = f"HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            self.transport.write(head.encode())
        self.transport.close()


async def head_too_large(scope: Scope, receive: Receive, send: Send) -> None:
    """The application for requests whose head is too large."""
    headers = [(b"content-length", b"0"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 431, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def protocol_with(max_header_bytes: int, header_timeout_s: float) -> type[LimitedProtocol]:
    """A protocol class with these limits; uvicorn creates an instance for each connection."""
    limits = {"max_header_bytes": max_header_bytes, "header_timeout_s": header_timeout_s}
    return type("LimitedProtocol", (LimitedProtocol,), limits)
