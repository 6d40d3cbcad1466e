"""KServe's protocol, version 1: rows in, predictions out, both in JSON."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.scoring.options import DEFAULT
from service.web import answers, schemas
from service.web.context import RequestContext, model_id
from service.web.documentation import ROWS_PROBLEMS, answers_json, takes
from service.web.lean import LeanRoute
from service.web.media_types import JSON
from service.web.routes import batch_of

router = APIRouter(route_class=LeanRoute)


@router.post(
    "/v1/models/{name}:predict",
    **answers_json("kserve_predict", "open inference protocol", schemas.PredictionsAnswer, ROWS_PROBLEMS),
    openapi_extra=takes("Instances"),
)
async def predict(request: Request, name: str) -> Response:
    """Score rows, as `POST /score` does, for clients of KServe's version 1."""
    context = RequestContext.of(request)
    context.answer_type((JSON,))
    scorer = await context.scorer(name)
    batch = await batch_of(context, scorer, scorer.judging_reader())
    scores = await context.engine.score(context, scorer, batch.rows, context.service.policy or DEFAULT)
    return await context.encoded(len(scores), answers.predictions_answer, model_id(scorer), scores, batch)
