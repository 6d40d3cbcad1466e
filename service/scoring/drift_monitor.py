"""Drift monitor: whether the rows that a version scores still look like its validation rows. Tallies and a martingale."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from service.scoring.scorer import Scorer
from service.scoring.scores import Scores
from service.validity.band import SIDES
from service.validity.martingale import BETS, Martingale, Ranks, log_limit

BINS = 10


@dataclass
class DriftMonitor:
    """Drift monitor of one version: rows scored, by side of its band and by p-value, and the test martingale.

    `watched` counts the monitored rows: those without missing cells, of versions without folds, since only their scores can
    be ranked among each other; a row with a cell that cannot be read is the lowest of all. `alarm_row` is the monitored row
    at which the martingale raised its alarm since the last start; `restarts` is how often it was restarted.
    """

    digest: str
    ranks: Ranks
    sides: np.ndarray = field(default_factory=lambda: np.zeros(len(SIDES), dtype=np.int64))
    p_values: np.ndarray = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))
    martingale: Martingale = field(default_factory=Martingale)
    watched: int = 0
    restarts: int = 0
    alarm_row: int | None = None
    peak: float = 0.0  # of the log capital since the last start

    @staticmethod
    def of(scorer: Scorer) -> DriftMonitor:
        """A new monitor that has counted the validation rows; its grid depends only on rows drawn from the model."""
        golden = scorer.published.golden
        drawn = np.zeros(1) if golden is None else golden.log_likelihood
        ranks = Ranks(float(np.median(drawn)), float(drawn.std()) or 1.0)
        calibration = scorer.calibration
        chosen = slice(None) if calibration.complete is None else calibration.complete
        ranks.add(ranks.cells(calibration.scores[chosen]))
        return DriftMonitor(scorer.published.digest, ranks)

    def add(self, scorer: Scorer, scores: Scores, uniforms: np.ndarray, level: float) -> bool:
        """Count rows, and bet on the complete ones; whether this call raises the alarm."""
        # Always by the calibration's default band, even if a request asked for another.
        self.sides += np.bincount(scores.sides_of(scorer.band.percentiles) + 1, minlength=len(SIDES))
        self.p_values += p_value_counts(scores.p_value, BINS)
        complete = (scores.missing == 0) & (scores.band.folds == 1)
        ranked = np.where(scores.unreadable, -np.inf, scores.log_likelihood)
        return self.bet(ranked[complete], uniforms[complete], level)

    def bet(self, log_likelihood: np.ndarray, uniforms: np.ndarray, level: float) -> bool:
        """Bet on complete rows, shape (N,) both; whether this call raises the alarm."""
        path = self.martingale.bet(self.ranks.p_values(log_likelihood, uniforms))
        before, self.watched = self.watched, self.watched + len(path)
        self.peak = max(self.peak, float(path.max(initial=0.0)))
        over = np.flatnonzero(path >= log_limit(level, self.restarts))
        if self.alarm_row is not None or not over.size:
            return False
        self.alarm_row = before + int(over[0]) + 1
        return True

    @property
    def direction(self) -> str | None:
        """Which likelihoods are too frequent, `low` or `high`; None before an alarm."""
        if self.alarm_row is None:
            return None
        return BETS[int(np.argmax(self.martingale.log_parts[1:]))][0]

    def restart(self) -> None:
        """Restart the martingale with a smaller part of the level; the rows so far stay in the ranks and tallies."""
        self.martingale, self.restarts, self.alarm_row, self.peak = Martingale(), self.restarts + 1, None, 0.0

    def tallies(self, scorer: Scorer) -> dict[str, Any]:
        """Rows scored, by side of the band and by p-value, as JSON."""
        low, high = scorer.band.percentiles
        shares = (low / 100, (high - low) / 100, 1 - high / 100)
        return {
            "rows": int(self.sides.sum()),
            "sides": dict(zip(SIDES, self.sides.tolist(), strict=True)),
            "expected_shares": dict(zip(SIDES, shares, strict=True)),
            "p_value_deciles": self.p_values.tolist(),
        }

    def document(self, level: float) -> dict[str, Any]:
        """The monitor's state as JSON; `level` bounds the probability that it ever raises a false alarm."""
        return {
            "drifts": self.alarm_row is not None,
            "direction": self.direction,
            "alarm_row": self.alarm_row,
            "watched_rows": self.watched,
            "log_capital": self.martingale.log_capital,
            "peak_log_capital": self.peak,
            "limit": log_limit(level, self.restarts),
            "level": level,
            "restarts": self.restarts,
        }

    # Saving and restoring

    def arrays(self) -> dict[str, np.ndarray]:
        return {
            "digest": np.array(self.digest),
            "grid": np.array([self.ranks.center, self.ranks.width]),
            "counts": self.ranks.counts,
            "sides": self.sides,
            "p_values": self.p_values,
            "log_parts": self.martingale.log_parts,
            "numbers": np.array([self.watched, self.restarts, self.alarm_row or 0]),
            "peak": np.array(self.peak),
        }

    @staticmethod
    def of_arrays(arrays: dict[str, np.ndarray]) -> DriftMonitor:
        """Restore a monitor from its `arrays`.

        Raises:
            ValueError, KeyError: these are not the arrays of a monitor.
        """
        center, width = map(float, arrays["grid"])
        monitor = DriftMonitor(str(arrays["digest"]), Ranks(center, width))
        expected = {"counts": monitor.ranks.counts, "sides": monitor.sides, "p_values": monitor.p_values}
        for name, usual in expected.items():
            counts = arrays[name]
            if counts.shape != usual.shape or counts.dtype.kind not in "iu" or (counts < 0).any():
                raise ValueError(f"drift state: {name} are not the counts of {usual.shape} cells")
        log_parts = arrays["log_parts"].astype(np.float64)
        watched, restarts, alarm_row = map(int, arrays["numbers"])
        peak = float(arrays["peak"])
        numbers = np.array([center, width, peak])
        if log_parts.shape != monitor.martingale.log_parts.shape or np.isnan(log_parts).any() or log_parts.max() > 1e9:
            raise ValueError("drift state: not the capital of a martingale")
        if not np.isfinite(numbers).all() or width <= 0 or peak < 0 or min(watched, restarts, alarm_row) < 0:
            raise ValueError("drift state: numbers that no monitor has")
        monitor.ranks.counts = arrays["counts"].astype(np.int64)
        monitor.sides, monitor.p_values = arrays["sides"].astype(np.int64), arrays["p_values"].astype(np.int64)
        monitor.martingale = Martingale(log_parts)
        monitor.watched, monitor.restarts, monitor.alarm_row = watched, restarts, alarm_row or None
        monitor.peak = peak
        return monitor


def p_value_counts(p_values: np.ndarray, bins: int) -> np.ndarray:
    """Histogram of p-values over equal bins from 0 to 1: shape (bins,)."""
    return np.bincount(np.minimum((p_values * bins).astype(int), bins - 1), minlength=bins)
