"""Prometheus metrics of one application."""

from __future__ import annotations

from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from service.scorer import Scores
from service.validity.band import SIDES

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass
class Metrics:
    """Counters and histograms, in a registry of their own, so that two applications in a process do not collide."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self.requests = Counter(
            "vouch_requests",
            "Requests by path template, method and status",
            ["path", "method", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "vouch_request_seconds",
            "Time from the request's head to the answer",
            ["path"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.rows = Counter(
            "vouch_rows", "Scored rows by model and side of the band", ["model", "side"], registry=self.registry
        )
        self.unreliable = Counter(
            "vouch_unreliable_rows", "Scored rows whose estimate is not reliable", ["model"], registry=self.registry
        )
        self.p_values = Histogram(
            "vouch_p_value",
            "p_value of scored rows; uniform where nothing drifts",
            ["model"],
            buckets=[tenth / 10 for tenth in range(1, 11)],
            registry=self.registry,
        )
        self.queue = Gauge("vouch_queue_evaluations", "Decoder evaluations that wait or run", registry=self.registry)
        self.dropped = Gauge(
            "vouch_dropped_requests", "Requests dropped before they were computed", registry=self.registry
        )

    def count_scores(self, model: str, scores: Scores) -> None:
        """Count the verdicts of a batch."""
        for value, side in enumerate(SIDES, start=-1):
            number = int((scores.sides == value).sum())
            if number:
                self.rows.labels(model, side).inc(number)
        self.unreliable.labels(model).inc(int((~scores.reliable).sum()))
        histogram = self.p_values.labels(model)
        for p_value in scores.p_value.tolist():
            histogram.observe(p_value)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
