"""The Open Inference Protocol, version 2, over JSON: one input tensor of rows, a tensor for each part of the score."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import msgspec
import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from service import __version__
from service.errors import InputError, MalformedError, TooLargeError, VouchError
from service.scorer import Scorer, Scores
from service.web import answers
from service.web.context import Service, body_of, service_of
from service.web.problems import retry_headers, status_of

INPUT_TYPES = ("FP32", "FP64", "UINT8")
OUTPUTS = (("log_likelihood", "FP64"), ("percentile", "FP64"), ("p_value", "FP64"), ("verdict", "BYTES"))


class Tensor(msgspec.Struct):
    """An input tensor; its data may be flat or nested."""

    name: str
    shape: list[Annotated[int, msgspec.Meta(ge=0)]]
    datatype: str
    data: list[Any]
    parameters: dict[str, Any] = {}


class RequestedOutput(msgspec.Struct):
    """An output that the client wants."""

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(msgspec.Struct):
    """The body of /infer."""

    inputs: list[Tensor]
    id: str | None = None
    outputs: list[RequestedOutput] = []
    parameters: dict[str, Any] = {}


class ProtocolRoute(APIRoute):
    """Errors as this protocol wants them: `{"error": ...}`."""

    def get_route_handler(self) -> Any:
        """The handler, with our errors turned into the protocol's."""
        handler = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                return await handler(request)
            except VouchError as error:
                status, _ = status_of(error)
                text = str(error)
                if isinstance(error, InputError) and error.faults:
                    text = f"{text}: {error.faults[0].message}, expected {error.faults[0].expected}"
                return answers.json_response({"error": text}, retry_headers(error), status)

        return guarded


router = APIRouter(prefix="/v2", route_class=ProtocolRoute, tags=["open inference protocol"])


@router.get("")
async def server() -> Response:
    """What this server is."""
    return answers.json_response({"name": "vouch", "version": __version__, "extensions": []})


@router.get("/health/live")
async def live(request: Request) -> Response:
    """Alive."""
    alive = service_of(request).inference.is_alive()
    return answers.json_response({"live": alive}, None, 200 if alive else 503)


@router.get("/health/ready")
async def ready(request: Request) -> Response:
    """Ready."""
    is_ready = service_of(request).registry.default_is_ready()
    return answers.json_response({"ready": is_ready}, None, 200 if is_ready else 503)


@router.get("/models/{name}")
@router.get("/models/{name}/versions/{version}")
async def metadata(request: Request, name: str, version: str | None = None) -> Response:
    """A model's inputs and outputs."""
    service = service_of(request)
    scorer = await service.scorer(reference(name, version))
    document = {
        "name": name,
        "versions": service.registry.store.versions(name),
        "platform": "vouch",
        "inputs": [{"name": "rows", "datatype": "FP32", "shape": [-1, scorer.model.input.features]}],
        "outputs": [{"name": output, "datatype": kind, "shape": [-1]} for output, kind in OUTPUTS],
    }
    return answers.json_response(document)


@router.get("/models/{name}/ready")
@router.get("/models/{name}/versions/{version}/ready")
async def model_ready(request: Request, name: str, version: str | None = None) -> Response:
    """Whether a model can be asked."""
    await service_of(request).scorer(reference(name, version))
    return answers.json_response({"name": name, "ready": True})


@router.post("/models/{name}/infer")
@router.post("/models/{name}/versions/{version}/infer")
async def infer(request: Request, name: str, version: str | None = None) -> Response:
    """Score the rows of one input tensor."""
    service = service_of(request)
    scorer = await service.scorer(reference(name, version))
    body = await body_of(request)
    asked, rows = await asyncio.to_thread(read, body, scorer, service)
    parts = await service.on_rows(request, scorer, rows, scorer.score)
    for part in parts:
        service.count(scorer, part, request)
    wanted = [output.name for output in asked.outputs] or [output for output, _ in OUTPUTS]
    document = {
        "model_name": name,
        "model_version": scorer.published.reference.version,
        "outputs": [tensor(output, parts) for output in wanted],
    }
    return answers.json_response(document | ({"id": asked.id} if asked.id is not None else {}))


def reference(name: str, version: str | None) -> str:
    """NAME or NAME@VERSION."""
    return name if version is None else f"{name}@{version}"


def read(body: bytes, scorer: Scorer, service: Service) -> tuple[InferRequest, np.ndarray]:
    """The request and its rows."""
    asked = decoded(body)
    return asked, rows_of(asked, scorer, service)


def decoded(body: bytes) -> InferRequest:
    """The request, if it is one."""
    try:
        return msgspec.json.decode(body, type=InferRequest)
    except msgspec.ValidationError:
        raise InputError("the body is no inference request of the protocol, version 2") from None
    except (msgspec.DecodeError, RecursionError):
        raise MalformedError("the body is not JSON") from None


def rows_of(asked: InferRequest, scorer: Scorer, service: Service) -> np.ndarray:
    """The one input tensor as checked rows."""
    if len(asked.inputs) != 1:
        raise InputError(f"the request has {len(asked.inputs)} inputs, the model reads one")
    unknown = {output.name for output in asked.outputs} - {output for output, _ in OUTPUTS}
    if unknown:
        raise InputError(f"an output is not known, expected some of {', '.join(output for output, _ in OUTPUTS)}")
    given = asked.inputs[0]
    if given.datatype not in INPUT_TYPES:
        raise InputError(f"the datatype is not read, expected one of {', '.join(INPUT_TYPES)}")
    if given.shape and given.shape[0] > service.settings.max_rows:
        raise TooLargeError(f"at most {service.settings.max_rows:,} rows are accepted")
    try:
        array = np.array(given.data)
        if array.dtype.kind not in "uif" or has_booleans(given.data):
            raise InputError("the data are expected to be numbers")
        array = array.reshape(given.shape)
    except (ValueError, OverflowError, TypeError, MemoryError):
        raise InputError("the data do not have the shape that is declared") from None
    if not array.size:
        raise InputError("the tensor is empty, expected at least one row")
    return scorer.rows(array)


def has_booleans(data: Any) -> bool:
    """Whether nested lists hold one; numpy would make a number of it."""
    return isinstance(data, bool) or (isinstance(data, list) and any(map(has_booleans, data)))


def tensor(name: str, parts: list[Scores]) -> dict[str, Any]:
    """An output tensor."""
    if name == "verdict":
        data: Any = [verdict for part in parts for verdict in part.verdict]
    else:
        data = np.concatenate([getattr(part, name) for part in parts])
    return {"name": name, "datatype": dict(OUTPUTS)[name], "shape": [len(data)], "data": data}
