"""Where the server's processor time goes at full load: the engine, or what is around it.

    python -m tests.benchmarks.serve_profile --tokenizer FOLDER_OF_AN_UNCASED_BERT

The kernel counts each thread's time. What a worker's thread spends in the engine is measured there, and the threads that an
engine starts itself are the engine's. Reads /proc, so this needs Linux.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import IO

import psutil

from server.cli import run_command
from server.inference.backends import Backend
from tests.benchmarks.record import table, wait_until_quiet, write
from tests.benchmarks.serving.load import Load, closed_loop, load_texts, run, single_requests

_ENGINES = ("openvino", "onnx")
_LOOP, _TOKENIZER, _WORKERS, _ENGINE = (
    "event loop: HTTP, JSON, validation, queue",
    "tokenising",
    "workers: forming batches, padding, softmax",
    "engine",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--model", type=Path, help="folder that serving_model wrote; by default one is written")
    parser.add_argument("--tokenizer", default="tiny", help="folder of an encoder; by default one is trained")
    parser.add_argument("--wait-minutes", type=float, default=10, help="for a quiet machine, at most")
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        _serve(args.serve)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.model or Path(temporary) / "model"
        if not args.model:
            from tests.benchmarks.serving.model import write_serving_model

            write_serving_model(folder, tokenizer=args.tokenizer)
        busy = wait_until_quiet(args.wait_minutes)
        found = {engine: _measure(folder, engine, clients=args.clients, seconds=args.seconds) for engine in _ENGINES}
    how = (
        f"DistilBERT size with random weights, texts of news, {args.clients} clients in a closed loop for {args.seconds:g} s, server and "
        f"generator on the same cores. Shares of the processor time of the server's process. {busy}"
    )
    write(
        "serve_profile",
        title="Where the server's time goes",
        command=f"python -m tests.benchmarks.serve_profile --seconds {args.seconds:g} --clients {args.clients}",
        packages=("openvino", "onnxruntime", "tokenizers", "fastapi", "uvicorn"),
        parts=[how, table([_row(engine, *measured) for engine, measured in found.items()])],
    )


def _row(engine: str, load: Load, spent: dict[str, float]) -> dict[str, str]:
    total = sum(spent.values())
    shares = {part: f"{spent[part] / total:.1%}" for part in (_LOOP, _TOKENIZER, _WORKERS)}
    return {
        "Backend": engine,
        "Texts/s": f"{load.per_second:.1f}",
        "ms of processor time a text": f"{total / load.succeeded * 1e3:.2f}",
        **shares,
        "all around the engine (target < 15%)": f"{1 - spent[_ENGINE] / total:.1%}",
    }


def _measure(folder: Path, engine: str, *, clients: int, seconds: float) -> tuple[Load, dict[str, float]]:
    command = [sys.executable, "-m", "tests.benchmarks.serve_profile", "--serve", str(folder), engine]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            port = int(
                next(line for line in process.stdout if "http://" in line).split("http://127.0.0.1:")[1].split(";")[0]
            )
            loop = partial(closed_loop, port, single_requests(load_texts(seed=0)), clients=clients)
            run(loop(seconds=3))
            before = _spent(process, process.stdout)
            # From the first request to the last, so that the times are those of the requests that are counted.
            load = run(loop(seconds=seconds, warm_seconds=0))
            after = _spent(process, process.stdout)
        finally:
            process.kill()
    spent = {part: after[part] - before[part] for part in after}
    print(f"serve_profile: {engine}: {load.per_second:.1f} texts/s; {spent}", flush=True)
    return load, spent


def _spent(process: subprocess.Popen[str], said: IO[str]) -> dict[str, float]:
    process.send_signal(signal.SIGUSR1)
    found: dict[str, float] = json.loads(next(line for line in said if line.startswith("{")))
    return found


class _Timed:
    """An engine that adds up the processor time of the threads that call it."""

    def __init__(self, engine: Backend) -> None:
        self.name, self.batches, self._engine = engine.name, engine.batches, engine
        self.seconds, self._adding = 0.0, threading.Lock()

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)

    @contextmanager
    def _clocked(self) -> Iterator[None]:
        started = time.thread_time()
        yield
        with self._adding:
            self.seconds += time.thread_time() - started

    def run(self, *inputs: object) -> object:
        with self._clocked():
            return self._engine.run(*inputs)  # type: ignore[arg-type]


def _serve(arguments: list[str]) -> None:
    """The server itself, with its engine timed; SIGUSR1 makes it print the seconds spent so far as a line of JSON."""
    import server.inference.backends
    import server.main

    load: Callable[..., Backend] = server.inference.backends.load_backend
    engines: list[_Timed] = []

    def load_timed(*args: object, **options: object) -> object:
        engines.append(_Timed(load(*args, **options)))
        return engines[0]

    def say_spent(_: int, __: FrameType | None) -> None:
        print(json.dumps(_split(engines[0])), flush=True)

    server.inference.backends.load_backend = load_timed  # type: ignore[assignment]
    signal.signal(signal.SIGUSR1, say_spent)
    folder, engine = arguments
    run_command(server.main.Serve, [folder, "--engine", engine, "--port", "0"], prog="serve")


def _split(engine: _Timed) -> dict[str, float]:
    threads = {thread.native_id: thread.name for thread in threading.enumerate()}
    spent = dict.fromkeys((_LOOP, _TOKENIZER, _WORKERS, _ENGINE), 0.0)
    for thread in psutil.Process(os.getpid()).threads():
        name, seconds = threads.get(thread.id, ""), thread.user_time + thread.system_time
        part = {"M": _LOOP, "t": _TOKENIZER, "c": _WORKERS}.get(name[:1], _ENGINE)
        spent[part] += seconds
    spent[_WORKERS] -= engine.seconds
    spent[_ENGINE] += engine.seconds
    return spent


if __name__ == "__main__":
    main()
