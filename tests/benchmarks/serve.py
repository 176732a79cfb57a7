"""Our server against the one that tutorials write, with the same weights on the same cores, in turn.

    python -m tests.benchmarks.serve --tokenizer FOLDER_OF_AN_UNCASED_BERT
    python -m tests.benchmarks.serve --seconds 2 --rounds 1 --output FOLDER

On a machine with more cores than a service gets, put `taskset -c 0,1` before it: the servers inherit that.
"""

import argparse
import http.client
import json
import math
import os
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

from tests.benchmarks.load import (
    HOST,
    Load,
    batch_requests,
    closed_loop,
    describe,
    load_texts,
    open_loop,
    run,
    single_requests,
)
from tests.benchmarks.record import RESULTS, table, wait_until_quiet, write
from tests.benchmarks.serving_model import mean_tokens, write_serving_model
from trainer.charts import element, note, short
from trainer.progress import Progress, say

_REPOSITORY = Path(__file__).parents[2]
_OURS, _REFERENCE = "ours", "reference"
_CLIENTS = (1, 8, 32)
_BATCH = 64
_SHARES = (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2)
"""Of a server's capacity, at which requests come in the open loop."""
_START_SECONDS = 120
_MEMORY_SECONDS = 0.5
_COMPARED = 16  # texts that both servers classify, to see that they serve the same weights


@dataclass
class Measured:
    """Of one server; a list has one entry a round."""

    start_seconds: list[float] = field(default_factory=list)
    """From the start of the process to the answer to the first text."""
    resident_mb: list[float] = field(default_factory=list)
    """The most that its processes held under load."""
    loads: dict[str, list[Load]] = field(default_factory=lambda: defaultdict(list))
    rates: dict[float, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Requests a second of the open loop, by share of the capacity."""
    probabilities: list[list[float]] = field(default_factory=list)
    engine: str = ""
    """What its health check says that runs the model; the reference says nothing."""

    def per_second(self, what: str) -> float:
        return median(load.per_second for load in self.loads[what]) * (_BATCH if what == _BATCHES else 1)

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


def with_clients(number: int) -> str:
    return f"closed loop, {number} client{'s' if number > 1 else ''}"


def at_share(share: float) -> str:
    return f"open loop at {share:.0%} of capacity"


_BATCHES = f"closed loop, 1 client, batches of {_BATCH}"
_STEPS = (*map(with_clients, _CLIENTS), _BATCHES, *map(at_share, _SHARES))


@dataclass(frozen=True)
class Server:
    name: str
    command: list[str]
    """That starts it, followed by the port."""
    environment: dict[str, str] = field(default_factory=dict)
    """Besides what it inherits."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="in which both servers are started and measured")
    parser.add_argument("--ours", default="", help='flags of our server, such as "--engine onnx"')
    parser.add_argument("--reference", default="", help='flags of the reference, such as "--asynchronous"')
    parser.add_argument("--model", type=Path, help="folder that serving_model wrote; by default one is written")
    parser.add_argument("--tokenizer", default="tiny", help="folder of an encoder; by default one is trained")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for serve.md and serve.svg")
    parser.add_argument("--wait-minutes", type=float, default=10, help="for a quiet machine, at most")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.model or Path(temporary) / "model"
        if not args.model:
            write_serving_model(folder, tokenizer=args.tokenizer)
        servers = [
            Server(_REFERENCE, _python("tests.benchmarks.reference_server", str(folder), *args.reference.split())),
            Server(_OURS, _python("server.main", str(folder), *args.ours.split())),
        ]
        texts = load_texts(seed=0)
        load = wait_until_quiet(args.wait_minutes)
        measured = measure(servers, texts, rounds=args.rounds, seconds=args.seconds)
        how = _how(args.rounds, args.seconds, mean_tokens(folder, texts), measured, load)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "serve.svg").write_text(curve(measured), encoding="utf-8")
    write(
        str(args.output.absolute() / "serve"),
        title="Our server against the tutorials'",
        command=f"python -m tests.benchmarks.serve --seconds {args.seconds:g} --rounds {args.rounds}"
        + "".join(
            f' --{name} "{flags}"' for name, flags in ((_OURS, args.ours), (_REFERENCE, args.reference)) if flags
        ),
        packages=("onnxruntime", "tokenizers", "torch", "transformers", "fastapi", "uvicorn"),
        parts=[
            how,
            table(list(_targets(measured[_OURS], measured[_REFERENCE]))),
            "![Latency against requests a second](serve.svg)",
            *(_details(name, measured[name]) for name in (_OURS, _REFERENCE)),
        ],
    )


def _python(module: str, *args: str) -> list[str]:
    return [sys.executable, "-m", module, *args, "--port"]


def measure(servers: Sequence[Server], texts: Sequence[str], *, rounds: int, seconds: float) -> dict[str, Measured]:
    """Start and measure the servers in turn; every other round begins with the last, so that none always comes first."""
    measured = {server.name: Measured() for server in servers}
    with Progress("serve", rounds * len(servers) * len(_STEPS), "measurements") as progress:
        for number in range(rounds):
            for server in servers if number % 2 == 0 else servers[::-1]:
                said = f"serve: round {number + 1}/{rounds}, {server.name}"
                _measure_one(server, texts, measured[server.name], seconds, number, progress, said)
    return measured


def _measure_one(
    server: Server, texts: Sequence[str], measured: Measured, seconds: float, seed: int, progress: Progress, said: str
) -> None:
    singles, batches = single_requests(texts), batch_requests(texts, _BATCH)
    with started(server, partial(_ask, text=texts[0]), measured) as port:
        measured.probabilities = [_ask(port, text) for text in texts[:_COMPARED]]
        measured.engine = str(request(port, "GET", "/health").get("engine", ""))
        loops = {with_clients(number): partial(closed_loop, port, singles, clients=number) for number in _CLIENTS}
        loops[_BATCHES] = partial(closed_loop, port, batches, clients=1)
        for what, loop in loops.items():
            record(run(loop(seconds=seconds)), what, measured, progress, said)
        capacity = max(measured.loads[with_clients(number)][-1].per_second for number in _CLIENTS)
        for share in _SHARES:
            measured.rates[share].append(capacity * share)
            arriving = open_loop(port, singles, rate=capacity * share, seconds=seconds, seed=seed)
            record(run(arriving), at_share(share), measured, progress, said)


def record(load: Load, what: str, measured: Measured, progress: Progress, said: str) -> None:
    measured.loads[what].append(load)
    row = describe(load, texts_each=_BATCH if what == _BATCHES else 1)
    say(
        f"{said}, {what}: {row['Texts/s']} texts/s, p50 {row['p50, ms']} ms, p99 {row['p99, ms']} ms, failed {row['Failed']}"
    )
    progress.advance()


@contextmanager
def started(server: Server, ask: Callable[[int], object], measured: Measured) -> Iterator[int]:
    """Start a server, time its first answer to `ask`, watch its memory from then on, and stop it at the end."""
    port = _free_port()
    with tempfile.TemporaryFile() as log:
        began, environment = time.perf_counter(), os.environ | server.environment
        command = [*server.command, str(port)]
        with subprocess.Popen(command, cwd=_REPOSITORY, stdout=log, stderr=log, env=environment) as process:
            try:
                _wait_for_answer(partial(ask, port), process)
                measured.start_seconds.append(time.perf_counter() - began)
                with _memory_watched(process.pid, measured):
                    yield port
            except BaseException:
                log.seek(0)
                say(f"serve: {server.name} said: {log.read()[-4000:].decode(errors='replace')}")
                raise
            finally:
                _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End it and all that it started."""
    begun = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
    for child in begun:
        with suppress(psutil.NoSuchProcess):
            child.kill()


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _wait_for_answer(ask: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        try:
            ask()
        except (OSError, http.client.HTTPException):
            if process.poll() is not None:
                raise RuntimeError(f"the server ended with status {process.returncode} before it answered") from None
            time.sleep(0.01)
        else:
            return
    raise RuntimeError(f"the server did not answer within {_START_SECONDS} s")


def _ask(port: int, text: str) -> list[float]:
    """The probabilities of a text."""
    return list(request(port, "POST", "/predict", {"text": text})["probabilities"].values())


def request(port: int, method: str, path: str, body: object = None) -> dict[str, Any]:
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    try:
        connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise http.client.HTTPException(f"{response.status}: {content[:200]!r}")
    answer: dict[str, Any] = json.loads(content)
    return answer


@contextmanager
def _memory_watched(pid: int, measured: Measured) -> Iterator[None]:
    """Note the most that a process and those that it started held at a time."""
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
    """Of a process and all that it started; one that ended meanwhile counts as nothing."""
    total = 0.0
    for process in (root, *root.children(recursive=True)):
        try:
            total += process.memory_info().rss / 1e6
        except psutil.NoSuchProcess:
            continue
    return total


def _how(rounds: int, seconds: float, tokens: float, measured: dict[str, Measured], load: str) -> str:
    differ = max(
        abs(ours - theirs)
        for pair in zip(measured[_OURS].probabilities, measured[_REFERENCE].probabilities, strict=True)
        for ours, theirs in zip(*pair, strict=True)
    )
    generator = max(load.cpu_share for one in measured.values() for loads in one.loads.values() for load in loads)
    late = max(load.late_seconds for one in measured.values() for loads in one.loads.values() for load in loads)
    return (
        f"DistilBERT size with random weights, texts of news ({tokens:.1f} tokens on average); {rounds} rounds in which each server "
        f"is started and gets every load for {seconds:g} s, the servers in turn, generator and server on the same cores. Speeds, starts "
        "and memory are medians of the rounds, percentiles come from the samples of all rounds. Capacity is the best speed of the closed "
        "loops on /predict in the same round. In the open loop latency counts from when a request should have been sent. The servers' "
        f"probabilities differ by {differ:.3f} at most. The generator took up to {generator:.0%} of one core, and sent "
        f"99% of the requests no more than {late * 1e3:.1f} ms late. {load}"
    )


def _targets(ours: Measured, reference: Measured) -> Iterator[dict[str, str]]:
    def row(what: str, numbers: tuple[float, float], ratio: float, target: str, met: bool | None) -> dict[str, str]:
        mine, theirs = (f"{number:.1f}" if number < 1000 else f"{number:,.0f}" for number in numbers)
        verdict = {True: "yes", False: "no", None: ""}[met]
        return {
            "What": what, "Ours": mine, "Reference": theirs, "Ratio": f"{ratio:.3g} ×", "Target": target, "Met": verdict
        }  # fmt: skip

    for what, least in ((with_clients(1), None), (with_clients(8), 12), (with_clients(32), 14), (_BATCHES, 11)):
        speeds = ours.per_second(what), reference.per_second(what)
        ratio = _ratio(*speeds)
        yield row(f"{what}: texts/s", speeds, ratio, f"≥ {least} ×" if least else "", ratio >= least if least else None)
    alone = ours.milliseconds(with_clients(1), 50), reference.milliseconds(with_clients(1), 50)
    yield row("one client alone: p50, ms", alone, _ratio(*alone), "≤ 1/6.5 ×", alone[0] <= alone[1] / 6.5)
    tails = ours.milliseconds(at_share(0.7), 99), reference.milliseconds(at_share(0.7), 99)
    met = tails[0] <= 5 * alone[0]
    target = f"≤ 5 × our p50 alone; it is {_ratio(tails[0], alone[0]):.1f} ×"
    yield row(f"{at_share(0.7)}: p99, ms", tails, _ratio(*tails), target, met)
    starts = median(ours.start_seconds), median(reference.start_seconds)
    yield row("start to first answer, s", starts, _ratio(*starts), "< 1.2", starts[0] < 1.2)
    held = median(ours.resident_mb), median(reference.resident_mb)
    most = 550 if "openvino" in ours.engine.lower() else 300
    yield row("resident under load, MB", held, _ratio(*held), f"< {most} with {ours.engine}", held[0] < most)


def _ratio(ours: float, theirs: float) -> float:
    return ours / theirs if theirs else math.nan


def _details(name: str, measured: Measured) -> str:
    rows = []
    for what in _STEPS:
        speeds = [load.per_second * (_BATCH if what == _BATCHES else 1) for load in measured.loads[what]]
        described = describe(measured.pooled(what), texts_each=_BATCH if what == _BATCHES else 1)
        rows.append({"Load": what, **described, "Texts/s of the rounds": f"{min(speeds):.1f} to {max(speeds):.1f}"})
    return f"## {name.capitalize()}\n\n{table(rows)}"


_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 420, 64, 150, 24, 52
_STYLE = """
svg { font: 13px system-ui, sans-serif; background: #fff; fill: #222 }
.grid { stroke: #ddd } .p50, .p99 { fill: none; stroke-width: 2 } .p99 { stroke-dasharray: 6 4 }
.ours { stroke: #0b6bcb } .reference { stroke: #b3541e } text.ours { stroke: none; fill: #0b6bcb } text.reference { stroke: none; fill: #b3541e }
@media (prefers-color-scheme: dark) {
  svg { background: #15181c; fill: #ddd } .grid { stroke: #333 }
  .ours { stroke: #62a8f0 } .reference { stroke: #e8935f } text.ours { fill: #62a8f0 } text.reference { fill: #e8935f }
}
"""


def curve(measured: dict[str, Measured]) -> str:
    """Latency (p50 and p99) against requests a second, both on logarithmic axes, as an SVG file."""
    lines: dict[tuple[str, int], list[tuple[float, float]]] = {
        (name, percent): [(median(one.rates[share]), one.milliseconds(at_share(share), percent)) for share in _SHARES]
        for name, one in measured.items()
        for percent in (50, 99)
    }
    lines = {
        key: [point for point in line if math.isfinite(point[1])] for key, line in lines.items()
    }  # some was answered
    points = [point for line in lines.values() for point in line]
    x = _logarithmic([at for at, _ in points], _LEFT, _WIDTH - _RIGHT)
    y = _logarithmic([at for _, at in points], _HEIGHT - _BOTTOM, _TOP)
    parts = [element("style", _STYLE)]
    for tick in x.ticks:
        parts += [element("line", x1=x.at(tick), x2=x.at(tick), y1=_TOP, y2=_HEIGHT - _BOTTOM, class_="grid")]
        parts += [note(x.at(tick), _HEIGHT - _BOTTOM + 20, short(tick))]
    for tick in y.ticks:
        parts += [element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y.at(tick), y2=y.at(tick), class_="grid")]
        parts += [note(_LEFT - 8, y.at(tick) + 4, short(tick), "end")]
    parts.append(
        note((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 10, "requests a second, 20% to 120% of each server's capacity")
    )
    parts.append(note(_LEFT - 8, 14, "ms", "end"))
    for (name, percent), line in ((key, line) for key, line in lines.items() if line):
        places = [(x.at(a), y.at(b)) for a, b in line]
        parts.append(
            element("polyline", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in places), class_=f"{name} p{percent}")
        )
        parts.append(
            note(
                places[-1][0] + 8,
                places[-1][1] + (-4 if percent == 99 else 14),
                f"{name}, p{percent}",
                "start",
                class_=name,
            )
        )
    label = "Latency against requests a second, of our server and the reference"
    size = {
        "xmlns": "http://www.w3.org/2000/svg",
        "viewBox": f"0 0 {_WIDTH} {_HEIGHT}",
        "width": _WIDTH,
        "height": _HEIGHT,
    }
    return str(element("svg", *parts, **size, role="img", aria_label=label)) + "\n"


@dataclass(frozen=True)
class _Axis:
    ticks: list[float]
    start: float
    end: float

    def at(self, value: float) -> float:
        whole = math.log(self.ticks[-1] / self.ticks[0])
        return self.start + (self.end - self.start) * math.log(value / self.ticks[0]) / whole


def _logarithmic(values: Sequence[float], start: float, end: float) -> _Axis:
    """An axis with ticks at 1, 2 and 5 times powers of ten, from the last below all values to the first above."""
    powers = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
    ticks = [times * 10.0**power for power in powers for times in (1, 2, 5)]
    first = max(place for place, tick in enumerate(ticks) if tick <= min(values))
    last = min(place for place, tick in enumerate(ticks) if tick >= max(values))
    return _Axis(ticks[first : max(last, first + 1) + 1], start, end)


if __name__ == "__main__":
    main()
