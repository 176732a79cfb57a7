"""The server on the socket: endless bodies and headers, silence, upgrades, garbage and HEAD."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPResponse
from pathlib import Path

import httpx
import pytest

from server.settings import Settings
from tests.support.servers import gated, serving

pytestmark = pytest.mark.slow  # the module takes seconds


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    with serving(folder) as (_, client):
        yield client


ANSWERED = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
CLOSES = (
    b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b'Content-Length: 15\r\n\r\n{"text":"goal"}'
)
CHUNKED = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"


@contextmanager
def connected(client: httpx.Client) -> Iterator[socket.socket]:
    url = client.base_url
    with socket.create_connection((url.host, url.port or 0), timeout=5) as connection:
        yield connection


def answer_to_endless(connection: socket.socket, start: bytes, piece: bytes, *, at_most: int) -> tuple[bytes, int]:
    """Sends pieces without end; returns the answer and how many bytes were sent until then."""
    connection.sendall(start)
    connection.setblocking(False)
    sent, waiting, deadline = 0, memoryview(piece), time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            return connection.recv(65536), sent
        except BlockingIOError:
            assert sent <= at_most
        try:
            done = connection.send(waiting)
        except BlockingIOError:
            time.sleep(0.001)
            continue
        sent, waiting = sent + done, waiting[done:] or memoryview(piece)
    raise AssertionError("no answer")


def problem_on(connection: socket.socket) -> dict[str, object]:
    with HTTPResponse(connection) as answer:
        answer.begin()
        assert answer.headers["Content-Type"] == "application/problem+json"
        problem: dict[str, object] = json.loads(answer.read())
        assert problem["status"] == answer.status
        return problem


def test_a_body_that_is_declared_too_big_is_refused_before_it_is_sent(client: httpx.Client) -> None:
    with connected(client) as connection:
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 10000000000\r\n\r\n"
        )
        assert problem_on(connection)["detail"] == "The body should have at most 7684096 bytes"


@pytest.mark.parametrize("path", ["/predict", "/predict/batch", "/v2/models/distrinews/infer"])
def test_a_body_without_end_is_refused_once_it_is_too_big(client: httpx.Client, path: str) -> None:
    start = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connected(client) as connection:
        chunk = b"10000\r\n%b\r\n" % (b"[" * 65536)
        answer, _ = answer_to_endless(connection, start.encode(), chunk, at_most=20_000_000)
        assert answer.startswith(b"HTTP/1.1 413 ")


TWICE = {
    "/predict": b'{"text": 5, "text": "bank", "text": "goal"}',
    "/v2/models/distrinews/infer": b'{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["bank"], "data": ["goal"]}], '
    b'"parameters": {"priority": 1%b}}' % (b"0" * 400),
}


@pytest.mark.parametrize(("path", "body"), TWICE.items(), ids=TWICE)
def test_the_last_of_two_equal_keys_counts_and_no_number_is_too_big(
    client: httpx.Client, path: str, body: bytes
) -> None:
    answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200, answer.text
    label = client.post("/predict", json={"text": "goal"}).json()["label"]
    assert label in (answer.json().get("label"), answer.json().get("outputs", [{"data": [None]}])[0]["data"][0])


ENDLESS = {
    "request line": (b"GET /", b"a" * 65536),
    "header": (b"GET /health HTTP/1.1\r\nX: ", b"a" * 65536),
    "headers": (b"GET /health HTTP/1.1\r\n", b"X: a\r\n" * 8192),
    "chunk extension": (b"POST /predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;", b"a" * 65536),
    "trailers": (b"POST /predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n", b"X: a\r\n" * 8192),
}


@pytest.mark.parametrize(("start", "piece"), ENDLESS.values(), ids=ENDLESS)
def test_headers_without_end_do_not_fill_the_memory(client: httpx.Client, start: bytes, piece: bytes) -> None:
    with connected(client) as connection:
        try:
            answer, _ = answer_to_endless(connection, start, piece, at_most=10_000_000)
        except (BrokenPipeError, ConnectionResetError):
            answer = b""  # closed while more was on its way
        assert not answer or answer.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 "))
    assert client.get("/livez").status_code == 200


def test_a_body_in_small_chunks_is_read(client: httpx.Client) -> None:
    body = json.dumps({"text": "goal " * 1900})
    answer = client.post(
        "/predict", content=(letter.encode() for letter in body), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 200


def test_bytes_that_are_not_http_are_refused(client: httpx.Client) -> None:
    with connected(client) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n")  # TLS, on a port without
        assert problem_on(connection)["detail"] == "Invalid HTTP request received."
        assert connection.recv(1) == b""


JAVA = {
    "/predict": b'{"text": "goal"}',
    "/v2/models/distrinews/infer": b'{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["goal"]}]}',
}


@pytest.mark.parametrize("packets", [1, 2])
@pytest.mark.parametrize(("path", "body"), JAVA.items(), ids=JAVA)
def test_clients_that_offer_http_2_are_answered_in_http_1_again_and_again(
    client: httpx.Client, path: str, body: bytes, packets: int
) -> None:
    head = (
        f"POST {path} HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nContent-Length: {len(body)}\r\nHost: a\r\n"
        "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\nUpgrade: h2c\r\n"
        "User-Agent: Java-http-client/17.0.9\r\nContent-Type: application/json\r\n\r\n"
    ).encode()
    with connected(client) as connection:
        for _ in range(2):
            if packets == 1:
                connection.sendall(head + body)
            else:
                connection.sendall(head)
                time.sleep(0.05)
                connection.sendall(body)
            with HTTPResponse(connection) as answer:
                answer.begin()
                assert (answer.status, b"label" in answer.read()) == (200, True)


@pytest.mark.parametrize("request_", [CLOSES, CHUNKED], ids=["a whole one", "half of one"])
def test_garbage_behind_a_request_closes_the_connection_without_an_error(
    folder: Path, caplog: pytest.LogCaptureFixture, request_: bytes
) -> None:
    async def check() -> None:
        async with gated(folder) as served, asyncio.timeout(4):
            url = served.client.base_url
            reader, writer = await asyncio.open_connection(url.host, url.port)
            writer.write(request_)
            await asyncio.sleep(0.05)
            writer.write(b"garbage\r\n\r\n")
            assert await read_all(reader) == b""
            served.backend.open.set()
            assert (await served.predict()).status_code == 200
            writer.close()

    asyncio.run(check())
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_an_idle_connection_stays_open_for_the_seconds_that_are_set(folder: Path) -> None:
    async def check() -> None:
        async with gated(folder, keep_alive_seconds=1) as served, asyncio.timeout(4):
            url = served.client.base_url
            reader, writer = await asyncio.open_connection(url.host, url.port)
            for _ in range(2):
                writer.write(ANSWERED)
                assert b"200 OK" in await reader.readuntil(b"}")
                await asyncio.sleep(0.5)
            assert await reader.read() == b""
            writer.close()

    asyncio.run(check())
    assert Settings().keep_alive_seconds > 60, "as long as load balancers keep theirs"


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
def test_a_server_on_all_ipv6_addresses_is_reached_by_ipv4_too(folder: Path) -> None:
    with serving(folder, "--host", "::", "--rate-limit", "1/minute") as (_, client):
        port = client.base_url.port
        assert client.post("/predict", json={"text": "goal"}).status_code == 200
        answers = [httpx.post(f"http://127.0.0.{n}:{port}/predict", json={"text": "goal"}) for n in (1, 1)]
        assert [answer.status_code for answer in answers] == [200, 429]


@pytest.mark.parametrize("path", ["/health", "/livez", "/v2/health/ready"])
def test_head_is_answered_as_get_without_the_body(client: httpx.Client, path: str) -> None:
    head, whole = client.head(path), client.get(path)
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(whole.content)))
    assert head.content == b""
    assert client.head("/predict").status_code == 405


SILENT = {
    "nothing": (b"", b""),
    "half a head": (b"", b"POST /predict HTTP/1.1\r\nHost"),
    "half a body": (
        b"",
        b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{",
    ),
    "half a second request": (ANSWERED, b"GET /li"),
}


@pytest.mark.parametrize(("first", "then"), SILENT.values(), ids=SILENT)
def test_a_connection_without_a_whole_request_is_closed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, first: bytes, then: bytes
) -> None:
    monkeypatch.setattr("server.http.server._REQUEST_SECONDS", 0.2)

    async def check() -> None:
        async with gated(folder) as served, asyncio.timeout(4):
            url = served.client.base_url
            reader, writer = await asyncio.open_connection(url.host, url.port)
            if first:
                writer.write(first)
                assert b"200 OK" in await reader.readuntil(b"}")
            writer.write(then)
            started = time.monotonic()
            assert await reader.read() == b""
            assert time.monotonic() - started > 0.1
            writer.close()

    asyncio.run(check())


async def read_all(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


async def ended(reader: asyncio.StreamReader) -> bool:
    """Returns whether the server closes it soon."""
    try:
        return await asyncio.wait_for(reader.read(), 0.05) == b""
    except (TimeoutError, ConnectionResetError) as error:
        return isinstance(error, ConnectionResetError)


def test_slow_clients_keep_nobody_out_and_no_request_that_is_being_answered_is_lost(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def check() -> None:
        async with gated(folder, max_connections=4) as served:
            url = served.client.base_url
            pending = served.predict()
            await served.until_waiting(0)
            slow = []
            for begun in (b"", b"GET /li", SILENT["half a body"][1]) * 4:
                slow.append(await asyncio.open_connection(url.host, url.port))
                slow[-1][1].write(begun)
                async with httpx.AsyncClient(base_url=url) as probe:
                    assert (await probe.get("/livez")).status_code == 200
            gone = [await ended(reader) for reader, _ in slow]
            assert all(gone[:10])
            assert not gone[-1], "only the oldest had to go"
            served.backend.open.set()
            assert (await pending).status_code == 200
            for _, writer in slow:
                writer.close()

    asyncio.run(check())
    assert caplog.text.count("all 4 connections of --max-connections are taken") == 1, "not one for each"


def test_one_connection_more_is_refused_while_all_others_are_answered(folder: Path) -> None:
    async def check() -> None:
        async with gated(folder, max_connections=2) as served:
            pending = [served.predict(), served.predict()]
            await served.until_waiting(1)
            url = served.client.base_url
            reader, writer = await asyncio.open_connection(url.host, url.port)
            assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
            writer.close()
            served.backend.open.set()
            assert [(await one).status_code for one in pending] == [200, 200]
            assert (await served.client.get("/livez")).status_code == 200

    asyncio.run(check())


@pytest.mark.parametrize(("read_seconds", "connections"), [(0.2, 2), (60, 1)], ids=["in time", "in number"])
def test_a_client_that_does_not_read_its_answers_does_not_stay(
    folder: Path, monkeypatch: pytest.MonkeyPatch, read_seconds: float, connections: int
) -> None:
    monkeypatch.setattr("server.http.server._READ_SECONDS", read_seconds)

    async def check() -> None:
        async with gated(folder, max_connections=connections) as served, asyncio.timeout(4):
            url = served.client.base_url
            with socket.socket() as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.connect((url.host, url.port or 0))
                connection.setblocking(False)
                connection.send(b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 1000)
                if connections == 1:
                    # As long as it can be written to, its requests are answered.
                    while (await served.client.get("/livez")).status_code == 503:  # noqa: ASYNC110 - no event is set
                        await asyncio.sleep(0.05)
                with pytest.raises(ConnectionError):  # noqa: PT012 - at one of these
                    while True:
                        await asyncio.sleep(0.02)
                        with suppress(BlockingIOError):
                            connection.send(b" ")

    asyncio.run(check())


def test_a_request_that_takes_long_to_answer_is_not_one_that_takes_long_to_come(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.http.server._REQUEST_SECONDS", 0.1)

    async def check() -> None:
        async with gated(folder) as served:
            pending = served.predict()
            await asyncio.sleep(0.4)
            served.backend.open.set()
            assert (await pending).status_code == 200

    asyncio.run(check())
