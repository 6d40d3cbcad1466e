"""Endpoints for reconstructions, encodings, decoded latents, samples and the manifold."""

from __future__ import annotations

import secrets
from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request, Response

from service.scoring.scorer import Scorer
from service.web import answers, schemas
from service.web.caching import is_known, not_modified, tag_headers, tag_of
from service.web.context import RequestContext, model_id
from service.web.documentation import (
    FILE_TYPES,
    READ_PROBLEMS,
    ROWS_PROBLEMS,
    answers_file,
    answers_json,
    ending,
    takes,
)
from service.web.lean import only_known_parameters
from service.web.media_types import CSV, JSON, NPY, PNG
from service.web.parsing import parse_latents
from service.web.routes import batch_of, limited

MAX_SEED = 2**53 - 1  # the largest integer that every JSON parser reads exactly

Model = Annotated[str | None, Query(description="NAME, NAME@VERSION or NAME@ALIAS; default: the store's default")]
Seed = Annotated[int | None, Query(ge=0, le=MAX_SEED, description="seed, for reproducible draws")]
MemberNumber = Annotated[int, Query(ge=0, le=99, description="index of the ensemble member whose latents are used")]
Draws = Annotated[int, Query(ge=0, description="number of posterior draws for each row")]

router = APIRouter(dependencies=[Depends(only_known_parameters)])


@router.post(
    "/reconstruct.{extension}",
    **answers_file("reconstruct_file", ROWS_PROBLEMS, NPY, CSV, PNG),
    openapi_extra={**takes("Instances", *FILE_TYPES), "parameters": [ending(NPY, CSV, PNG)]},
)
@router.post(
    "/reconstruct/files",
    **answers_json("reconstruct_files", "files", schemas.ReconstructionsAnswer, ROWS_PROBLEMS),
    openapi_extra=takes(None, *FILE_TYPES),
)
@router.post(
    "/reconstruct",
    **answers_json("reconstruct", "generate", schemas.ReconstructionsAnswer, ROWS_PROBLEMS),
    openapi_extra=takes("Instances"),
)
async def reconstruct(request: Request, model: Model = None, draws: Draws = 0) -> Response:
    """E[x given z] over the posterior of each row, and posterior draws."""
    context = RequestContext.of(request)
    scorer = await context.scorer(model)
    kind = context.answer_type(array_types(scorer))
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


@router.get(
    "/sample.{extension}",
    **answers_file("sample_file", READ_PROBLEMS, NPY, CSV, PNG),
    openapi_extra={"parameters": [ending(NPY, CSV, PNG)]},
)
@router.get("/sample", **answers_json("sample", "generate", schemas.SamplesAnswer, READ_PROBLEMS))
async def sample(
    request: Request,
    model: Model = None,
    num: Annotated[int, Query(ge=1, description="number of samples")] = 16,
    seed: Seed = None,
    of: Annotated[
        Literal["observation", "mean"], Query(description="observation: x given z; mean: E[x given z]")
    ] = "observation",
) -> Response:
    """Ancestral samples: z from the prior, then x given z. A seed gives the same samples again, and its answer a tag."""
    context = RequestContext.of(request)
    scorer = await context.scorer(model)
    kind = context.answer_type(array_types(scorer))
    limited("num", num, context.settings.max_num)
    if seed is None:
        chosen, headers = secrets.randbelow(MAX_SEED), {"Cache-Control": "no-store"}
    else:
        chosen, tag = seed, tag_of("sample", scorer.published.digest, num, seed, of, kind)
        if is_known(request.headers, tag):
            return not_modified(tag)
        headers = tag_headers(tag)
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


@router.post(
    "/encode.{extension}",
    **answers_file("encode_file", ROWS_PROBLEMS, NPY),
    openapi_extra={**takes("Instances", *FILE_TYPES), "parameters": [ending(NPY)]},
)
@router.post(
    "/encode/files",
    **answers_json("encode_files", "files", schemas.EncodingsAnswer, ROWS_PROBLEMS),
    openapi_extra=takes(None, *FILE_TYPES),
)
@router.post(
    "/encode",
    **answers_json("encode", "generate", schemas.EncodingsAnswer, ROWS_PROBLEMS),
    openapi_extra=takes("Instances"),
)
async def encode(request: Request, model: Model = None, draws: Draws = 0, member: MemberNumber = 0) -> Response:
    """q(z given x) of each row: mean and standard deviation per latent, and draws."""
    context = RequestContext.of(request)
    kind = context.answer_type((JSON, NPY))
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
    "/decode.{extension}",
    **answers_file("decode_file", ROWS_PROBLEMS, NPY, CSV, PNG),
    openapi_extra={**takes("Latents", NPY), "parameters": [ending(NPY, CSV, PNG)]},
)
@router.post(
    "/decode",
    **answers_json("decode", "generate", schemas.MeansAnswer, ROWS_PROBLEMS),
    openapi_extra=takes("Latents"),
)
async def decode(request: Request, model: Model = None, member: MemberNumber = 0) -> Response:
    """E[x given z] for latents z."""
    context = RequestContext.of(request)
    scorer = await context.scorer(model)
    scorer.member(member)
    kind = context.answer_type(array_types(scorer))
    body = await context.body()
    parse = partial(parse_latents, body, context.content_type, scorer.latents, context.limits())
    latents, warning = await context.parsed(len(body), parse)
    context.hold_answer(len(latents) * scorer.model.input.features)
    means = await context.engine.once(context, scorer, lambda: scorer.decode(latents, member), len(latents))
    warnings = () if warning is None else (warning,)
    return await context.encoded(
        means.size, answers.means_response, kind, model_id(scorer), means, scorer.model.input, warnings
    )


@router.get(
    "/manifold.{extension}",
    **answers_file("manifold_file", READ_PROBLEMS, NPY, CSV, PNG),
    openapi_extra={"parameters": [ending(NPY, CSV, PNG)]},
)
@router.get("/manifold", **answers_json("manifold", "generate", schemas.ManifoldAnswer, READ_PROBLEMS))
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
    kind = context.answer_type(array_types(scorer))
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
