"""Drift monitors of the served models: do the served rows still look like the validation rows?

One monitor watches all rows of a version, and one more those of each API key: a caller whose rows are unlike others' is
named, and cannot hide among them.
"""

from __future__ import annotations

import hashlib
import io
import logging
import threading
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from service.scoring.drift_monitor import DriftMonitor
from service.scoring.scorer import Scorer
from service.scoring.scores import Scores
from service.scoring.version import Reference
from service.system.files import read_regular, write_whole

log = logging.getLogger("vouch")
REMEMBERED = 10_000  # most requests remembered, to recognize retries
MAX_KEYS = 100  # watched for a version; of more, the one that was quiet for longest is forgotten
SAVE_EVERY_S = 30.0
MAX_FILE, MAX_UNPACKED = 2**25, 2**26  # bytes of a state file
ALL = ""  # the name of the monitor of all rows in a state file


@dataclass
class KeyMonitor:
    """The monitor of the `number`-th key, from 1."""

    number: int
    monitor: DriftMonitor

    def level(self, level: float) -> float:
        """What this key may spend of the level that all keys share; the parts of all keys add up to it."""
        return level / (self.number * (self.number + 1))


@dataclass
class VersionMonitors:
    """The monitors of one version. `keys_seen` never falls, so that a key that was forgotten spends anew."""

    everything: DriftMonitor
    keys: OrderedDict[str, KeyMonitor] = field(default_factory=OrderedDict)
    keys_seen: int = 0

    def of_key(self, key: str, scorer: Scorer) -> KeyMonitor:
        """The monitor of a key, as the most recently used one."""
        if key not in self.keys:
            self.keys_seen += 1
            self.keys[key] = KeyMonitor(self.keys_seen, DriftMonitor.of(scorer))
            if len(self.keys) > MAX_KEYS:
                self.keys.popitem(last=False)
        self.keys.move_to_end(key)
        return self.keys[key]

    def monitors(self) -> Iterator[tuple[str, int, DriftMonitor]]:
        """Each monitor with its key and that key's number."""
        yield ALL, self.keys_seen, self.everything
        for key, one in self.keys.items():
            yield key, one.number, one.monitor


class DriftMonitors:
    """The monitors of each version; safe to share between threads.

    Args:
        level: chance that the monitor of all rows ever raises a false alarm; and that any key's does.
        folder: where the monitors' state is kept across restarts; None: it is not kept.
        on_alarm: hears each alarm.
    """

    def __init__(
        self,
        level: float = 0.01,
        folder: Path | None = None,
        on_alarm: Callable[[Reference, dict[str, Any]], None] = lambda reference, fields: None,
    ) -> None:
        self.level, self.folder, self.on_alarm = level, folder, on_alarm
        self.versions: dict[Reference, VersionMonitors] = {}
        self.seen: OrderedDict[tuple[Reference, str | None, str, bytes], None] = OrderedDict()
        self.lock = threading.Lock()
        self.random = np.random.default_rng()
        self.saved_at = time.monotonic()

    def add(self, scorer: Scorer, scores: Scores, request_id: str | None = None, key: str | None = None) -> None:
        """Count the rows of a request, unless the caller sent one with the same id and content recently."""
        reference = scorer.published.reference
        with self.lock:
            if request_id is not None and self.is_known(reference, key, request_id, scores):
                return
            version = self.version_of(scorer)
            uniforms = self.random.random(len(scores))
            if version.everything.add(scorer, scores, uniforms, self.level):
                self.warn(reference, version.everything, self.level)
            if key is not None:
                one = version.of_key(key, scorer)
                if one.monitor.add(scorer, scores, uniforms, one.level(self.level)):
                    self.warn(reference, one.monitor, one.level(self.level), key=key)

    def warn(self, reference: Reference, monitor: DriftMonitor, level: float, **whose: str) -> None:
        """Log an alarm."""
        fields = monitor.document(level)
        fields["drift_level"] = fields.pop("level")  # `level` is the log line's own
        log.warning("drift", extra={"model": str(reference), **whose, **fields})
        self.on_alarm(reference, {**whose, **fields})

    def is_known(self, reference: Reference, key: str | None, request_id: str, scores: Scores) -> bool:
        """Whether such a request was counted recently; if not, remember it."""
        content = hashlib.blake2b(scores.log_likelihood.tobytes(), digest_size=16).digest()
        request = (reference, key, request_id, content)
        if request in self.seen:
            return True
        self.seen[request] = None
        if len(self.seen) > REMEMBERED:
            self.seen.popitem(last=False)
        return False

    def version_of(self, scorer: Scorer) -> VersionMonitors:
        """The version's monitors; the caller holds the lock."""
        reference = scorer.published.reference
        if reference not in self.versions:
            self.versions[reference] = VersionMonitors(DriftMonitor.of(scorer))
        return self.versions[reference]

    def document(self, scorer: Scorer, keys: Sequence[str] | None = ()) -> dict[str, Any]:
        """A version's part of the answer to GET /drift; `keys` are those to tell about, None for all."""
        with self.lock:
            version = self.version_of(scorer)
            document = {**version.everything.tallies(scorer), **version.everything.document(self.level)}
            shown = {key: one for key, one in version.keys.items() if keys is None or key in keys}
            return document | {
                "keys": [
                    {"key": key, **one.monitor.tallies(scorer), **one.monitor.document(one.level(self.level))}
                    for key, one in shown.items()
                ]
            }

    def restart(self, scorer: Scorer) -> None:
        """Restart a version's martingales; only a person should decide to."""
        with self.lock:
            for _, _, monitor in self.version_of(scorer).monitors():
                monitor.restart()

    def alarms(self) -> dict[Reference, tuple[float, bool, int]]:
        """For each version: log capital, whether all its rows have raised an alarm, and how many keys have."""
        with self.lock:
            return {
                reference: (
                    version.everything.martingale.log_capital,
                    version.everything.alarm_row is not None,
                    sum(one.monitor.alarm_row is not None for one in version.keys.values()),
                )
                for reference, version in self.versions.items()
            }

    # Files

    def path(self, reference: Reference) -> Path:
        """The state file of a version's monitors."""
        assert self.folder is not None
        return self.folder / f"{reference}.npz"

    def restore(self, scorer: Scorer) -> None:
        """Continue the monitors that an earlier process saved for exactly this version, unless some run already."""
        reference = scorer.published.reference
        if self.folder is None or reference in self.versions:
            return
        version = self.read(scorer)
        if version is not None:
            with self.lock:
                self.versions.setdefault(reference, version)

    def read(self, scorer: Scorer) -> VersionMonitors | None:
        """A version's saved monitors; None if there are none, or none of this version, or they are unreadable."""
        reference = scorer.published.reference
        path = self.path(reference)
        try:
            content = read_regular(path, MAX_FILE + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.error("drift state unreadable: starting over", extra={"model": str(reference), "why": repr(error)})
            return None
        try:
            version = unpacked(content)
        except Exception as error:  # a damaged file can make the zip and npy readers raise anything
            log.error("drift state unreadable: starting over", extra={"model": str(reference), "why": repr(error)})
            path.replace(path.with_suffix(".damaged"))
            return None
        digests = {monitor.digest for _, _, monitor in version.monitors()}
        return version if digests == {scorer.published.digest} else None

    def is_due(self) -> bool:
        """Whether it is time to save the monitors again."""
        return self.folder is not None and time.monotonic() - self.saved_at > SAVE_EVERY_S

    def save(self) -> None:
        """Save all monitors for the next start. The lock is free while files are written; a full disk fails no request."""
        if self.folder is None:
            return
        with self.lock:
            self.saved_at = time.monotonic()
            contents = {reference: packed(version) for reference, version in self.versions.items()}
        for reference, content in contents.items():
            try:
                write_whole(self.path(reference), content)
            except OSError as error:
                log.error("drift state cannot be saved", extra={"model": str(reference), "why": repr(error)})


def packed(version: VersionMonitors) -> bytes:
    """A version's monitors as the content of an npz file: arrays `NUMBER/NAME`, the first without a number."""
    arrays: dict[str, np.ndarray] = {}
    for key, number, monitor in version.monitors():
        prefix = f"{number}/" if key else ""
        arrays |= {prefix + name: array for name, array in monitor.arrays().items()}
        arrays[f"{prefix}key"] = np.array([key, str(number)])
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def unpacked(content: bytes) -> VersionMonitors:
    """The monitors in an npz file; of older ones, those of all rows.

    Raises:
        ValueError: it is too large, or has other arrays.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if len(content) > MAX_FILE or sum(entry.file_size for entry in archive.infolist()) > MAX_UNPACKED:
            raise ValueError("drift state: too large")
    groups: dict[str, dict[str, np.ndarray]] = {}
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        for full in stored.files:
            prefix, _, name = full.rpartition("/")
            groups.setdefault(prefix, {})[name] = stored[full]
    if len(groups) > MAX_KEYS + 1:
        raise ValueError("drift state: too many keys")
    everything = groups.pop("")
    keys = {prefix: arrays["key"].tolist() for prefix, arrays in groups.items()}
    version = VersionMonitors(DriftMonitor.of_arrays(everything))
    for prefix, arrays in groups.items():
        key, number = keys[prefix]
        version.keys[key] = KeyMonitor(max(1, int(number)), DriftMonitor.of_arrays(arrays))
    seen = int(everything["key"].tolist()[1]) if "key" in everything else 0
    version.keys_seen = max([seen, *(one.number for one in version.keys.values())])
    return version
