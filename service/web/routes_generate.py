"""Endpoints for reconstructions, encodings, decoded latents, samples and the manifold."""

from __future__ import annotations

import secrets
from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request, Response

from service.scoring.scorer import Scorer
from service.web import answers, schemas
from service.web.answers import CSV, JSON, NPY, PNG
from service.web.context import RequestContext, model_id
from service.web.documentation import READ_PROBLEMS, ROW_TYPES, ROWS_PROBLEMS, options, takes
from service.web.lean import only_known_parameters
from service.web.parsing import parse_latents
from service.web.routes import batch_of, limited

MAX_SEED = 2**53 - 1  # the largest integer that every JSON parser reads exactly

Model = Annotated[str | None, Query(description="NAME, NAME@VERSION or NAME@ALIAS; default: the store's default")]
Seed = Annotated[int | None, Query(ge=0, le=MAX_SEED, description="seed, for reproducible draws")]
MemberNumber = Annotated[int, Query(ge=0, le=99, description="index of the ensemble member whose latents are used")]
Draws = Annotated[int, Query(ge=0, description="number of posterior draws for each row")]

router = APIRouter(dependencies=[Depends(only_known_parameters)])


@router.post(
    "/reconstruct",
    **options(schemas.ReconstructionsAnswer, ROWS_PROBLEMS, NPY, PNG, CSV),
    openapi_extra=takes("Instances", *ROW_TYPES),
)
async def reconstruct(request: Request, model: Model = None, draws: Draws = 0) -> Response:
    """E[x given z] over the posterior of each row, and posterior draws."""
    context = RequestContext.of(request)
    scorer = await context.scorer(model)
    kind = answers.negotiate(context.accept, array_types(scorer))
    limited("draws", draws, context.settings.max_draws)
    batch = await batch_of(context, scorer)
    rows = batch.rows[:, : scorer.model.input.features]
    limited("rows times draws", len(batch) * draws, context.settings.max_rows)
    context.hold_answer(rows.size * (2 + draws))
    answer = await context.engine.on_rows(
        context, scorer, rows, lambda rows, _: scorer.reconstruct(rows, draws), ("reconstruct", scorer, draws)
    )
    return await context.encoded(
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
    """q(z given x) of each row: mean and standard deviation per latent, and draws."""
    context = RequestContext.of(request)
    kind = answers.negotiate(context.accept, (JSON, NPY))
    scorer = await context.scorer(model)
    scorer.member(member)
    limited("draws", draws, context.settings.max_draws)
    batch = await batch_of(context, scorer)
    rows = batch.rows[:, : scorer.model.input.features]
    limited("rows times draws", len(batch) * draws, context.settings.max_rows)
    context.hold_answer(len(batch) * scorer.latents * (2 + draws))
    answer = await context.engine.on_rows(
        context,
        scorer,
        rows,
        lambda rows, _: scorer.encode(rows, draws, member),
        ("encode", scorer, draws, member),
    )
    return await context.encoded(
        answer.mean.size, answers.encodings_response, kind, model_id(scorer), answer, batch.warnings
    )


@router.post(
    "/decode", **options(schemas.MeansAnswer, ROWS_PROBLEMS, NPY, PNG, CSV), openapi_extra=takes("Latents", NPY)
)
async def decode(request: Request, model: Model = None, member: MemberNumber = 0) -> Response:
    """E[x given z] for latents z."""
    context = RequestContext.of(request)
    scorer = await context.scorer(model)
    scorer.member(member)
    kind = answers.negotiate(context.accept, array_types(scorer))
    body = await context.body()
    parse = partial(parse_latents, body, context.content_type, scorer.latents, context.limits())
    latents = await context.parsed(len(body), parse)
    context.hold_answer(len(latents) * scorer.model.input.features)
    means = await context.engine.once(context, scorer, lambda: scorer.decode(latents, member), len(latents))
    return await context.encoded(means.size, answers.means_response, kind, model_id(scorer), means, scorer.model.input)


@router.get("/sample", **options(schemas.SamplesAnswer, READ_PROBLEMS, NPY, PNG, CSV))
async def sample(
    request: Request,
    model: Model = None,
    num: Annotated[int, Query(ge=1, description="number of samples")] = 16,
    seed: Seed = None,
    of: Annotated[
        Literal["observation", "mean"], Query(description="observation: x given z; mean: E[x given z]")
    ] = "observation",
) -> Response:
    """Ancestral samples: z from the prior, then x given z."""
    context = RequestContext.of(request)
    scorer = await context.scorer(model)
    kind = answers.negotiate(context.accept, array_types(scorer))
    limited("num", num, context.settings.max_num)
    headers = {} if seed is not None else {"Cache-Control": "no-store"}
    chosen = secrets.randbelow(MAX_SEED) if seed is None else seed
    context.hold_answer(num * scorer.model.input.features)
    samples = await context.engine.once(context, scorer, lambda: scorer.sample(num, chosen, of), num)
    headers["X-Seed"] = str(chosen)
    return await context.encoded(
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
        str, Query(pattern=r"^\d{1,4},\d{1,4}$", description="two latents; all others stay at their means")
    ] = "0,1",
    member: MemberNumber = 0,
) -> Response:
    """E[x given z] over a grid of prior quantiles of two latents."""
    context = RequestContext.of(request)
    scorer = await context.scorer(model)
    scorer.member(member)
    kind = answers.negotiate(context.accept, array_types(scorer))
    limited("size", size, context.settings.max_grid)
    first, second = map(int, axes.split(","))
    context.hold_answer(size * size * scorer.model.input.features)
    grid = await context.engine.once(
        context, scorer, lambda: scorer.manifold(size, (first, second), member), size * size
    )
    return await context.encoded(
        grid.means.size, answers.manifold_response, kind, model_id(scorer), grid, scorer.model.input
    )


def array_types(scorer: Scorer) -> tuple[str, ...]:
    """Answer types for rows: with PNG for images, with CSV for tables."""
    return (JSON, NPY, PNG) if scorer.model.input.kind == "image" else (JSON, NPY, CSV)
