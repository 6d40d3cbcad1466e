"""The console: a page, and the files that it consists of, with headers that let it load nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse

from service._version import __version__
from service.console.assets import PAGE, assets
from service.web import answers
from service.web.caching import is_known, tag_of
from service.web.compression import accepts_gzip
from service.web.context import RequestContext
from service.web.lean import LeanRoute
from service.web.media_types import JSON
from service.web.negotiation import negotiate
from service.web.paths import FOLDER

HTML = "text/html"
INLINE = re.compile(r'<script type="importmap">(.*?)</script>', re.DOTALL)
router = APIRouter(route_class=LeanRoute)


@cache
def content_security_policy() -> str:
    """What the page may load: the service's own files, and the one script in it, which only says where modules are."""
    (import_map,) = INLINE.findall(assets()[PAGE].content.decode())
    digest = base64.b64encode(hashlib.sha256(import_map.encode()).digest()).decode()
    return "; ".join(
        (
            "default-src 'none'", f"script-src 'self' 'sha256-{digest}'", "style-src 'self'", "connect-src 'self'",
            "img-src 'self' blob: data:", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
            "require-trusted-types-for 'script'", "trusted-types 'none'",
        )
    )  # fmt: skip


def served(request: Request, name: str) -> Response:
    """A file of the console."""
    one = assets().get(name)
    if one is None:
        raise HTTPException(404)
    tag = tag_of("console", name, one.digest)
    headers = {
        "ETag": tag,
        "Content-Security-Policy": content_security_policy(),
        "Cache-Control": "no-cache",
        "Vary": "Accept, Accept-Encoding",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
    }
    if name == PAGE:
        headers |= {"X-Frame-Options": "DENY"}
    if is_known(request.headers, tag):
        return Response(None, 304, headers)
    if accepts_gzip(request.headers.get("accept-encoding", "")):
        return Response(one.packed, 200, headers | {"Content-Encoding": "gzip"}, one.kind)
    return Response(one.content, 200, headers, one.kind)


@router.get("/", include_in_schema=False)
async def home(request: Request) -> Response:
    """For a browser, the console; for a program, where to go from here."""
    context = RequestContext.of(request)
    if negotiate(context.accept, (JSON, HTML)) != JSON:
        return served(request, PAGE)
    # KServe's clients ask here, with version 1 of their protocol, whether the server is alive.
    alive = context.engine.is_alive()
    links = {
        "console": "/console", "docs": "/docs", "openapi": "/openapi.json", "score": "/score", "models": "/models",
        "ready": "/readyz",
    }  # fmt: skip
    return answers.json_response(
        {"status": "alive" if alive else "unavailable", "vouch": __version__, **links}, None, 200 if alive else 503
    )


@router.get("/console", include_in_schema=False)
async def console(request: Request) -> Response:
    """The console's page."""
    return served(request, PAGE)


@router.get(FOLDER, include_in_schema=False)
async def folder(request: Request) -> Response:
    """To the page without a slash at its end."""
    return RedirectResponse("../console", 308)


@router.get("/console/{name:path}", include_in_schema=False)
async def file(request: Request, name: str) -> Response:
    """A file of the console."""
    return served(request, name)
