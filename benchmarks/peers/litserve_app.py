"""LitServe with our scorer: one HTTP process, one worker process that holds the scorer, a queue between them.

    python -m peers.litserve_app PORT

The worker scores the rows of up to MAX_BATCH requests in one call: what waits for it, and what comes within BATCH_WAIT_S.
No `fast_queue`: in 0.2.19 it changes nothing, since LitServe hands its own transport a setting of another name.
"""

# No `from __future__ import annotations`: LitServe hands the annotations of decode_request on to FastAPI.
import signal
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import litserve
import numpy as np
from fastapi import Depends, Request
from fastapi.responses import JSONResponse, Response

from peers.records import NPY, documents, from_npy, scored, scorer_from_environment, to_npy

MAX_BATCH = 64  # requests, not rows: LitServe counts no rows
BATCH_WAIT_S = 0.005  # from when the worker is free, not from the first request; 0 would have an idle worker spin
TIMEOUT_S = 120  # ours, too: LitServe answers 504 after 30 s in its queue otherwise


@dataclass(frozen=True)
class Rows:
    """A request's rows, (B, D), and the type that they came in."""

    array: np.ndarray
    media_type: str


async def read(request: Request) -> Rows:
    """The rows of a body, read in the HTTP process: an array crosses the queue for a fraction of what lists cost.

    A dependency, since LitServe itself parses every body that is not a form as JSON.
    """
    media_type = request.headers.get("content-type", "")
    if media_type == NPY:
        return Rows(from_npy(await request.body()), media_type)
    return Rows(np.array((await request.json())["instances"], np.float32), media_type)


class ScorerAPI(litserve.LitAPI):  # type: ignore[misc]  # LitServe is not in our environment
    """LitServe's hooks, in the order in which they run."""

    def setup(self, device: str) -> None:
        """Load the scorer, once, in the worker."""
        self.scorer = scorer_from_environment()

    def decode_request(self, request: Annotated[Rows, Depends(read)], context: dict[str, Any]) -> np.ndarray:
        """The rows; the context remembers how to answer."""
        context["media_type"] = request.media_type
        return request.array

    def batch(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """As they are: LitServe would stack them, which needs rows of one count."""
        return inputs

    def predict(self, batch: list[np.ndarray]) -> list[np.ndarray]:
        """Records of each request, from one call of the scorer."""
        ends = np.cumsum([len(rows) for rows in batch])
        return np.split(scored(self.scorer, np.concatenate(batch)), ends[:-1])

    def encode_response(self, output: np.ndarray, context: dict[str, Any]) -> Response:
        """A finished response: FastAPI would walk a dictionary value by value."""
        if context["media_type"] == NPY:
            return Response(to_npy(output), media_type=NPY)
        return JSONResponse({"scores": documents(output)})


if __name__ == "__main__":
    # On SIGTERM LitServe's main process would end and leave its children; on SIGINT it ends them first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    api = ScorerAPI(max_batch_size=MAX_BATCH, batch_timeout=BATCH_WAIT_S)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=TIMEOUT_S)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=1,
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )
