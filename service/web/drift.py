"""What each model was asked since the process started, beside what valid rows would look like."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np

from service.scorer import Scorer, Scores
from service.store import Reference
from service.validity.band import SIDES

BINS = 10


@dataclass
class Tally:
    """Rows by side of the band and by p_value."""

    sides: np.ndarray = field(default_factory=lambda: np.zeros(len(SIDES), dtype=np.int64))
    p_values: np.ndarray = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))


class DriftMonitor:
    """A tally for each version; the inference thread adds, requests read."""

    def __init__(self) -> None:
        self.tallies: dict[Reference, Tally] = {}
        self.lock = threading.Lock()

    def add(self, scorer: Scorer, scores: Scores) -> None:
        """Count the rows by the calibration's own band, whatever band a request asked for."""
        sides = scorer.band.sides(scores.log_likelihood)
        bins = np.minimum((scores.p_value * BINS).astype(int), BINS - 1)
        with self.lock:
            tally = self.tallies.setdefault(scorer.published.reference, Tally())
            tally.sides += np.bincount(sides + 1, minlength=len(SIDES))
            tally.p_values += np.bincount(bins, minlength=BINS)

    def tally(self, reference: Reference) -> Tally:
        """What was counted so far; zeros for a version that was not asked yet."""
        with self.lock:
            return self.tallies.get(reference, Tally())
