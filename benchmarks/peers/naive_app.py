"""What a newcomer writes: FastAPI, a pydantic list of lists, and a call of the scorer for each request. No batching.

    python -m peers.naive_app PORT

The JSON handler is a plain `def`, which FastAPI runs in a thread: requests share the scorer's threads, where an
`async def` that computes would hold up every other request, the probe included.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from pydantic import BaseModel

from peers.records import documents, from_npy, scored, scorer_from_environment

app = FastAPI()
scorer = scorer_from_environment()


class Rows(BaseModel):
    """The body of /score."""

    instances: list[list[float]]


@app.get("/health")
def health() -> dict[str, str]:
    """Ready: the scorer is loaded before the port is open."""
    return {"status": "ok"}


@app.post("/score")
def score(rows: Rows) -> dict[str, Any]:
    """Scores of JSON rows."""
    return {"scores": documents(scored(scorer, np.array(rows.instances)))}


@app.post("/score-npy")
async def score_npy(request: Request) -> dict[str, Any]:
    """Scores of the rows of an npy file."""
    rows = from_npy(await request.body())
    return {"scores": documents(await asyncio.to_thread(scored, scorer, rows))}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=False, log_level="warning")
