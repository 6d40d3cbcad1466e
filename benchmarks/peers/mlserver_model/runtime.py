"""MLServer with our scorer: a runtime whose predict gets the combined tensors of the requests of a batch.

    mlserver start FOLDER_OF_THIS_FILE

settings.json and model-settings.json beside this file are MLServer's own. It counts requests, not rows.

No parallel workers: MLServer sends a batch off after max_batch_time whether or not the worker is free, so that batches of
a few rows queue up before it. In its own process the computation holds the event loop, requests wait in their sockets,
and the next batch takes them together. (A worker does not start anyhow, with uvloop 0.23.)
"""

from __future__ import annotations

import math

import numpy as np
from mlserver import MLModel
from mlserver.codecs import Base64Codec, NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse, RequestInput, ResponseOutput, TensorData

from peers.records import PARTS, scored, scorer_from_environment
from service.validity.band import SIDES

DATATYPES = {"?": "BOOL", "d": "FP64", "l": "INT64"}  # of numpy's type characters


class ScorerRuntime(MLModel):  # type: ignore[misc]  # MLServer is not in our environment
    """MLServer's hooks."""

    async def load(self) -> bool:
        """Load the scorer, once, in the process that computes."""
        self.scorer = scorer_from_environment()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """A tensor for each part of the scores."""
        records = scored(self.scorer, rows_of(payload.inputs[0]))
        return InferenceResponse(model_name=self.name, outputs=outputs(records))


def rows_of(tensor: RequestInput) -> np.ndarray:
    """The rows of a tensor, (B, D): numbers, or the bytes of each row's float32 numbers in base64.

    The second is the only binary form of MLServer's REST side; raw tensors are for its gRPC side alone.
    """
    if tensor.datatype == "BYTES":
        return np.stack([np.frombuffer(row, np.float32) for row in Base64Codec.decode_input(tensor)])
    rows: np.ndarray = NumpyCodec.decode_input(tensor)
    return rows


def outputs(records: np.ndarray) -> list[ResponseOutput]:
    """Records as tensors: words for the verdict and the side, null for no khat."""
    words = {
        "verdict": ["valid" if valid else "invalid" for valid in records["valid"].tolist()],
        "side": [SIDES[side + 1] for side in records["side"].tolist()],
    }
    tensors = [output(name, "BYTES", data) for name, data in words.items()]
    for name in PARTS:
        column = records[name].tolist()
        data = [None if math.isnan(number) else number for number in column]
        tensors.append(output(name, DATATYPES[records[name].dtype.char], data))
    return tensors


def output(name: str, datatype: str, data: list[object]) -> ResponseOutput:
    """A tensor of one value a row."""
    return ResponseOutput(name=name, datatype=datatype, shape=[len(data)], data=TensorData(data))
