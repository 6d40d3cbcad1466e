"""OpenTelemetry spans, if its SDK is installed (the extra `otel`) and configured by its own `OTEL_*` variables."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from starlette.datastructures import Headers

from service.settings import SettingsError

Interval = tuple[str, int, int]  # name, start and end, ns since the epoch
UNTRACED = ("/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready")
SETS_A_TARGET = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER")


class Span:
    """A request's span; this one records nothing."""

    def end(self, entry: dict[str, Any], intervals: Sequence[Interval]) -> None:
        """End the span with the fields of the request's log line and the times of its parts."""


class Tracer:
    """Creates spans; this one creates spans that record nothing."""

    @staticmethod
    def configured() -> Tracer:
        """A tracer that exports, if the environment names a target; otherwise one that does nothing."""
        wanted = any(os.environ.get(name, "none") not in ("", "none") for name in SETS_A_TARGET)
        is_off = os.environ.get("OTEL_TRACES_EXPORTER") == "none"
        return OpenTelemetry() if wanted and not is_off else Tracer()

    @contextmanager
    def span(self, path: str, headers: Headers) -> Iterator[Span]:
        yield Span()


class RecordedSpan(Span):
    """A span that OpenTelemetry exports."""

    def __init__(self, tracer: Any, span: Any) -> None:
        self.tracer, self.span = tracer, span

    def end(self, entry: dict[str, Any], intervals: Sequence[Interval]) -> None:
        """Set the log line's fields as attributes, and add a span for each part."""
        for name, start, end in intervals:
            self.tracer.start_span(name, start_time=start).end(end)
        self.span.update_name(f"{entry['method']} {entry['path']}")
        self.span.set_attribute("http.request.method", entry["method"])
        self.span.set_attribute("http.route", entry["path"])
        self.span.set_attribute("http.response.status_code", entry["status"])
        for name, value in entry.items():
            if name not in ("method", "path", "status", "traceparent"):
                self.span.set_attribute(f"vouch.{name}", value)
        if entry["status"] >= 500:
            from opentelemetry.trace import StatusCode

            self.span.set_status(StatusCode.ERROR)


class OpenTelemetry(Tracer):
    """Creates spans with the SDK and exports them in batches, over OTLP or, by `OTEL_TRACES_EXPORTER`, to the console."""

    def __init__(self) -> None:
        try:
            from opentelemetry import propagate, trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
        except ImportError as error:
            raise SettingsError("OTEL_* variables are set, but the extra `otel` is not installed") from error
        name = os.environ.get("OTEL_SERVICE_NAME", "vouch")
        provider = TracerProvider(resource=Resource.create({"service.name": name}))
        to_console = os.environ.get("OTEL_TRACES_EXPORTER") == "console"
        exporter = ConsoleSpanExporter(out=sys.stderr) if to_console else OTLPSpanExporter()
        provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracer = provider.get_tracer("vouch")
        self.extract = propagate.extract
        self.kind = trace.SpanKind.SERVER

    @contextmanager
    def span(self, path: str, headers: Headers) -> Iterator[Span]:
        """The span of a request, a child of that in its `traceparent`; probes and metrics have none."""
        if path in UNTRACED:
            yield Span()
            return
        with self.tracer.start_as_current_span("request", context=self.extract(dict(headers)), kind=self.kind) as span:
            yield RecordedSpan(self.tracer, span)
