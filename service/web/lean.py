"""A route without FastAPI's machinery for parameters, which costs more than all else that a request does but score."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from service.errors import InputError


class LeanRoute(APIRoute):
    """For endpoints whose parameters are the request and texts of its path and query; documented as any other."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What FastAPI calls for a request; errors are for the application's handlers."""
        endpoint, known = self.endpoint, frozenset(field.alias for field in self.dependant.query_params)

        async def handler(request: Request) -> Response:
            parameters = dict(request.query_params)
            check_known(parameters, known)
            response: Response = await endpoint(request, **request.path_params, **parameters)
            return response

        return handler


def check_known(parameters: dict[str, str], known: frozenset[str]) -> None:
    """Refuse query parameters that the endpoint does not have: a misspelt one would otherwise be ignored in silence."""
    if not known.issuperset(parameters):
        raise InputError(f"a query parameter is not known, expected some of: {', '.join(sorted(known)) or 'none'}")


async def only_known_parameters(request: Request) -> None:
    """The same for routes of FastAPI's own, as a dependency."""
    known = frozenset(field.alias for field in request.scope["route"].dependant.query_params)
    check_known(dict(request.query_params), known)
