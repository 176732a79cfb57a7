"""Starts, times, watches and stops servers as processes, and collects the measurements of each."""

import http.client
import itertools
import json
import math
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from tests.benchmarks.serving.connections import HOST
from tests.benchmarks.serving.load import Load, describe
from trainer.monitoring.console import Progress, print0

_REPOSITORY = Path(__file__).parents[3]
_START_SECONDS = 120
_MEMORY_SECONDS = 0.5
_PROBE_PAUSE_SECONDS = 0.05


@dataclass(frozen=True)
class Server:
    name: str
    command: list[str]
    """Starts the server; the port is appended."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables besides those that it inherits."""


@dataclass
class Measured:
    """Measurements of one server; a list has one entry a round."""

    start_seconds: list[float] = field(default_factory=list)
    """Seconds from the start of the process to the answer to the first text."""
    resident_mb: list[float] = field(default_factory=list)
    """The most that its processes held under load."""
    loads: dict[str, list[Load]] = field(default_factory=lambda: defaultdict(list))
    texts_each: dict[str, int] = field(default_factory=dict)
    """Texts in a request, where it has several."""
    rates: dict[float, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Requests a second of the open loop, by share of the capacity."""
    probabilities: list[list[float]] = field(default_factory=list)
    """Probabilities of some texts, one request each."""
    probabilities_in_batches: list[list[float]] = field(default_factory=list)
    """Probabilities of the same texts, in one request."""
    probes: list[float] = field(default_factory=list)
    """Seconds that health checks took under a load of twice the capacity."""
    engine: str = ""
    """Engine that its health check names; the reference names none."""

    def per_second(self, what: str) -> float:
        """Texts, in the median round."""
        return median(load.per_second for load in self.loads[what]) * self.texts_each.get(what, 1)

    def pooled(self, what: str) -> Load:
        """All rounds as one: percentiles come from all samples, the speed is that of the median round."""
        loads = self.loads[what]
        answers = sum((load.answers for load in loads), Counter[str]())
        succeeded = sum(load.succeeded for load in loads)
        speed = median(load.per_second for load in loads)
        return Load(
            succeeded / speed if speed else math.inf,
            sorted(latency for load in loads for latency in load.latencies),
            answers,
            most_in_flight=max(load.most_in_flight for load in loads),
            resent=sum(load.resent for load in loads),
            late_seconds=max(load.late_seconds for load in loads),
            cpu_share=median(load.cpu_share for load in loads),
        )

    def milliseconds(self, what: str, percent: float) -> float:
        return self.pooled(what).percentile(percent) * 1e3


def take_priority() -> str:
    """Gives this thread priority over the server on the same cores; returns a sentence with the outcome."""
    if sys.platform != "linux":
        return "The generator does not go before the server (only Linux has a way to), so latencies have its own waits for a core in them."
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))  # without its children
    except PermissionError:
        return "The generator may not go before the server (it needs CAP_SYS_NICE), so latencies have its own waits for a core in them."
    return (
        "The generator goes before the server on the cores that they share, as a client elsewhere has cores of its own."
    )


def with_clients(number: int) -> str:
    return f"closed loop, {number} client{'s' if number > 1 else ''}"


def at_share(share: float) -> str:
    return f"open loop at {share:.0%} of capacity"


def record(load: Load, what: str, measured: Measured, progress: Progress, prefix: str, *, texts_each: int = 1) -> None:
    measured.loads[what].append(load)
    measured.texts_each[what] = texts_each
    row = describe(load, texts_each=texts_each)
    print0(
        f"{prefix}, {what}: {row['Texts/s']} texts/s, p50 {row['p50, ms']} ms, p99 {row['p99, ms']} ms, failed {row['Failed']}"
    )
    progress.advance()


@contextmanager
def started(server: Server, call: Callable[[int], object], measured: Measured) -> Iterator[int]:
    """Starts a server, times its first answer to `call`, watches its memory from then on, and stops it at the end."""
    port = free_port()
    with tempfile.TemporaryFile() as log:
        began, environment = time.perf_counter(), os.environ | server.environment
        command = [*server.command, str(port)]
        with subprocess.Popen(command, cwd=_REPOSITORY, stdout=log, stderr=log, env=environment) as process:
            try:
                _wait_for_answer(partial(call, port), process)
                measured.start_seconds.append(time.perf_counter() - began)
                with _memory_watched(process.pid, measured):
                    yield port
            except BaseException:
                log.seek(0)
                print0(f"serve: {server.name} printed: {log.read()[-4000:].decode(errors='replace')}")
                raise
            finally:
                _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends the server and all its child processes."""
    begun = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
    for child in begun:
        with suppress(psutil.NoSuchProcess):
            child.kill()


def free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _wait_for_answer(call: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        try:
            call()
        except (OSError, http.client.HTTPException):
            if process.poll() is not None:
                raise RuntimeError(f"the server ended with status {process.returncode} before it answered") from None
            time.sleep(0.01)
        else:
            return
    raise RuntimeError(f"the server did not answer within {_START_SECONDS} s")


def request(port: int, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401 - JSON
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    try:
        connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise http.client.HTTPException(f"{response.status}: {content[:200]!r}")
    return json.loads(content)


@contextmanager
def _memory_watched(pid: int, measured: Measured) -> Iterator[None]:
    """Records the peak of the memory of a process and its children together."""
    root, done, seen = psutil.Process(pid), threading.Event(), [0.0]

    def watch() -> None:
        while not done.wait(_MEMORY_SECONDS):
            seen.append(_resident_mb(root))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        measured.resident_mb.append(max(seen))


def _resident_mb(root: psutil.Process) -> float:
    """Returns the memory of a process and its children; one that ended meanwhile counts as nothing."""
    total = 0.0
    for process in (root, *root.children(recursive=True)):
        try:
            total += process.memory_info().rss / 1e6
        except psutil.NoSuchProcess:
            continue
    return total


@contextmanager
def probing(port: int, paths: Sequence[str], seconds: list[float]) -> Iterator[None]:
    """Calls the health checks in turn meanwhile and records their durations."""
    command = [sys.executable, "-m", "tests.benchmarks.serving.running", str(port), *paths]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield
        finally:
            output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the probes ended with status {process.returncode}")
    seconds += map(float, output.split())


def probe() -> None:
    """Calls health checks, each on a new connection as a kubelet does, until standard input ends; writes the seconds of each.

    It is a process of its own, since the load generator is busy.
    """
    take_priority()
    port, paths, seconds = int(sys.argv[1]), sys.argv[2:], list[float]()
    for path in itertools.cycle(paths):
        began = time.perf_counter()
        request(port, "GET", path)
        seconds.append(time.perf_counter() - began)
        if select.select([sys.stdin], [], [], _PROBE_PAUSE_SECONDS)[0]:
            break
    print(*seconds)


if __name__ == "__main__":
    probe()
