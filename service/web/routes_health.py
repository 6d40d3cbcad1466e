"""Probes and metrics."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request, Response
from starlette.responses import PlainTextResponse

from service._version import __version__
from service.web import answers, schemas
from service.web.context import RequestContext
from service.web.documentation import PROBE, answers_json, problems
from service.web.lean import LeanRoute, only_known_parameters

probes = APIRouter(route_class=LeanRoute)
router = APIRouter(dependencies=[Depends(only_known_parameters)])


@probes.get("/healthz", **answers_json("healthz", "health", schemas.StatusAnswer, PROBE))
@probes.get("/livez", **answers_json("livez", "health", schemas.StatusAnswer, PROBE))
async def livez(request: Request) -> Response:
    """Alive, for what restarts the service; also `/healthz`.

    The event loop answers, every inference thread runs, and inference has not failed for minutes.
    """
    alive = RequestContext.of(request).engine.is_alive()
    return answers.json_response(
        {"status": "ok" if alive else "unavailable", "models": {}}, None, 200 if alive else 503
    )


@probes.get("/health", **answers_json("health", "health", schemas.StatusAnswer, PROBE))
@probes.get("/readyz", **answers_json("readyz", "health", schemas.StatusAnswer, PROBE))
async def readyz(request: Request) -> Response:
    """Ready, for load balancers; also `/health`.

    The default model is in memory, verified and warm, inference works, and the service is not shutting down.

    The body lists the models that are not ready. `held_back` has new versions in the store that cannot be served, and what
    else does not work: the `store`, if it does not answer; `inference`, if it fails; the file of `keys`.
    """
    service = RequestContext.of(request).service
    registry = service.engine.registry
    ready = service.is_ready()
    status = "ok" if ready else "draining" if service.draining else registry.phase()
    document = {"status": status, "models": registry.status(), "held_back": service.problems()}
    return answers.json_response(document, None if ready else {"Retry-After": "5"}, 200 if ready else 503)


@router.get("/version", **answers_json("version", "health", schemas.VersionInfo, problems()))
async def version(request: Request) -> Response:
    """The version of Vouch, and of the HTTP contract, and whether there is a journal."""
    journal = RequestContext.of(request).settings.journal is not None
    return answers.json_response({"vouch": __version__, "api": "v1", "journal": journal})


@router.get(
    "/metrics",
    operation_id="metrics",
    tags=["health"],
    response_class=PlainTextResponse,
    responses={200: {"description": "Metrics as text."}, **problems()},
)
async def metrics(request: Request) -> Response:
    """Metrics in the text format of Prometheus."""
    engine = RequestContext.of(request).engine
    engine.metrics.queue.set(engine.inference.waiting_cost)
    engine.metrics.rate.set(engine.inference.rate())
    engine.metrics.held_back.set(len(RequestContext.of(request).service.problems()))
    engine.metrics.inference_failures.set(engine.inference.failures)
    engine.metrics.store_silent.set(engine.registry.store.silent_s())
    for reference, (log_capital, drifts, keys) in engine.drift.alarms().items():
        engine.metrics.drift_capital.labels(str(reference)).set(log_capital)
        engine.metrics.drifts.labels(str(reference)).set(drifts)
        engine.metrics.drifting_keys.labels(str(reference)).set(keys)
    return Response(engine.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
