"""Middleware around every request: id, span, log line, metrics, `Server-Timing`, and the answer to an unhandled error."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Iterator
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.serving.call import CallerLeftError, Timings
from service.web.compression import accepts_gzip, gzipped, is_worth_packing
from service.web.context import RequestContext, Service
from service.web.paths import PROBES
from service.web.problems import on_bug
from service.web.tracing import Tracer

log = logging.getLogger("vouch.access")
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
UNKNOWN = "(none)"
PIECE = 2**18  # bytes
REASONS = {
    400: "malformed",
    401: "no key",
    403: "scope",
    404: "unknown model or path",
    405: "method",
    406: "answer type",
    409: "conflict",
    413: "too large",
    415: "content type",
    422: "invalid input",
    429: "queue full",
    503: "unavailable",
    504: "deadline",
}


class Observe:
    """Plain ASGI: middleware that wraps responses would hide from handlers that the client hung up."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service
        self.tracer = Tracer.configured()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, then log and count it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        context = RequestContext.start(self.service, scope, receive, self.request_id(headers))
        request_id, timings = context.request_id, context.timings
        method, packs = scope["method"], accepts_gzip(headers.get("accept-encoding", ""))
        status = 0
        held: Message | None = None  # the head of an answer that will be compressed

        async def send_with_headers(message: Message) -> None:
            nonlocal status, held
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                answer["X-Request-Id"] = request_id
                answer["Server-Timing"] = server_timing(timings)
                if self.service.draining:
                    answer["Connection"] = "close"
                if is_worth_packing(answer):
                    if "accept-encoding" not in answer.get("vary", "").lower():
                        answer.add_vary_header("Accept-Encoding")
                    if packs and method == "HEAD":
                        del answer["Content-Length"]  # that of GET is known only when its body is compressed
                    elif packs:
                        held = message
                        return
            elif held is not None:
                head, held = held, None
                if not message.get("more_body"):
                    message = {**message, "body": await gzipped(message["body"])}
                    MutableHeaders(scope=head).update(
                        {"Content-Encoding": "gzip", "Content-Length": str(len(message["body"]))}
                    )
                await send(head)
            for piece in pieces(message):
                await send(piece)

        with self.tracer.span(scope["path"], headers) as span:
            try:
                await self.app(scope, receive, send_with_headers)
            except (ClientDisconnect, CallerLeftError):
                log.debug("the client hung up", extra={"request_id": request_id})
            except Exception as error:  # anything that no handler expected
                log.exception("unhandled error", extra={"request_id": request_id})
                if not status:
                    await on_bug(Request(scope), error)(scope, receive, send_with_headers)
            finally:
                context.release()
                entry = self.entry(context, method, status)
                span.end(entry, timings.intervals)
                self.count(entry, timings)

    def entry(self, context: RequestContext, method: str, status: int) -> dict[str, Any]:
        """Fields of the log line; the path's template, not the path, so that clients cannot create metric labels."""
        scope, timings = context.request.scope, context.timings
        path = getattr(scope.get("route"), "path", UNKNOWN)
        traceparent = context.request.headers.get("traceparent", "")
        return {
            "request_id": context.request_id,
            **({} if context.key_id is None else {"key": context.key_id}),
            **({"traceparent": traceparent} if TRACEPARENT.fullmatch(traceparent) else {}),
            "method": method if path != UNKNOWN else UNKNOWN,
            "path": path,
            "status": status,  # 0: the client hung up before an answer
            "ms": round(1000 * timings.elapsed_s(), 3),
            **{f"{name}_ms": round(1000 * part, 3) for name, part in timings.seconds.items()},
            **({"trial": True} if context.is_trial else {}),
            **context.log_entry,
        }

    def count(self, entry: dict[str, Any], timings: Timings) -> None:
        """Update the metrics and write the log line of a request."""
        metrics = self.service.engine.metrics
        path, status = entry["path"], entry["status"]
        metrics.at(metrics.requests, entry["method"], path, str(status)).inc()
        metrics.at(metrics.seconds, path).observe(entry["ms"] / 1000)
        for name, seconds in timings.seconds.items():
            metrics.at(metrics.parts, name).observe(seconds)
        if status in REASONS:
            metrics.rejections.labels(REASONS[status]).inc()
        if log.isEnabledFor(level := logging.DEBUG if path in PROBES else logging.INFO):
            log.log(level, "request", extra=entry)

    @staticmethod
    def request_id(headers: Headers) -> str:
        """The caller's request id if it is well-formed, or a new one."""
        given = headers.get("x-request-id", "")
        return given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def pieces(message: Message) -> Iterator[Message]:
    """A message, with a large body in pieces: the next one is sent when the client has taken most of the last.

    So the memory of an answer is given back when it is gone, and not while it waits for a slow reader.
    """
    body: bytes = message.get("body", b"")
    if len(body) <= PIECE:
        yield message
        return
    view = memoryview(body)
    for start in range(0, len(view), PIECE):
        is_last = start + PIECE >= len(view)
        more = not is_last or message.get("more_body", False)
        yield {**message, "body": bytes(view[start : start + PIECE]), "more_body": more}


def server_timing(timings: Timings) -> str:
    """The Server-Timing header: the parts of a request in milliseconds."""
    parts = {**timings.seconds, "total": timings.elapsed_s()}
    return ", ".join(f"{name};dur={1000 * seconds:.3f}" for name, seconds in parts.items())
