"""Requests that nobody would write, thousands of them: nothing makes the server fail, forget or leak."""

import contextlib
import json
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.servers import predict, serving

CONNECTIONS = 3000
CLIENTS = 8
CONFIG = Path(__file__).with_name("schemathesis.toml")


@contextmanager
def unharmed(folder: Path) -> Iterator[httpx.Client]:
    """Yields a real server; afterwards it answers, holds no more memory, and has no failure in its log."""
    with serving(folder) as (process, client):
        assert process.stderr
        log: list[str] = []
        reading = threading.Thread(target=log.extend, args=(process.stderr,))
        reading.start()  # or a full pipe would stop the server
        before, held = predict(client, "goal"), footprint(process)
        yield client
        assert predict(client, "goal") == before
        assert client.get("/livez").status_code == 200
        assert client.get("/readyz").status_code == 200
        deadline = time.monotonic() + 5
        while any(now > then for now, then in zip(footprint(process), held, strict=True)):
            assert time.monotonic() < deadline, f"threads and connections: {held} before, {footprint(process)} now"
            time.sleep(0.1)
        process.kill()
        reading.join()
        failures = [line for line in log if " warning " not in line]  # uvicorn has one for each such request
        assert not failures, "".join(failures)


def footprint(process: subprocess.Popen[str]) -> tuple[int, int]:
    server = psutil.Process(process.pid)
    return server.num_threads(), len(server.net_connections())


@pytest.mark.slow
def test_every_route_conforms_to_the_documentation_whatever_is_sent(folder: Path, tmp_path: Path) -> None:
    with unharmed(folder) as client:
        st, url = Path(sys.executable).with_name("st"), str(client.base_url.join("/openapi.json"))
        command = [str(st), "--config-file", str(CONFIG), "run", url]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    count = re.search(r"(\d+) generated, \1 passed", done.stdout)
    assert count, done.stdout
    assert int(count[1]) > 2000


def request(line: str, body: bytes = b"", *headers: str) -> bytes:
    head = [line, "Host: localhost", *headers, *([f"Content-Length: {len(body)}"] if body else [])]
    return "\r\n".join([*head, "", ""]).encode() + body


JSON = "Content-Type: application/json"
ONE = json.dumps({"text": "Goal! 😀 The team won"}).encode()
MANY = json.dumps({"texts": ["goal", "bank"] * 8}).encode()
INPUT = {"name": "text", "datatype": "BYTES", "shape": [1]}
TENSOR = json.dumps({"inputs": [INPUT | {"data": ["goal"]}]}).encode()
BINARY = json.dumps({"inputs": [INPUT | {"parameters": {"binary_data_size": 8}}]}).encode()
INFER = "POST /v2/models/distrinews/infer HTTP/1.1"
VALID = [
    request("POST /predict HTTP/1.1", ONE, JSON),
    request("POST /predict HTTP/1.1", ONE, JSON, "X-Request-Timeout-Ms: 5000", "Expect: 100-continue"),
    request("POST /predict/batch HTTP/1.1", MANY, JSON),
    request("POST /predict/batch HTTP/1.1", b"", JSON, "Transfer-Encoding: chunked")
    + b"%x;a=b\r\n%b\r\n4\r\n%b\r\n0\r\nX: y\r\n\r\n" % (len(MANY) - 4, MANY[:-4], MANY[-4:]),
    request(INFER, TENSOR),
    request(INFER, BINARY + b"\x04\0\0\0goal", f"Inference-Header-Content-Length: {len(BINARY)}"),
    request("GET /v2/models/distrinews HTTP/1.1"),
    request("GET /health HTTP/1.0"),
    request("HEAD /livez HTTP/1.1", b"", "Connection: Upgrade", "Upgrade: websocket"),
    request("OPTIONS * HTTP/1.1"),
]


def flip_bits(chance: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def cut_off(chance: random.Random, data: bytes) -> bytes:
    return data[: chance.randrange(len(data))]


def repeat_a_part(chance: random.Random, data: bytes) -> bytes:
    start = chance.randrange(len(data))
    end = chance.randint(start, min(len(data), start + 100))
    return data[:end] + data[start:end] * chance.randint(1, 50) + data[end:]


def repeat_a_header(chance: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\r\n")
    place = chance.randrange(len(lines))
    return b"\r\n".join([*lines[:place], lines[place], *lines[place:]])


def put_something_in(chance: random.Random, data: bytes) -> bytes:
    pieces = (
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"Content-Encoding: gzip\r\n",
        b"X-Request-Timeout-Ms: 1e9\r\n",
        b"Connection: close\r\n",
        b" folded\r\n",
        b"X\0Y: \xff\r\n",
        b"X: %b\r\n" % (b"a" * chance.choice((100, 10_000, 100_000))),
        chance.randbytes(chance.randint(1, 50)),
    )
    ends = [found.end() for found in re.finditer(b"\r\n", data)] or [0]
    place = chance.choice(ends)
    return data[:place] + chance.choice(pieces) + data[place:]


def pipeline(chance: random.Random, data: bytes) -> bytes:
    return b"".join(chance.choice((data, *VALID)) for _ in range(chance.randint(2, 6)))


def noise(chance: random.Random, _: bytes) -> bytes:
    return chance.randbytes(chance.randint(1, 2000))


MUTATIONS = (flip_bits, cut_off, repeat_a_part, repeat_a_header, put_something_in, pipeline, noise)


def answers(port: int, parts: Sequence[bytes], chance: random.Random) -> list[int]:
    """The statuses that come back; a client of the impolite sort, who resets the connection at the end."""
    got = b""
    with (
        contextlib.suppress(ConnectionError, TimeoutError),
        socket.create_connection(("127.0.0.1", port)) as connection,
    ):
        connection.settimeout(chance.choice((0.001, 0.02)))
        if chance.random() < 0.5:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        for part in parts:
            connection.sendall(part)
        while piece := connection.recv(65536):
            got += piece
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", got)]


def fuzz(port: int, seed: int) -> Counter[int]:
    chance, statuses = random.Random(seed), Counter[int]()
    for _ in range(CONNECTIONS // CLIENTS):
        data = chance.choice(VALID)
        for _ in range(chance.randint(0, 3)):
            data = chance.choice(MUTATIONS)(chance, data) or b"\r\n"
        middle = chance.randrange(len(data))
        statuses.update(answers(port, (data[:middle], data[middle:]) if chance.random() < 0.3 else (data,), chance))
    return statuses


@pytest.mark.slow
def test_thousands_of_broken_connections_leave_the_server_unharmed(folder: Path) -> None:
    with unharmed(folder) as client, ThreadPoolExecutor(CLIENTS) as clients:
        port = client.base_url.port or 0
        found = sum(clients.map(lambda seed: fuzz(port, seed), range(CLIENTS)), Counter[int]())
    assert set(found) <= {100, 200, 307, 400, 404, 405, 413, 422, 429, 431, 504}, found
    assert found[200] > CONNECTIONS / 10, found
    assert found[400] > CONNECTIONS / 10, found


@pytest.mark.slow
def test_clients_that_hang_up_in_the_middle_leave_nothing_behind(folder: Path) -> None:
    with unharmed(folder) as client:
        port = client.base_url.port or 0
        for data in VALID[:6]:
            half = [socket.create_connection(("127.0.0.1", port)) for _ in range(30)]
            for number, connection in enumerate(half):
                connection.sendall(data[: len(data) * (number + 1) // 31])
            for connection in half:
                connection.close()
