"""BentoML with our scorer: one worker process, whose dispatcher combines the rows of waiting requests.

    bentoml serve peers.bentoml_app:ScorerService --host 127.0.0.1 --port PORT

BentoML learns from the times of its batches how long to wait for more; only the largest batch is ours to set. It counts
rows, and cuts a request that does not fit.
"""

# No `from __future__ import annotations`: BentoML reads the annotations.
from typing import Annotated, Any

import bentoml
import numpy as np
from bentoml.validators import ContentType, DType
from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from peers.records import NPY, documents, from_npy, scored, scorer_from_environment, to_npy

MAX_BATCH = 64
MAX_LATENCY_MS = 120_000  # above it BentoML answers 503: ours, too, gives a request two minutes


def array_of(value: bytes | np.ndarray) -> np.ndarray:
    """The array of a body; an answer is one already."""
    return from_npy(value) if isinstance(value, bytes) else value


JsonRows = Annotated[np.ndarray, DType("float32")]
# BentoML's own encodings of an array are JSON and pickle, and it refuses pickle from outside. A body that says that it is
# a string of bytes reaches the validator unread.
Npy = Annotated[
    np.ndarray,
    BeforeValidator(array_of),
    PlainSerializer(to_npy),
    WithJsonSchema({"type": "string", "format": "binary"}),
    ContentType(NPY),
]
batched = bentoml.api(batchable=True, batch_dim=0, max_batch_size=MAX_BATCH, max_latency_ms=MAX_LATENCY_MS)


@bentoml.service(
    workers=1,
    threads=1,
    traffic={"timeout": 120},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
)
class ScorerService:
    """Two endpoints: BentoML gives each one way to read and one to write."""

    def __init__(self) -> None:
        self.scorer = scorer_from_environment()

    @batched  # type: ignore[untyped-decorator]  # BentoML is not in our environment
    def score(self, instances: JsonRows) -> list[dict[str, Any]]:
        """Scores of JSON rows."""
        return documents(scored(self.scorer, instances))

    @batched  # type: ignore[untyped-decorator]  # BentoML is not in our environment
    def score_npy(self, rows: Npy, /) -> Npy:
        """Records of the rows of an npy file, as an npy file."""
        return scored(self.scorer, rows)
