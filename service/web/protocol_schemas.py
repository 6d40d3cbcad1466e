"""Schemas of the Open Inference Protocol, version 2, for the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from service.web.schema_parts import Answer


class ProtocolError(Answer):
    """An error of the Open Inference Protocol."""

    error: str = Field(description="what is wrong, and what to send instead")


class ProtocolServer(Answer):
    """Answer to GET /v2."""

    name: str = Field(description="vouch")
    version: str = Field(description="version of Vouch")
    extensions: list[str] = Field(description="extensions of the protocol that are understood")


class ProtocolLive(Answer):
    """Answer to GET /v2/health/live."""

    live: bool = Field(description="whether the service is alive")


class ProtocolReady(Answer):
    """Answer to GET /v2/health/ready."""

    ready: bool = Field(description="whether the default model can answer")


class ProtocolModelReady(Answer):
    """Answer to GET /v2/models/{name}/ready."""

    name: str = Field(description="the model's name")
    ready: bool = Field(description="true; a model that cannot be served is answered with an error")


class ProtocolTensorInfo(Answer):
    """Name, type and shape of a tensor."""

    name: str = Field(description="the tensor's name")
    datatype: str = Field(description="the type of its elements")
    shape: list[int] = Field(description="its shape; -1 stands for any number of rows")


class ProtocolModel(Answer):
    """Answer to GET /v2/models/{name}."""

    name: str = Field(description="the model's name")
    versions: list[str] = Field(description="its versions in the store")
    platform: str = Field(description="vouch")
    inputs: list[ProtocolTensorInfo] = Field(description="the tensor of rows that it reads")
    outputs: list[ProtocolTensorInfo] = Field(description="the parts of the score that it answers with")


class ProtocolOutput(Answer):
    """A tensor for one part of the score; if it has no data, its bytes follow the JSON."""

    name: str = Field(description="the part of the score")
    datatype: str = Field(description="FP64, or BYTES for a verdict")
    shape: list[int] = Field(description="the number of rows")
    data: list[float] | list[str] | None = Field(None, description="an element for each row")
    parameters: dict[str, Any] | None = Field(None, description="the size of its bytes, if they follow the JSON")


class ProtocolAnswer(Answer):
    """Answer to POST /v2/models/{name}/infer."""

    model_name: str = Field(description="the model's name")
    model_version: str = Field(description="the version that answered")
    id: str | None = Field(None, description="the request's id, if it had one")
    parameters: dict[str, str] | None = Field(
        None, description="where there is a journal: `record`, to which a dot and a row's place, from 0, are added"
    )
    outputs: list[ProtocolOutput] = Field(description="the requested parts of the score")


class ProtocolInput(BaseModel):
    """The tensor of rows."""

    name: str = Field(description="any name: there is one input")
    shape: list[Annotated[int, Field(ge=0)]] = Field(description="rows first")
    datatype: Literal[
        "FP16", "FP32", "FP64", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"
    ] = Field(description="the type of the elements")
    data: list[Any] | None = Field(
        None, description="the elements, flat or nested; absent if their bytes follow the JSON"
    )
    parameters: dict[str, Any] = Field({}, description="`binary_data_size`, if its bytes follow the JSON")


class ProtocolWanted(BaseModel):
    """A requested output."""

    name: Literal["log_likelihood", "percentile", "p_value", "verdict"] = Field(description="the part of the score")
    parameters: dict[str, Any] = Field({}, description="`binary_data`: true for bytes after the JSON")


class ProtocolRequest(BaseModel):
    """Body of POST /v2/models/{name}/infer."""

    id: str | None = Field(None, description="comes back with the answer")
    inputs: list[ProtocolInput] = Field(min_length=1, max_length=1, description="the tensor of rows")
    outputs: list[ProtocolWanted] = Field([], description="the parts of the score to answer with; default: all")
    parameters: dict[str, Any] = Field({}, description="`binary_data_output`: true for all outputs as bytes")
