"""Building blocks of the endpoints' OpenAPI documentation."""

from __future__ import annotations

from typing import Any

from service.files.images import MEDIA_TYPES
from service.web import schemas
from service.web.answers import JSON, NPY
from service.web.forms import FORM

EVERYWHERE = (400, 401, 403, 421, 504)  # the head, the key, the Host header, the deadline


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problem documents that an endpoint may answer with: these statuses, and those of every endpoint."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        status: {"description": "problem document (RFC 9457)", "content": content}
        for status in (*EVERYWHERE, 422, *statuses)
    }


def problems_of_probes() -> dict[int | str, dict[str, Any]]:
    """The answers of a failing probe, and of one with an unknown query parameter."""
    return {503: {"model": schemas.StatusAnswer}, 422: problems()[422]}


ROWS_PROBLEMS = problems(400, 404, 406, 413, 415, 422, 429, 503, 504)
READ_PROBLEMS = problems(404, 406, 422, 429, 503, 504)


def answered_by(model: type[Any], *kinds: str) -> dict[str, Any]:
    """The documented answer: JSON of a schema, or one of the other types."""
    other = {"content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in kinds}}
    return {"response_model": model, "responses": {200: other}}


def options(model: type[Any], problem_set: dict[int | str, dict[str, Any]], *kinds: str) -> dict[str, Any]:
    """Arguments of an endpoint's decorator: its answer and its problems."""
    documented = answered_by(model, *kinds)
    return {**documented, "responses": {**documented["responses"], **problem_set}}


FILES = {
    "type": "object",
    "properties": {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}},
    "description": "images, each a row with its file's name as id, or one file of rows (.json, .npy, .csv)",
}


def takes(schema: str, *kinds: str) -> dict[str, Any]:
    """The documented request body; `examples.py` adds an example once the default model is loaded."""
    content: dict[str, Any] = {JSON: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    content |= {kind: {"schema": FILES if kind == FORM else {"type": "string", "format": "binary"}} for kind in kinds}
    return {"requestBody": {"required": True, "content": content}}


ROW_TYPES = (NPY, *MEDIA_TYPES, FORM, "text/csv")
