"""A route without FastAPI's machinery for parameters, which costs more than all else that a request does but score."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from service.errors import InputError


class LeanRoute(APIRoute):
    """For endpoints that take the request and the texts of its path; their query is documented in `openapi_extra`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What FastAPI calls for a request; errors are for the application's handlers."""
        parameters = (self.openapi_extra or {}).get("parameters", [])
        endpoint, known = self.endpoint, frozenset(one["name"] for one in parameters if one["in"] == "query")

        async def handler(request: Request) -> Response:
            check_known(request.query_params, known)
            response: Response = await endpoint(request, **request.path_params)
            return response

        return handler


def check_known(parameters: Iterable[str], known: frozenset[str]) -> None:
    """Refuse query parameters that the endpoint does not have: a misspelt one would otherwise be ignored in silence."""
    if not known.issuperset(parameters):
        raise InputError(f"unknown query parameter; expected some of: {', '.join(sorted(known)) or 'none'}")


async def only_known_parameters(request: Request) -> None:
    """The same for routes of FastAPI's own, as a dependency."""
    check_known(request.query_params, frozenset(one.alias for one in request.scope["route"].dependant.query_params))
