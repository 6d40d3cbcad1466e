"""What endpoints say of themselves in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from service.web import schemas
from service.web.answers import JSON, NPY


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
