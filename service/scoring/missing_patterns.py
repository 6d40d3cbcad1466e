"""Rows with missing cells are compared with validation rows that have the same cells hidden.

Which validation rows, and how they are estimated, depends on the version and the pattern alone. They are scored when a
pattern first occurs, and the result is cached; a version knows the usual patterns from the start.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from service.density.estimate import DIRECT, Execution
from service.scoring.calibration import Calibration, readable
from service.scoring.model import Assessment, Model
from service.scoring.options import PLAIN, Detail
from service.scoring.reference_rows import PatternEstimates
from service.scoring.scores import ReferenceEstimates, concatenated
from service.scoring.statistics import ReferenceStatistics
from service.validity.column_ranks import ColumnSketch
from service.validity.violations import ViolationReference

MAX_PATTERNS = 256  # most cached patterns
USUAL_PATTERNS = 16  # most that a calibration knows beforehand
PART_ROWS = 256  # reference rows that are estimated at a time


@dataclass(frozen=True, slots=True)
class Comparison:
    """What rows are compared with: ascending scores of validation rows, and their further statistics.

    `folds` is the fold of each score, if there are folds. `violations` are those of the rows, if they are not those of all
    validation rows.
    """

    scores: np.ndarray
    folds: np.ndarray | None = None
    columns: ColumnSketch | None = None
    statistics: ReferenceStatistics | None = None
    violations: ViolationReference | None = None

    def has(self, detail: Detail) -> bool:
        if detail.statistics and self.statistics is None:
            return False
        return len(self.scores) > 0 and (self.columns is not None or not detail.columns)


NOTHING = Comparison(np.zeros(0))


class Assess(Protocol):
    """The signature of `Scorer.assess`."""

    def __call__(self, rows: np.ndarray, detail: Detail, execution: Execution) -> Assessment:
        """Assess checked rows, shape (B, D)."""


class MissingPatterns:
    """Cache of comparisons with cells hidden, for the most recently used patterns of missing cells.

    A pattern's reference rows may be estimated in parts, each of which is kept: whoever asks again goes on from there.
    """

    def __init__(self, model: Model, calibration: Calibration, assess: Assess) -> None:
        self.model, self.calibration, self.assess = model, calibration, assess
        self.known: OrderedDict[bytes, Comparison] = OrderedDict()
        self.parts: OrderedDict[tuple[bytes, Detail], dict[int, ReferenceEstimates]] = OrderedDict()
        self.lock = threading.Lock()
        for one in calibration.patterns:
            self.remember(one.mask, one.estimates)

    def unknown(self, rows: np.ndarray, detail: Detail = PLAIN) -> list[np.ndarray]:
        """Masks of missing cells, shape (D,), in checked rows, (B, D + C), whose comparison is not cached in full.

        Rows that cannot be read, or have no value, need no comparison.
        """
        return [
            pattern
            for pattern in distinct_patterns(np.isnan(readable(self.model.input, rows)))
            if not self.known.get(pattern.tobytes(), NOTHING).has(detail)
        ]

    def reference_rows(self, pattern: np.ndarray) -> np.ndarray:
        """Validation rows with the cells of a pattern hidden, shape (k, D)."""
        assert self.calibration.reference is not None
        return self.calibration.reference.with_missing(pattern)

    def missing_parts(self, pattern: np.ndarray, detail: Detail) -> dict[int, np.ndarray]:
        """The pattern's reference rows that are not estimated yet, in parts of at most PART_ROWS, by their first row."""
        rows = self.reference_rows(pattern)
        with self.lock:
            done = self.parts.get((pattern.tobytes(), detail), {})
            starts = [start for start in range(0, len(rows), PART_ROWS) if start not in done]
        return {start: rows[start : start + PART_ROWS] for start in starts}

    def keep(self, pattern: np.ndarray, detail: Detail, start: int, found: ReferenceEstimates) -> None:
        """Keep the estimates of a part; with the last one, the pattern is known."""
        key = (pattern.tobytes(), detail)
        with self.lock:
            parts = self.parts.setdefault(key, {})
            parts[start] = found
            self.parts.move_to_end(key)
            while len(self.parts) > MAX_PATTERNS:
                self.parts.popitem(last=False)
        if not self.missing_parts(pattern, detail):
            self.remember(pattern, concatenated([parts[at] for at in sorted(parts)]))
            with self.lock:
                self.parts.pop(key, None)

    def estimate(self, rows: np.ndarray, detail: Detail, execution: Execution = DIRECT) -> ReferenceEstimates:
        """log p(x) of reference rows, shape (k, D), and the requested detail."""
        return reference_estimates(self.assess(rows, detail, execution))

    def remember(self, pattern: np.ndarray, found: ReferenceEstimates) -> Comparison:
        """Cache a pattern's comparison, and drop the least recently used patterns."""
        calibration, reference = self.calibration, self.calibration.reference
        assert reference is not None
        scores, folds = found.log_likelihood, reference.folds_with_missing(pattern)
        unreadable = reference.unreadable_among(len(scores))
        if folds is not None:
            scores = np.take_along_axis(found.by_member, folds[:, None], axis=1)[:, 0]
            folds = np.append(np.zeros(unreadable, folds.dtype), folds)  # below every number by any network
        scores = np.append(np.full(unreadable, -np.inf), scores)
        order = np.argsort(scores, kind="stable")
        columns = statistics = None
        if found.columns.size and calibration.columns is not None:
            columns = ColumnSketch.fit(found.columns, calibration.columns.suspect)
        if found.statistics.size and calibration.statistics is not None:
            statistics = calibration.statistics.fit_alike(found.statistics, unreadable)
        with self.lock:
            before = self.known.get(pattern.tobytes(), NOTHING)
            comparison = Comparison(
                scores[order],
                None if folds is None else folds[order],
                columns or before.columns,
                statistics or before.statistics,
            )
            self.known[pattern.tobytes()] = comparison
            while len(self.known) > MAX_PATTERNS:
                self.known.popitem(last=False)
        return comparison

    def comparison(self, pattern: np.ndarray, detail: Detail, execution: Execution) -> Comparison:
        """The comparison with validation rows that have the same cells hidden: cached, or estimated now."""
        with self.lock:
            known = self.known.get(pattern.tobytes(), NOTHING)
            if known.has(detail):
                self.known.move_to_end(pattern.tobytes())
                return known
        return self.remember(pattern, self.estimate(self.reference_rows(pattern), detail, execution))


def reference_estimates(found: Assessment) -> ReferenceEstimates:
    """What an assessment of reference rows says."""
    nothing = np.zeros((len(found.estimates.log_likelihood), 0))
    return ReferenceEstimates(
        found.estimates.log_likelihood,
        np.stack([one.log_likelihood for one in found.by_member], axis=1),
        nothing if found.columns is None else found.columns.log_likelihood,
        nothing if found.statistics is None else found.statistics,
    )


def with_usual_patterns(
    model: Model, calibration: Calibration, execution: Execution = DIRECT, until: float = math.inf
) -> Calibration:
    """A calibration that knows the most frequent patterns of missing cells among its reference rows.

    `until`, a time of `time.monotonic`, ends it early.
    """
    reference = calibration.reference
    if reference is None or not reference.missing.any():
        return calibration
    masks, counts = np.unique(reference.missing[reference.missing.any(axis=1)], axis=0, return_counts=True)
    suspect = None if calibration.columns is None else calibration.columns.suspect
    statistics = None if calibration.statistics is None else model.row_statistics(calibration.statistics.known)
    found: list[PatternEstimates] = []
    for mask in masks[np.argsort(-counts, kind="stable")][:USUAL_PATTERNS]:
        if time.monotonic() >= until:
            break
        assessment = model.assess(reference.with_missing(mask), (), suspect, statistics, execution)
        found.append(PatternEstimates(mask, reference_estimates(assessment)))
    return replace(calibration, patterns=tuple(found))


def distinct_patterns(missing: np.ndarray) -> list[np.ndarray]:
    """The distinct masks of missing cells of B rows, shape (B, D), without the mask of complete rows."""
    if not missing.any():
        return []
    return [pattern for pattern in np.unique(missing, axis=0) if pattern.any()]
