"""What the server does when things go wrong: each fault made for real, and what came of it.

python -m tests.benchmarks.faults
"""

import asyncio
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from server.model_folder import write_manifest
from tests.benchmarks.record import table, write
from tests.benchmarks.serving.load import HOST
from tests.benchmarks.serving.running import free_port
from tests.support.model_folder import write_model_folder

_TEXT = {"text": "Goal! The team won the match"}
_JSON = {"Content-Type": "application/json"}


@dataclass
class Found:
    rows: list[dict[str, str]] = field(default_factory=list)

    def add(self, fault: str, became: str, seconds: float | None = None) -> None:
        took = "" if seconds is None else f"{seconds * 1e3:,.0f} ms"
        self.rows.append({"Fault": fault, "What happened": became.replace("|", "\\|"), "After": took})
        print(f"faults: {fault}: {became} {took}", flush=True)


def main() -> None:
    found = Found()
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_model_folder(Path(temporary) / "model")
        with serving(folder) as (client, _):
            _bad_input(client, found)
            _hang_up(client, found)
        _slow_clients(folder, found)
        _overload(folder, found)
        _callers(folder, found)
        _stop(folder, found)
        _bad_folders(folder, Path(temporary), found)
    write(
        "faults",
        title="Faults, and what the server does",
        command="python -m tests.benchmarks.faults",
        packages=("fastapi", "uvicorn", "onnxruntime"),
        parts=["A real server with a tiny model; each fault is made for real.", table(found.rows)],
    )


@contextmanager
def serving(folder: Path, *flags: str) -> Iterator[tuple[httpx.Client, "subprocess.Popen[str]"]]:
    command = [
        sys.executable,
        "-m",
        "server.main",
        str(folder),
        "--port",
        str(free_port()),
        "--metrics-port",
        "0",
        *flags,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        line = next(line for line in process.stdout if "http://" in line)
        url, metrics = re.findall(r"http://[\d.]+:\d+", line)[:2]
        try:
            with httpx.Client(base_url=url, timeout=30, headers={"X-Metrics": metrics}) as client:
                yield client, process
        finally:
            process.kill()


def _answer(
    client: httpx.Client, content: bytes, headers: dict[str, str] | None = None, *, path: str = "/predict"
) -> tuple[str, float]:
    began = time.perf_counter()
    answer = client.post(path, content=content, headers=headers or _JSON)
    took = time.perf_counter() - began
    detail = answer.json().get("detail", "")
    return f"{answer.status_code}: {detail[:160]}", took


def _bad_input(client: httpx.Client, found: Found) -> None:
    for fault, content in {
        "a number for the text": b'{"text": 5}',
        "an empty text": b'{"text": ""}',
        "only spaces": b'{"text": "   "}',
        "a text of 20,000 characters": json.dumps({"text": "x" * 20_000}).encode(),
        "an unknown field": b'{"text": "a", "texts": 1}',
        "invalid UTF-8": b'{"text": "\xff\xfe"}',
        "half a surrogate pair": b'{"text": "\\ud800"}',
        "NUL in the text": b'{"text": "a\\u0000b"}',
        "100,000 nested lists": b"[" * 100_000,
        "a body of 10 MB": b'{"text": "' + b"x" * 10_000_000 + b'"}',
    }.items():
        found.add(fault, *_answer(client, content))
    found.add("65 texts", *_answer(client, json.dumps({"texts": ["a"] * 65}).encode(), path="/predict/batch"))
    found.add("a wrong content type", *_answer(client, b'{"text": "a"}', {"Content-Type": "text/plain"}))
    found.add(
        "1 ms to be answered in", *_answer(client, json.dumps(_TEXT).encode(), _JSON | {"X-Request-Timeout-Ms": "1"})
    )
    port = client.base_url.port
    assert port
    with socket.create_connection((HOST, port)) as garbage:
        garbage.sendall(bytes(range(256)) * 4)
        found.add("bytes that are no HTTP", garbage.recv(200).split(b"\r\n")[0].decode() + ", connection closed")
    found.add("afterwards: a right request", *_right(client))


def _right(client: httpx.Client) -> tuple[str, float]:
    began = time.perf_counter()
    answer = client.post("/predict", json=_TEXT)
    return f"{answer.status_code}: {answer.json()['label']}", time.perf_counter() - began


def _hang_up(client: httpx.Client, found: Found) -> None:
    body = json.dumps({"texts": ["Goal! The team won the match"] * 64}).encode()
    head = f"POST /predict/batch HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    port = client.base_url.port
    assert port
    for _ in range(50):
        with socket.create_connection((HOST, port)) as leaving:
            leaving.sendall(head.encode() + body)
    time.sleep(1)
    metrics = httpx.get(client.headers["X-Metrics"] + "/metrics").text
    counts = {
        name: sum(
            float(value) for value in re.findall(rf"^{name}\{{reason=\"client_left\"\}} (\S+)", metrics, re.MULTILINE)
        )
        for name in ("distrinews_rejected_requests_total", "distrinews_dropped_texts_total")
    }
    left, dropped = counts.values()
    found.add(
        "50 clients that send 64 texts each and hang up",
        f"{left:.0f} requests counted as left, {dropped:,.0f} of 3,200 texts never computed",
    )


def _slow_clients(folder: Path, found: Found) -> None:
    with serving(folder, "--max-connections", "100") as (client, process), ExitStack() as open_:
        port = client.base_url.port
        assert port
        for _ in range(500):
            slow = open_.enter_context(socket.create_connection((HOST, port)))
            slow.sendall(b"POST /predict HTTP/1.1\r\nHost")
        time.sleep(1)
        held = sum(one.status == "ESTABLISHED" for one in psutil.Process(process.pid).net_connections("tcp"))
        told, took = _right(client)
        found.add(
            "500 clients that send half a head, --max-connections 100", f"{held} stay; a right request {told}", took
        )


def _overload(folder: Path, found: Found) -> None:
    with serving(folder, "--workers", "1", "--max-queued-texts", "64") as (client, _):
        began = time.perf_counter()
        answers = asyncio.run(_flood(str(client.base_url), 400))
        took = time.perf_counter() - began
        statuses = Counter(answer.status_code for answer in answers)
        refused = next((answer for answer in answers if answer.status_code == 429), None)
        why = f"; {refused.json()['detail']}" if refused else ""
        told = ", ".join(f"{count} × {status}" for status, count in statuses.most_common())
        found.add("400 batches of 32 texts at once, room for 64 texts", told + why, took)
        found.add("afterwards: a right request", *_right(client))


async def _flood(url: str, count: int) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=count)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        batch = {"texts": ["Goal! The team won the match"] * 32}
        return list(await asyncio.gather(*(client.post("/predict/batch", json=batch) for _ in range(count))))


def _callers(folder: Path, found: Found) -> None:
    keys = folder.parent / "keys"
    keys.write_text(f"app:{'0' * 64}\n", encoding="utf-8")
    with serving(folder, "--api-keys-file", str(keys)) as (client, _):
        found.add("no API key", *_answer(client, json.dumps(_TEXT).encode()))
        found.add("a wrong API key", *_answer(client, json.dumps(_TEXT).encode(), _JSON | {"X-API-Key": "wrong"}))
    with serving(folder, "--rate-limit", "5/minute") as (client, _):
        answers = [client.post("/predict", json=_TEXT) for _ in range(8)]
        statuses = Counter(answer.status_code for answer in answers)
        told = ", ".join(f"{count} × {status}" for status, count in statuses.most_common())
        found.add(
            "8 requests where 5 a minute may come", f"{told}, Retry-After {answers[-1].headers.get('retry-after')} s"
        )


def _stop(folder: Path, found: Found) -> None:
    with serving(folder, "--drain-seconds", "1") as (client, process):
        before = [client.post("/predict", json=_TEXT).status_code for _ in range(20)]
        began = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        ready = client.get("/readyz").status_code
        during = [client.post("/predict", json=_TEXT).status_code for _ in range(20)]
        status = process.wait(30)
        answered = Counter(before + during)
        told = f"/readyz {ready} at once, {answered[200]} of 40 requests before and while it drained answered, exit status {status}"
        found.add("SIGTERM with a drain of 1 s", told, time.perf_counter() - began)


def _bad_folders(folder: Path, temporary: Path, found: Found) -> None:
    def changed(name: str, change: Callable[[Path], object]) -> None:
        copy = temporary / "changed"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        change(copy / "onnx")
        began = time.perf_counter()
        command = [sys.executable, "-m", "server.main", str(copy), "--port", "0", "--engine", "onnx"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        line = ended.stderr.strip().replace(str(temporary), "")
        found.add(name, f"exit status {ended.returncode}: {line[:220]}", time.perf_counter() - began)

    def flip(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)

    changed("the model's file is missing", lambda onnx: (onnx / "model_int8.onnx").unlink())
    changed("one bit of the model is another", lambda onnx: flip(onnx / "model_int8.onnx"))
    changed("a pickle stands in the folder", lambda onnx: (onnx / "weights.pt").write_bytes(b"PK\x03\x04"))
    changed("a label too many in model.json", _one_label_more)


def _one_label_more(onnx: Path) -> None:
    facts = json.loads((onnx / "model.json").read_text(encoding="utf-8"))
    (onnx / "model.json").write_text(json.dumps(facts | {"labels": [*facts["labels"], "more"]}), encoding="utf-8")
    write_manifest(onnx.parent)


if __name__ == "__main__":
    main()
