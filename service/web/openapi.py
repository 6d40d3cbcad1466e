"""The OpenAPI document: what FastAPI makes of the routes, with what only the running service knows.

That is its limits, whether it asks for keys, and examples that its default model can read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from fastapi import FastAPI

from service.errors import ModelError, UnavailableError
from service.scoring.scorer import Scorer
from service.settings import Settings
from service.web import protocol_schemas, schemas
from service.web.context import Service
from service.web.documentation import FILES, TAGS
from service.web.feedback_schemas import FeedbackBody
from service.web.images import data_uri
from service.web.media_types import JSON, PROBLEM
from service.web.paths import PROBES
from service.web.problems import document as problem_document

REQUESTED = (
    FeedbackBody,
    schemas.Instances, schemas.Latents, schemas.AliasBody, schemas.RestartBody, schemas.Problem,
    protocol_schemas.ProtocolRequest,
)  # fmt: skip
KEYS = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "an API key"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "an API key"},
}
PATH_PARAMETERS = {"name": "the model's name", "version": "the version, a number"}
ADMIN = ("move_alias", "restart_drift")
REVIEW = ("give_feedback", "list_feedback")
HEADERS: dict[str, dict[str, Any]] = {
    "X-Request-Id": {
        "description": "the request's own id, or a new one; logs have it, too",
        "schema": {"type": "string"},
    },
    "Server-Timing": {"description": "milliseconds of each part of the request", "schema": {"type": "string"}},
    "Retry-After": {"description": "seconds until it is worth to try again", "schema": {"type": "integer"}},
    "X-Seed": {"description": "the seed of the samples", "schema": {"type": "integer"}},
    "ETag": {"description": "a tag for If-None-Match, answered by 304", "schema": {"type": "string"}},
    "X-Model": {"description": "the model version that answered, NAME@VERSION", "schema": {"type": "string"}},
    "X-Model-Digest": {"description": "sha256 of the version's manifest", "schema": {"type": "string"}},
    "X-Record": {
        "description": "where there is a journal: record ids without their ends, a dot and the row's place, from 0",
        "schema": {"type": "string"},
    },
    "X-Warnings": {"description": "what looks like a mistake: a list of texts, in JSON", "schema": {"type": "string"}},
}
TAGGED = ("list_models", "get_model", "sample", "sample_file")


def document_service(app: FastAPI, service: Service) -> None:
    """Complete the OpenAPI document of an application."""
    generate, shown = app.openapi, ""

    def openapi() -> dict[str, Any]:
        nonlocal shown
        if app.openapi_schema is None:
            complete(generate(), service.settings)  # and `generate` keeps it
        assert app.openapi_schema is not None
        scorer = default_scorer(service)
        if scorer is not None and scorer.published.digest != shown:
            put_examples(app.openapi_schema, scorer)
            shown = scorer.published.digest
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation recommends


def default_scorer(service: Service) -> Scorer | None:
    """The default model, if it is in memory yet."""
    try:
        return service.engine.registry.in_memory(None)
    except (ModelError, UnavailableError):
        return None


def complete(document: dict[str, Any], settings: Settings) -> None:
    """Add what does not depend on a model."""
    document["tags"] = [{"name": name, "description": text} for name, text in TAGS.items()]
    document["servers"] = [
        {"url": "/", "description": "this service"},
        {"url": "/v1", "description": "the same, by the version of the contract"},
    ]
    add_schemas(document)
    put_limits(document, settings)
    put_answers(document)
    put_in_order(document)
    for path, operation in operations(document):
        if path.startswith(("/v1", "/v2")):
            operation["servers"] = document["servers"][:1]
        operation["summary"] = operation["operationId"].replace("_", " ").capitalize()
    if settings.api_keys_file is not None:
        require_keys(document, (*PROBES, *settings.open_paths))
    drop_unused(document)


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each operation with its path."""
    for path, methods in document["paths"].items():
        for operation in methods.values():
            yield path, operation


def put_in_order(document: dict[str, Any]) -> None:
    """Put the paths in the order of their groups, and the statuses of each in theirs."""
    order = list(TAGS)
    paths = document["paths"].items()
    document["paths"] = dict(sorted(paths, key=lambda pair: order.index(next(iter(pair[1].values()))["tags"][0])))
    for _, operation in operations(document):
        operation["responses"] = dict(sorted(operation["responses"].items()))


def add_schemas(document: dict[str, Any]) -> None:
    """Add the schemas of bodies, which we parse ourselves."""
    components = document.setdefault("components", {}).setdefault("schemas", {})
    for model in REQUESTED:
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        components |= schema.pop("$defs", {})
        components[model.__name__] = schema
    components["Files"] = FILES


def put_limits(document: dict[str, Any], settings: Settings) -> None:
    """Add the deployment's limits, and what is in a path, where the document says what is accepted."""
    most = {
        "num": settings.max_num, "size": settings.max_grid, "draws": settings.max_draws,
    }  # fmt: skip
    for _, operation in operations(document):
        for parameter in operation.get("parameters", []):
            if parameter["in"] == "path":
                parameter.setdefault("description", PATH_PARAMETERS.get(parameter["name"]))
            if parameter["name"] in most:
                parameter["schema"]["maximum"] = most[parameter["name"]]
            if parameter["name"] == "explain":
                for one in parameter["schema"]["anyOf"]:
                    if one.get("type") == "integer":
                        one["maximum"] = settings.max_draws
    bodies = document["components"]["schemas"]
    bodies["Instances"]["properties"]["instances"]["maxItems"] = settings.max_rows
    bodies["Latents"]["properties"]["latents"]["maxItems"] = settings.max_rows


def put_answers(document: dict[str, Any]) -> None:
    """Add the headers of all answers, and put the errors, which are many times the same, in one place."""
    components = document["components"]
    components["headers"] = HEADERS
    components["responses"] = {}
    for _, operation in operations(document):
        for status, answer in operation["responses"].items():
            answer["headers"] = {
                name: {"$ref": f"#/components/headers/{name}"} for name in header_names(operation, status)
            }
            if PROBLEM in answer.get("content", {}):
                answer["content"][PROBLEM]["example"] = example_of(int(status))
                components["responses"][f"Problem{status}"] = answer
                operation["responses"][status] = {"$ref": f"#/components/responses/Problem{status}"}
    components["responses"] = dict(sorted(components["responses"].items()))


def header_names(operation: dict[str, Any], status: str) -> list[str]:
    """The headers of an operation's answer."""
    names, tag, name = ["X-Request-Id", "Server-Timing"], operation["tags"][0], operation["operationId"]
    if status in ("429", "503"):
        names += ["Retry-After"]
    if status != "200":
        return names
    names += ["ETag"] if name in TAGGED else []
    names += ["X-Seed"] if name.startswith("sample") else []
    names += ["X-Record"] if name == "score_file" else []
    return names + (["X-Model", "X-Model-Digest", "X-Warnings"] if tag == "files" else [])


def example_of(status: int) -> dict[str, Any]:
    """A problem document with a status, as callers see it."""
    return problem_document(status, *EXAMPLES[status]) | {"request_id": "5a1b0c7e9d3f4e2f8a6b7c8d9e0f1a2b"}


def require_keys(document: dict[str, Any], open_paths: tuple[str, ...]) -> None:
    """Say how keys are sent, and which paths need none."""
    document["components"]["securitySchemes"] = KEYS
    document["security"] = [{name: []} for name in KEYS]
    for path, operation in operations(document):
        if path in open_paths:
            operation["security"] = []
        elif operation["operationId"] in ADMIN:
            operation["description"] += "\n\nNeeds a key of scope `admin`."
        elif operation["operationId"] in REVIEW:
            operation["description"] += "\n\nNeeds a key of scope `review`."


def drop_unused(document: dict[str, Any]) -> None:
    """Remove schemas that nothing refers to, such as FastAPI's own for errors that we answer otherwise."""
    schemas_of = document["components"]["schemas"]
    while True:
        unused = schemas_of.keys() - set(references(document))
        if not unused:
            return
        for name in unused:
            del schemas_of[name]


def references(value: Any) -> Iterator[str]:
    """The names of all schemas that a part of the document refers to."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"].rpartition("/")[2]
        for part in value.values():
            yield from references(part)
    elif isinstance(value, list):
        for part in value:
            yield from references(part)


def put_examples(document: dict[str, Any], scorer: Scorer) -> None:
    """Add request bodies and parameters that the default model can read."""
    rows = {"instances": [example_row(scorer)]}
    version = scorer.published.reference.version
    bodies: dict[str, Any] = {
        "Instances": rows,
        "Latents": {"latents": [[0.0] * scorer.latents]},
        "RestartBody": {"restart": True},
        "AliasBody": {"alias": "candidate", "version": version},
        "FeedbackBody": {"record": "0pcr9gdbfde50.0", "label": "valid"},
    }
    paths = {"name": scorer.published.reference.name, "version": version}
    for _, operation in operations(document):
        content = operation.get("requestBody", {}).get("content", {}).get(JSON)
        if content is not None and (name := next(references(content))) in bodies:
            content["example"] = bodies[name]
        for parameter in operation.get("parameters", []):
            if parameter["in"] == "path" and parameter["name"] in paths:
                parameter["example"] = paths[parameter["name"]]


def example_row(scorer: Scorer) -> Any:
    """A row that the model reads: an image as a file in base64, so that it fits a screen."""
    spec = scorer.model.input
    row = scorer.sample(1, seed=7, of="observation").samples
    if spec.kind == "image":
        return data_uri(row[0], spec)
    rounded = np.round(row, 4)
    if spec.columns is None:
        return rounded[0].tolist()
    (cells,) = spec.cells(rounded)
    return dict(zip(spec.columns, cells, strict=True))


# Of each status: the problem, its detail as callers read it, and its faults.
EXAMPLES: dict[int, tuple[str, str, list[dict[str, Any]]]] = {
    400: ("malformed-body", "the body is not JSON at byte 17: send an object in JSON", []),
    401: ("unauthorized", "API key required: send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`", []),
    403: ("forbidden", "the API key lacks scope 'admin': use one that has it", []),
    404: ("model-not-found", "model 'mnist' has no version 7; it has: 8, 9", []),
    406: (
        "not-acceptable",
        "no acceptable answer type; send an Accept header with one of: application/json, application/x-npy, text/csv",
        [],
    ),
    409: ("conflict", "the alias names version 8, not 7: read it again", []),
    413: ("too-large", "the request has 20,000 rows, at most 10,000 are accepted", []),
    415: (
        "unsupported-media-type",
        "the content type is application/x-www-form-urlencoded; its body looks like application/json: send "
        "-H 'content-type: application/json'; accepted: application/json, application/x-npy",
        [],
    ),
    421: ("misdirected", "the Host header does not name this service; VOUCH_ALLOWED_HOSTS lists the names that do", []),
    422: (
        "invalid-input",
        "row 0, column hours: text; expected a number",
        [{"row": 0, "column": "hours", "message": "text", "expected": "a number"}],
    ),
    429: ("overloaded", "the queue is full: try again after Retry-After", []),
    503: ("unavailable", "models are loading: try again after Retry-After", []),
    504: ("deadline-passed", "the deadline of 120 s passed: send fewer rows, or allow more time", []),
}
