"""A server with more to do than it can, with clients that leave, and while it stops: nothing is lost that was accepted."""

import asyncio
import contextlib
import gc
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from server.inference.queue import QueueEntry
from tests.support.servers import gated, serving

pytestmark = pytest.mark.slow  # the module takes seconds


def test_a_full_queue_answers_429_at_once_with_the_reason_and_the_time_to_retry(folder: Path) -> None:
    async def check() -> None:
        async with gated(folder, max_queued_texts=3, max_batch_texts=3) as served:
            accepted = [served.predict()]
            await served.until_waiting(0)
            accepted += [served.predict() for _ in range(3)]
            await served.until_waiting(3)
            started = time.monotonic()
            refused = await served.predict()
            assert time.monotonic() - started < 1
            assert refused.status_code == 429
            assert int(refused.headers["Retry-After"]) >= 1
            assert "The queue is full: 3 texts wait and 3 may; try again in" in refused.json()["detail"]
            assert served.metric("distrinews_rejected_requests_total", reason="queue_full") == 1
            assert served.metric("distrinews_rejected_requests_total", reason="rate_limited") == 0
            assert served.metric("distrinews_queue_texts") == 3
            assert served.metric("distrinews_http_requests_in_flight") == 4
            served.backend.open.set()
            assert [(await one).status_code for one in accepted] == [200] * 4

    asyncio.run(check())


def test_memory_of_answered_and_late_requests_is_freed_without_garbage_collection(folder: Path) -> None:
    async def check() -> None:
        async with gated(folder) as served:
            gc.collect()
            gc.disable()
            try:
                late = [served.predict(**{"X-Request-Timeout-Ms": "50"}) for _ in range(20)]
                assert [(await one).status_code for one in late] == [504] * 20
                served.backend.open.set()
                assert [(await served.predict()).status_code for _ in range(20)] == [200] * 20
                held = [found for found in gc.get_objects() if type(found) is QueueEntry]
            finally:
                gc.enable()
            assert len(held) <= 2  # the last requests of the two threads

    asyncio.run(check())


def test_a_batch_is_admitted_or_refused_as_a_whole(folder: Path) -> None:
    async def check() -> None:
        async with gated(folder, max_queued_texts=5, max_batch_texts=5) as served:
            first = served.predict()
            await served.until_waiting(0)
            accepted = asyncio.create_task(served.client.post("/predict/batch", json={"texts": ["goal"] * 4}))
            await served.until_waiting(4)
            refused = await served.client.post("/predict/batch", json={"texts": ["goal"] * 2})
            assert refused.status_code == 429
            assert served.classifier.queue.size[0] == 4
            served.backend.open.set()
            assert len((await accepted).json()) == 4
            await first
            assert served.backend.texts == 5, "no refused text is computed"

    asyncio.run(check())


def test_a_batch_of_more_tokens_than_may_wait_is_answered_when_nothing_waits(folder: Path) -> None:
    async def check() -> None:
        async with gated(folder, max_queued_tokens=64) as served:
            served.backend.open.set()
            answer = await served.client.post("/predict/batch", json={"texts": ["goal " * 100] * 64})
            assert answer.status_code == 200, answer.text
            assert len(answer.json()) == 64

    asyncio.run(check())


def test_on_a_gpu_the_queue_is_shared_out_over_its_two_workers_not_over_the_cpus(folder: Path) -> None:
    async def check() -> None:
        async with gated(folder, workers=16, gpu=True) as served:
            first = [served.predict() for _ in range(2)]
            async with asyncio.timeout(5):
                while served.classifier.busy_workers < 2:  # noqa: ASYNC110 - no event is set
                    await asyncio.sleep(0.005)
            batch = asyncio.create_task(served.client.post("/predict/batch", json={"texts": ["goal"] * 32}))
            await served.until_waiting(32)
            served.backend.open.set()
            assert [(await one).status_code for one in [*first, batch]] == [200] * 3
            assert max(served.backend.sizes) == 16

    asyncio.run(check())


def test_a_text_whose_deadline_passes_in_the_queue_gets_504_and_is_never_computed(folder: Path) -> None:
    async def check() -> None:
        async with gated(folder) as served:
            first = served.predict()
            await served.until_waiting(0)
            late = await served.predict(**{"X-Request-Timeout-Ms": "50"})
            assert late.status_code == 504
            assert "no answer within 50 ms; the header X-Request-Timeout-Ms" in late.json()["detail"]
            served.backend.open.set()
            assert (await first).status_code == 200
            assert (await served.predict()).status_code == 200
            assert served.backend.texts == 2
            assert served.metric("distrinews_rejected_requests_total", reason="deadline") == 1

    asyncio.run(check())


@pytest.mark.parametrize("wrong", ["0", "-1", "soon", "3600001"])
def test_a_wrong_timeout_is_refused_with_its_header_named(folder: Path, wrong: str) -> None:
    async def check() -> None:
        async with gated(folder) as served:
            refused = await served.predict(**{"X-Request-Timeout-Ms": wrong})
            assert refused.status_code == 422
            assert "X-Request-Timeout-Ms" in refused.json()["detail"]

    asyncio.run(check())


def test_the_texts_of_a_client_that_hung_up_are_dropped_and_counted(folder: Path) -> None:
    async def check() -> None:
        async with gated(folder) as served:
            first = served.predict()
            await served.until_waiting(0)
            leaving = served.predict()
            await served.until_waiting(1)
            leaving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await leaving
            await asyncio.sleep(0.1)  # the server reads the end of the connection
            served.backend.open.set()
            assert (await first).status_code == 200
            assert (await served.predict()).status_code == 200
            assert served.backend.texts == 2
            assert served.metric("distrinews_dropped_texts_total", reason="client_left") == 1
            assert served.metric("distrinews_rejected_requests_total", reason="client_left") == 1

    asyncio.run(check())


def test_a_backend_that_fails_on_a_text_fails_that_request_and_no_other(folder: Path) -> None:
    async def check() -> None:
        async with gated(folder) as served:
            served.backend.open.set()
            works = served.backend.run

            def fails(*_: object) -> NDArray[np.float32]:
                raise MemoryError

            served.backend.run = fails  # type: ignore[method-assign,assignment]
            failed = await served.predict()
            assert (failed.status_code, failed.headers["content-type"]) == (500, "application/problem+json")
            assert failed.json()["request_id"] == failed.headers["X-Request-ID"]
            assert served.metric("distrinews_http_requests_total", route="/predict", code="500") == 1
            served.backend.run = works  # type: ignore[method-assign]
            assert (await served.predict()).status_code == 200

    asyncio.run(check())


def test_probes_answer_quickly_while_every_worker_is_busy_and_the_queue_is_full(folder: Path) -> None:
    async def check() -> None:
        async with gated(folder, max_queued_texts=50, max_batch_texts=50) as served:
            pending = [served.predict() for _ in range(60)]
            await served.until_waiting(49)  # one is with the worker
            for path in ("/livez", "/readyz", "/health"):
                started = time.monotonic()
                assert (await served.client.get(path)).status_code == 200
                assert time.monotonic() - started < 0.5
            served.backend.open.set()
            assert {(await one).status_code for one in pending} == {200, 429}

    asyncio.run(check())


def test_a_queue_that_is_full_for_long_makes_the_server_not_ready_until_it_moves(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check() -> None:
        async with gated(folder, max_queued_texts=1, max_batch_texts=1) as served:
            pending = [served.predict()]
            await served.until_waiting(0)
            pending.append(served.predict())
            await served.until_waiting(1)
            assert (await served.predict()).status_code == 429
            assert (await served.client.get("/readyz")).status_code == 200
            monkeypatch.setattr("server.http.lifecycle._FULL_SECONDS", 0.0)
            full = await served.client.get("/readyz")
            assert (full.status_code, full.json()["detail"]) == (503, "the queue has been full for more than 0 s")
            served.backend.open.set()
            await asyncio.gather(*pending)
            ready = await served.client.get("/readyz")
            assert ready.status_code == 200, "ready again by itself: one that is not ready gets no request to admit"

    asyncio.run(check())


def test_a_stuck_or_ended_worker_makes_the_server_not_alive(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        async with gated(folder) as served:
            pending = served.predict()
            await served.until_waiting(0)
            monkeypatch.setattr("server.http.lifecycle._STUCK_SECONDS", 0.0)
            stuck = await served.client.get("/livez")
            assert (stuck.status_code, "a worker has been at one batch for" in stuck.text) == (503, True)
            served.backend.open.set()
            await pending
            assert (await served.client.get("/livez")).status_code == 200
            served.classifier.close()
            await asyncio.sleep(0.1)
            assert "thread tokenize has ended" in (await served.client.get("/livez")).json()["detail"]

    asyncio.run(check())


def test_a_draining_server_is_not_ready_but_answers_and_closes_connections(folder: Path) -> None:
    with serving(folder, "--drain-seconds", "1") as (process, client):
        assert "connection" not in client.get("/readyz").headers
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert client.get("/readyz").status_code == 503
        answer = client.post("/predict", json={"text": "goal"})
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        assert process.wait(5) == 0


def test_a_second_signal_cuts_the_pause_short(folder: Path) -> None:
    with serving(folder, "--drain-seconds", "60") as (process, _):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0


def test_restarting_both_replicas_in_turn_under_load_fails_no_request(folder: Path) -> None:
    """A small round-robin client calls any replica that is ready, as a Service would."""
    with contextlib.ExitStack() as stack:
        replicas = [stack.enter_context(serving(folder, "--drain-seconds", "0.5")) for _ in range(2)]
        ready, stop, failed, answered = [0, 1], threading.Event(), [], []

        def probe() -> None:
            while not stop.wait(0.05):
                ready[:] = [number for number, (_, client) in enumerate(replicas) if _is_ready(client)]

        def load(first: int) -> None:
            for turn in range(100_000):
                if stop.is_set():
                    return
                _, client = replicas[ready[(first + turn) % len(ready)]]
                try:
                    answered.append(client.post("/predict", json={"text": "goal"}).status_code)
                except httpx.HTTPError as error:
                    failed.append(repr(error))

        with ThreadPoolExecutor(5) as pool:
            pool.submit(probe)
            clients = [pool.submit(load, first) for first in range(4)]
            for number in range(2):
                time.sleep(0.5)
                old, _ = replicas[number]
                old.send_signal(signal.SIGTERM)
                assert old.wait(10) == 0
                replicas[number] = stack.enter_context(serving(folder, "--drain-seconds", "0.5"))
                time.sleep(0.3)
            stop.set()
            for client in clients:
                client.result()
    assert failed == []
    assert len(answered) > 100
    assert set(answered) == {200}


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith("compute-"):
            thread.join(5)
            assert not thread.is_alive()
