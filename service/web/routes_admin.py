"""Endpoints for models, aliases and drift monitors."""

from __future__ import annotations

import logging
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from service._version import __version__
from service.errors import ModelError, ModelNotFoundError
from service.scoring.scorer import Scorer
from service.scoring.version import Reference
from service.serving.engine import Engine
from service.store.store import Catalog
from service.web import answers, schemas
from service.web.bodies import read_body, require_scope
from service.web.context import RequestContext, model_id
from service.web.documentation import answers_json, problems, takes
from service.web.lean import only_known_parameters
from service.web.routes_generate import Model

log = logging.getLogger("vouch")
router = APIRouter(dependencies=[Depends(only_known_parameters)])


@router.get("/models", **answers_json("list_models", "models", schemas.ModelsAnswer, problems(503)))
async def models(request: Request) -> Response:
    """List the models with their versions and aliases."""
    context = RequestContext.of(request)
    return answers.json_response(all_models(context))


@router.get("/models/{name}", **answers_json("get_model", "models", schemas.ModelAnswer, problems(404, 503)))
async def one_model(
    request: Request,
    name: str,
    version: Annotated[str | None, Query(description="whose card is told; default: the served one")] = None,
) -> Response:
    """One model: its versions and aliases, and the card of the served version, or of another, with its calibration."""
    context = RequestContext.of(request)
    context.check_model(name)
    document = described(context.engine, name)
    told = Reference(name, document["serving"] if version is None else version)
    if version is not None or told not in context.engine.registry.failures:
        published = (await context.engine.scorer(str(told))).published
        document |= {"card": published.card.model_dump(mode="json"), "digest": published.digest}
    return answers.json_response(document)


@router.post(
    "/models/{name}/aliases",
    **answers_json("move_alias", "models", schemas.AliasAnswer, problems(400, 404, 409, 413, 415, 422, 503)),
    openapi_extra=takes("AliasBody"),
)
async def move_alias(request: Request, name: str) -> Response:
    """Point an alias at a version (scope admin). With `expected`, only if it names that version now."""
    context = RequestContext.of(request)
    require_scope(context, "admin")
    body = await read_body(context, schemas.AliasBody, "the alias cannot be moved")
    engine, registry = context.engine, context.engine.registry
    context.check_model(name)
    await engine.refresh(context.time_left_s())
    # Load the version first: this refuses one that cannot be loaded, and the new one is warm before it takes over.
    await engine.scorer(f"{registry.known(name)}@{body.version}")
    before = registry.catalog.aliases.get(name, {}).get(body.alias)
    asked = {"model": name, "alias": body.alias, "version": body.version, "before": before, "expected": body.expected}
    await engine.recorder.act("alias", asked, context.who(), context.time_left_s())
    aliases = await engine.in_store(
        lambda: registry.store.set_alias(name, body.alias, body.version, body.expected), context.time_left_s()
    )
    log.info(
        "alias moved",
        extra={"model": name, "alias": body.alias, "version": body.version, "before": before, **context.who()},
    )
    await engine.refresh(context.time_left_s())
    return answers.json_response({"name": name, "aliases": aliases.aliases[name]})


@router.get("/drift", **answers_json("get_drift", "drift", schemas.DriftsAnswer, problems(404, 503)))
async def drift(request: Request, model: Model = None) -> Response:
    """Drift monitor of each served model, or of one, since the start or the restored state.

    `drifts` is true once served rows no longer look like the validation rows. With API keys, `keys` has a monitor of the
    rows of each: the caller's own, or all for a key of scope `admin`.
    """
    context = RequestContext.of(request)
    names = (
        [model]
        if model is not None
        else [n for n, state in context.engine.registry.status().items() if state == "ready" and context.may_use(n)]
    )
    scorers = [await context.scorer(name) for name in names]
    return answers.json_response({"drift": [drift_of(context, scorer) for scorer in scorers]})


@router.post(
    "/models/{name}/drift",
    **answers_json("restart_drift", "drift", schemas.DriftsAnswer, problems(400, 404, 413, 415, 422, 503)),
    openapi_extra=takes("RestartBody"),
)
async def restart_drift(request: Request, name: str) -> Response:
    """Restart the drift monitor of the served version, after its alarm was acknowledged (scope admin)."""
    context = RequestContext.of(request)
    require_scope(context, "admin")
    await read_body(context, schemas.RestartBody, "the drift monitor cannot be restarted")
    scorer = await context.scorer(context.engine.registry.known(name))
    asked = {"model": str(scorer.published.reference)}
    await context.engine.recorder.act("drift_restart", asked, context.who(), context.time_left_s())
    context.engine.drift.restart(scorer)
    log.info("drift monitor restarted", extra={"model": str(scorer.published.reference), **context.who()})
    await context.engine.save_drift(context.time_left_s())
    return answers.json_response({"drift": [drift_of(context, scorer)]})


def all_models(context: RequestContext) -> dict[str, Any]:
    """The answer to GET /models: those that the key may use."""
    engine = context.engine
    catalog = engine.registry.catalog
    return {
        "vouch": __version__,
        "default": default_or_none(catalog),
        "models": [described(engine, name) for name in catalog.names() if context.may_use(name)],
    }


def default_or_none(catalog: Catalog) -> str | None:
    """The default model, if there is one."""
    try:
        return catalog.default_name()
    except ModelError:
        return None


def described(engine: Engine, name: str) -> dict[str, Any]:
    """A model's part of the answer to GET /models."""
    registry, catalog = engine.registry, engine.registry.catalog
    if name not in catalog.versions:  # of this very catalog: another thread may replace it
        raise ModelNotFoundError("no such model in the store; GET /models lists those that there are")
    named = catalog.aliases[name]
    serving = Reference(name, catalog.serving[name])
    versions = [
        {
            "version": version,
            "aliases": [alias for alias, target in named.items() if target == version],
            "loaded": registry.state(Reference(name, version)) == "ready",
            "error": failure.text if (failure := registry.failures.get(Reference(name, version))) else None,
        }
        for version in catalog.versions[name]
    ]
    return {
        "name": name,
        "ready": registry.state(serving) == "ready",
        "default": default_or_none(catalog) == name,
        "serving": serving.version,
        "versions": versions,
        "aliases": named,
    }


def drift_of(context: RequestContext, scorer: Scorer) -> dict[str, Any]:
    """One model's part of the answer to GET /drift; a key without scope `admin` sees itself alone."""
    sees_all = context.key is None or "admin" in context.key.scopes
    keys = None if sees_all else [context.caller]
    return {"model": model_id(scorer), **context.engine.drift.document(scorer, keys)}
