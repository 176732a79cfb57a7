"""The command distrinews serve: its flags, its stop, and the errors with which it ends."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.support.servers import predict, serving

pytestmark = pytest.mark.slow  # the module takes seconds


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    with serving(folder) as (_, client):
        yield client


def test_flags_choose_the_engine_and_the_limits(folder: Path, client: httpx.Client) -> None:
    flags = ("--engine", "onnx-fp32", "--max-batch-texts", "2", "--max-text-characters", "5")
    with serving(folder, *flags) as (_, other):
        assert other.get("/health").json()["variant"] == "fp32"
        assert predict(other, "goal") != predict(client, "goal")
        assert other.post("/predict", json={"text": "market"}).status_code == 422
        assert other.post("/predict/batch", json={"texts": ["goal"] * 3}).status_code == 422


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_answers_requests_in_flight_and_exits_with_0(folder: Path, number: signal.Signals) -> None:
    stopping = threading.Event()

    def body() -> Iterator[bytes]:
        yield b'{"texts": ["goal", '
        stopping.wait(10)
        yield b'"market"]}'

    with serving(folder, "--drain-seconds", "0") as (process, client), ThreadPoolExecutor(1) as thread:
        headers = {"Content-Type": "application/json"}
        batch = thread.submit(client.post, "/predict/batch", content=body(), headers=headers)
        time.sleep(0.2)  # the first half is with the server
        process.send_signal(number)
        time.sleep(0.3)  # the server has noticed
        stopping.set()
        assert len(batch.result().json()) == 2
        assert process.wait(10) == 0
        assert process.stderr
        assert process.stderr.read() == ""


def test_a_folder_that_cannot_be_served_ends_the_program_with_one_line_and_1(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "server.main", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert f"{tmp_path} has no folder onnx: run distrinews run, or the export step" in line


def test_a_port_that_is_taken_ends_the_program_with_one_line(folder: Path, client: httpx.Client) -> None:
    command = [sys.executable, "-m", "server.main", str(folder), "--port", str(client.base_url.port)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert f"port {client.base_url.port}" in line
    assert "--port" in line


def test_the_server_imports_nothing_that_trains_and_no_engine_that_it_does_not_use(folder: Path) -> None:
    program = f"""
import sys
import server.http.server, server.main
from server.inference.classifier import Classifier
from server.inference.backends import choose
from server.settings import Settings
Classifier(choose(__import__("pathlib").Path({str(folder)!r}), "auto", workers=1), Settings(workers=1))
print(*sorted({{name.partition(".")[0] for name in sys.modules}}))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    imported = set(ran.stdout.split())
    assert {"server", "onnxruntime", "fastapi", "tokenizers"} <= imported
    assert not imported & {
        "torch",
        "transformers",
        "trainer",
        "pipelines",
        "kfp",
        "datasets",
        "sklearn",
        "onnx",
        "openvino",
        "pandas",
    }
