"""Requests that change something: who may send them, and their small bodies, which are declared as JSON."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from service.errors import Fault, InputError, MalformedError, MediaTypeError
from service.web.access import check_scope
from service.web.browsers import check_origin
from service.web.context import RequestContext
from service.web.media_types import JSON, check_charset, refusal

MAX_BODY = 2**16  # bytes
B = TypeVar("B", bound=BaseModel)


def require_scope(context: RequestContext, scope: str) -> None:
    """Require a key of a scope, if any keys are configured, and a page of our own origin, if it is a browser."""
    check_scope(context.key, scope)
    check_origin(context.request.headers, context.request.url.netloc)


async def read_body(context: RequestContext, kind: type[B], refused: str) -> B:
    """Read and parse a small JSON body; `refused` is the error's text if its fields are wrong."""
    return parsed_body(await declared_body(context), kind, refused)


async def declared_body(context: RequestContext, most: int = MAX_BODY) -> bytearray:
    """Read a body of at most so many bytes that is declared as JSON.

    It has to be declared: a page of another origin may not declare JSON without asking first.
    """
    body, declared = await context.body(most), context.media_type
    if declared != JSON:
        raise MediaTypeError(refusal(declared, body, (JSON,)))
    check_charset(context.content_type, JSON)
    return body


def parsed_body(body: bytes | bytearray, kind: type[B], refused: str) -> B:
    """Parse a JSON body.

    Raises:
        MalformedError: it is not JSON.
        InputError: its fields are wrong.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        problems_found = error.errors(include_input=False, include_url=False)
        if problems_found[0]["type"] == "json_invalid":
            raise MalformedError("the body is not JSON: send an object in JSON") from None
        fields = kind.model_fields
        faults = [
            Fault(item["msg"], None, next((name for name in item["loc"][:1] if name in fields), None))
            for item in problems_found[: InputError.MAX_FAULTS]
        ]
        raise InputError(refused, faults) from None
