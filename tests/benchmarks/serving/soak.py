"""Checks that the server's memory stays flat over requests of all sizes, bad requests and clients that leave.

python -m tests.benchmarks.serving.soak
python -m tests.benchmarks.serving.soak --engine onnx --requests 20000 --layers 1
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random

import psutil
import uvloop
from transformers import DistilBertConfig

from tests.benchmarks.record import table, wait_until_quiet, write
from tests.benchmarks.serving.connections import HOST
from tests.benchmarks.serving.load import load_texts, post
from tests.benchmarks.serving.model import write_serving_model
from tests.benchmarks.serving.running import Measured, Server, request, started
from trainer.monitoring.console import Progress

_CONNECTIONS = 16
_MAX_CHARACTERS = 10_000
_PARTS = 10  # after each of which memory, threads and open files are checked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument(
        "--layers", type=int, default=1, help="of DistilBERT's six: memory of a text does not depend on it"
    )
    parser.add_argument("--engine", action="append", choices=["openvino", "onnx"], help="by default both, in turn")
    parser.add_argument("--wait-minutes", type=float, default=1, help="for a quiet machine, at most")
    args = parser.parse_args()
    engines = args.engine or ["openvino", "onnx"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        write_serving_model(folder, tokenizer="tiny", config=DistilBertConfig(n_layers=args.layers))
        busy = wait_until_quiet(args.wait_minutes)
        parts = [part for engine in engines for part in _soak(folder, engine, args.requests)]
    layers = f"{args.layers} layer{'s' if args.layers > 1 else ''}"
    how = (
        f"{args.requests:,} requests over {_CONNECTIONS} connections to a server of DistilBERT's width with {layers}: 86 % single texts of "
        f"1 to {_MAX_CHARACTERS:,} characters, 4 % batches of 1 to 64, 4 % with 1 ms to be answered in, 4 % wrong ones, and 2 % "
        f"whose client hangs up at once. {busy}"
    )
    write(
        "soak",
        title="Memory over a soak",
        command=f"python -m tests.benchmarks.serving.soak --requests {args.requests} --layers {args.layers}"
        + "".join(f" --engine {engine}" for engine in args.engine or ()),
        packages=("openvino", "onnxruntime", "tokenizers", "fastapi", "uvicorn"),
        parts=[how, *parts],
    )


def _soak(folder: Path, engine: str, requests: int) -> Iterator[str]:
    command = [sys.executable, "-m", "server.main", str(folder), "--engine", engine, "--port"]
    first = partial(request, method="POST", path="/predict", body={"text": "Late goal wins the cup"})
    answers: Counter[str] = Counter()
    rows = []
    with (
        started(Server(engine, command), first, Measured()) as port,
        Progress("soak", requests, "requests") as progress,
    ):
        process = _listener(port)
        texts, began = load_texts(seed=0), time.perf_counter()
        for part in range(_PARTS + 1):
            rows.append(
                {
                    "Requests": f"{requests * part // _PARTS:,}",
                    "Resident, MB": f"{process.memory_info().rss / 1e6:.1f}",
                    "Threads": process.num_threads(),
                    "Open files": process.num_fds(),
                }
            )
            if part < _PARTS:
                asking = _send(port, texts, requests // _PARTS, seed=part, answers=answers, progress=progress)
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    runner.run(asking)
        took = time.perf_counter() - began
        healthy = request(port, "GET", "/health")
    became = ", ".join(f"{count:,} × {status}" for status, count in answers.most_common())
    yield f"## {healthy['engine']}\n\n{table(rows)}\n\nIn {took:.0f} s: {became}."


def _listener(port: int) -> psutil.Process:
    found = psutil.net_connections("tcp")
    return psutil.Process(next(one.pid for one in found if one.laddr == (HOST, port) and one.status == "LISTEN"))


async def _send(
    port: int, texts: list[str], count: int, *, seed: int, answers: Counter[str], progress: Progress
) -> None:
    random = Random(seed)
    todo = iter(range(count))

    async def client() -> None:
        reader, writer = await asyncio.open_connection(HOST, port)
        for _ in todo:
            message, hang_up = _message(random, texts)
            writer.write(message)
            if hang_up:
                await writer.drain()
                writer.close()
                status = "client left"
            else:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(_content_length(head))
                status = head.split(b" ", 2)[1].decode()
                if b"connection: close" in head.lower():
                    writer.close()
            answers[status] += 1
            progress.advance()
            if writer.is_closing():
                reader, writer = await asyncio.open_connection(HOST, port)
        writer.close()
        await writer.wait_closed()

    async with asyncio.TaskGroup() as clients:
        for _ in range(_CONNECTIONS):
            clients.create_task(client())


def _content_length(head: bytes) -> int:
    lines = (line.split(b":") for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return int(next(lines)[1])


def _message(random: Random, texts: list[str]) -> tuple[bytes, bool]:
    """Returns a request, and True if its client hangs up instead of waiting for the answer."""
    kind = random.random()
    if kind < 0.04:
        return post("/predict/batch", {"texts": [_text(random, texts) for _ in range(random.randint(1, 64))]}), False
    if kind < 0.08:
        wrong = random.choice(
            [{"text": ""}, {"text": 5}, {"texts": ["a"]}, {"text": "x" * 20_000}, [], {"text": "a", "b": 1}]
        )
        return post("/predict", wrong), False
    message = post("/predict", {"text": _text(random, texts)})
    if kind < 0.12:
        return message.replace(b"\r\n\r\n", b"\r\nX-Request-Timeout-Ms: 1\r\n\r\n", 1), False
    return message, kind < 0.14


def _text(random: Random, texts: list[str]) -> str:
    """Returns a text of random length: every length is as likely as its half and its double."""
    length = int(_MAX_CHARACTERS ** random.random())
    start = random.randrange(len(texts))
    return " ".join(texts[start : start + 1 + length // 100])[:length].strip() or "a"


if __name__ == "__main__":
    main()
