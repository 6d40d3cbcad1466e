"""What wraps every request: an id, a log line, the metrics, and an answer where something failed."""

from __future__ import annotations

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.web.metrics import Metrics
from service.web.problems import on_bug

log = logging.getLogger("vouch.access")
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
UNKNOWN = "(none)"


class Observe:
    """Plain ASGI: a wrapper of responses would hide from handlers that the client hung up."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and say how it went."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        request_id = self.request_id(Headers(scope=scope))
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except ClientDisconnect:
            log.debug("the client hung up", extra={"request_id": request_id})
        except Exception as error:  # whatever a handler did not foresee
            log.exception("unhandled error", extra={"request_id": request_id})
            if not status:
                await on_bug(Request(scope), error)(scope, receive, send_with_id)
        finally:
            self.count(scope, status, time.perf_counter() - start, request_id)

    def count(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        """Metrics and a log line; the path's template, not the path, so that nobody can make labels."""
        path = getattr(scope.get("route"), "path", UNKNOWN)
        method = scope["method"] if path != UNKNOWN else UNKNOWN
        self.metrics.requests.labels(path, method, str(status)).inc()
        self.metrics.seconds.labels(path).observe(seconds)
        extra = {
            "request_id": request_id,
            "method": method,
            "path": path,
            "status": status,  # 0: the client hung up before an answer
            "ms": round(1000 * seconds, 3),
            **scope.get("state", {}).get("log", {}),
        }
        log.log(logging.DEBUG if path in ("/livez", "/readyz") else logging.INFO, "request", extra=extra)

    @staticmethod
    def request_id(headers: Headers) -> str:
        """The caller's own, if it is harmless, or a new one."""
        given = headers.get("x-request-id", "")
        return given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
