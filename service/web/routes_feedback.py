"""POST and GET /feedback: what people say of verdicts, and which rows they are asked about."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from fastapi import APIRouter, Depends, Query, Request, Response

from service.errors import InputError, MalformedError, VouchError
from service.journal.contents import each_row
from service.journal.database import Database
from service.journal.feedback import (
    Found,
    Realised,
    Review,
    answer,
    found,
    found_by_request,
    no_record,
    realised,
    recent,
    reviews,
)
from service.scoring.scorer import Scorer
from service.validity.conformal import CONFIDENCE
from service.web import answers
from service.web.access import REVIEW_PATH
from service.web.bodies import declared_body, parsed_body, require_scope
from service.web.context import RequestContext
from service.web.documentation import answers_json, problems, takes
from service.web.feedback_schemas import FeedbackAnswer, FeedbackBody, ReviewsAnswer
from service.web.lean import only_known_parameters
from service.web.media_types import JSON
from service.web.parsing import parse_rows
from service.web.routes_generate import Model

MAX_BODY = 2**22  # bytes, with a row
MOST_SHOWN = 1_000
Which = Literal["asked", "refused", "uncertain"]
router = APIRouter(dependencies=[Depends(only_known_parameters)])


class InstanceOf(msgspec.Struct):
    """The row in a body, as it was written."""

    instance: msgspec.Raw = msgspec.Raw(b"null")


@router.post(
    REVIEW_PATH,
    **answers_json("give_feedback", "feedback", FeedbackAnswer, problems(400, 404, 409, 413, 415, 422, 503)),
    openapi_extra=takes("FeedbackBody"),
)
async def give_feedback(request: Request) -> Response:
    """Say what a row is that was judged: valid, invalid, or unsure. The last answer of each key counts."""
    context = RequestContext.of(request)
    require_scope(context, "review")
    raw = await declared_body(context, MAX_BODY)
    body = parsed_body(raw, FeedbackBody, "the feedback cannot be recorded")
    if (body.record is None) == (body.request_id is None) or (body.row is not None and body.record is not None):
        raise InputError("expected `record`, or `request_id` and perhaps `row`")
    read = partial(meant, body, context.may_use)
    one = await context.engine.recorder.read(read, context.time_left_s(), context.caller)
    if body.model is not None and body.model not in (one.content.name, one.content.model):
        raise InputError("model: another one judged this row: leave it out, or name that one")
    cells = [] if body.instance is None else await kept(context, raw, one)
    key, note = context.engine.recorder.key, body.note or None
    entry = answer(key, context.key_id, one, body.label, note, context.request_id, cells)
    await context.engine.recorder.feedback(entry, context.time_left_s())
    told = {"record": str(one.id), "model": one.content.model, "verdict": one.content.verdict(one.id.row)}
    return answers.json_response(told | {"label": body.label, "has_row": bool(cells) or one.has_row})


@router.get(REVIEW_PATH, **answers_json("list_feedback", "feedback", ReviewsAnswer, problems(404, 422, 503)))
async def list_feedback(
    request: Request,
    model: Model = None,
    answered: Annotated[bool | None, Query(description="only rows that the caller has spoken of, or not")] = None,
    limit: Annotated[int, Query(ge=1, le=MOST_SHOWN, description="most rows")] = 100,
    which: Annotated[
        Which,
        Query(description="asked: asked about, or spoken of; refused, uncertain: the last such rows, latest first"),
    ] = "asked",
    rate: Annotated[bool, Query(description="1: also how often valid rows were refused")] = False,
) -> Response:
    """The rows of a model that people were asked about or have spoken of, or the last refused or uncertain ones."""
    context = RequestContext.of(request)
    require_scope(context, "review")
    name = context.engine.registry.resolve(model).name
    context.check_model(name)
    read = partial(shown, name=name, key=context.key_id, answered=answered, limit=limit, which=which, rate=rate)
    listed, more, told = await context.engine.recorder.read(read, context.time_left_s(), context.caller)
    documents = [document(context, review, one, cells) for review, one, cells in listed]
    return answers.json_response({"reviews": documents, "more": more, **realised_field(told)})


def meant(body: FeedbackBody, may_use: Callable[[str], bool], database: Database) -> Found:
    """The verdict that a body names; those of models that the key may not use do not exist for it.

    Raises:
        NoRecordError, AmbiguousRecordError.
    """
    if body.record is not None:
        one = found(database, body.record)
        if not may_use(one.content.name):
            raise no_record()
        return one
    assert body.request_id is not None
    return found_by_request(database, body.request_id, body.row, may_use)


async def kept(context: RequestContext, raw: bytearray, one: Found) -> list[tuple[int, int, bytes]]:
    """The row that came along, to be kept, if it is the one that was scored.

    Raises:
        InputError: it is another.
    """
    if one.row_was_kept and not one.has_row:
        raise InputError("instance: this row was erased, and is not kept again: leave it out")
    try:
        instance = msgspec.json.decode(raw, type=InstanceOf).instance
    except msgspec.DecodeError:
        raise MalformedError("the body is not JSON: send an object in JSON, with numbers that are finite") from None
    scorer = await context.scorer(one.content.model)
    body = b'{"instances":[' + bytes(instance) + b"]}"
    parse = partial(parse_rows, body, JSON, scorer.model.input, scorer.judging_reader(), context.limits())
    batch = await context.parsed(len(body), parse, always_beside=True)
    (content,) = each_row(batch.rows)
    if context.engine.recorder.key.hash(content) != one.content.hash_of(one.id.row):
        raise InputError("instance: not the row that was scored: send that one, or none")
    return [(one.id.batch, one.id.row, content)]


def shown(
    database: Database, name: str, key: str | None, answered: bool | None, limit: int, which: Which, rate: bool
) -> tuple[list[tuple[Review, Found, bytes | None]], bool, Realised | None]:
    """The first reviews of a model with what is kept of their rows, whether there are more, and the realised rate."""
    listed: list[tuple[Review, Found, bytes | None]] = []
    known = reviews(database, name)
    told = realised(database, known) if rate else None
    for review in known if which == "asked" else recent(database, name, which, known):
        if answered is not None and (key in review.labels) != answered:
            continue
        try:
            one = found(database, review.id)
        except VouchError:  # pruned since
            continue
        if len(listed) == limit:
            return listed, True, told
        listed.append((review, one, database.cells(one.id)))
    return listed, False, told


def realised_field(rate: Realised | None) -> dict[str, Any]:
    """How often valid rows were refused, for JSON, if it was asked for."""
    if rate is None:
        return {}
    told = {"valid": rate.valid, "refused": rate.refused, "interval": rate.interval, "confidence": CONFIDENCE}
    return {"realised": told}


def document(context: RequestContext, review: Review, one: Found, cells: bytes | None) -> dict[str, Any]:
    """A review for JSON."""
    scorer = context.engine.registry.in_memory(one.content.model)
    return review.document(one) | {
        "own": review.labels.get(context.key_id),
        "row": None if cells is None or scorer is None else presented(cells, one.content.dtype, scorer),
    }


def presented(cells: bytes, dtype: str, scorer: Scorer) -> Any:
    """A kept row as cells, or as an image's lines; null where cells are missing or were not readable."""
    spec = scorer.model.input
    row = np.frombuffer(cells, dtype)[None, : spec.features]
    return answers.presented(row, spec)[0]
