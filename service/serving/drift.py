"""Whether what each model is asked still looks like its validation rows: tallies, and a test that keeps its promise."""

from __future__ import annotations

import hashlib
import io
import logging
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from service.scoring.drift_monitor import DriftMonitor
from service.scoring.scorer import Scorer
from service.scoring.scores import Scores
from service.scoring.version import Reference
from service.system.files import write_whole
from service.validity.band import SIDES

log = logging.getLogger("vouch")
REMEMBERED = 10_000  # requests, by which a retry is known
SAVE_EVERY_S = 30.0


class DriftMonitors:
    """A monitor for each version; threads add, requests read.

    Args:
        level: with what probability valid rows may ever make it speak.
        folder: where the monitors are kept for the next start; None: nowhere.
    """

    def __init__(self, level: float = 0.01, folder: Path | None = None) -> None:
        self.level, self.folder = level, folder
        self.monitors: dict[Reference, DriftMonitor] = {}
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
            monitor = self.monitor_of(scorer)
            uniforms = self.random.random(len(scores))
            if monitor.add(scorer, scores, uniforms, self.level):
                log.warning("drift", extra={"model": str(reference), **monitor.document(self.level)})

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

    def monitor_of(self, scorer: Scorer) -> DriftMonitor:
        """The version's monitor; the lock is held."""
        reference = scorer.published.reference
        if reference not in self.monitors:
            self.monitors[reference] = self.read(scorer) or DriftMonitor.of(scorer)
        return self.monitors[reference]

    def document(self, scorer: Scorer) -> dict[str, Any]:
        """What GET /drift says of a version."""
        low, high = scorer.band.percentiles
        shares = (low / 100, (high - low) / 100, 1 - high / 100)
        with self.lock:
            monitor = self.monitor_of(scorer)
            return {
                "rows": int(monitor.sides.sum()),
                "sides": dict(zip(SIDES, monitor.sides.tolist(), strict=True)),
                "expected_shares": dict(zip(SIDES, shares, strict=True)),
                "p_value_deciles": monitor.p_values.tolist(),
                **monitor.document(self.level),
            }

    def restart(self, scorer: Scorer) -> None:
        """Let a version's martingale begin anew, which only a person should wish."""
        with self.lock:
            self.monitor_of(scorer).restart()
        self.save()

    def capitals(self) -> dict[Reference, tuple[float, bool]]:
        """Log capital of each version's martingale, and whether it has spoken."""
        with self.lock:
            return {one: (w.martingale.log_capital, w.alarm_row is not None) for one, w in self.monitors.items()}

    # Files

    def path(self, reference: Reference) -> Path:
        """Where a version's monitor is kept."""
        assert self.folder is not None
        return self.folder / f"{reference}.npz"

    def read(self, scorer: Scorer) -> DriftMonitor | None:
        """The monitor that an earlier process kept of this very version, if it can be read."""
        reference = scorer.published.reference
        if self.folder is None or not self.path(reference).exists():
            return None
        try:
            with np.load(io.BytesIO(self.path(reference).read_bytes()), allow_pickle=False) as stored:
                monitor = DriftMonitor.of_arrays({name: stored[name] for name in stored.files})
        except Exception as error:  # whatever a damaged file may do to zip and npy readers
            log.error("the drift state cannot be read: begun anew", extra={"model": str(reference), "why": repr(error)})
            self.path(reference).replace(self.path(reference).with_suffix(".damaged"))
            return None
        return monitor if monitor.digest == scorer.published.digest else None

    def is_due(self) -> bool:
        """Whether the monitors are to be kept again."""
        return self.folder is not None and time.monotonic() - self.saved_at > SAVE_EVERY_S

    def save(self) -> None:
        """Keep all monitors for the next start. Nobody waits for the disk meanwhile, and a full one ends no request."""
        if self.folder is None:
            return
        with self.lock:
            self.saved_at = time.monotonic()
            contents = {reference: packed(monitor) for reference, monitor in self.monitors.items()}
        for reference, content in contents.items():
            try:
                write_whole(self.path(reference), content)
            except OSError as error:
                log.error("the drift state cannot be kept", extra={"model": str(reference), "why": repr(error)})


def packed(monitor: DriftMonitor) -> bytes:
    """A monitor as the content of an npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, **monitor.arrays())  # type: ignore[arg-type]
    return buffer.getvalue()
