"""A load generator for a server on this machine, as clients that wait (closed loop) or as arrivals that do not (open loop).

    python -m tests.benchmarks.serving.load PORT --clients 8 --seconds 10
    python -m tests.benchmarks.serving.load PORT --rate 70 --seconds 10

It sends to 127.0.0.1 only, for a bounded time and a bounded number of requests, and shares the cores with the server:
so it reports how much of a core it used.
"""

import argparse
import asyncio
import csv
import itertools
import json
import math
import time
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import uvloop

from tests.benchmarks.record import table
from tests.benchmarks.serving.connections import HOST, REFUSED, TIMEOUT, Connections
from tests.support.data import AG_NEWS
from trainer.data.sample import sample_rows

PERCENTILES = (50, 90, 99, 99.9)
_TEXTS = 7600  # as AG News has to test
_MAX_REQUESTS = 1_000_000
_LIMIT_SECONDS = 60.0


@dataclass(frozen=True)
class Load:
    """Collects the outcomes of the requests of one measurement."""

    seconds: float
    """Seconds from the first answer to the last."""
    latencies: Sequence[float]
    """Seconds, in order, of every request that was answered with success or, as a lower bound, never."""
    answers: Counter[str]
    """Requests by status, or by outcome where there is none."""
    most_in_flight: int
    resent: int = 0
    """Requests sent again since the server had closed the idle connection that they went to."""
    late_seconds: float = 0
    """Delay of the generator in sending requests, 99th percentile."""
    cpu_share: float = 0
    """Share of one core that the generator used."""

    @property
    def succeeded(self) -> int:
        return sum(count for status, count in self.answers.items() if _is_success(status))

    @property
    def failed(self) -> dict[str, int]:
        return {status: count for status, count in sorted(self.answers.items()) if not _is_success(status)}

    @property
    def per_second(self) -> float:
        """Successful requests."""
        return self.succeeded / self.seconds

    def percentile(self, percent: float) -> float:
        return percentile(self.latencies, percent)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest sample that so many percent of all do not exceed; nan without samples."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else math.nan


def load_texts(*, seed: int, count: int = _TEXTS) -> list[str]:
    """Texts as long as news: AG News where it is there, else the sample."""
    file = AG_NEWS / "test.csv"
    if file.is_file():
        with file.open(encoding="utf-8", newline="") as rows:
            texts = [f"{title} {description}" for _, title, description in csv.reader(rows)]
        Random(seed).shuffle(texts)
        return texts[:count]
    return [text for text, _ in sample_rows(count, seed=seed)]


def post(path: str, body: object) -> bytes:
    """A whole request."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


def single_requests(texts: Sequence[str]) -> list[bytes]:
    return [post("/predict", {"text": text}) for text in texts]


def batch_requests(texts: Sequence[str], size: int) -> list[bytes]:
    whole = range(0, len(texts) - size + 1, size)
    return [post("/predict/batch", {"texts": texts[start : start + size]}) for start in whole]


async def closed_loop(
    port: int, requests: Sequence[bytes], *, clients: int, seconds: float, warm_seconds: float = 1.0,
    limit_seconds: float = _LIMIT_SECONDS, max_requests: int = _MAX_REQUESTS,
) -> Load:  # fmt: skip
    """Runs clients that send a request, wait for the answer and send the next.

    Counted from the first answer after the warm-up to the first one at least `seconds` later: from answer to answer, so
    that a server which takes seconds for one request is measured as exactly as one that takes milliseconds.
    """
    connections = Connections(port, limit_seconds=limit_seconds)
    window = _Window(time.perf_counter() + warm_seconds, seconds)
    bodies = itertools.islice(itertools.cycle(requests), max_requests)

    async def client() -> None:
        while window.is_open and (request := next(bodies, None)):
            sent = time.perf_counter()
            status = await connections.send(request)
            window.add(sent, time.perf_counter(), status)
            if status == REFUSED:
                await asyncio.sleep(0.01)  # else it would use up all requests at once

    await asyncio.gather(*(client() for _ in range(clients)))
    await connections.close()
    return window.load(connections)


async def open_loop(
    port: int, requests: Sequence[bytes], *, rate: float, seconds: float, seed: int,
    limit_seconds: float = _LIMIT_SECONDS, max_requests: int = _MAX_REQUESTS,
) -> Load:  # fmt: skip
    """Sends requests at `rate` a second however slow the answers are, with exponential gaps (a Poisson process).

    Latency counts from when a request should have been sent: one that the generator or a full queue delays is not
    flattered. As many are in flight as are unanswered.
    """
    connections = Connections(port, limit_seconds=limit_seconds)
    samples, late = _Samples(), []
    started, cpu = time.perf_counter(), time.process_time()

    async def one(intended: float, request: bytes) -> None:
        late.append(time.perf_counter() - intended)
        status = await connections.send(request)
        samples.add(intended, time.perf_counter(), status)

    async with asyncio.TaskGroup() as tasks:
        offsets = itertools.islice(arrivals(rate, seconds, seed=seed), max_requests)
        for offset, request in zip(offsets, itertools.cycle(requests), strict=False):
            if (wait := started + offset - time.perf_counter()) > 0:
                await asyncio.sleep(math.ceil(wait * 1e3) / 1e3)  # a timer of whole milliseconds would be early
            tasks.create_task(one(started + offset, request))
    await connections.close()
    lasted = time.perf_counter() - started
    return samples.load(
        max(seconds, lasted),
        connections,
        late_seconds=percentile(sorted(late), 99),
        cpu_share=(time.process_time() - cpu) / lasted,
    )


def arrivals(rate: float, seconds: float, *, seed: int) -> Iterator[float]:
    """Seconds after the start at which requests come; the same for the same seed, and a faster rate has them closer."""
    random, at = Random(seed), 0.0
    while (at := at + random.expovariate(1) / rate) < seconds:
        yield at


def run(load: Coroutine[Any, Any, Load]) -> Load:
    """Runs a loop to its end, on the event loop that costs least."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(load)


@dataclass
class _Samples:
    latencies: list[float] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)

    def add(self, begun: float, ended: float, status: str) -> None:
        self.answers[status] += 1
        if _is_success(status) or status == TIMEOUT:  # a quick refusal is no quick answer, but no answer is a slow one
            self.latencies.append(ended - begun)

    def load(self, seconds: float, connections: Connections, *, late_seconds: float = 0, cpu_share: float) -> Load:
        return Load(
            seconds,
            sorted(self.latencies),
            self.answers,
            connections.most_in_flight,
            connections.resent,
            late_seconds,
            cpu_share,
        )


class _Window:
    """Takes the samples between two answers, `seconds` apart."""

    def __init__(self, opens_after: float, seconds: float) -> None:
        self._opens_after, self._seconds = opens_after, seconds
        self._opened = self._last = self._cpu = math.nan
        self._samples = _Samples()
        self.is_open = True

    def add(self, begun: float, ended: float, status: str) -> None:
        if math.isnan(self._opened):
            if ended >= self._opens_after:
                self._opened, self._cpu = ended, time.process_time()
        elif self.is_open:
            self._samples.add(begun, ended, status)
            self._last, self.is_open = ended, ended < self._opened + self._seconds
            if not self.is_open:
                self._cpu = time.process_time() - self._cpu

    def load(self, connections: Connections) -> Load:
        if self.is_open:
            raise ValueError("there were too few requests for a measurement this long: allow more, or take less time")
        lasted = self._last - self._opened
        return self._samples.load(lasted, connections, cpu_share=self._cpu / lasted)


def _is_success(status: str) -> bool:
    return status.startswith("2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--clients", type=int, help="of the closed loop")
    how.add_argument("--rate", type=float, help="requests a second of the open loop")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--batch", type=int, help="texts of a request to /predict/batch; by default one to /predict")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    texts = load_texts(seed=args.seed)
    requests = batch_requests(texts, args.batch) if args.batch else single_requests(texts)
    print(f"load: {args.seconds:g} s on {HOST}:{args.port}", flush=True)
    if args.clients:
        load = run(closed_loop(args.port, requests, clients=args.clients, seconds=args.seconds))
    else:
        load = run(open_loop(args.port, requests, rate=args.rate, seconds=args.seconds, seed=args.seed))
    print(table([describe(load, texts_each=args.batch or 1)]))


def describe(load: Load, *, texts_each: int = 1) -> dict[str, str]:
    """A row of a table."""
    failed = ", ".join(f"{count:,} × {status}" for status, count in load.failed.items())
    return {
        "Requests": f"{load.answers.total():,}",
        "Texts/s": f"{load.per_second * texts_each:.1f}",
        **{f"p{percent}, ms": f"{load.percentile(percent) * 1e3:.1f}" for percent in PERCENTILES},
        "Failed": failed or "0",
        "In flight, at most": f"{load.most_in_flight:,}",
        "Sent late by, p99, ms": f"{load.late_seconds * 1e3:.1f}",
        "Generator, of one core": f"{load.cpu_share:.1%}",
    }


if __name__ == "__main__":
    main()
