"""Prometheus metrics of one application."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from service.data.domains import KINDS, MISSING
from service.scoring.scores import Scores
from service.validity.band import SIDES

M = TypeVar("M", Counter, Histogram)
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# log p(x) is -1e5 for some models and 20 for others: bounds that double on both sides of zero serve all of them.
NATS = (*(-(2.0**power) for power in range(17, -1, -1)), 0.0, *(2.0**power for power in range(10)))
GAPS = (0.1, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)  # percent
TENTHS = tuple(tenth / 10 for tenth in range(1, 11))


@dataclass
class Metrics:
    """Counters and histograms, in their own registry, so that two applications in a process do not collide."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self.children: dict[Any, Any] = {}
        self.requests = self.counter("vouch_requests", "Requests by path template", "method", "path", "status")
        self.seconds = self.histogram(
            "vouch_request_seconds", "Seconds from a request's head to its answer", SECONDS, "path"
        )
        self.parts = self.histogram(
            "vouch_request_part_seconds",
            "Seconds in parts of a request: body, parse, queue, compute, encode",
            SECONDS,
            "part",
        )
        self.rejections = self.counter("vouch_rejections", "Refused requests", "reason")
        self.batch_rows = self.histogram("vouch_batch_rows", "Rows in a batch", ROWS)
        self.batch_seconds = self.histogram("vouch_batch_seconds", "Seconds that a batch took", SECONDS)
        self.queue = self.gauge("vouch_queue_evaluations", "Decoder evaluations waiting or running")
        self.rate = self.gauge("vouch_evaluations_per_second", "Decoder evaluations per second, as measured recently")
        self.dropped = self.counter("vouch_dropped_requests", "Requests dropped before they were computed", "reason")
        self.rows = self.counter("vouch_rows", "Scored rows by side of the band: inside is valid", "model", "side")
        self.violations = self.counter("vouch_violations", "Cells that break their column's domain", "model", "kind")
        self.unreliable = self.counter("vouch_unreliable_rows", "Scored rows whose estimate is not reliable", "model")
        self.log_likelihood = RowHistogram("vouch_log_likelihood", "log p(x) of scored rows, nats", NATS)
        self.p_value = RowHistogram("vouch_p_value", "p_value of scored rows; uniform if nothing drifts", TENTHS)
        self.reload_failures = self.counter("vouch_reload_failures", "Failures to load a version from the store")
        self.held_back = self.gauge("vouch_held_back", "Versions in the store that cannot be served")
        self.drift_capital = self.gauge("vouch_drift_log_capital", "Log capital of the drift monitor, nats", "model")
        self.drifts = self.gauge("vouch_drifts", "1 if the drift monitor has raised an alarm", "model")
        self.drifting_keys = self.gauge(
            "vouch_drifting_keys", "API keys whose drift monitor has raised an alarm", "model"
        )
        self.inference_failures = self.gauge("vouch_inference_failures", "Batches in a row that failed")
        self.store_silent = self.gauge("vouch_store_silent_seconds", "Seconds for which the store has owed an answer")
        self.shadow_rows = self.counter(
            "vouch_shadow_rows", "Rows also scored by a shadow version", "model", "shadow", "verdicts"
        )
        self.shadow_gap = RowHistogram(
            "vouch_shadow_percentile_gap", "Difference between the two versions' percentiles", GAPS, ("model", "shadow")
        )
        self.journal_seconds = self.histogram(
            "vouch_journal_seconds", "Seconds that a transaction of the journal took", SECONDS
        )
        self.journal_records = self.counter("vouch_journal_records", "Records that the journal wrote")
        self.journal_dropped = self.counter("vouch_journal_dropped_rows", "Verdicts that the journal could not keep")
        for histogram in (self.log_likelihood, self.p_value, self.shadow_gap):
            self.registry.register(histogram)
        self.shadow_skipped = self.counter("vouch_shadow_skipped", "Requests that the shadow skipped")

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

    def at(self, metric: M, *labels: str) -> M:
        """A metric's child for some labels, cached: asking prometheus_client for it costs more than counting."""
        key = (metric, labels)
        child = self.children.get(key)
        if child is None:
            child = self.children[key] = metric.labels(*labels)
        return child

    def count_scores(self, model: str, scores: Scores) -> None:
        """Count the scores of a batch; inference threads call this."""
        for side, number in zip(SIDES, np.bincount(scores.sides + 1, minlength=len(SIDES)).tolist(), strict=True):
            self.at(self.rows, model, side).inc(number)
        self.at(self.unreliable, model).inc(int((~scores.reliable).sum()))
        codes, counts = np.unique(scores.codes[scores.codes > MISSING], return_counts=True)
        for code, number in zip(codes.tolist(), counts.tolist(), strict=True):
            self.at(self.violations, model, KINDS[code][0]).inc(number)
        self.log_likelihood.observe((model,), scores.log_likelihood)
        self.p_value.observe((model,), scores.p_value)

    def count_batch(self, rows: int, seconds: float) -> None:
        self.batch_rows.observe(rows)
        self.batch_seconds.observe(seconds)

    def count_transaction(self, seconds: float, records: int) -> None:
        self.journal_seconds.observe(seconds)
        self.journal_records.inc(records)

    def text(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        return generate_latest(self.registry)


class RowHistogram(Collector):
    """A histogram that counts whole arrays of values."""

    def __init__(self, name: str, text: str, bounds: tuple[float, ...], labels: tuple[str, ...] = ("model",)) -> None:
        self.name, self.text, self.bounds, self.labels = name, text, np.array(bounds), labels
        self.counts: dict[tuple[str, ...], np.ndarray] = {}
        self.sums: dict[tuple[str, ...], float] = {}
        self.lock = threading.Lock()

    def observe(self, of: tuple[str, ...], values: np.ndarray) -> None:
        """Count the values, shape (B,), under the label values `of`."""
        counts = np.bincount(np.searchsorted(self.bounds, values), minlength=len(self.bounds) + 1)
        with self.lock:
            self.counts[of] = self.counts.get(of, 0) + counts
            self.sums[of] = self.sums.get(of, 0.0) + float(values.sum())

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """The counts in Prometheus' form, with cumulative buckets."""
        family = HistogramMetricFamily(self.name, self.text, labels=self.labels)
        ends = [*map(str, self.bounds.tolist()), "+Inf"]
        with self.lock:
            known = [(of, counts, self.sums[of]) for of, counts in self.counts.items()]
        for of, counts, total in known:
            buckets = list(zip(ends, np.cumsum(counts).astype(float).tolist(), strict=True))
            family.add_metric(of, buckets, total)
        yield family
