"""Calibration and examples of a model, and the rows of a file as it reads them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from fastapi import APIRouter, Depends, Request, Response

from service.data.cells import CellReader
from service.data.inputs import InputSpec
from service.data.instances import instances_of
from service.scoring.examples import ROWS, Example, examples
from service.scoring.options import ScoreOptions
from service.scoring.promises import Promise, curve, promises
from service.scoring.reasons import PHRASES
from service.scoring.scorer import Scorer
from service.serving.engine import Engine
from service.web import answers
from service.web.batch import Limits, check_row_count
from service.web.caching import is_known, not_modified, tag_headers, tag_of
from service.web.context import RequestContext, model_id
from service.web.describe_schemas import CalibrationAnswer, ExamplesAnswer, RowsAnswer
from service.web.documentation import FILE_TYPES, READ_PROBLEMS, ROWS_PROBLEMS, answers_json, takes
from service.web.images import data_uri
from service.web.lean import only_known_parameters
from service.web.media_types import CSV, JSON, type_of
from service.web.parsing import ROW_TYPES, Body, parse_rows, raw_table
from service.web.routes_generate import Model

CELL_BYTES = 128  # of a cell in a list, with its part of the answer
router = APIRouter(dependencies=[Depends(only_known_parameters)])
EXAMPLES: WeakKeyDictionary[Scorer, asyncio.Future[list[Example]]] = WeakKeyDictionary()


@router.get("/calibration", **answers_json("get_calibration", "models", CalibrationAnswer, READ_PROBLEMS))
async def calibration(request: Request, model: Model = None) -> Response:
    """Where a version's validation rows lie, and what each rule promises at each rate of false alarms."""
    context = RequestContext.of(request)
    scorer = await context.scorer(model)
    context.answer_type((JSON,))
    policy = context.service.policy
    tag = tag_of("calibration", scorer.published.digest, policy)
    if is_known(request.headers, tag):
        return not_modified(tag)
    told = await context.beside(context.service.parser, partial(calibration_document, scorer, policy))
    return answers.json_response({"model": model_id(scorer), **told}, tag_headers(tag))


@router.get("/examples", **answers_json("get_examples", "models", ExamplesAnswer, READ_PROBLEMS))
async def get_examples(request: Request, model: Model = None) -> Response:
    """Rows to try a model with: two that it drew itself, and a spoilt one."""
    context = RequestContext.of(request)
    scorer = await context.scorer(model)
    context.answer_type((JSON,))
    tag = tag_of("examples", scorer.published.digest)
    if is_known(request.headers, tag):
        return not_modified(tag)
    told = [
        {
            "title": one.title,
            **({} if one.spoil is None else {"spoil": one.spoil}),
            "instance": instance(one.row, scorer.model.input),
        }
        for one in await examples_of(context.engine, scorer)
    ]
    return answers.json_response({"model": model_id(scorer), "examples": told}, tag_headers(tag))


async def examples_of(engine: Engine, scorer: Scorer) -> list[Example]:
    """A model's examples. They cost as much as a dozen scores, so they are made once, for all who ask meanwhile."""
    making = EXAMPLES.get(scorer)
    if making is None or (making.done() and (making.cancelled() or making.exception() is not None)):
        cost = ROWS * scorer.model.row_cost
        making = EXAMPLES[scorer] = asyncio.ensure_future(engine.aside(lambda: examples(scorer), cost))
    return await asyncio.shield(making)


@router.post(
    "/rows",
    **answers_json("read_rows", "files", RowsAnswer, ROWS_PROBLEMS),
    openapi_extra=takes("Instances", *FILE_TYPES),
)
async def rows(request: Request, model: Model = None) -> Response:
    """The rows of a file as JSON instances, which POST /score reads as it does the file; nothing is scored.

    Of a table, numbers are told as numbers however they are written, missing cells as null, and cells that cannot be read
    as text. An image is told as the model reads it: turned, cropped and sized, as its lines of pixels. Cells of JSON or of
    an array that cannot be read are errors.
    """
    context = RequestContext.of(request)
    scorer = await context.scorer(model)
    context.answer_type((JSON,))
    body = await context.body()
    reader, limits = scorer.judging_reader(), context.limits()
    parse = partial(read_instances, body, context.content_type, scorer.model.input, reader, limits)
    columns, instances, warnings = await context.parsed(len(body), parse)
    document = {
        "model": model_id(scorer),
        **({} if columns is None else {"columns": columns}),
        **answers.noted(warnings),
    }
    size = len(instances) * scorer.model.input.features
    return await context.encoded(size, answers.json_rows_response, document, "instances", instances)


def read_instances(
    body: Body, content_type: str, spec: InputSpec, reader: CellReader, limits: Limits
) -> tuple[list[str] | None, Sequence[Any], Sequence[str]]:
    """The rows of a body as JSON instances, with the columns of a table, and warnings."""
    kind, warning = type_of(content_type, body, ROW_TYPES)
    if kind == CSV:
        table = raw_table(body, reader, limits)
        check_row_count(len(table), limits.max_rows)
        limits.hold(CELL_BYTES * len(table) * len(table.names))
        return list(table.names), instances_of(table, reader), (*([warning] if warning else []), *table.notes)
    batch = parse_rows(body, content_type, spec, replace(reader, is_strict=True), limits)
    limits.hold(CELL_BYTES * batch.rows.size)
    return None, answers.presented(batch.rows[:, : spec.features], spec), batch.warnings


def calibration_document(scorer: Scorer, policy: ScoreOptions | None) -> dict[str, Any]:
    """A version's curve and promises, for JSON."""
    levels, log_likelihood = curve(scorer)
    statistics = () if scorer.calibration.statistics is None else scorer.combined_rule().statistics
    return {
        "rows": scorer.band.rows,
        "judging": judging(scorer, policy),
        "curve": {"levels": levels, "log_likelihood": log_likelihood},
        "statistics": [{"name": name, "meaning": PHRASES[name]} for name in statistics],
        "promises": {name: list(map(promised, found)) for name, found in promises(scorer).items()},
    }


def judging(scorer: Scorer, policy: ScoreOptions | None) -> dict[str, Any]:
    """How rows are judged where a request asks for nothing, for JSON."""
    options = scorer.resolved(policy or ScoreOptions())
    told: dict[str, Any] = {"rule": options.rule, "fixed": policy is not None}
    if options.rule == "combined":
        return told | {"false_alarm": scorer.combined_rule(options.false_alarm).false_alarm}
    if options.false_alarm is not None:
        return told | {"false_alarm": options.false_alarm, "tail": options.tail or "both"}
    return told | {"percentiles": options.percentiles or scorer.band.percentiles}


def promised(promise: Promise) -> dict[str, Any]:
    """A promise for JSON; an open end of a band is null."""
    ends = {} if promise.band is None else {"log_likelihood": promise.band.ends_or_none}
    told = {"false_alarm": promise.false_alarm, "accepts": answers.accepts(promise.accepted, promise.rows)}
    return told | ends


def instance(row: Any, spec: InputSpec) -> Any:
    """A row, shape (D,), as POST /score reads it: an image as a file, cells by column name, or numbers in order."""
    if spec.kind == "image":
        return data_uri(row, spec)
    (cells,) = answers.presented(row[None], spec)
    return cells if spec.columns is None else dict(zip(spec.columns, cells, strict=True))
