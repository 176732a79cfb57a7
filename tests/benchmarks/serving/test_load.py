"""The load generator of the benchmarks, against a small real server whose delays are known."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from statistics import fmean, stdev

import pytest

from tests.benchmarks.serving import load as load_module
from tests.benchmarks.serving.connections import HOST, HUNG_UP, MALFORMED, REFUSED, TIMEOUT
from tests.benchmarks.serving.load import Load, arrivals, closed_loop, open_loop, percentile

pytestmark = pytest.mark.slow  # the module takes seconds

Answer = Callable[[bytes], Awaitable[bytes]]
REQUESTS = load_module.single_requests(["goal", "a longer text, of which there are several"])


def http(status: str, content: bytes = b"{}", *headers: str) -> bytes:
    lines = [
        f"HTTP/1.1 {status}",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
        *headers,
        "",
        "",
    ]
    return "\r\n".join(lines).encode() + content


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[int]:
    """A port at which `answer` makes the response to each body."""
    writers = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                response = await answer(await reader.readexactly(length))
                writer.write(response)
                if not response or b"Connection: close" in response:
                    writer.close()
        writer.close()

    server = await asyncio.start_server(serve, HOST, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in writers:
            writer.close()
        await asyncio.sleep(0.01)  # the handlers end, and the transports close


def run(answer: Answer, measure: Callable[[int], Awaitable[Load]]) -> Load:
    async def both() -> Load:
        async with serving(answer) as port:
            return await measure(port)

    return asyncio.run(both())


async def at_once(_: bytes) -> bytes:
    return http("200 OK")


async def after_20_ms(_: bytes) -> bytes:
    await asyncio.sleep(0.02)
    return http("200 OK")


def one_at_a_time(answer: Answer) -> Answer:
    lock = asyncio.Lock()

    async def queued(body: bytes) -> bytes:
        async with lock:
            return await answer(body)

    return queued


@pytest.mark.parametrize("clients", [1, 4])
def test_clients_that_wait_get_as_much_as_the_delay_allows(clients: int) -> None:
    load = run(after_20_ms, lambda port: closed_loop(port, REQUESTS, clients=clients, seconds=1, warm_seconds=0.1))
    assert 0.5 * clients / 0.02 < load.per_second <= clients / 0.02
    assert 0.02 <= load.percentile(50) < 0.04
    assert load.most_in_flight == clients
    assert load.failed == {}
    assert 1 <= load.seconds < 1.2


def test_a_slow_server_is_measured_from_answer_to_answer() -> None:
    async def after_300_ms(_: bytes) -> bytes:
        await asyncio.sleep(0.3)
        return http("200 OK")

    load = run(after_300_ms, lambda port: closed_loop(port, REQUESTS, clients=1, seconds=0.7, warm_seconds=0))
    assert load.answers == {"200": 3}  # 3 whole ones, where a window of 0.7 s would have held 2.33
    assert load.per_second == pytest.approx(1 / 0.3, rel=0.1)


def test_clients_share_the_throughput_of_a_server_of_one_worker() -> None:
    load = run(
        one_at_a_time(after_20_ms), lambda port: closed_loop(port, REQUESTS, clients=4, seconds=1, warm_seconds=0.2)
    )
    assert 25 < load.per_second <= 51
    assert load.percentile(50) == pytest.approx(4 * 0.02, rel=0.5)


def test_arrivals_come_at_the_rate_whatever_the_server_does() -> None:
    load = run(after_20_ms, lambda port: open_loop(port, REQUESTS, rate=200, seconds=1, seed=0))
    assert load.answers == {"200": len(list(arrivals(200, 1, seed=0)))}
    assert load.most_in_flight > 4, "nobody waits for an answer before the next request"
    assert load.percentile(10) < 0.08, "not more, for something else on the machine may take its time meanwhile"


def test_a_stall_shows_in_the_latency_of_all_that_should_have_been_sent_meanwhile() -> None:
    answered = 0

    async def stalls_once(_: bytes) -> bytes:
        nonlocal answered
        answered += 1
        if answered == 50:
            time.sleep(0.5)  # noqa: ASYNC251 - it stops the generator too, which runs on the same loop
        return http("200 OK")

    open_ = run(stalls_once, lambda port: open_loop(port, REQUESTS, rate=200, seconds=2, seed=1))
    assert open_.percentile(10) < 0.1
    assert open_.percentile(90) > 0.1, "a quarter of all requests came during the stall"
    assert open_.percentile(99) > 0.4
    answered = 0
    closed = run(stalls_once, lambda port: closed_loop(port, REQUESTS, clients=1, seconds=1, warm_seconds=0))
    assert closed.percentile(99) < 0.1, "what a closed loop cannot see: it sent one request in that time"


def test_a_queue_grows_where_more_come_than_can_be_served() -> None:
    load = run(one_at_a_time(after_20_ms), lambda port: open_loop(port, REQUESTS, rate=100, seconds=1, seed=0))
    assert load.most_in_flight > 30
    assert load.percentile(99) > 0.6
    assert load.per_second < 55, "the time until the last answer counts"


def test_a_request_that_is_never_answered_counts_as_slow_not_as_none() -> None:
    async def forgets_one_in_ten(body: bytes) -> bytes:
        if json.loads(body)["text"] == "never":
            await asyncio.sleep(10)
        return http("200 OK")

    requests = load_module.single_requests(["never", *["goal"] * 9])
    load = run(
        forgets_one_in_ten, lambda port: open_loop(port, requests, rate=100, seconds=1, seed=0, limit_seconds=0.3)
    )
    assert load.failed.keys() == {TIMEOUT}
    assert load.failed[TIMEOUT] == pytest.approx(load.succeeded / 9, abs=1)
    assert load.percentile(99) >= 0.3


def test_refusals_are_counted_by_status_and_are_no_quick_answers() -> None:
    statuses = ["200 OK", "429 Too Many Requests", "503 Service Unavailable"]
    requests = 0

    async def refuses_two_of_three(_: bytes) -> bytes:
        nonlocal requests
        requests += 1
        status = statuses[requests % 3]
        await asyncio.sleep(0.02 if status == "200 OK" else 0)
        return http(status)

    load = run(refuses_two_of_three, lambda port: open_loop(port, REQUESTS, rate=90, seconds=1, seed=0))
    assert load.failed.keys() == {"429", "503"}
    assert load.failed["429"] == pytest.approx(load.succeeded, abs=1)
    assert len(load.latencies) == load.succeeded
    assert load.latencies[0] >= 0.02


@pytest.mark.parametrize(("response", "reason"), [(b"", HUNG_UP), (b"no HTTP at all", MALFORMED)])
def test_a_response_that_is_no_answer_is_counted_by_its_fault(response: bytes, reason: str) -> None:
    async def broken(_: bytes) -> bytes:
        return response

    load = run(broken, lambda port: open_loop(port, REQUESTS, rate=50, seconds=0.5, seed=0))
    assert load.failed.keys() == {reason}


def test_a_server_that_is_not_there_ends_the_measurement() -> None:
    async def refused() -> Load:
        async with serving(at_once) as port:
            pass
        return await closed_loop(port, REQUESTS, clients=2, seconds=0.3, warm_seconds=0)

    load = asyncio.run(refused())
    assert load.failed.keys() == {REFUSED}
    assert load.answers.total() < 100


def test_a_server_that_closes_each_connection_is_served_by_new_ones() -> None:
    async def closes(_: bytes) -> bytes:
        return http("200 OK", b"{}", "Connection: close")

    load = run(closes, lambda port: open_loop(port, REQUESTS, rate=100, seconds=0.5, seed=0))
    assert load.failed == {}
    assert load.resent == 0


def test_a_request_on_a_connection_just_closed_is_sent_again_and_counted() -> None:
    async def measure(port: int) -> Load:
        return await closed_loop(port, REQUESTS, clients=1, seconds=0.3, warm_seconds=0)

    requests = 0

    async def hangs_up_on_every_third(_: bytes) -> bytes:
        nonlocal requests
        requests += 1
        return b"" if requests % 3 == 0 else http("200 OK")

    load = run(hangs_up_on_every_third, measure)
    assert load.failed == {}
    assert load.resent > 1


def test_the_number_of_requests_is_bounded() -> None:
    load = run(at_once, lambda port: open_loop(port, REQUESTS, rate=1000, seconds=5, seed=0, max_requests=20))
    assert load.answers.total() == 20
    with pytest.raises(ValueError, match="too few requests"):
        run(at_once, lambda port: closed_loop(port, REQUESTS, clients=1, seconds=5, max_requests=20))


def test_the_generator_is_much_cheaper_than_any_classifier() -> None:
    """The share is measured by `run`; the server in the same process takes part of it."""

    async def measure() -> Load:
        async with serving(at_once) as port:
            return await closed_loop(port, REQUESTS, clients=8, seconds=0.5, warm_seconds=0.1)

    load = load_module.run(measure())
    assert load.cpu_share / load.per_second < 0.001, "seconds of one core for a request"


def test_arrivals_are_a_poisson_process_that_a_seed_repeats() -> None:
    times = list(arrivals(100, 200, seed=3))
    assert times == list(arrivals(100, 200, seed=3))
    assert times != list(arrivals(100, 200, seed=4))
    gaps = [after - before for before, after in pairwise(times)]
    assert fmean(gaps) == pytest.approx(0.01, rel=0.03)
    assert stdev(gaps) == pytest.approx(0.01, rel=0.05), "exponential gaps spread as widely as they are long"
    assert times[-1] < 200


@pytest.mark.parametrize(("percent", "expected"), [(50, 5), (90, 9), (99, 10), (99.9, 10), (10, 1)])
def test_a_percentile_is_a_sample(percent: float, expected: int) -> None:
    assert percentile(range(1, 11), percent) == expected


def test_texts_have_the_lengths_of_news_and_their_order_a_seed() -> None:
    texts = load_module.load_texts(seed=0, count=300)
    assert texts == load_module.load_texts(seed=0, count=300)
    assert texts != load_module.load_texts(seed=1, count=300)
    assert 150 < fmean(map(len, texts)) < 350


def test_requests_are_whole_and_batches_are_full() -> None:
    (request,) = load_module.batch_requests(["a", "ü", "c"], 2)
    head, body = request.split(b"\r\n\r\n")
    assert head.startswith(b"POST /predict/batch HTTP/1.1\r\nHost: 127.0.0.1\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert json.loads(body) == {"texts": ["a", "ü"]}


def test_a_row_of_the_table_counts_the_failures_by_status() -> None:
    load = Load(2, [0.001, 0.003], Counter({"200": 2, "429": 1}), most_in_flight=2)
    row = load_module.describe(load, texts_each=64)
    assert (row["Texts/s"], row["p50, ms"], row["p99.9, ms"]) == ("64.0", "1.0", "3.0")
    assert row["Failed"] == "1 × 429"
