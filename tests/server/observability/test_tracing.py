"""Spans of requests, as a collector gets them: over HTTP, in OTLP's protobuf."""

import json
import logging
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from server.main import _traces
from server.observability import tracing
from server.observability.logs import RequestRecord
from tests.support.model_folder import write_model_folder
from tests.support.servers import log_lines, read_settings

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector(ThreadingHTTPServer):
    """Receives the traces sent to /v1/traces; `open` lets it answer."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Taking)
        self.bodies: list[bytes] = []
        self.open = threading.Event()
        self.open.set()

    @property
    def resources(self) -> list[dict[str, Any]]:
        return [values(sent.resource.attributes) for sent in self._sent()]

    @property
    def spans(self) -> list[Span]:
        return [span for sent in self._sent() for scope in sent.scope_spans for span in scope.spans]

    def _sent(self) -> Iterator[Any]:
        return (sent for body in self.bodies for sent in ExportTraceServiceRequest.FromString(body).resource_spans)


class _Taking(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        assert (self.path, self.headers["Content-Type"]) == ("/v1/traces", "application/x-protobuf")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.open.wait(10)
        self.server.bodies.append(body)
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as http.server calls it
        """Logs nothing: the tests look at the answers."""


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with Collector() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{made.server_port}")
        yield made
        made.open.set()
        made.shutdown()
        thread.join()


def values(attributes: Any) -> dict[str, Any]:  # noqa: ANN401 - a repeated field of protobuf
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


def record(status: int, *, route: str = "/predict", sampled: bool = True) -> RequestRecord:
    parent = f"00-{TRACE}-{PARENT}-0{int(sampled)}"
    return RequestRecord("one", "POST", parent, started=time.monotonic() - 1, seconds=0.5, route=route, status=status)


def send_some(client: httpx.Client) -> None:
    of_client = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "one"}
    client.post("/predict/batch", json={"texts": ["goal", "secret " * 99]}, headers=of_client)
    client.post("/predict", json={"text": "goal"}, headers={"X-Request-ID": "two"})
    client.get("/secret")
    client.get("/livez")


@pytest.mark.slow
def test_a_request_is_a_span_of_its_client_s_trace_with_its_stages_inside(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "news")
    began = time.time_ns()
    _, lines = log_lines(write_model_folder(tmp_path / "model"), "--traces", "--log-format", "json", send=send_some)
    spans = {(span.trace_id, span.name): span for span in collector.spans}
    assert len(spans) == len(collector.spans) == 4 + 4 + 1
    one, two, other = (span for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER)
    assert (one.name, one.trace_id.hex(), one.parent_span_id.hex()) == ("POST /predict/batch", TRACE, PARENT)
    assert (two.name, two.parent_span_id, other.name, other.parent_span_id) == ("POST /predict", b"", "GET", b"")
    for request in (one, two):
        tokenize, queue, infer = (spans[request.trace_id, stage] for stage in ("tokenize", "queue", "infer"))
        assert {stage.parent_span_id for stage in (tokenize, queue, infer)} == {request.span_id}
        assert began < request.start_time_unix_nano <= tokenize.start_time_unix_nano < tokenize.end_time_unix_nano
        assert tokenize.end_time_unix_nano <= queue.start_time_unix_nano <= infer.start_time_unix_nano
        assert infer.start_time_unix_nano < infer.end_time_unix_nano <= request.end_time_unix_nano < time.time_ns()
    assert values(one.attributes) == {
        "http.request.method": "POST",
        "http.route": "/predict/batch",
        "http.response.status_code": 200,
        "distrinews.request_id": "one",
        "distrinews.texts": 2,
        "distrinews.tokens": 3 + 16,
        "distrinews.truncated": 1,
    }
    assert "http.route" not in values(other.attributes)
    assert {(sent["service.name"], sent["telemetry.sdk.name"]) for sent in collector.resources} == {
        ("news", "opentelemetry")
    }
    assert b"secret" not in b"".join(collector.bodies)
    logged = {line["request_id"]: line["trace_id"] for line in map(json.loads, lines) if "trace_id" in line}
    assert logged["two"] == two.trace_id.hex(), "the log has the id of the trace that begins here"


def test_a_failure_of_the_server_is_an_error_and_one_of_the_client_is_none(collector: Collector) -> None:
    with tracing.traced() as spans_of:
        for status in (200, 429, 503):
            spans_of(record(status))
    codes = [span.status.code for span in collector.spans]
    assert codes == [Status.STATUS_CODE_UNSET, Status.STATUS_CODE_UNSET, Status.STATUS_CODE_ERROR]
    assert [values(span.attributes).get("error.type") for span in collector.spans] == [None, None, "503"]
    assert {sent["service.name"] for sent in collector.resources} == {"distrinews"}


def test_traces_that_the_client_does_not_sample_and_probes_are_not_sent(collector: Collector) -> None:
    with tracing.traced() as spans_of:
        spans_of(record(200, sampled=False))
        spans_of(record(200, route="/readyz"))
    assert not collector.bodies


def test_a_collector_that_is_silent_delays_the_stop_no_longer_than_it_may(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracing, "_FLUSH_SECONDS", 0.2)
    collector.open.clear()
    began = time.monotonic()
    with tracing.traced() as spans_of, caplog.at_level(logging.WARNING):
        spans_of(record(200))
    assert 0.2 <= time.monotonic() - began < 2
    assert "the last spans could not be sent" in caplog.text


def test_a_variable_that_the_library_refuses_is_an_error_of_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "0")
    with pytest.raises(SystemExit) as stop, _traces(read_settings(["folder", "--traces"])):
        pass
    assert stop.value.code == 2
    output = capsys.readouterr().err
    assert (output.count("\n"), "OTEL_ variables require: max_queue_size must be" in output) == (1, True)


@pytest.mark.parametrize("missing", ["opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"])
def test_without_the_extra_the_setting_names_the_extra_to_install(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in [name for name in sys.modules if name.startswith(f"{missing}.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit) as stop:
        read_settings(["folder", "--traces"])
    assert stop.value.code == 2
    output = capsys.readouterr().err
    assert (output.count("\n"), "pip install 'distrinews[telemetry]'" in output) == (1, True)
