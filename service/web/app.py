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
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service._version import __version__
from service.errors import AccessError, ModelError, UnavailableError, VouchError
from service.serving.engine import Engine
from service.settings import Settings
from service.web import inference_protocol, routes, routes_admin, routes_generate, routes_health, schemas
from service.web.access import KeyRing
from service.web.context import Service
from service.web.examples import put_examples
from service.web.observe import Observe
from service.web.problems import on_http_error, on_validation_error, on_vouch_error

log = logging.getLogger("vouch")
PROBES = ("/livez", "/readyz")
ROUTERS = (routes.router, routes_generate.router, routes_admin.router, routes_health.probes, routes_health.router)


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
        app.include_router(router, prefix="/v1", include_in_schema=False)
    app.include_router(inference_protocol.router)
    app.add_exception_handler(VouchError, on_vouch_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_middleware(Guard, ring=service.keys, open_paths=settings.open_paths)
    app.add_middleware(Observe, service=service)  # the last one added is the outermost
    document_bodies(app, service)
    return app


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Run the inference threads, and load models and poll the store in the background; on exit, finish queued work.

    The service listens while it loads: it is alive, but not ready.
    """
    service: Service = app.state.service
    service.engine.start()
    following = asyncio.create_task(follow_store(service.engine))
    yield
    following.cancel()
    await asyncio.to_thread(service.engine.stop)
    log.info("stopped")


async def follow_store(engine: Engine) -> None:
    """Load the models in the store, then poll it for changes."""
    await asyncio.to_thread(engine.registry.refresh)
    # What is in memory now stays there. Each pass of the garbage collector over torch's many objects would stop the
    # service for a tenth of a second.
    gc.collect()
    gc.freeze()
    threads = len(engine.inference.threads)
    log.info("started", extra={"models": engine.registry.status(), "threads": threads})
    while seconds := engine.settings.store_poll_s:
        await asyncio.sleep(seconds)
        await asyncio.to_thread(engine.registry.refresh)


async def reload(service: Service) -> None:
    """Read the keys and the store again, on SIGHUP."""
    log.info("reloading")
    service.keys.reread()
    await asyncio.to_thread(service.engine.registry.refresh)


class Guard:
    """Requires an API key, if any are configured, on every path except the probes and VOUCH_OPEN_PATHS."""

    def __init__(self, app: ASGIApp, ring: KeyRing, open_paths: tuple[str, ...]) -> None:
        self.app = app
        self.ring = ring
        self.open_paths = (*PROBES, *open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401."""
        if scope["type"] == "http" and not self.is_open(scope["path"]):
            headers = Headers(scope=scope)
            try:
                self.ring.keys.check(headers.get("authorization"), headers.get("x-api-key"), "score")
            except AccessError as error:
                await on_vouch_error(Request(scope), error)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def is_open(self, path: str) -> bool:
        """Whether the path needs no key; opening /docs also opens its scripts and the OpenAPI document."""
        path = path.removeprefix("/v1") if path.startswith("/v1/") else path
        if "/docs" in self.open_paths and (path == "/openapi.json" or path.startswith("/docs-assets/")):
            return True
        return path in self.open_paths


def document_bodies(app: FastAPI, service: Service) -> None:
    """Add the request bodies that we parse ourselves, and working examples, to the OpenAPI document."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            components = document.setdefault("components", {}).setdefault("schemas", {})
            for model in (
                schemas.Instances,
                schemas.Latents,
                schemas.AliasBody,
                schemas.RestartBody,
                schemas.Problem,
                schemas.ProtocolRequest,
            ):
                schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
                components |= schema.pop("$defs", {})
                components[model.__name__] = schema
            try:
                scorer = service.engine.registry.in_memory(None)
            except (ModelError, UnavailableError):
                scorer = None
            if scorer is None:  # no model to make examples from yet
                return document
            put_examples(document, scorer)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation recommends
