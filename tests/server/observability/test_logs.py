"""The server logs its requests."""

import contextvars
import json
import logging
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.observability.logs import CURRENT, JsonFormatter, RequestRecord, TextFormatter
from tests.support.servers import log_lines

TRACE = "0af7651916cd43dd8448eb211c80319c"


def send_three(client: httpx.Client) -> None:
    trace = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "X-Request-ID": "one"}
    client.post("/predict/batch", json={"texts": ["goal", "secret " * 99]}, headers=trace)
    client.post("/predict", json={"text": ""}, headers={"X-Request-ID": "two"})
    client.get("/livez")
    client.get("/no%0Aroute", headers={"X-Request-ID": "three"})


@pytest.mark.slow
def test_a_json_log_has_an_object_for_each_request_and_never_a_text(folder: Path) -> None:
    first, lines = log_lines(folder, "--log-format", "json", send=send_three)
    assert json.loads(first)["message"].startswith("distrinews ")
    records: list[dict[str, Any]] = [json.loads(line) for line in lines]
    assert {"server.http.lifecycle", "distrinews.requests"} == {record["logger"] for record in records}
    assert all(record["time"].endswith("Z") and record["level"] == "info" for record in records)
    one, two, three = (record for record in records if record["logger"] == "distrinews.requests")
    assert one["message"] == "POST /predict/batch 200"
    names = ("request_id", "trace_id", "method", "route", "status", "caller", "texts", "tokens", "truncated")
    assert [one[name] for name in names] == ["one", TRACE, "POST", "/predict/batch", 200, None, 2, 3 + 16, 1]
    assert 0 < one["queue_ms"] + one["tokenize_ms"] + one["infer_ms"] < one["total_ms"] * 2
    assert (two["request_id"], two["status"], two["rejected"], two["infer_ms"]) == ("two", 422, "invalid", None)
    assert (three["route"], three["status"], three["rejected"]) == ("unmatched", 404, None)
    assert "secret" not in "".join(lines)


@pytest.mark.slow
def test_texts_are_logged_only_with_log_texts_and_a_warning(folder: Path) -> None:
    _, lines = log_lines(folder, "--log-format", "json", "--log-texts", send=send_three)
    warning, *records = map(json.loads, lines)
    assert (warning["level"], "every text" in warning["message"]) == ("warning", True)
    (one,) = (record for record in records if record.get("request_id") == "one")
    assert one["text"] == ["goal", "secret " * 99]


@pytest.mark.slow
def test_a_log_to_read_has_a_line_for_each_request_at_level_info(folder: Path) -> None:
    _, lines = log_lines(folder, "--log-level", "info", send=send_three)
    (line,) = (line for line in lines if "/predict/batch" in line)
    assert f"info    POST /predict/batch 200 request_id=one trace_id={TRACE} total_ms=" in line
    assert "truncated=1" in line


@pytest.mark.slow
def test_the_line_of_a_request_names_its_caller_and_never_shows_the_key(folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"billing:{sha256(b'dn_opens').hexdigest()}\n")

    def send(client: httpx.Client) -> None:
        for key in ("dn_opens", "dn_other"):
            client.post("/predict", json={"text": "goal"}, headers={"X-API-Key": key})

    _, lines = log_lines(folder, "--log-format", "json", "--api-keys-file", str(keys), send=send)
    requests = [record for record in map(json.loads, lines) if record["logger"] == "distrinews.requests"]
    assert [(record["caller"], record["rejected"]) for record in requests] == [
        ("billing", None),
        (None, "unauthorized"),
    ]
    assert "dn_" not in "".join(lines)


def test_an_error_during_a_request_is_logged_with_its_id_on_one_line() -> None:
    def fail() -> str:
        CURRENT.set(RequestRecord("one", "POST"))
        try:
            json.loads("not\nJSON")
        except ValueError:
            failed = logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, "failed\n", None, sys.exc_info())
            return JsonFormatter().format(failed)
        return ""

    line = contextvars.copy_context().run(fail)
    assert "\n" not in line
    written = json.loads(line)
    assert (written["request_id"], written["level"], written["message"]) == ("one", "error", "failed")
    assert written["exception"].endswith("Expecting value: line 1 column 1 (char 0)")


def test_a_name_cannot_make_a_second_line_of_a_log_to_read() -> None:
    record = logging.LogRecord("distrinews.requests", logging.INFO, "", 0, "POST /predict 200", None, None)
    record.facts = {"caller": "me\n2026 info forged", "request_id": "a:1"}
    line = TextFormatter().format(record)
    assert "\n" not in line
    assert line.endswith(r'POST /predict 200 caller="me\n2026 info forged" request_id=a:1')
