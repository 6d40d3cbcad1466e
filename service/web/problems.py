"""The table that maps errors to statuses, and RFC 9457 problem documents. No document repeats the input."""

from __future__ import annotations

import math
from typing import Any

import msgspec
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from service import errors
from service.web.compression import MEMORY, CodingError
from service.web.context import RequestContext
from service.web.media_types import JSON, PROBLEM
from service.web.paths import allowed

PROTOCOL = "/v2"

# The first class that matches decides: subclasses come before their base.
STATUSES: tuple[tuple[type[errors.VouchError], int, str], ...] = (
    (errors.MalformedError, 400, "malformed-body"),
    (errors.MediaTypeError, 415, "unsupported-media-type"),
    (errors.NotAcceptableError, 406, "not-acceptable"),
    (errors.TooLargeError, 413, "too-large"),
    (errors.InputError, 422, "invalid-input"),
    (errors.CalibrationError, 422, "invalid-percentiles"),
    (errors.ScopeError, 403, "forbidden"),
    (errors.AccessError, 401, "unauthorized"),
    (errors.ModelNotFoundError, 404, "model-not-found"),
    (errors.ModelConflictError, 409, "conflict"),
    (errors.NoRecordError, 404, "record-not-found"),
    (errors.AmbiguousRecordError, 409, "ambiguous-record"),
    (errors.JournalError, 503, "unavailable"),
    (errors.DamagedModelError, 503, "model-unloadable"),
    (errors.DeadlineError, 504, "deadline-passed"),
    (errors.OverloadedError, 429, "overloaded"),
    (errors.UnavailableError, 503, "unavailable"),
)
TITLES = {
    "malformed-body": "The body is malformed",
    "unsupported-media-type": "Unsupported content type",
    "not-acceptable": "No acceptable answer type",
    "too-large": "Too large",
    "invalid-input": "Invalid input",
    "invalid-percentiles": "The requested band or rule is not available",
    "forbidden": "Not allowed for this API key",
    "unauthorized": "API key required",
    "model-not-found": "No such model",
    "conflict": "Already exists or has changed",
    "record-not-found": "No such record",
    "ambiguous-record": "Several records are meant",
    "model-unloadable": "The model cannot be loaded",
    "deadline-passed": "Deadline exceeded",
    "overloaded": "The queue is full",
    "unavailable": "The service cannot answer now",
    "malformed-head": "The head of the request is malformed",
    "misdirected": "Not the service that was asked for",
    "not-found": "No such path",
    "method-not-allowed": "Method not allowed",
    "internal": "Internal error",
}
HTTP_SLUGS = {404: "not-found", 405: "method-not-allowed"}


def status_of(error: errors.VouchError) -> tuple[int, str]:
    """Status and slug of an error; an error that is missing from the table is a bug."""
    return next((status, slug) for kind, status, slug in STATUSES if isinstance(error, kind))


def document(status: int, slug: str, detail: str, faults: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """A problem document without the request id; `type` is stable."""
    return {
        "type": f"urn:vouch:problem:{slug}",
        "title": TITLES[slug],
        "status": status,
        "detail": detail,
        "errors": faults or [],
    }


def error_document(error: errors.VouchError) -> dict[str, Any]:
    """One of our errors as a problem document."""
    faults = list(map(fault_entry, error.faults)) if isinstance(error, errors.InputError) else None
    return document(*status_of(error), str(error), faults)


def respond(request: Request, problem: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    """Answer a request with a problem document, or with an error of the Open Inference Protocol under /v2."""
    path = request.scope["path"]
    if path == PROTOCOL or path.startswith(f"{PROTOCOL}/"):
        return Response(msgspec.json.encode({"error": in_a_line(problem)}), problem["status"], headers, JSON)
    body = problem | {"request_id": RequestContext.of(request).request_id}
    return Response(msgspec.json.encode(body), problem["status"], headers, PROBLEM)


def in_a_line(problem: dict[str, Any]) -> str:
    """A problem's detail, with its first fault unless the detail has it."""
    detail, first = problem["detail"], next(iter(problem["errors"]), None)
    return detail if first is None or "row" in detail else f"{detail}: {first['message']}"


def on_vouch_error(request: Request, error: Exception) -> Response:
    """Answer with any of our errors."""
    assert isinstance(error, errors.VouchError)
    return respond(request, error_document(error), retry_headers(error))


def retry_headers(error: Exception) -> dict[str, str] | None:
    """The Retry-After or WWW-Authenticate header of an error, if it has one."""
    if isinstance(error, errors.AccessError) and not isinstance(error, errors.ScopeError):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, CodingError):
        return {"Accept-Encoding": ", ".join(MEMORY)}  # of bodies (RFC 9110, 12.5.3)
    if isinstance(error, errors.DamagedModelError):
        return {"Retry-After": "60"}
    if isinstance(error, errors.UnavailableError) and not isinstance(error, errors.DeadlineError):
        return {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
    return None


def fault_entry(fault: errors.Fault) -> dict[str, Any]:
    """A fault for JSON, without its empty fields."""
    entry = {"row": fault.row, "column": fault.column, "message": fault.message, "expected": fault.expected}
    return {key: value for key, value in entry.items() if value is not None}


def on_http_error(request: Request, error: Exception) -> Response:
    """Answer with one of Starlette's own errors: no such path, wrong method."""
    assert isinstance(error, HTTPException)
    slug = HTTP_SLUGS.get(error.status_code, "malformed-body" if error.status_code < 500 else "internal")
    headers = dict(error.headers or {})
    if error.status_code == 405:
        methods = allowed({name.strip() for name in headers.get("Allow", headers.get("allow", "")).split(",")})
        headers = {"Allow": ", ".join(methods)}
        detail = f"this path does not support this method; use {', '.join(methods)}"
    elif error.status_code == 404:
        detail = "no such path; GET /docs lists all paths, GET /openapi.json describes them"
    else:
        detail = "the request cannot be read; send one that GET /openapi.json describes"
    return respond(request, document(error.status_code, slug, detail), headers)


def on_validation_error(request: Request, error: Exception) -> Response:
    """Answer with the query parameters that pydantic refused, without its copy of the input."""
    assert isinstance(error, RequestValidationError)
    faults = [
        {"column": str(item["loc"][-1]) if item["loc"] else "body", "message": str(item["msg"])}
        for item in error.errors()[: errors.InputError.MAX_FAULTS]
    ]
    return respond(request, document(422, "invalid-input", "invalid parameter", faults))


def internal() -> dict[str, Any]:
    """The problem document for a bug; the details are only in the log."""
    return document(500, "internal", "the service failed; its log has the details under the request id")


def on_bug(request: Request, error: Exception) -> Response:
    """Answer with any other error: the log has the details, the client gets the request id."""
    return respond(request, internal())
