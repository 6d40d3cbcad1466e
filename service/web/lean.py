"""A route without FastAPI's parameter handling, which costs more than everything else in a request except scoring."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from service.errors import InputError


class LeanRoute(APIRoute):
    """For endpoints that take the request and its path parameters; `openapi_extra` documents their query."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler that FastAPI calls; errors go to the application's exception handlers."""
        parameters = (self.openapi_extra or {}).get("parameters", [])
        endpoint, known = self.endpoint, frozenset(one["name"] for one in parameters if one["in"] == "query")
        own = [name for name in self.param_convertors if name in inspect.signature(endpoint).parameters]

        async def handler(request: Request) -> Response:
            check_known(request.query_params, known)
            response: Response = await endpoint(request, **{name: request.path_params[name] for name in own})
            return response

        return handler


def check_known(parameters: Iterable[str], known: frozenset[str]) -> None:
    """Raise for query parameters that the endpoint does not have: a misspelt one would otherwise be silently ignored."""
    if not known.issuperset(parameters):
        raise InputError(f"unknown query parameter; expected some of: {', '.join(sorted(known)) or 'none'}")


async def only_known_parameters(request: Request) -> None:
    """`check_known` as a dependency of FastAPI's own routes."""
    check_known(request.query_params, frozenset(one.alias for one in request.scope["route"].dependant.query_params))
