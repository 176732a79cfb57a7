"""The server exports metrics to Prometheus and gives every request an id."""

import re
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.http.lifecycle import Lifecycle
from server.inference.backends import choose
from server.inference.classifier import Classifier, Request
from server.inference.queue import QueueEntry
from server.observability.metrics import COUNTERS, GAUGES, HISTOGRAMS, NAMES, Metrics
from server.settings import Settings
from tests.support.model_folder import LABELS
from tests.support.servers import started

pytestmark = pytest.mark.slow  # the module takes seconds

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Scraped(NamedTuple):
    client: httpx.Client
    metrics_url: str
    pid: int

    def scrape(self) -> Series:
        text = httpx.get(self.metrics_url).text
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Scraped]:
    with started(folder, "--engine", "onnx") as (process, line):
        url, metrics_url = re.findall(r"http://[^\s;]+", line)[:2]
        with httpx.Client(base_url=url, timeout=30) as client:
            yield Scraped(client, metrics_url, process.pid)


def value(series: Series, name: str, **labels: str) -> float:
    return series.get((name, frozenset(labels.items())), 0.0)


def change(before: Series, after: Series, name: str, **labels: str) -> float:
    return value(after, name, **labels) - value(before, name, **labels)


def test_every_documented_metric_exists_after_a_few_requests_with_its_labels(server: Scraped) -> None:
    server.client.post("/predict", json={"text": "goal"})
    server.client.post("/predict", json={})
    found: dict[str, set[str]] = {}
    for name, labels in server.scrape():
        base = re.sub(r"_(bucket|count|sum)$", "", name) if name not in NAMES else name
        found[base] = found.get(base, set()) | {label for label, _ in labels if label != "le"}
    assert {name for name in found if name.startswith("distrinews_")} == NAMES
    documented = {
        f"distrinews_{name}": set(row[1]) for table in (COUNTERS, GAUGES, HISTOGRAMS) for name, row in table.items()
    }
    assert {name: found[name] for name in NAMES} == documented
    assert {"process_resident_memory_bytes", "process_cpu_seconds_total", "python_info"} <= set(found)


def test_the_page_on_operations_lists_every_metric() -> None:
    page = (Path(__file__).parents[3] / "docs" / "operations.md").read_text(encoding="utf-8")
    block = next(part for part in page.split("```") if part.startswith("text\nrequests "))
    documented = re.findall(r"([a-z_]+)(?:\{([a-z0-9, ]+)\})?(?=  |$)", block.replace("text\n", ""), re.MULTILINE)
    assert {
        f"distrinews_{name}": labels for name, labels in documented if "_" in name or name in {"workers", "ready"}
    } == {
        f"distrinews_{name}": ", ".join(row[1])
        for table in (COUNTERS, GAUGES, HISTOGRAMS)
        for name, row in table.items()
    }


def test_requests_texts_and_tokens_are_counted(server: Scraped) -> None:
    before = server.scrape()
    label = server.client.post("/predict", json={"text": "goal"}).json()["label"]
    server.client.post("/predict/batch", json={"texts": ["goal", "goal " * 50]})
    server.client.post("/predict", json={"text": ""})
    after = server.scrape()
    requests = "distrinews_http_requests_total"
    assert change(before, after, requests, route="/predict", code="200") == 1
    assert change(before, after, requests, route="/predict", code="422") == 1
    assert change(before, after, requests, route="/predict/batch", code="200") == 1
    assert change(before, after, "distrinews_http_request_duration_seconds_count", route="/predict") == 2
    assert change(before, after, "distrinews_rejected_requests_total", reason="invalid") == 1
    assert change(before, after, "distrinews_tokens_total", kind="text") == 3 + 3 + 16
    assert change(before, after, "distrinews_truncated_texts_total") == 1
    assert sum(change(before, after, "distrinews_predictions_total", label=name) for name in LABELS) == 3
    assert change(before, after, "distrinews_predictions_total", label=label) >= 2
    for name in ("queue_duration_seconds", "inference_duration_seconds", "batch_texts", "prediction_confidence"):
        assert change(before, after, f"distrinews_{name}_count") == 3, name
    assert change(before, after, "distrinews_tokenize_duration_seconds_count") == 2
    assert value(after, "distrinews_ready") == 1


def test_the_route_of_a_request_is_its_template(server: Scraped) -> None:
    path = "/v2/models/{model_name}/versions/{model_version}"
    before = server.scrape()
    for name in ("distrinews", "other"):
        server.client.get(path.format(model_name=name, model_version=1))
    after = server.scrape()
    assert change(before, after, "distrinews_http_requests_total", route=path, code="200") == 1
    assert change(before, after, "distrinews_http_requests_total", route=path, code="404") == 1


def test_paths_that_are_no_route_are_one_series_and_no_rejected_requests(server: Scraped) -> None:
    before = server.scrape()
    for path in ("/a", "/b/c", "/metrics"):
        assert server.client.get(path).status_code == 404
    assert server.client.get("/predict").status_code == 405
    after = server.scrape()
    assert change(before, after, "distrinews_http_requests_total", route="unmatched", code="404") == 3
    assert change(before, after, "distrinews_http_requests_total", route="/predict", code="405") == 1
    assert change(before, after, "distrinews_rejected_requests_total", reason="invalid") == 1
    assert not [labels for _, labels in after if ("route", "/a") in labels]


def test_without_metrics_the_first_line_names_no_port(folder: Path) -> None:
    with started(folder, "--metrics-port", "off") as (_, line):
        assert "metrics" not in line


def test_a_metrics_port_that_is_taken_ends_the_program_with_one_line(folder: Path, server: Scraped) -> None:
    taken = str(server.client.base_url.port)
    command = [sys.executable, "-m", "server.main", str(folder), "--port", "0", "--metrics-port", taken]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    (line,) = ended.stderr.splitlines()
    assert (
        f"for Prometheus on 127.0.0.1 port {taken}: Address already in use; choose another with --metrics-port" in line
    )


def test_silent_connections_to_the_metrics_port_take_few_threads_and_block_none(server: Scraped) -> None:
    port, before = httpx.URL(server.metrics_url).port or 0, value(server.scrape(), "process_open_fds")
    with ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert "distrinews_ready" in httpx.get(server.metrics_url).text
        deadline = time.monotonic() + 8  # before they time out by themselves
        while value(server.scrape(), "process_open_fds") >= before + 12:  # those that are closed end on their threads
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert psutil.Process(server.pid).num_threads() < 40


def test_two_servers_of_a_process_count_apart_and_gauges_are_current(folder: Path) -> None:
    settings = Settings(workers=1)
    classifiers = [Classifier(choose(folder, "onnx", workers=1), settings) for _ in range(2)]
    lifecycles = [Lifecycle(classifier, drain_seconds=0) for classifier in classifiers]
    one, other = (
        Metrics(classifier, lifecycle, settings) for classifier, lifecycle in zip(classifiers, lifecycles, strict=True)
    )
    request = Request(["a text"] * 2, deadline=0, reserved_tokens=0, future=None)  # type: ignore[arg-type]
    one.computed([QueueEntry([5] * 4, request), QueueEntry([5] * 16, request)], started=0, seconds=0.1)
    lifecycles[0].draining = True
    for name, labels, expected in (
        ("tokens_total", {"kind": "text"}, (20, 0)),
        ("tokens_total", {"kind": "padding"}, (12, 0)),
        ("batch_padding_ratio_sum", {}, (12 / 32, 0)),
        ("ready", {}, (0, 1)),
    ):
        found = [metrics.registry.get_sample_value(f"distrinews_{name}", labels) for metrics in (one, other)]
        assert found == pytest.approx(expected), name
    for classifier in classifiers:
        classifier.close()


def test_a_sane_request_id_is_kept_and_any_other_is_replaced(server: Scraped) -> None:
    def answered(given: str | bytes) -> str:
        sent = {"X-Request-ID": given}
        id_: str = server.client.get("/livez", headers=sent).headers["X-Request-ID"]  # type: ignore[arg-type]
        return id_

    for sane in ("a", "0af7651916cd43dd8448eb211c80319c", "order:17/retry=2", "x" * 128):
        assert answered(sane) == sane
    for other in ("", "x" * 129, "a b", 'a"b', "a;b", b"\xff", "Ö".encode()):
        assert uuid.UUID(answered(other))


def test_every_answer_has_an_id_and_a_problem_repeats_it(server: Scraped) -> None:
    ids = []
    for method, path, status in (
        ("GET", "/health", 200),
        ("GET", "/none", 404),
        ("GET", "/predict", 405),
        ("POST", "/predict", 422),
    ):
        answer = server.client.request(method, path)
        assert answer.status_code == status
        ids.append(answer.headers["X-Request-ID"])
        if status != 200:
            assert answer.json()["request_id"] == ids[-1]
    assert len(set(ids)) == 4
