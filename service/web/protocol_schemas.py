"""Schemas of the Open Inference Protocol, version 2, for the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from service.web.schemas import Answer


class ProtocolError(Answer):
    """An error of the Open Inference Protocol."""

    error: str


class ProtocolServer(Answer):
    """Answer to GET /v2."""

    name: str
    version: str
    extensions: list[str]


class ProtocolLive(Answer):
    """Answer to GET /v2/health/live."""

    live: bool


class ProtocolReady(Answer):
    """Answer to GET /v2/health/ready."""

    ready: bool


class ProtocolModelReady(Answer):
    """Answer to GET /v2/models/{name}/ready."""

    name: str
    ready: bool


class ProtocolTensorInfo(Answer):
    """Name, type and shape of a tensor; -1 stands for any number of rows."""

    name: str
    datatype: str
    shape: list[int]


class ProtocolModel(Answer):
    """Answer to GET /v2/models/{name}."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[ProtocolTensorInfo]
    outputs: list[ProtocolTensorInfo]


class ProtocolOutput(Answer):
    """A tensor for one part of the score; if it has no data, its bytes follow the JSON."""

    name: str
    datatype: str
    shape: list[int]
    data: list[float] | list[str] | None = None
    parameters: dict[str, Any] | None = None


class ProtocolAnswer(Answer):
    """Answer to POST /v2/models/{name}/infer."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[ProtocolOutput]


class ProtocolInput(BaseModel):
    """The tensor of rows."""

    name: str
    shape: list[Annotated[int, Field(ge=0)]]
    datatype: Literal["FP16", "FP32", "FP64", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"]
    data: list[Any] | None = None
    parameters: dict[str, Any] = {}


class ProtocolWanted(BaseModel):
    """A requested output."""

    name: Literal["log_likelihood", "percentile", "p_value", "verdict"]
    parameters: dict[str, Any] = {}


class ProtocolRequest(BaseModel):
    """Body of POST /v2/models/{name}/infer."""

    id: str | None = None
    inputs: list[ProtocolInput] = Field(min_length=1, max_length=1)
    outputs: list[ProtocolWanted] = []
    parameters: dict[str, Any] = {}
