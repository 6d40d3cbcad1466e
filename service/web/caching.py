"""Entity tags: a client that has an answer already is told so by 304, instead of being sent it again (RFC 9110, 13.1.2).

The tags are weak: an answer in gzip has that of the same answer without.
"""

from __future__ import annotations

import hashlib

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service._version import __version__

TAGGED = ("/models", "/openapi.json")  # and what is below them
CACHE_CONTROL = "private, no-cache"  # an answer may be kept, by the client alone, and is asked about again each time


def tag_of(*parts: object) -> str:
    """A tag for what these parts, and the version of the program, determine."""
    text = repr((__version__, *parts)).encode()
    return f'W/"{hashlib.blake2b(text, digest_size=12).hexdigest()}"'


def is_known(headers: Headers, tag: str) -> bool:
    """Whether a request says that its client has an answer with this tag."""
    given = [one.strip() for header in headers.getlist("if-none-match") for one in header.split(",")]
    return "*" in given or tag.removeprefix("W/") in [one.removeprefix("W/") for one in given]


def tag_headers(tag: str) -> dict[str, str]:
    """The headers of an answer that may be kept."""
    return {"ETag": tag, "Cache-Control": CACHE_CONTROL, "Vary": "Accept, Accept-Encoding"}


def not_modified(tag: str) -> Response:
    return Response(None, 304, tag_headers(tag))


class Tags:
    """Middleware that tags the answers about models and the OpenAPI document by their bodies."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and tag its answer."""
        if scope["type"] != "http" or scope["method"] != "GET" or not is_tagged(scope["path"]):
            await self.app(scope, receive, send)
            return
        head: Message = {}

        async def send_tagged(message: Message) -> None:
            nonlocal head
            if message["type"] == "http.response.start":
                head = message
                return
            if head["status"] == 200 and not message.get("more_body"):
                tag = tag_of(message["body"])
                if is_known(Headers(scope=scope), tag):
                    await not_modified(tag)(scope, receive, send)
                    return
                MutableHeaders(scope=head).update(tag_headers(tag))
            await send(head)
            await send(message)

        await self.app(scope, receive, send_tagged)


def is_tagged(path: str) -> bool:
    return path in TAGGED or path.startswith(f"{TAGGED[0]}/")
