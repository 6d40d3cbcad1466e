"""The application: its parts are put together here, when it is created, and never at import."""

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

from service import __version__
from service.errors import AccessError, ModelError, UnavailableError, VouchError
from service.scoring.scorer import torch_device
from service.serving.batching import InferenceThreads
from service.serving.drift import DriftMonitor
from service.serving.metrics import Metrics
from service.serving.registry import Registry
from service.serving.shadow import Shadow
from service.settings import Settings
from service.store.store import Store
from service.web import inference_protocol, routes, schemas
from service.web.access import KeyRing
from service.web.context import Service
from service.web.examples import put_examples
from service.web.observe import Observe
from service.web.problems import on_http_error, on_validation_error, on_vouch_error

log = logging.getLogger("vouch")
PROBES = ("/livez", "/readyz")


def create_app(settings: Settings) -> FastAPI:
    """An application that serves the store of the settings; models are loaded when it starts."""
    service = service_with(settings)
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
    for router in (routes.lean, routes.router):
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


def service_with(settings: Settings) -> Service:
    """The application's parts, as the settings have them."""
    metrics = Metrics()
    registry = Registry(
        Store(settings.store, settings.cache()),
        settings.device,
        settings.loaded_versions,
        on_failure=metrics.reload_failures.inc,
    )
    on_cpu = torch_device(settings.device).type == "cpu"
    inference = InferenceThreads(
        settings.thread_count() if on_cpu else 1,
        settings.max_queue_evaluations,
        settings.batch_delay_ms / 1000,
        on_batch=metrics.count_batch,
        on_drop=lambda reason: metrics.dropped.labels(reason).inc(),
    )
    shadow = None if settings.shadow is None else Shadow(settings.shadow, settings.shadow_share)
    keys = KeyRing(settings.api_keys_file)
    return Service(
        settings, registry, inference, keys, metrics, DriftMonitor(settings.drift_level, settings.drift_folder), shadow
    )


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Run the inference threads, load the models beside the event loop and follow the store; finish at the end.

    The service listens while it loads: alive, and not ready.
    """
    service: Service = app.state.service
    service.inference.start()
    following = asyncio.create_task(follow_store(service))
    yield
    following.cancel()
    service.loader.shutdown(wait=False, cancel_futures=True)
    await asyncio.to_thread(service.inference.stop)
    await asyncio.to_thread(service.drift.save)
    log.info("stopped")


async def follow_store(service: Service) -> None:
    """Load what the store holds, and look again from time to time."""
    await asyncio.to_thread(service.registry.refresh)
    # What is in memory now stays there: torch's many objects, walked through again and again by the garbage collector,
    # would stop the service for a tenth of a second each time.
    gc.collect()
    gc.freeze()
    threads = len(service.inference.threads)
    log.info("started", extra={"models": service.registry.status(), "threads": threads})
    while seconds := service.settings.store_poll_s:
        await asyncio.sleep(seconds)
        await asyncio.to_thread(service.registry.refresh)


async def reload(service: Service) -> None:
    """What SIGHUP asks for: the keys and the store as they are now."""
    log.info("reloading")
    service.keys.reread()
    await asyncio.to_thread(service.registry.refresh)


class Guard:
    """Asks for an API key, where keys are set, on every path but the probes and those that a setting opens."""

    def __init__(self, app: ASGIApp, ring: KeyRing, open_paths: tuple[str, ...]) -> None:
        self.app = app
        self.ring = ring
        self.open_paths = (*PROBES, *open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request pass, or answer 401."""
        if scope["type"] == "http" and not self.is_open(scope["path"]):
            headers = Headers(scope=scope)
            try:
                self.ring.keys.check(headers.get("authorization"), headers.get("x-api-key"), "score")
            except AccessError as error:
                await on_vouch_error(Request(scope), error)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def is_open(self, path: str) -> bool:
        """Whether the path asks for no key; /docs brings its script and its document along."""
        path = path.removeprefix("/v1") if path.startswith("/v1/") else path
        if "/docs" in self.open_paths and (path == "/openapi.json" or path.startswith("/docs-assets/")):
            return True
        return path in self.open_paths


def document_bodies(app: FastAPI, service: Service) -> None:
    """Add the bodies that we parse ourselves, and examples that run, to the OpenAPI document."""
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
                scorer = service.registry.in_memory(None)
            except (ModelError, UnavailableError):
                scorer = None
            if scorer is None:  # nothing to make an example of, yet
                return document
            put_examples(document, scorer)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation has it
