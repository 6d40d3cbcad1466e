"""The endpoints: each reads, calls the scorer, answers."""

from __future__ import annotations

import asyncio
import math
import secrets
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ValidationError

from service import __version__
from service.errors import Fault, InputError, MalformedError, MediaTypeError, ModelError
from service.scoring.scorer import Scorer, Scores
from service.store.store import Catalog, Reference
from service.validity.band import percentiles_of
from service.validity.conformal import Discoveries, Tail
from service.web import answers, schemas
from service.web.answers import CSV, JSON, NDJSON, NPY, PNG
from service.web.context import Service, Wanted, body_of, encoded, model_id, parsed, service_of
from service.web.lean import LeanRoute, only_known_parameters
from service.web.parsing import Batch, media_type, parse_latents, parse_rows
from service.web.streaming import scored_lines

B = TypeVar("B", bound=BaseModel)
MAX_SEED = 2**53 - 1  # what JSON numbers hold exactly everywhere

Model = Annotated[str | None, Query(description="NAME, NAME@VERSION or NAME@ALIAS; default: the store's default")]
Seed = Annotated[int | None, Query(ge=0, le=MAX_SEED, description="for the same draws again")]
Percentiles = Annotated[
    str | None, Query(description="another band for this request, from the same validation scores, such as 1,99")
]
FalseAlarm = Annotated[
    str | None,
    Query(description="instead of percentiles: the share of valid rows that may be called invalid, such as 0.01"),
]
RuleOf = Annotated[
    str | None,
    Query(
        description="band: verdicts by log_likelihood; combined: by all evidence, at a rate of false alarms",
        json_schema_extra={"enum": ["band", "combined"]},
    ),
]
TailOf = Annotated[
    str | None,
    Query(
        description="low: only rows that are too unlikely; both: too likely ones, too",
        json_schema_extra={"enum": ["low", "both"]},
    ),
]
Fdr = Annotated[
    str | None,
    Query(description="marks rows as discoveries so that the expected share of valid ones among them is at most this"),
]
Explain = Annotated[int, Query(ge=0, description="how many of the columns most to blame, for each row")]
MemberNumber = Annotated[int, Query(ge=0, le=99, description="of an ensemble's networks, whose latents these are")]
Draws = Annotated[int, Query(ge=0, description="draws for each row")]


router = APIRouter(dependencies=[Depends(only_known_parameters)])
lean = APIRouter(route_class=LeanRoute)  # what is asked most


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problem documents that an endpoint may answer, for the OpenAPI page."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": "a problem document", "content": content} for status in (401, 403, 422, *statuses)}


def problems_of_probes() -> dict[int | str, dict[str, Any]]:
    """What a probe answers when it is red, or misspelt."""
    return {503: {"model": schemas.StatusAnswer}, 422: problems()[422]}


ROWS_PROBLEMS = problems(400, 404, 406, 413, 415, 422, 429, 503, 504)
READ_PROBLEMS = problems(404, 406, 422, 429, 503, 504)


def answered_by(model: type[Any], *kinds: str) -> dict[str, Any]:
    """The documented answer: JSON of a schema, and other types beside it."""
    other = {"content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in kinds}}
    return {"response_model": model, "responses": {200: other}}


def options(model: type[Any], problem_set: dict[int | str, dict[str, Any]], *kinds: str) -> dict[str, Any]:
    """What the decorators of an endpoint say to the OpenAPI page."""
    documented = answered_by(model, *kinds)
    return {**documented, "responses": {**documented["responses"], **problem_set}}


def takes(schema: str, *kinds: str) -> dict[str, Any]:
    """The documented request body; its example is put in when the default model is known (`examples.py`)."""
    content: dict[str, Any] = {JSON: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    content |= {kind: {"schema": {"type": "string", "format": "binary"}} for kind in kinds}
    return {"requestBody": {"required": True, "content": content}}


ROW_TYPES = (NPY, "image/png", "image/jpeg", "text/csv")


@lean.post(
    "/score",
    **options(schemas.ScoresAnswer, ROWS_PROBLEMS, NPY, CSV, NDJSON),
    openapi_extra=takes("Instances", *ROW_TYPES, NDJSON),
)
async def score(
    request: Request,
    model: Model = None,
    percentiles: Percentiles = None,
    false_alarm: FalseAlarm = None,
    tail: TailOf = None,
    rule: RuleOf = None,
    fdr: Fdr = None,
    explain: Explain = 0,
) -> Response:
    """Verdict and log p(x) of each row, with the columns most to blame."""
    service = service_of(request)
    combined = is_combined(rule)
    if combined and (percentiles is not None or tail is not None):
        raise InputError("rule=combined: goes by false_alarm; percentiles and tail are the band's")
    wanted = Wanted(
        band_of(percentiles, None if combined else false_alarm, tail),
        count_of("explain", explain, service.settings.max_draws),
        combined,
        share_of("false_alarm", false_alarm) if combined else None,
        share_of("fdr", fdr),
        tail_of(tail) or "low",
    )
    if media_type(request.headers.get("content-type", "")) == NDJSON:
        answers.negotiate(accepted(request), (NDJSON,))
        if wanted.fdr is not None:
            raise InputError("fdr: is about all rows of a request together; a stream of lines has no end to wait for")
        return await scored_lines(service, request, await service.scorer(model), wanted)
    kind = answers.negotiate(accepted(request), (JSON, NPY, CSV))
    scorer = await service.scorer(model)
    wanted.check(scorer)
    batch = await batch_of(request, service, scorer)
    limited("rows times explain", len(batch) * wanted.explain, service.settings.max_rows)
    scores = await service.score(request, scorer, batch.rows, wanted)
    return await encoded(
        request,
        len(scores),
        answers.scores_answer,
        kind,
        model_id(scorer),
        scores,
        batch.ids,
        scorer.model.input,
        batch.warnings,
        discoveries_of(scores, wanted),
    )


@router.post(
    "/reconstruct",
    **options(schemas.ReconstructionsAnswer, ROWS_PROBLEMS, NPY, PNG, CSV),
    openapi_extra=takes("Instances", *ROW_TYPES),
)
async def reconstruct(request: Request, model: Model = None, draws: Draws = 0) -> Response:
    """E[x given z] over the posterior of each row, with posterior draws beside it."""
    service = service_of(request)
    scorer = await service.scorer(model)
    kind = answers.negotiate(accepted(request), array_types(scorer))
    limited("draws", draws, service.settings.max_draws)
    batch = await batch_of(request, service, scorer)
    limited("rows times draws", len(batch) * draws, service.settings.max_rows)
    answer = await service.on_rows(
        request, scorer, batch.rows, lambda rows, _: scorer.reconstruct(rows, draws), ("reconstruct", scorer, draws)
    )
    return await encoded(
        request,
        answer.mean.size,
        answers.reconstructions_response,
        kind,
        model_id(scorer),
        answer,
        scorer.model.input,
        batch.warnings,
    )


@router.post(
    "/encode", **options(schemas.EncodingsAnswer, ROWS_PROBLEMS, NPY), openapi_extra=takes("Instances", *ROW_TYPES)
)
async def encode(request: Request, model: Model = None, draws: Draws = 0, member: MemberNumber = 0) -> Response:
    """q(z given x) of each row: mean and standard deviation per latent, with draws."""
    service = service_of(request)
    kind = answers.negotiate(accepted(request), (JSON, NPY))
    scorer = await service.scorer(model)
    scorer.member(member)
    limited("draws", draws, service.settings.max_draws)
    batch = await batch_of(request, service, scorer)
    limited("rows times draws", len(batch) * draws, service.settings.max_rows)
    answer = await service.on_rows(
        request,
        scorer,
        batch.rows,
        lambda rows, _: scorer.encode(rows, draws, member),
        ("encode", scorer, draws, member),
    )
    return await encoded(
        request, answer.mean.size, answers.encodings_response, kind, model_id(scorer), answer, batch.warnings
    )


@router.post(
    "/decode", **options(schemas.MeansAnswer, ROWS_PROBLEMS, NPY, PNG, CSV), openapi_extra=takes("Latents", NPY)
)
async def decode(request: Request, model: Model = None, member: MemberNumber = 0) -> Response:
    """E[x given z] for latents z."""
    service = service_of(request)
    scorer = await service.scorer(model)
    scorer.member(member)
    kind = answers.negotiate(accepted(request), array_types(scorer))
    body = await body_of(request)
    content_type = request.headers.get("content-type", "")
    parse = partial(parse_latents, body, content_type, scorer.latents, service.settings.max_rows)
    latents = await parsed(request, len(body), parse)
    means = await service.once(request, lambda: scorer.decode(latents, member), len(latents))
    return await encoded(request, means.size, answers.means_response, kind, model_id(scorer), means, scorer.model.input)


@router.get("/sample", **options(schemas.SamplesAnswer, READ_PROBLEMS, NPY, PNG, CSV))
async def sample(
    request: Request,
    model: Model = None,
    num: Annotated[int, Query(ge=1, description="how many")] = 16,
    seed: Seed = None,
    of: Annotated[Literal["observation", "mean"], Query(description="x given z, or E[x given z]")] = "observation",
) -> Response:
    """Ancestral samples: z from the prior, then x given z."""
    service = service_of(request)
    scorer = await service.scorer(model)
    kind = answers.negotiate(accepted(request), array_types(scorer))
    limited("num", num, service.settings.max_num)
    headers = {} if seed is not None else {"Cache-Control": "no-store"}
    chosen = secrets.randbelow(MAX_SEED) if seed is None else seed
    samples = await service.once(request, lambda: scorer.sample(num, chosen, of), num)
    headers["X-Seed"] = str(chosen)
    return await encoded(
        request,
        samples.samples.size,
        answers.samples_response,
        kind,
        model_id(scorer),
        samples,
        scorer.model.input,
        headers,
    )


@router.get("/manifold", **options(schemas.ManifoldAnswer, READ_PROBLEMS, NPY, PNG, CSV))
async def manifold(
    request: Request,
    model: Model = None,
    size: Annotated[int, Query(ge=1, description="the grid is size x size")] = 20,
    axes: Annotated[
        str, Query(pattern=r"^\d{1,4},\d{1,4}$", description="two latents; the others are at their means")
    ] = "0,1",
    member: MemberNumber = 0,
) -> Response:
    """E[x given z] over a grid of prior quantiles of two latents."""
    service = service_of(request)
    scorer = await service.scorer(model)
    scorer.member(member)
    kind = answers.negotiate(accepted(request), array_types(scorer))
    limited("size", size, service.settings.max_grid)
    first, second = map(int, axes.split(","))
    grid = await service.once(request, lambda: scorer.manifold(size, (first, second), member), size * size)
    return await encoded(
        request, grid.means.size, answers.manifold_response, kind, model_id(scorer), grid, scorer.model.input
    )


@router.get("/models", response_model=schemas.ModelsAnswer, responses=problems(503))
async def models(request: Request) -> Response:
    """What is served: each model with its versions and aliases."""
    service = service_of(request)
    return answers.json_response(await asyncio.to_thread(all_models, service))


@router.get("/models/{name}", response_model=schemas.ModelAnswer, responses=problems(404, 503))
async def one_model(request: Request, name: str) -> Response:
    """One model: versions, aliases, and the card of the version that is served, with its calibration."""
    service = service_of(request)
    return answers.json_response(await asyncio.to_thread(described, service, name))


@router.post(
    "/models/{name}/aliases",
    response_model=schemas.AliasAnswer,
    responses=problems(400, 404, 409, 413, 415, 422, 503),
    openapi_extra=takes("AliasBody"),
)
async def move_alias(request: Request, name: str) -> Response:
    """Let an alias name a version (scope admin). With `expected`, only if it names that one now."""
    service = service_of(request)
    check_admin(request, service)
    body = read_body(await body_of(request), schemas.AliasBody, "the alias cannot be moved")
    registry = service.registry
    await asyncio.to_thread(registry.refresh)
    # A version that cannot be loaded is refused here, and the one that takes over is warm before it does.
    await service.scorer(f"{registry.known(name)}@{body.version}")
    aliases = await asyncio.to_thread(registry.store.set_alias, name, body.alias, body.version, body.expected)
    await asyncio.to_thread(registry.refresh)
    return answers.json_response({"name": name, "aliases": aliases.aliases[name]})


@router.get("/drift", response_model=schemas.DriftsAnswer, responses=problems(404, 503))
async def drift(request: Request, model: Model = None) -> Response:
    """The rows served since the start, or since the state that was kept, beside what valid rows would look like.

    `drifts` says that they are no more like the validation rows. All served models, or one.
    """
    service = service_of(request)
    names = [model] if model is not None else [n for n, state in service.registry.status().items() if state == "ready"]
    scorers = [await service.scorer(name) for name in names]
    return answers.json_response({"drift": [drift_of(service, scorer) for scorer in scorers]})


@router.post(
    "/models/{name}/drift",
    response_model=schemas.DriftsAnswer,
    responses=problems(400, 404, 413, 415, 422, 503),
    openapi_extra=takes("RestartBody"),
)
async def restart_drift(request: Request, name: str) -> Response:
    """Let the drift monitor of the version that is served begin anew, after it spoke and was heard (scope admin)."""
    service = service_of(request)
    check_admin(request, service)
    read_body(await body_of(request), schemas.RestartBody, "the drift monitor cannot begin anew")
    scorer = await service.scorer(service.registry.known(name))
    await asyncio.to_thread(service.drift.restart, scorer)
    return answers.json_response({"drift": [drift_of(service, scorer)]})


@lean.get("/livez", response_model=schemas.StatusAnswer, responses=problems_of_probes())
async def livez(request: Request) -> Response:
    """Alive: the event loop answers and every inference thread runs."""
    alive = service_of(request).inference.is_alive()
    return answers.json_response(
        {"status": "ok" if alive else "unavailable", "models": {}}, None, 200 if alive else 503
    )


@lean.get("/readyz", response_model=schemas.StatusAnswer, responses=problems_of_probes())
async def readyz(request: Request) -> Response:
    """Ready: the default model is in memory, verified and warm, and the service is not about to end.

    The body says which models are not, and what is new in the store and cannot be served.
    """
    service = service_of(request)
    registry = service.registry
    ready = service.is_ready()
    status = "ok" if ready else "draining" if service.draining else registry.phase()
    document = {"status": status, "models": registry.status(), "held_back": registry.held_back}
    return answers.json_response(document, None if ready else {"Retry-After": "5"}, 200 if ready else 503)


@router.get("/metrics", response_class=Response, responses=problems())
async def metrics(request: Request) -> Response:
    """Prometheus text."""
    service = service_of(request)
    service.metrics.queue.set(service.inference.waiting_cost)
    service.metrics.rate.set(service.inference.rate())
    service.metrics.held_back.set(len(service.registry.held_back))
    for reference, (log_capital, drifts) in service.drift.capitals().items():
        service.metrics.drift_capital.labels(str(reference)).set(log_capital)
        service.metrics.drifts.labels(str(reference)).set(drifts)
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


# What the endpoints share


async def batch_of(request: Request, service: Service, scorer: Scorer) -> Batch:
    """The request's rows."""
    settings = service.settings
    service.inference.check_room(scorer.model.row_cost)  # before a body is read for nothing
    body = await body_of(request)
    content_type = request.headers.get("content-type", "")
    parse = partial(parse_rows, body, content_type, scorer.model.input, settings.max_rows, settings.max_pixels)
    return await parsed(request, len(body), parse, always_beside=content_type.startswith("image/"))


def accepted(request: Request) -> str:
    """The Accept header, which may come in several lines."""
    return ",".join(request.headers.getlist("accept"))


def count_of(name: str, text: str | int, limit: int) -> int:
    """A whole number of a lean route's query."""
    if not str(text).isascii() or not str(text).isdecimal() or len(str(text)) > 9:
        raise InputError(f"{name}: expected a whole number from 0 to {limit:,}")
    limited(name, int(text), limit)
    return int(text)


def limited(name: str, value: int, limit: int) -> None:
    """Refuse more than the deployment allows."""
    if value > limit:
        raise InputError(f"{name}: at most {limit:,} are allowed here")


def array_types(scorer: Scorer) -> tuple[str, ...]:
    """The types that answer with rows: pictures of images, CSV of tables."""
    return (JSON, NPY, PNG) if scorer.model.input.kind == "image" else (JSON, NPY, CSV)


def band_of(percentiles: str | None, false_alarm: str | None, tail: str | None) -> tuple[float, float] | None:
    """`1,99`, or the percentiles of a rate of false alarms; whether they can be given is the calibration's to say."""
    rate = share_of("false_alarm", false_alarm)
    if rate is not None:
        if percentiles is not None:
            raise InputError("percentiles and false_alarm: expected one of them")
        return percentiles_of(rate, tail_of(tail) or "both")
    if percentiles is None:
        return None
    try:
        low, high = (float(part) for part in percentiles.split(","))
    except ValueError:
        raise InputError("percentiles: expected two numbers such as 1,99") from None
    if math.isnan(low) or math.isnan(high) or high >= 100:
        raise InputError("percentiles: expected two numbers such as 1,99")
    return low, high


def share_of(name: str, text: str | None) -> float | None:
    """A number above 0 and below 1."""
    if text is None:
        return None
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise InputError(f"{name}: expected a number above 0 and below 1, such as 0.01")
    return share


def is_combined(rule: str | None) -> bool:
    """Whether all evidence is to be combined."""
    if rule not in (None, "band", "combined"):
        raise InputError("rule: expected band or combined")
    return rule == "combined"


def tail_of(text: str | None) -> Tail | None:
    """Which rows are strange."""
    match text:
        case None | "low" | "both":
            return text
    raise InputError("tail: expected low or both")


def discoveries_of(scores: Scores, wanted: Wanted) -> Discoveries | None:
    """The rows to mark, where the request asks for that."""
    return None if wanted.fdr is None else scores.discoveries(wanted.fdr, wanted.fdr_tail)


def check_admin(request: Request, service: Service) -> None:
    """Refuse who has no key of scope `admin`, where keys are set, and bodies that are no JSON."""
    service.keys.keys.check(request.headers.get("authorization"), request.headers.get("x-api-key"), "admin")
    if media_type(request.headers.get("content-type", "")) != JSON:
        raise MediaTypeError("the content type is not spoken, expected application/json")


def read_body(body: bytes, kind: type[B], refused: str) -> B:
    """A small JSON body; `refused` says what cannot be done if it is not what was expected."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        problems_found = error.errors(include_input=False, include_url=False)
        if problems_found[0]["type"] == "json_invalid":
            raise MalformedError("the body is not JSON") from None
        fields = kind.model_fields
        faults = [
            Fault(item["msg"], None, next((name for name in item["loc"][:1] if name in fields), None))
            for item in problems_found[: InputError.MAX_FAULTS]
        ]
        raise InputError(refused, faults) from None


def all_models(service: Service) -> dict[str, Any]:
    """GET /models."""
    catalog = service.registry.catalog
    return {
        "vouch": __version__,
        "default": default_or_none(catalog),
        "models": [described(service, name, with_card=False) for name in catalog.names()],
    }


def default_or_none(catalog: Catalog) -> str | None:
    """The default model, where there is one."""
    try:
        return catalog.default_name()
    except ModelError:
        return None


def described(service: Service, name: str, with_card: bool = True) -> dict[str, Any]:
    """GET /models/{name}."""
    registry, catalog = service.registry, service.registry.catalog
    registry.known(name)
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
    document: dict[str, Any] = {
        "name": name,
        "default": default_or_none(catalog) == name,
        "serving": serving.version,
        "versions": versions,
        "aliases": named,
    }
    if with_card and serving not in registry.failures:
        published = registry.get(name).published
        document |= {"card": published.card.model_dump(mode="json"), "digest": published.digest}
    return document


def drift_of(service: Service, scorer: Scorer) -> dict[str, Any]:
    """GET /drift, for one model."""
    return {"model": model_id(scorer), **service.drift.document(scorer)}
