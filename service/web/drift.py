"""Whether what each model is asked still looks like its validation rows: tallies, and a test that keeps its promise."""

from __future__ import annotations

import hashlib
import io
import logging
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from service.scorer import Scorer, Scores
from service.shelf import write_whole
from service.store import Reference
from service.validity.band import SIDES
from service.validity.martingale import BETS, Martingale, Ranks, log_limit

log = logging.getLogger("vouch")
BINS = 10
REMEMBERED = 10_000  # requests, by which a retry is known
SAVE_EVERY_S = 30.0


@dataclass
class Watch:
    """What one version was asked: rows by side of its band and by p-value, and the test martingale.

    `watched` counts the complete rows, which alone can be ranked among each other, and not where each fold has a score of
    its own. `alarm_row` is the row at which the
    martingale spoke, since its last start; `restarts` how often it was started anew.
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
    def of(scorer: Scorer) -> Watch:
        """A new one, which knows the validation rows; its grid is made of rows that the model drew, and of no others."""
        golden = scorer.published.golden
        drawn = np.zeros(1) if golden is None else golden.log_likelihood
        ranks = Ranks(float(np.median(drawn)), float(drawn.std()) or 1.0)
        for cell in ranks.cells(scorer.calibration.scores).tolist():
            ranks.add(cell)
        return Watch(scorer.published.digest, ranks)

    def add(self, scorer: Scorer, scores: Scores, uniforms: np.ndarray, level: float) -> bool:
        """Count rows, and bet on the complete ones; whether the martingale speaks up just now."""
        # By the calibration's own band, whatever a request asked for.
        self.sides += np.bincount(scores.sides_of(scorer.band.percentiles) + 1, minlength=len(SIDES))
        bins = np.minimum((scores.p_value * BINS).astype(int), BINS - 1)
        self.p_values += np.bincount(bins, minlength=BINS)
        complete = (scores.missing == 0) & (scores.band.folds == 1)
        path = self.martingale.bet(self.ranks.p_values(scores.log_likelihood[complete], uniforms[complete]))
        before, self.watched = self.watched, self.watched + len(path)
        self.peak = max(self.peak, float(path.max(initial=0.0)))
        over = np.flatnonzero(path >= log_limit(level, self.restarts))
        if self.alarm_row is not None or not over.size:
            return False
        self.alarm_row = before + int(over[0]) + 1
        return True

    @property
    def direction(self) -> str | None:
        """Which likelihoods pile up, where the martingale has spoken: `low` or `high`."""
        if self.alarm_row is None:
            return None
        return BETS[int(np.argmax(self.martingale.log_parts[1:]))][0]

    def restart(self) -> None:
        """Begin to bet anew, with less to spend; all rows so far stay known."""
        self.martingale, self.restarts, self.alarm_row, self.peak = Martingale(), self.restarts + 1, None, 0.0

    # To a file and back

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it."""
        return {
            "digest": np.array(self.digest),
            "grid": np.array([self.ranks.center, self.ranks.width]),
            "tree": self.ranks.tree,
            "sides": self.sides,
            "p_values": self.p_values,
            "log_parts": self.martingale.log_parts,
            "numbers": np.array([self.ranks.total, self.watched, self.restarts, self.alarm_row or 0]),
            "peak": np.array(self.peak),
        }

    @staticmethod
    def of_arrays(arrays: dict[str, np.ndarray]) -> Watch:
        """And back.

        Raises:
            ValueError: it does not fit.
        """
        ranks = Ranks(*arrays["grid"].tolist())
        if arrays["tree"].shape != ranks.tree.shape or arrays["log_parts"].shape != Martingale().log_parts.shape:
            raise ValueError("of other shapes")
        total, watched, restarts, alarm_row = map(int, arrays["numbers"].tolist())
        ranks.tree, ranks.total = arrays["tree"].astype(np.int64), total
        return Watch(
            str(arrays["digest"]),
            ranks,
            arrays["sides"].astype(np.int64),
            arrays["p_values"].astype(np.int64),
            Martingale(arrays["log_parts"].astype(np.float64)),
            watched,
            restarts,
            alarm_row or None,
            float(arrays["peak"]),
        )


class DriftMonitor:
    """A watch for each version; threads add, requests read.

    Args:
        level: with what probability valid rows may ever make it speak.
        folder: where the watches are kept for the next start; None: nowhere.
    """

    def __init__(self, level: float = 0.01, folder: Path | None = None) -> None:
        self.level, self.folder = level, folder
        self.watches: dict[Reference, Watch] = {}
        self.seen: OrderedDict[tuple[Reference, str, bytes], None] = OrderedDict()
        self.lock = threading.Lock()
        self.random = np.random.default_rng()
        self.saved_at = time.monotonic()

    def add(self, scorer: Scorer, scores: Scores, request_id: str | None = None) -> None:
        """Count the rows of a request; one that was counted, by its id and what it holds, is not counted again."""
        reference = scorer.published.reference
        with self.lock:
            if request_id is not None and self.is_known(reference, request_id, scores):
                return
            watch = self.watch_of(scorer)
            uniforms = self.random.random(len(scores))
            if watch.add(scorer, scores, uniforms, self.level):
                log.warning("drift", extra={"model": str(reference), **self.told(watch)})

    def is_known(self, reference: Reference, request_id: str, scores: Scores) -> bool:
        """Whether such a request was there lately."""
        content = hashlib.blake2b(scores.log_likelihood.tobytes(), digest_size=16).digest()
        key = (reference, request_id, content)
        if key in self.seen:
            return True
        self.seen[key] = None
        if len(self.seen) > REMEMBERED:
            self.seen.popitem(last=False)
        return False

    def watch_of(self, scorer: Scorer) -> Watch:
        """The version's watch; the lock is held."""
        reference = scorer.published.reference
        if reference not in self.watches:
            self.watches[reference] = self.read(scorer) or Watch.of(scorer)
        return self.watches[reference]

    def document(self, scorer: Scorer) -> dict[str, Any]:
        """What GET /drift says of a version."""
        low, high = scorer.band.percentiles
        shares = (low / 100, (high - low) / 100, 1 - high / 100)
        with self.lock:
            watch = self.watch_of(scorer)
            return {
                "rows": int(watch.sides.sum()),
                "sides": dict(zip(SIDES, watch.sides.tolist(), strict=True)),
                "expected_shares": dict(zip(SIDES, shares, strict=True)),
                "p_value_deciles": watch.p_values.tolist(),
                **self.told(watch),
            }

    def told(self, watch: Watch) -> dict[str, Any]:
        """What a watch's martingale says."""
        return {
            "drifts": watch.alarm_row is not None,
            "direction": watch.direction,
            "alarm_row": watch.alarm_row,
            "watched_rows": watch.watched,
            "log_capital": watch.martingale.log_capital,
            "peak_log_capital": watch.peak,
            "limit": log_limit(self.level, watch.restarts),
            "level": self.level,
            "restarts": watch.restarts,
        }

    def restart(self, scorer: Scorer) -> None:
        """Let a version's martingale begin anew, which only a person should wish."""
        with self.lock:
            self.watch_of(scorer).restart()
        self.save()

    def capitals(self) -> dict[Reference, tuple[float, bool]]:
        """Log capital of each version's martingale, and whether it has spoken."""
        with self.lock:
            return {one: (w.martingale.log_capital, w.alarm_row is not None) for one, w in self.watches.items()}

    # Files

    def path(self, reference: Reference) -> Path:
        """Where a version's watch is kept."""
        assert self.folder is not None
        return self.folder / f"{reference}.npz"

    def read(self, scorer: Scorer) -> Watch | None:
        """The watch that an earlier process kept of this very version, if it can be read."""
        reference = scorer.published.reference
        if self.folder is None or not self.path(reference).exists():
            return None
        try:
            with np.load(io.BytesIO(self.path(reference).read_bytes()), allow_pickle=False) as stored:
                watch = Watch.of_arrays({name: stored[name] for name in stored.files})
        except Exception as error:  # whatever a damaged file may do to zip and npy readers
            log.error("the drift state cannot be read: begun anew", extra={"model": str(reference), "why": repr(error)})
            self.path(reference).replace(self.path(reference).with_suffix(".damaged"))
            return None
        return watch if watch.digest == scorer.published.digest else None

    def is_due(self) -> bool:
        """Whether the watches are to be kept again."""
        return self.folder is not None and time.monotonic() - self.saved_at > SAVE_EVERY_S

    def save(self) -> None:
        """Keep all watches for the next start. Nobody waits for the disk meanwhile, and a full one ends no request."""
        if self.folder is None:
            return
        with self.lock:
            self.saved_at = time.monotonic()
            contents = {reference: packed(watch) for reference, watch in self.watches.items()}
        for reference, content in contents.items():
            try:
                write_whole(self.path(reference), content)
            except OSError as error:
                log.error("the drift state cannot be kept", extra={"model": str(reference), "why": repr(error)})


def packed(watch: Watch) -> bytes:
    """A watch as the content of an npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, **watch.arrays())  # type: ignore[arg-type]
    return buffer.getvalue()
