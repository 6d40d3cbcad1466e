"""The Open Inference Protocol, version 2: one input tensor of rows, one output tensor for each part of the score.

Tensors are sent as JSON or, with the binary tensor extension, as bytes after the JSON. The header
`Inference-Header-Content-Length` gives the length of the JSON, and `binary_data_size` that of each tensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Annotated, Any

import msgspec
import numpy as np
from fastapi import APIRouter, Request, Response

from service._version import __version__
from service.errors import InputError, MalformedError, TooLargeError
from service.scoring.options import DEFAULT
from service.scoring.scorer import Scorer
from service.scoring.scores import Scores
from service.web import answers
from service.web import protocol_schemas as schemas
from service.web.batch import Limits
from service.web.context import RequestContext
from service.web.documentation import EVERYWHERE, MEANINGS, answers_json
from service.web.json_chunks import CHUNK, MAX_ELEMENT, Cursor
from service.web.lean import LeanRoute
from service.web.media_types import JSON
from service.web.parsing import NUMBER_BYTES, Body
from service.web.problems import PROTOCOL as PREFIX

TAG = "open inference protocol"
HEADER_LENGTH = "Inference-Header-Content-Length"
OCTETS = "application/octet-stream"
INPUT_TYPES = {
    "FP32": "<f4", "FP64": "<f8", "FP16": "<f2",
    "UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8",
    "INT8": "<i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8",
}  # fmt: skip
OUTPUTS = {"log_likelihood": "FP64", "percentile": "FP64", "p_value": "FP64", "verdict": "BYTES"}
NO_DATA = msgspec.Raw(b"null")
MAX_DIMENSIONS = 3  # rows of images
# Accept only numbers: text among them could make numpy allocate any amount of memory.
NUMBERS = [msgspec.json.Decoder(kind) for kind in (list[float], list[list[float]], list[list[list[float]]])]
SIZE, BINARY, ALL_BINARY = "binary_data_size", "binary_data", "binary_data_output"


class Tensor(msgspec.Struct):
    """An input tensor, with its data, flat or nested, or with the size of its bytes in the parameters."""

    name: str
    shape: Annotated[list[Annotated[int, msgspec.Meta(ge=0)]], msgspec.Meta(max_length=64)]
    datatype: str
    data: msgspec.Raw = NO_DATA
    parameters: dict[str, Any] = {}


class RequestedOutput(msgspec.Struct):
    """A requested output."""

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(msgspec.Struct):
    """The JSON of /infer."""

    inputs: list[Tensor]
    id: str | None = None
    outputs: list[RequestedOutput] = []
    parameters: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Asked:
    """A parsed request: rows, shape (B, D), and the name of each requested output, with whether to send it as bytes."""

    rows: np.ndarray
    id: str | None
    outputs: list[tuple[str, bool]]


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors that an endpoint may answer with: these statuses, and those of every endpoint."""
    return {
        status: {"model": schemas.ProtocolError, "description": MEANINGS[status]}
        for status in (*EVERYWHERE, 422, *statuses)
    }


router = APIRouter(prefix=PREFIX, route_class=LeanRoute)


@router.get("", **answers_json("v2_server", TAG, schemas.ProtocolServer, errors()))
async def server(request: Request) -> Response:
    """Name, version and extensions of this server."""
    return answers.json_response({"name": "vouch", "version": __version__, "extensions": ["binary_tensor_data"]})


@router.get(
    "/health/live", **answers_json("v2_live", TAG, schemas.ProtocolLive, {503: {"model": schemas.ProtocolLive}})
)
async def live(request: Request) -> Response:
    """Alive: the event loop answers and every inference thread runs."""
    alive = RequestContext.of(request).engine.is_alive()
    return answers.json_response({"live": alive}, None, 200 if alive else 503)


@router.get(
    "/health/ready", **answers_json("v2_ready", TAG, schemas.ProtocolReady, {503: {"model": schemas.ProtocolReady}})
)
async def ready(request: Request) -> Response:
    """Ready: the default model is in memory, and the service is not shutting down."""
    is_ready = RequestContext.of(request).service.is_ready()
    return answers.json_response({"ready": is_ready}, None, 200 if is_ready else 503)


@router.get("/models/{name}", **answers_json("v2_model", TAG, schemas.ProtocolModel, errors(404, 503)))
async def metadata(request: Request, name: str) -> Response:
    """A model's inputs and outputs."""
    return await described(request, name, None)


@router.get(
    "/models/{name}/versions/{version}", **answers_json("v2_version", TAG, schemas.ProtocolModel, errors(404, 503))
)
async def version_metadata(request: Request, name: str, version: str) -> Response:
    """A version's inputs and outputs."""
    return await described(request, name, version)


@router.get("/models/{name}/ready", **answers_json("v2_model_ready", TAG, schemas.ProtocolModelReady, errors(404, 503)))
async def model_ready(request: Request, name: str) -> Response:
    """Whether a model can be served."""
    await RequestContext.of(request).scorer(name)
    return answers.json_response({"name": name, "ready": True})


@router.get(
    "/models/{name}/versions/{version}/ready",
    **answers_json("v2_version_ready", TAG, schemas.ProtocolModelReady, errors(404, 503)),
)
async def version_ready(request: Request, name: str, version: str) -> Response:
    """Whether a version can be served."""
    await RequestContext.of(request).scorer(reference(name, version))
    return answers.json_response({"name": name, "ready": True})


INFER_ERRORS = errors(400, 404, 413, 415, 422, 429, 503, 504)
INFER: dict[str, Any] = {
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                JSON: {"schema": {"$ref": "#/components/schemas/ProtocolRequest"}},
                OCTETS: {
                    "schema": {
                        "type": "string",
                        "format": "binary",
                        "description": f"JSON, whose length {HEADER_LENGTH} says, then bytes",
                    }
                },
            },
        },
    },
}


@router.post("/models/{name}/infer", **answers_json("v2_infer", TAG, schemas.ProtocolAnswer, INFER_ERRORS), **INFER)
async def infer(request: Request, name: str) -> Response:
    """Score the rows of one input tensor."""
    return await inferred(request, name, None)


@router.post(
    "/models/{name}/versions/{version}/infer",
    **answers_json("v2_version_infer", TAG, schemas.ProtocolAnswer, INFER_ERRORS),
    **INFER,
)
async def version_infer(request: Request, name: str, version: str) -> Response:
    """Score the rows of one input tensor with a given version."""
    return await inferred(request, name, version)


async def described(request: Request, name: str, version: str | None) -> Response:
    """The metadata of a model or version."""
    context = RequestContext.of(request)
    scorer = await context.scorer(reference(name, version))
    datatype = "FP64" if scorer.model.input.precision == "float64" else "FP32"
    document = {
        "name": name,
        # A version that was just published can be served by its number before the store is polled again.
        "versions": context.engine.registry.catalog.versions.get(name, (scorer.published.reference.version,)),
        "platform": "vouch",
        "inputs": [{"name": "rows", "datatype": datatype, "shape": [-1, scorer.model.input.features]}],
        "outputs": [{"name": output, "datatype": kind, "shape": [-1]} for output, kind in OUTPUTS.items()],
    }
    return answers.json_response(document)


async def inferred(request: Request, name: str, version: str | None) -> Response:
    """Score the rows of a request, and answer with the requested outputs."""
    context = RequestContext.of(request)
    scorer = await context.scorer(reference(name, version))
    context.engine.check_room(context, scorer)
    body = await context.body()
    length = header_length(request, len(body))
    parse = partial(read, body, length, scorer, context.limits())
    asked = await context.parsed(len(body), parse)
    scores = await context.engine.score(context, scorer, asked.rows, context.service.policy or DEFAULT)
    return await context.encoded(len(scores), answer, name, scorer, asked, scores)


def reference(name: str, version: str | None) -> str:
    return name if version is None else f"{name}@{version}"


# Requests


def header_length(request: Request, size: int) -> int:
    """Length of the JSON part of a body, which the client declares if bytes follow it."""
    given = request.headers.get(HEADER_LENGTH)
    if given is None:
        return size
    if not given.isdecimal() or len(given) > 12 or int(given) > size:
        raise MalformedError(f"{HEADER_LENGTH}: must be the length of the JSON part, at most the body's length")
    return int(given)


def read(body: Body, length: int, scorer: Scorer, limits: Limits) -> Asked:
    """Read the rows and the requested outputs of a request."""
    # Lists of a row: of an image, one for each of its lines.
    lists = 1 + math.prod(scorer.model.input.shape[:-1])
    text, data = divided(body[:length] if length < len(body) else body, lists, limits)
    asked = decoded(text)
    if len(asked.inputs) != 1:
        raise InputError(f"the request has {len(asked.inputs)} inputs, the model reads one: send one tensor of rows")
    wanted = asked.outputs or [RequestedOutput(output) for output in OUTPUTS]
    if {output.name for output in wanted} - set(OUTPUTS):
        raise InputError(f"unknown output; expected some of {', '.join(OUTPUTS)}")
    all_binary = asked.parameters.get(ALL_BINARY) is True
    if len({output.name for output in wanted}) < len(wanted):
        raise InputError("output requested twice: ask for each once")
    outputs = [(output.name, output.parameters.get(BINARY, all_binary) is True) for output in wanted]
    array = array_of(asked.inputs[0], data, memoryview(body)[length:], limits)
    rows = scorer.read(array)
    limits.hold(rows.nbytes)
    return Asked(rows, asked.id, outputs)


def divided(text: Body, lists: int, limits: Limits) -> tuple[Body, Body | None]:
    """The JSON of a large request with null for the data of its input, and those data; a small one as it is.

    Args:
        lists: most lists for each row of the data.

    Raises:
        MalformedError: it is not JSON.
        TooLargeError: it is large but for its data, or has data twice.
    """
    if len(text) <= CHUNK:
        return text, None
    cursor, spans = Cursor(text, limits.check), []
    cursor.step(b"{")
    while (key := cursor.key()) is not None:
        if key == "inputs" and cursor.sign() == b"[":
            spans += data_spans(cursor, lists * limits.max_rows)
        else:
            cursor.value(CHUNK)
        if cursor.step(b",}") == b"}":
            break
    cursor.end()
    (start, stop), *others = spans or [(0, 0)]
    if others or len(text) - (stop - start) > CHUNK:
        raise TooLargeError(f"the request has more than {CHUNK:,} bytes besides the data of one input: send fewer")
    return text[:start] + b"null" + text[stop:], text[start:stop]


def data_spans(cursor: Cursor, most_lists: int) -> list[tuple[int, int]]:
    """Move over the inputs of a request; where the data of each begin and end, of at most so many lists."""
    spans = []
    cursor.step(b"[")
    for number in count():
        if cursor.sign() != b"{":
            break
        if number:
            raise InputError("the request has more than one input, the model reads one: send one tensor of rows")
        cursor.step(b"{")
        while (key := cursor.key()) is not None:
            cursor.sign()
            start = cursor.at
            if key == "data":
                cursor.value(len(cursor.text), most_lists)
                spans.append((start, cursor.at))
            else:
                cursor.value(CHUNK)
            if cursor.step(b",}") == b"}":
                break
        if cursor.sign() == b",":
            cursor.step(b",")
    cursor.step(b"]")
    return spans


def decoded(text: Body) -> InferRequest:
    """Decode the JSON of a request."""
    try:
        return msgspec.json.decode(text, type=InferRequest)
    except msgspec.ValidationError:
        raise InputError(
            "the body is not an inference request: expected inputs with name, shape, datatype and data"
        ) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise MalformedError("the body is not JSON: send an inference request of protocol version 2") from None


def array_of(given: Tensor, data: Body | None, binary: memoryview, limits: Limits) -> np.ndarray:
    """The numbers of a tensor, in its declared shape; its data are given apart if they are large."""
    if given.datatype not in INPUT_TYPES:
        raise InputError(f"unsupported datatype; expected one of {', '.join(INPUT_TYPES)}")
    if len(given.shape) > MAX_DIMENSIONS:
        raise InputError(f"the tensor has {len(given.shape)} dimensions, expected at most {MAX_DIMENSIONS}")
    if not given.shape or math.prod(given.shape) == 0:
        raise InputError("the tensor is empty, expected at least one row")
    if given.shape[0] > limits.max_rows:
        raise TooLargeError(f"at most {limits.max_rows:,} rows are accepted")
    if SIZE in given.parameters:
        return binary_array(given, binary)
    if binary:
        raise InputError(f"bytes follow the JSON, but the input has no {SIZE}: send it")
    return json_array(given, given.data if data is None else data, limits)


def binary_array(given: Tensor, binary: memoryview) -> np.ndarray:
    """The numbers of a tensor whose bytes follow the JSON."""
    dtype = np.dtype(INPUT_TYPES[given.datatype])
    size = given.parameters[SIZE]
    if type(size) is not int or size != len(binary):
        raise InputError(f"{SIZE} must be the number of bytes that follow the JSON, {len(binary):,}")
    if given.data != NO_DATA or math.prod(given.shape) * dtype.itemsize != size:
        raise InputError("the bytes do not match the declared shape: send as many as shape and datatype say")
    return np.frombuffer(binary, dtype).reshape(given.shape)


def json_array(given: Tensor, data: Body, limits: Limits) -> np.ndarray:
    """The numbers of a tensor in JSON, flat or nested."""
    if bytes(data) == bytes(NO_DATA):
        raise InputError("the input has no data: send `data`, or bytes after the JSON")
    try:
        if len(data) <= CHUNK:
            return np.array(numbers_in(data), dtype=np.float64).reshape(given.shape)
        cursor = Cursor(data, limits.check)
        most = math.prod(given.shape)
        chunks = cursor.chunks(most, max(MAX_ELEMENT, NUMBER_BYTES * math.prod(given.shape[1:])))
        parts = [np.array(numbers_in(b"[" + data[start:stop] + b"]"), np.float64) for start, stop in chunks]
        return np.concatenate(parts).reshape(given.shape)
    except (ValueError, TooLargeError):
        raise InputError("the data do not match the declared shape: send as many numbers as it says") from None


def numbers_in(data: Body) -> Any:
    """Decode a flat or nested list of numbers."""
    for decoder in NUMBERS:
        try:
            return decoder.decode(data)
        except (msgspec.DecodeError, RecursionError, OverflowError):
            continue
    raise InputError("data must be a flat or nested list of numbers")


# Answers


def answer(name: str, scorer: Scorer, asked: Asked, scores: Scores) -> Response:
    """Encode the outputs; those requested as bytes follow the JSON in the same order."""
    columns = {output: getattr(scores, output) for output, _ in asked.outputs}
    blobs = [tensor_bytes(columns[output]) for output, is_binary in asked.outputs if is_binary]
    sizes = iter(map(len, blobs))
    document: dict[str, Any] = {
        "model_name": name,
        "model_version": scorer.published.reference.version,
        **({"id": asked.id} if asked.id is not None else {}),
        **({"parameters": {"record": scores.record}} if scores.record is not None else {}),
        "outputs": [
            {
                "name": output,
                "datatype": OUTPUTS[output],
                "shape": [len(scores)],
                **({"parameters": {SIZE: next(sizes)}} if is_binary else {"data": columns[output]}),
            }
            for output, is_binary in asked.outputs
        ],
    }
    head = msgspec.json.encode(document, enc_hook=answers.to_list)
    if not blobs:
        return Response(head, media_type=JSON)
    return Response(b"".join([head, *blobs]), headers={HEADER_LENGTH: str(len(head))}, media_type=OCTETS)


def tensor_bytes(column: np.ndarray | list[str]) -> bytes:
    """FP64 as little-endian bytes; each text as its length in four bytes, then the text."""
    if isinstance(column, np.ndarray):
        return column.astype("<f8").tobytes()
    return b"".join(len(text).to_bytes(4, "little") + text.encode() for text in column)
