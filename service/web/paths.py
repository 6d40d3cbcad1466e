"""Paths and methods as callers write them: a slash at the end, `/v1` in front, HEAD and OPTIONS."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.web.context import RequestContext

PROBES = ("/livez", "/readyz", "/healthz", "/health")  # which never ask for a key
PREFIX = "/v1"
FOLDER = "/console/"  # redirected, since the page's own links are relative
OWN_PREFIXES = ("/v1", "/v2")  # which do not follow another
KSERVE_ENDING = ":predict"  # of KServe's own path below /v1
EVERY_METHOD = ("GET", "HEAD", "POST", "OPTIONS")


class Paths:
    """Middleware that gives every request its usual path, answers OPTIONS, and lets HEAD be answered as GET is.

    Args:
        routes: of the application, read at each OPTIONS.
    """

    def __init__(self, app: ASGIApp, routes: list[BaseRoute]) -> None:
        self.app = app
        self.routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, under its usual path and method."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = usual_path(scope["path"])
        if path != scope["path"]:
            raw = scope.get("raw_path") or scope["path"].encode()
            scope["path"], scope["raw_path"] = path, usual_path(raw.decode("latin-1")).encode("latin-1")
        if scope["method"] == "OPTIONS" and (methods := self.methods_of(scope)):
            await Response(None, 204, {"Allow": ", ".join(methods)})(scope, receive, send)
        elif scope["method"] == "HEAD":
            asked = {**scope, "method": "GET"}  # a copy: the server must know that no body may follow
            RequestContext.of(Request(scope)).request = Request(asked, receive)
            await self.app(asked, receive, without_body(send))
        else:
            await self.app(scope, receive, send)

    def methods_of(self, scope: Scope) -> tuple[str, ...]:
        """The methods that a path answers, in a usual order; none if there is no such path."""
        if scope["path"] in ("*", "/*"):
            return EVERY_METHOD
        found = {
            method
            for method in ("GET", "POST")
            if any(route.matches({**scope, "method": method})[0] == Match.FULL for route in self.routes)
        }
        return allowed(found) if found else ()


def allowed(methods: set[str]) -> tuple[str, ...]:
    """These methods with those that go with them, in a usual order."""
    also = {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set())
    return tuple(method for method in EVERY_METHOD if method in methods | also)


def usual_path(path: str) -> str:
    """A path without one slash at its end and without `/v1`, below which everything is the same but KServe's path."""
    if len(path) > 1 and path.endswith("/") and path != FOLDER:
        path = path[:-1]
    if not path.startswith(f"{PREFIX}/") or path.endswith(KSERVE_ENDING):
        return path
    rest = path.removeprefix(PREFIX)
    return path if rest.startswith(tuple(f"{own}/" for own in OWN_PREFIXES)) or rest in OWN_PREFIXES else rest


def without_body(send: Send) -> Send:
    """The sender of an answer to HEAD: the head that GET would have, and no body."""

    async def head_only(message: Message) -> None:
        if message["type"] == "http.response.body":
            if message.get("more_body"):
                return
            message = {**message, "body": b""}
        await send(message)

    return head_only
