"""POST /score, and what the endpoints share. Each endpoint reads, calls the engine and answers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from fastapi import APIRouter, Request, Response

from service.data.cells import CellReader
from service.errors import InputError, MediaTypeError
from service.scoring.scorer import Scorer
from service.web import answers, schemas
from service.web.batch import Batch
from service.web.context import RequestContext, model_id
from service.web.documentation import FILE_TYPES, ROWS_PROBLEMS, answers_file, answers_json, ending, takes
from service.web.images import has_encoded
from service.web.lean import LeanRoute
from service.web.media_types import CSV, FORM, JSON, NDJSON, NPY, PNG, UNTOLD, header_line, likely_type
from service.web.parsing import parse_rows
from service.web.query import ScoreQuery, documented, parse_query, under_policy
from service.web.streaming import scored_lines

LINES_ENDING = ".ndjson"
NUMBERS_A_PIXEL = 4  # that the answer with a map holds, and copies on its way
router = APIRouter(route_class=LeanRoute)


@router.post(
    "/score.{extension}",
    **answers_file("score_file", ROWS_PROBLEMS, NPY, CSV, PNG),
    openapi_extra={
        **takes("Instances", *FILE_TYPES),
        "parameters": [ending(NPY, CSV, PNG), *documented(ScoreQuery)],
    },
)
@router.post(
    "/score.ndjson",
    **answers_file("score_lines", ROWS_PROBLEMS, NDJSON),
    openapi_extra={**takes(None, NDJSON), "parameters": documented(ScoreQuery)},
)
@router.post(
    "/score/files",
    **answers_json("score_files", "files", schemas.ScoresAnswer, ROWS_PROBLEMS),
    openapi_extra={**takes(None, *FILE_TYPES), "parameters": documented(ScoreQuery)},
)
@router.post(
    "/score",
    **answers_json("score", "score", schemas.ScoresAnswer, ROWS_PROBLEMS),
    openapi_extra={**takes("Instances"), "parameters": documented(ScoreQuery)},
)
async def score(request: Request) -> Response:
    """Verdict and log p(x) of each row and, with `explain`, its most suspicious columns or pixels.

    JSON lines are answered line by line, in order, each with a score or a problem. With `explain=map`, the file is both
    maps of each image (npy), or a picture of them (PNG).
    """
    context, query = RequestContext.of(request), parse_query(request.query_params, ScoreQuery)
    wanted = under_policy(query, context.service.policy)
    context.is_trial = query.trial
    limited("explain", wanted.explain, context.settings.max_draws)
    declared, takes_lines = context.media_type, request.scope["path"].endswith(LINES_ENDING)
    if takes_lines and declared not in (NDJSON, *UNTOLD):
        raise MediaTypeError(f"JSON lines are read here: send them with {header_line(NDJSON)}")
    if declared == NDJSON or takes_lines:
        if not takes_lines:
            context.answer_type((NDJSON,))
        if wanted.fdr is not None:
            raise InputError("fdr: needs all rows of a request; it cannot be used with application/x-ndjson")
        return await scored_lines(context, await context.scorer(query.model), wanted)
    kind = context.answer_type((JSON, NPY, PNG) if wanted.maps else (JSON, NPY, CSV))
    if wanted.maps and kind != JSON and wanted.fdr is not None:
        raise InputError("fdr: is told in JSON, maps as npy or PNG have no place for it: ask for JSON")
    scorer = await context.scorer(query.model)
    scorer.check(wanted)
    batch = await batch_of(context, scorer, scorer.judging_reader(wanted.strict))
    limited("rows times explain", len(batch) * wanted.explain, context.settings.max_rows)
    if wanted.maps:
        context.hold_answer(NUMBERS_A_PIXEL * batch.rows.size)
    scores = await context.engine.score(context, scorer, batch.rows, wanted)
    discoveries = None if wanted.fdr is None else scores.discoveries(wanted.fdr, wanted.tail or "low")
    return await context.encoded(
        len(scores) * (scorer.model.input.features if wanted.maps else 1),
        answers.scores_answer,
        kind,
        model_id(scorer),
        scores,
        batch,
        discoveries,
        partial(scorer.pixel_maps, scores, batch.rows) if wanted.maps else None,
    )


async def batch_of(context: RequestContext, scorer: Scorer, reader: CellReader | None = None) -> Batch:
    """Read and parse the rows of a request; by default a cell that cannot be read is an error."""
    context.engine.check_room(context, scorer)
    body = await context.body()
    reader = reader or replace(scorer.reader, is_strict=True)
    parse = partial(parse_rows, body, context.content_type, scorer.model.input, reader, context.limits())
    kind = likely_type(context.media_type, body)
    may_take_long = kind.startswith(("image/", FORM)) or has_encoded(body, scorer.model.input)
    return await context.parsed(len(body), parse, always_beside=may_take_long)


def limited(name: str, value: int, limit: int) -> None:
    """Raise if a value exceeds the limit."""
    if value > limit:
        raise InputError(f"{name}: at most {limit:,}")
