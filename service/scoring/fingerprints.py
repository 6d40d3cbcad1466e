"""Keyed fingerprints of the rows that a network was fitted to: whether rows to calibrate on are among them.

Calibration promises something only for rows that the network has not seen. A fingerprint is the first 64 bits of a row's
HMAC, under a key of its own in each version: without that file nobody can tell whether a row was trained on, and a row that
was not is taken for one with a probability of at most n / 2**64.
"""

from __future__ import annotations

import hmac
import math
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from service.errors import CalibrationError

KEY_BYTES, BYTES = 32, 8
TOO_UNLIKELY = 1e-6  # below which it is no accident that so many rows were trained on


@dataclass(frozen=True)
class Fingerprints:
    """Fingerprints of training rows, ascending, shape (m,), uint64, under `key`.

    Of the version's own `calibration_rows`, which were not trained on, `calibration_seen` are equal to a training row.
    """

    key: bytes = field(repr=False)
    values: np.ndarray = field(repr=False)
    calibration_rows: int
    calibration_seen: int

    @staticmethod
    def of(training: Iterable[np.ndarray], calibration: np.ndarray) -> Fingerprints:
        """Of training rows, in arrays of shape (m, D), and the calibration rows that were held back from them, (n, D)."""
        key = secrets.token_bytes(KEY_BYTES)
        values = np.unique(np.concatenate([np.zeros(0, np.uint64), *(of_rows(one, key) for one in training)]))
        return Fingerprints(key, values, len(calibration), int(np.isin(of_rows(calibration, key), values).sum()))

    def seen(self, rows: np.ndarray) -> int:
        """How many of the rows, shape (n, D), were trained on."""
        return int(self.are_seen(rows).sum())

    def are_seen(self, rows: np.ndarray) -> np.ndarray:
        """Which of the rows, shape (n, D), were trained on: (n,), bool."""
        return np.isin(of_rows(rows, self.key), self.values)

    def are_too_many(self, rows: np.ndarray) -> bool:
        """Whether more of the rows, shape (n, D), were trained on than rows that repeat by themselves would explain."""
        seen = self.seen(rows)
        return chance_of_more(seen, len(rows), self.calibration_seen, self.calibration_rows) < TOO_UNLIKELY

    def check_unseen(self, rows: np.ndarray, reference: str) -> None:
        """Raise if more of the rows, shape (n, D), were trained on than rows that repeat by themselves would explain.

        Raises:
            CalibrationError: says how many.
        """
        if not self.are_too_many(rows):
            return
        seen = self.seen(rows)
        raise CalibrationError(
            f"{seen:,} of {len(rows):,} rows are among those that {reference} was trained on; of the rows held back from "
            f"it, {self.calibration_seen:,} of {self.calibration_rows:,} are. The network knows them, and finds them "
            "likelier than other valid rows: use rows that it has not seen, or --trained-rows allow"
        )


def of_rows(rows: np.ndarray, key: bytes) -> np.ndarray:
    """The fingerprint of each row, shape (n, D): shape (n,), uint64."""
    plain = np.where(np.isnan(rows), np.nan, rows + 0.0) if rows.dtype.kind == "f" else rows  # one NaN, one zero
    width = plain.dtype.itemsize * math.prod(plain.shape[1:])
    content = np.ascontiguousarray(plain).tobytes()
    parts = (content[at : at + width] for at in range(0, width * len(rows), width))
    digests = (hmac.digest(key, part, "sha256")[:BYTES] for part in parts)
    return np.frombuffer(b"".join(digests), np.uint64)


def chance_of_more(seen: int, rows: int, others_seen: int, others: int) -> float:
    """How likely `rows` have at least `seen` of all rows that were seen, if the others are like them (Fisher, 1935)."""

    def log_ways(chosen: int, total: int) -> float:
        return math.lgamma(total + 1) - math.lgamma(chosen + 1) - math.lgamma(total - chosen + 1)

    together, every = seen + others_seen, log_ways(seen + others_seen, rows + others)
    terms = [
        log_ways(here, rows) + log_ways(together - here, others) - every
        for here in range(max(seen, together - others), min(rows, together) + 1)
    ]
    return min(1.0, math.fsum(map(math.exp, terms)))
