"""Scores as an array of records, one a row: what a server can cut into the answers of the requests that it combined."""

from __future__ import annotations

import io
import math
import os
from typing import Any

import numpy as np
import torch

from service.scoring.scorer import Scorer
from service.store.loading import load_scorer
from service.store.store import Store
from service.validity.band import SIDES
from service.web.answers import SCORE_DTYPE

NPY = "application/x-npy"
THREADS = 2  # the scorer's own, as in the service's benchmark
PARTS = tuple(SCORE_DTYPE.names or ())[2:]  # after `valid` and `side`, which are words in JSON


def scorer_from_environment() -> Scorer:
    """The scorer of PEER_MODEL in PEER_STORE, warm: one for a server, in the process that computes."""
    torch.set_num_threads(1)  # the scorer's own threads share the rows
    scorer = load_scorer(Store(os.environ["PEER_STORE"]), os.environ["PEER_MODEL"], "cpu", threads=THREADS)
    scorer.warm_up()
    return scorer


def scored(scorer: Scorer, rows: np.ndarray) -> np.ndarray:
    """Records of SCORE_DTYPE, shape (B,), of rows (B, D)."""
    scores = scorer.score(rows)
    records = np.zeros(len(scores), SCORE_DTYPE)
    records["valid"], records["side"] = scores.sides == 0, scores.sides
    for name in PARTS:
        records[name] = getattr(scores, name)
    return records


def documents(records: np.ndarray) -> list[dict[str, Any]]:
    """A dictionary for each record, with the keys and values of the service's JSON."""
    return [document(*record) for record in records.tolist()]


def document(valid: bool, side: int, certain: bool, reliable: bool, *numbers: float) -> dict[str, Any]:
    """A record as JSON has it: words for the verdict and the side, null for no khat."""
    words = {"verdict": "valid" if valid else "invalid", "side": SIDES[side + 1]}
    rest = zip(PARTS[2:], numbers, strict=True)
    finite = {name: None if math.isnan(number) else number for name, number in rest}
    return {**words, "certain": certain, "reliable": reliable, **finite}


def from_npy(body: bytes) -> np.ndarray:
    """The array of an npy file."""
    array: np.ndarray = np.load(io.BytesIO(body), allow_pickle=False)
    return array


def to_npy(array: np.ndarray) -> bytes:
    """An array as an npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
