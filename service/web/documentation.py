"""Building blocks of the endpoints' OpenAPI documentation."""

from __future__ import annotations

from typing import Any

from fastapi import Response

from service.files.images import MEDIA_TYPES
from service.web import schemas
from service.web.media_types import CSV, FORM, FORMATS, JSON, NPY, PROBLEM

EVERYWHERE = (400, 401, 403, 421, 504)  # the head, the key, the Host header, the deadline
MEANINGS = {
    400: "The body or the request's head cannot be read.",
    401: "No API key, an unknown one, or an expired one.",
    403: "The API key may not do this, or the deployment sets another rule.",
    404: "No such model, version, alias or record.",
    406: "The answer has no form that the client accepts.",
    409: "The version or alias exists already or has changed, or several records are meant.",
    413: "More bytes, rows or pixels than the deployment accepts.",
    415: "A body of a type that is not read.",
    421: "The Host header does not name this service.",
    422: "The rows or parameters are not what the model reads.",
    429: "The queue, the memory or the key's quota is used up.",
    503: "Not ready, about to stop, the model cannot be loaded, or the journal cannot be written.",
    504: "The deadline passed.",
}
# Groups of endpoints, in the order that people need them.
TAGS = {
    "score": "Verdicts: is this row like the data that the model was trained on?",
    "generate": "What else a VAE computes: reconstructions, samples, encodings and what they decode to.",
    "files": "Files in and out: arrays (npy), tables (CSV), images and forms of them, JSON lines. Rows may also be sent so "
    "to `/score`, `/reconstruct` and `/encode`.",
    "models": "What is served, and which version answers. What changes something needs a key of scope `admin`.",
    "drift": "Whether served rows still look like the validation rows.",
    "feedback": "What people say of verdicts, where there is a journal. Needs a key of scope `review`.",
    "health": "Probes, metrics and the version. The probes never ask for a key.",
    "open inference protocol": "Version 2, for the clients of Triton and KServe; and version 1 of KServe.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problem documents that an endpoint may answer with: these statuses, and those of every endpoint."""
    content = {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": MEANINGS[status], "content": content} for status in (*EVERYWHERE, 422, *statuses)}


ROWS_PROBLEMS = problems(400, 404, 406, 413, 415, 422, 429, 503, 504)
READ_PROBLEMS = problems(404, 406, 422, 429, 503, 504)


def answers_json(
    operation: str, tag: str, model: type[Any], problem_set: dict[int | str, dict[str, Any]]
) -> dict[str, Any]:
    """Arguments of the decorator of an endpoint that answers with JSON of a schema: the only success that it documents."""
    ok = {200: {"description": (model.__doc__ or "").strip().partition("\n")[0]}}
    return {"operation_id": operation, "tags": [tag], "response_model": model, "responses": ok | problem_set}


def answers_file(operation: str, problem_set: dict[int | str, dict[str, Any]], *kinds: str) -> dict[str, Any]:
    """Arguments of the decorator of an endpoint that answers with a file, of the type that the path's ending says."""
    content = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in kinds}
    return {
        "operation_id": operation,
        "tags": ["files"],
        "response_class": Response,
        "responses": {200: {"description": "The answer as a file.", "content": content}, **problem_set},
    }


def ending(*kinds: str) -> dict[str, Any]:
    """The path parameter that says which type of file an endpoint answers with."""
    names = [name for name, kind in FORMATS.items() if kind in kinds]
    schema = {"type": "string", "enum": names}
    return {"name": "extension", "in": "path", "required": True, "description": "type of the file", "schema": schema}


FILES = {
    "type": "object",
    "properties": {
        "file": {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "description": "the files: images, or one .json, .npy or .csv",
        }
    },
    "required": ["file"],
    "description": "images, each a row with its file's name as id, or one file of rows (.json, .npy, .csv)",
}
BODIES = {
    NPY: "an array of numbers, rows first, as `numpy.save` writes it",
    CSV: "a table whose header names the model's columns, in any order",
}


def takes(schema: str | None, *kinds: str) -> dict[str, Any]:
    """The documented request body; `openapi.py` adds an example once the default model is loaded."""
    content: dict[str, Any] = {}
    if schema is not None:
        content[JSON] = {"schema": {"$ref": f"#/components/schemas/{schema}"}}
    for kind in kinds:
        file = {"type": "string", "format": "binary", "description": BODIES.get(kind, "a file of that type: one row")}
        content[kind] = {"schema": {"$ref": "#/components/schemas/Files"} if kind == FORM else file}
    return {"requestBody": {"required": True, "content": content}}


FILE_TYPES = (FORM, NPY, *MEDIA_TYPES, CSV)
PROBE: dict[int | str, dict[str, Any]] = {
    503: {"model": schemas.StatusAnswer, "description": "Not so: `status` says why."},
    422: problems()[422],
}
