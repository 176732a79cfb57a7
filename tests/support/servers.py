"""Real servers for tests: a process of its own, or one in this process whose workers a test holds back."""

import asyncio
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from numpy.typing import NDArray

from server.app import create_app
from server.cli import parse
from server.http.auth import Auth
from server.http.lifecycle import Lifecycle
from server.http.server import uvicorn_config
from server.inference.backends import Choice
from server.inference.classifier import Classifier
from server.main import PROGRAM, Serve
from server.model_folder import read_model_folder
from server.observability.metrics import Metrics
from server.settings import Settings


def read_settings(args: list[str]) -> Serve:
    """Reads the settings of a server as its command does."""
    return parse(Serve, args, prog=PROGRAM)


@contextmanager
def started(folder: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Starts a server process; yields it and its first line of output."""
    command = [sys.executable, "-m", "server.main", str(folder), "--port", "0", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        line = process.stdout.readline()
        assert line, process.stderr.read()
        try:
            yield process, line
        finally:
            process.kill()


@contextmanager
def serving(folder: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    with started(folder, *flags) as (process, line):
        url = line.split(" at ")[1].split(";")[0]
        with httpx.Client(base_url=url, timeout=30) as client:
            yield process, client


def predict(client: httpx.Client, text: str) -> dict[str, Any]:
    response = client.post("/predict", json={"text": text})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def log_lines(folder: Path, *flags: str, send: Callable[[httpx.Client], object]) -> tuple[str, list[str]]:
    """Starts a server, sends requests, stops it; returns its first line of output and the lines of its log."""
    with started(folder, "--drain-seconds", "0", *flags) as (process, first):
        url = first.split(" at ")[1].split(";")[0]
        with httpx.Client(base_url=url, timeout=30) as client:
            send(client)
        process.send_signal(signal.SIGTERM)
        return first, process.communicate(timeout=20)[1].splitlines()


class Gated:
    """A backend that computes once its gate is open, and counts the texts that it gets."""

    name, length_step = "gated", 1

    def __init__(self, *, gpu: bool = False) -> None:
        self.gpu = self.batches = gpu
        self.open = threading.Event()
        self.open.set()
        self.texts = 0
        self.sizes: list[int] = []

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        assert input_ids.shape == attention_mask.shape
        self.open.wait(20)
        self.texts += len(input_ids)
        self.sizes.append(len(input_ids))
        return np.zeros((len(input_ids), 3), dtype=np.float32)


class Served:
    def __init__(self, backend: Gated, classifier: Classifier, lifecycle: Lifecycle, client: httpx.AsyncClient) -> None:
        self.backend, self.classifier, self.lifecycle, self.client = backend, classifier, lifecycle, client

    def predict(self, text: str = "goal", **headers: str) -> "asyncio.Task[httpx.Response]":
        return asyncio.create_task(self.client.post("/predict", json={"text": text}, headers=headers))

    def metric(self, name: str, **labels: str) -> float | None:
        assert isinstance(self.classifier.events, Metrics)
        return self.classifier.events.registry.get_sample_value(name, labels)

    async def until_waiting(self, texts: int) -> None:
        async with asyncio.timeout(5):
            while self.classifier.queue.size[0] < texts or not self.classifier.stuck_seconds():  # noqa: ASYNC110 - no event is set
                await asyncio.sleep(0.005)


@asynccontextmanager
async def gated(
    folder: Path,
    *,
    workers: int = 1,
    gpu: bool = False,
    **settings: Any,  # noqa: ANN401 - whatever Settings takes
) -> AsyncIterator[Served]:
    """Runs a real server in this process, on a real socket; its workers (one by default) wait at a gate."""
    backend, chosen = Gated(gpu=gpu), Settings(workers=workers, **settings)
    classifier = Classifier(Choice(read_model_folder(folder, ("int8",)), backend, 1_000_000 if gpu else 0), chosen)
    backend.open.clear()
    lifecycle = Lifecycle(classifier, drain_seconds=0)
    app = create_app(classifier, lifecycle, chosen, Auth.from_settings(chosen))
    server = uvicorn.Server(uvicorn_config(app, chosen))
    listener = socket.create_server(("127.0.0.1", 0))
    running = asyncio.create_task(server.serve([listener]))
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=20, limits=limits
    ) as client:
        try:
            yield Served(backend, classifier, lifecycle, client)
        finally:
            backend.open.set()
            server.should_exit = True
            await running
            classifier.close()
