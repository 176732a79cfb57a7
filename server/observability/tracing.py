"""OpenTelemetry spans, made from the record of a request that has ended. Imported only with --traces."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.semconv.attributes.http_attributes import (
    HTTP_REQUEST_METHOD,
    HTTP_REQUEST_METHOD_ORIGINAL,
    HTTP_RESPONSE_STATUS_CODE,
    HTTP_ROUTE,
    HttpRequestMethodValues,
)
from opentelemetry.semconv.attributes.service_attributes import SERVICE_NAME, SERVICE_VERSION
from opentelemetry.semconv.schemas import Schemas
from opentelemetry.trace import SpanKind, StatusCode, Tracer, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from server.observability.logs import PROBES, UNMATCHED, RequestRecord

_FLUSH_SECONDS = 3.0  # for the last spans: the server stops in time even if no collector takes them
_KNOWN_METHODS = frozenset(method.value for method in HttpRequestMethodValues)
_W3C = TraceContextTextMapPropagator()


@contextmanager
def traced() -> Iterator[Callable[[RequestRecord], None]]:
    """Yields a function that makes spans of a record; a thread sends them, the last ones at the end.

    The library itself reads the OTEL_ variables, such as OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_TRACES_SAMPLER.
    """
    ours = Resource.create({SERVICE_NAME: "distrinews", SERVICE_VERSION: version("distrinews")})
    provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    try:
        yield _SpansOf(provider.get_tracer("distrinews", version("distrinews"), Schemas.V1_25_0.value))
    finally:
        flush = threading.Thread(target=provider.shutdown, name="flush-spans", daemon=True)
        flush.start()
        flush.join(_FLUSH_SECONDS)
        if flush.is_alive():
            logging.getLogger(__name__).warning("the last spans could not be sent within %.0f s", _FLUSH_SECONDS)


class _SpansOf:
    """Makes one span for a request, and one inside for each stage that its texts went through."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def __call__(self, record: RequestRecord) -> None:
        if record.route in PROBES:
            return
        clock = time.time_ns() - time.monotonic_ns()  # of this moment: the clock may be set while the server runs
        method = record.method if record.method in _KNOWN_METHODS else "HTTP"
        request = self._tracer.start_span(
            method if record.route == UNMATCHED else f"{method} {record.route}",
            context=_W3C.extract({"traceparent": record.traceparent} if record.traceparent else {}),
            kind=SpanKind.SERVER,
            attributes=_attributes(record),
            start_time=_nanoseconds(record.started) + clock,
        )
        if (ours := request.get_span_context()).is_valid:
            record.trace_id = format_trace_id(ours.trace_id)
        if record.status >= 500:
            request.set_status(StatusCode.ERROR)
        if request.is_recording() and record.answer:
            within = set_span_in_context(request)
            for stage, (began, ended) in record.answer.stages.items():
                span = self._tracer.start_span(stage, context=within, start_time=_nanoseconds(began) + clock)
                span.end(_nanoseconds(ended) + clock)
        request.end(_nanoseconds(record.started + record.seconds) + clock)


def _attributes(record: RequestRecord) -> dict[str, Any]:
    """Follows the semantic conventions, but leaves the path out: a client that misses a route may have put a text there."""
    answer = record.answer
    known: dict[str, Any] = {
        HTTP_REQUEST_METHOD: record.method if record.method in _KNOWN_METHODS else "_OTHER",
        HTTP_REQUEST_METHOD_ORIGINAL: None if record.method in _KNOWN_METHODS else record.method,
        HTTP_ROUTE: None if record.route == UNMATCHED else record.route,
        HTTP_RESPONSE_STATUS_CODE: record.status,
        ERROR_TYPE: str(record.status) if record.status >= 500 else None,
        "distrinews.request_id": record.request_id,
        "distrinews.caller": record.caller,
        "distrinews.rejected": record.rejected,
        "distrinews.texts": len(record.texts),
        "distrinews.tokens": answer and answer.tokens,
        "distrinews.truncated": answer and sum(prediction.truncated for prediction in answer.predictions),
    }
    return {name: value for name, value in known.items() if value is not None}


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
