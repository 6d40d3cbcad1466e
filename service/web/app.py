"""The application, assembled by `create_app` and never at import."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service._version import __version__
from service.errors import AccessError, DeadlineError, VouchError
from service.serving.engine import Engine
from service.settings import Settings, read_settings
from service.web import (
    inference_protocol,
    kserve_v1,
    routes,
    routes_admin,
    routes_console,
    routes_describe,
    routes_feedback,
    routes_generate,
    routes_health,
)
from service.web.access import KeyRing, check_scope, scopes_of
from service.web.browsers import HostRule
from service.web.caching import Tags
from service.web.context import RequestContext, Service
from service.web.observe import Observe
from service.web.openapi import document_service
from service.web.paths import FOLDER, PROBES, Paths
from service.web.problems import document, on_http_error, on_validation_error, on_vouch_error, respond

log = logging.getLogger("vouch")
CORS: dict[str, Any] = {
    "allow_methods": ("GET", "HEAD", "POST", "OPTIONS"),
    "allow_headers": (
        "Authorization", "X-API-Key", "Content-Type", "Content-Encoding", "If-None-Match", "X-Request-Id",
        "X-Request-Timeout", "traceparent", "Inference-Header-Content-Length",
    ),
    "expose_headers": (
        "ETag", "Retry-After", "Server-Timing", "X-Model", "X-Model-Digest", "X-Record", "X-Request-Id", "X-Seed",
        "X-Warnings",
        "Inference-Header-Content-Length",
    ),
}  # fmt: skip
CHECK_S = 1.0  # between looks at the failures of inference
RELOAD_S = 60.0  # after which a reload gives up waiting for the store
SAVE_S = 5.0  # for the drift monitors, at the end
ROUTERS = (
    routes.router, routes_generate.router, routes_admin.router, routes_describe.router, routes_feedback.router,
    routes_console.router, routes_health.probes, routes_health.router, inference_protocol.router, kserve_v1.router,
)  # fmt: skip


def create_app(settings: Settings) -> FastAPI:
    """Create an application that serves the store in the settings; it loads the models when it starts."""
    service = Service(settings, Engine(settings), KeyRing(settings.api_keys_file))
    app = FastAPIOffline(
        docs_url="/docs",
        redoc_url=None,
        static_url="/docs-assets",
        title="Vouch",
        version=__version__,
        summary="Is this row like the data that the model was trained on?",
        lifespan=lifespan,
        redirect_slashes=False,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    app.state.service = service
    for router in ROUTERS:
        app.include_router(router)
    app.add_exception_handler(VouchError, on_vouch_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_middleware(Tags)
    app.add_middleware(Guard, ring=service.keys, settings=settings)
    app.add_middleware(Paths, routes=app.router.routes)
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=settings.cors_origins, **CORS)
    app.add_middleware(Observe, service=service)  # the last one added is the outermost
    document_service(app, service)
    return app


def application() -> FastAPI:
    """An application with the settings of the environment, for other servers: `service.web.app:application()`.

    They lack our limits on slow and large heads (`connection_limits.py`); `vouch serve` has them.
    """
    return create_app(read_settings())


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Run the inference threads, and load models and poll the store in the background; on exit, finish queued work.

    The service listens while it loads: it is alive, but not ready.
    """
    service: Service = app.state.service
    service.engine.start()
    loops = (follow_store(service.engine), watch_inference(service.engine), reload_on_request(service))
    tasks = [asyncio.create_task(loop) for loop in loops]
    yield
    for task in tasks:
        task.cancel()
    await asyncio.to_thread(service.engine.stop)
    await service.engine.save_drift(SAVE_S)
    log.info("stopped")


async def follow_store(engine: Engine) -> None:
    """Load the models in the store, then poll it for changes."""
    await engine.refresh()
    # What is in memory now stays there. Each pass of the garbage collector over torch's many objects would stop the
    # service for a tenth of a second.
    gc.collect()
    gc.freeze()
    threads = engine.inference.count
    log.info("started", extra={"models": engine.registry.status(), "threads": threads})
    while seconds := engine.settings.store_poll_s:
        await asyncio.sleep(seconds)
        await engine.refresh()


async def watch_inference(engine: Engine) -> None:
    """Try inference when it fails again and again, until it works."""
    while True:
        await asyncio.sleep(CHECK_S)
        await engine.check_inference()


async def reload_on_request(service: Service) -> None:
    """Read the keys and the store again whenever SIGHUP came.

    The keys come first, in a thread of their own: if the store hangs, a key must still be revoked.
    """
    while True:
        await service.reload_requested.wait()
        service.reload_requested.clear()
        log.info("reloading")
        await service.key_reader.run(service.keys.reread)
        try:
            await service.engine.refresh(RELOAD_S)
        except DeadlineError as error:
            log.error("the store was not read again", extra={"error": str(error)})


class Guard:
    """Requires an API key, if any are configured, on every path except the probes and VOUCH_OPEN_PATHS.

    Also refuses requests that do not name the service (`HostRule`), except to the probes.
    """

    def __init__(self, app: ASGIApp, ring: KeyRing, settings: Settings) -> None:
        self.app = app
        self.ring = ring
        self.hosts = HostRule(settings)
        self.open_paths = (*PROBES, *settings.open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] == "http" and (refusal := self.host_refusal(scope)) is not None:
            await refusal(scope, receive, send)
            return
        if scope["type"] == "http" and not self.is_open(scope["path"]):
            headers = Headers(scope=scope)
            try:
                key = self.ring.keys.check(headers.get("authorization"), headers.get("x-api-key"))
                check_scope(key, *scopes_of(scope["path"]))
                RequestContext.of(Request(scope)).key = key
            except AccessError as error:
                await on_vouch_error(Request(scope), error)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def host_refusal(self, scope: Scope) -> Response | None:
        """The answer to a request without one Host, or with one that does not name the service."""
        hosts = Headers(scope=scope).getlist("host")
        if len(hosts) > 1 or (not hosts and scope["http_version"] != "1.0"):
            return respond(Request(scope), document(400, "malformed-head", "expected one Host header"))
        if not hosts or scope["path"] in PROBES or self.hosts.allows(hosts[0]):
            return None
        detail = "the Host header does not name this service; VOUCH_ALLOWED_HOSTS lists the names that do"
        return respond(Request(scope), document(421, "misdirected", detail))

    def is_open(self, path: str) -> bool:
        """Whether the path needs no key; opening /docs or / also opens the files that the page consists of."""
        if "/docs" in self.open_paths and (path == "/openapi.json" or path.startswith("/docs-assets/")):
            return True
        if {"/", "/console"} & set(self.open_paths) and (path in ("/", "/console") or path.startswith(FOLDER)):
            return True
        return path in self.open_paths
