"""Drift monitors of the served models: do the served rows still look like the validation rows?"""

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
REMEMBERED = 10_000  # most requests remembered, to recognize retries
SAVE_EVERY_S = 30.0


class DriftMonitors:
    """A drift monitor for each version; safe to share between threads.

    Args:
        level: chance that a monitor ever raises a false alarm.
        folder: where the monitors' state is kept across restarts; None: it is not kept.
    """

    def __init__(self, level: float = 0.01, folder: Path | None = None) -> None:
        self.level, self.folder = level, folder
        self.monitors: dict[Reference, DriftMonitor] = {}
        self.seen: OrderedDict[tuple[Reference, str, bytes], None] = OrderedDict()
        self.lock = threading.Lock()
        self.random = np.random.default_rng()
        self.saved_at = time.monotonic()

    def add(self, scorer: Scorer, scores: Scores, request_id: str | None = None) -> None:
        """Count the rows of a request, unless one with the same id and content was counted recently."""
        reference = scorer.published.reference
        with self.lock:
            if request_id is not None and self.is_known(reference, request_id, scores):
                return
            monitor = self.monitor_of(scorer)
            uniforms = self.random.random(len(scores))
            if monitor.add(scorer, scores, uniforms, self.level):
                log.warning("drift", extra={"model": str(reference), **monitor.document(self.level)})

    def is_known(self, reference: Reference, request_id: str, scores: Scores) -> bool:
        """Whether such a request was counted recently; if not, remember it."""
        content = hashlib.blake2b(scores.log_likelihood.tobytes(), digest_size=16).digest()
        key = (reference, request_id, content)
        if key in self.seen:
            return True
        self.seen[key] = None
        if len(self.seen) > REMEMBERED:
            self.seen.popitem(last=False)
        return False

    def monitor_of(self, scorer: Scorer) -> DriftMonitor:
        """The version's monitor, restored or new; the caller holds the lock."""
        reference = scorer.published.reference
        if reference not in self.monitors:
            self.monitors[reference] = self.read(scorer) or DriftMonitor.of(scorer)
        return self.monitors[reference]

    def document(self, scorer: Scorer) -> dict[str, Any]:
        """A version's part of the answer to GET /drift."""
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
        """Restart a version's martingale; only a person should decide to."""
        with self.lock:
            self.monitor_of(scorer).restart()
        self.save()

    def capitals(self) -> dict[Reference, tuple[float, bool]]:
        """Log capital of each version's martingale, and whether it has raised an alarm."""
        with self.lock:
            return {one: (w.martingale.log_capital, w.alarm_row is not None) for one, w in self.monitors.items()}

    # Files

    def path(self, reference: Reference) -> Path:
        """The state file of a version's monitor."""
        assert self.folder is not None
        return self.folder / f"{reference}.npz"

    def read(self, scorer: Scorer) -> DriftMonitor | None:
        """The monitor that an earlier process saved for exactly this version; None if there is none or it is unreadable."""
        reference = scorer.published.reference
        if self.folder is None or not self.path(reference).exists():
            return None
        try:
            with np.load(io.BytesIO(self.path(reference).read_bytes()), allow_pickle=False) as stored:
                monitor = DriftMonitor.of_arrays({name: stored[name] for name in stored.files})
        except Exception as error:  # a damaged file can make the zip and npy readers raise anything
            log.error("drift state unreadable: starting over", extra={"model": str(reference), "why": repr(error)})
            self.path(reference).replace(self.path(reference).with_suffix(".damaged"))
            return None
        return monitor if monitor.digest == scorer.published.digest else None

    def is_due(self) -> bool:
        """Whether it is time to save the monitors again."""
        return self.folder is not None and time.monotonic() - self.saved_at > SAVE_EVERY_S

    def save(self) -> None:
        """Save all monitors for the next start. The lock is free while files are written; a full disk fails no request."""
        if self.folder is None:
            return
        with self.lock:
            self.saved_at = time.monotonic()
            contents = {reference: packed(monitor) for reference, monitor in self.monitors.items()}
        for reference, content in contents.items():
            try:
                write_whole(self.path(reference), content)
            except OSError as error:
                log.error("drift state cannot be saved", extra={"model": str(reference), "why": repr(error)})


def packed(monitor: DriftMonitor) -> bytes:
    """A monitor as the content of an npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, **monitor.arrays())  # type: ignore[arg-type]
    return buffer.getvalue()
