"""Our server against the one that tutorials write, with the same weights on the same cores, in turn.

    python -m tests.benchmarks.serving.compare --tokenizer FOLDER_OF_AN_UNCASED_BERT
    python -m tests.benchmarks.serving.compare --seconds 2 --rounds 1 --output FOLDER

On a machine with more cores than a service gets, put `taskset -c 0,1` before it: the servers inherit that.
"""

import argparse
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median

from tests.benchmarks.record import RESULTS, table, wait_until_quiet, write
from tests.benchmarks.serving.load import (
    batch_requests,
    closed_loop,
    describe,
    load_texts,
    open_loop,
    run,
    single_requests,
)
from tests.benchmarks.serving.model import mean_tokens, write_serving_model
from tests.benchmarks.serving.running import (
    Measured,
    Server,
    at_share,
    probing,
    record,
    request,
    started,
    take_priority,
    with_clients,
)
from trainer.monitoring.console import Progress

_OURS, _REFERENCE = "ours", "reference"
_CLIENTS = (1, 8, 32)
_BATCH = 64
_SHARES = (0.2, 0.5, 0.7, 0.9, 1.1)
"""Rates of the open loop, as shares of a server's capacity."""
_OVERLOAD = 2.0
_COMPARED = 256  # texts that both servers classify, ours alone and together


_BATCHES = f"closed loop, 1 client, batches of {_BATCH}"
_STEPS = (*map(with_clients, _CLIENTS), _BATCHES, *map(at_share, (*_SHARES, _OVERLOAD)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="in which both servers are started and measured")
    parser.add_argument("--ours", default="", help='flags of our server, such as "--engine onnx"')
    parser.add_argument("--reference", default="", help='flags of the reference, such as "--asynchronous"')
    parser.add_argument(
        "--model", type=Path, help="folder that tests.benchmarks.serving.model wrote; by default one is written"
    )
    parser.add_argument("--tokenizer", default="tiny", help="folder of an encoder; by default one is trained")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for serve.md")
    parser.add_argument("--wait-minutes", type=float, default=10, help="for a quiet machine, at most")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.model or Path(temporary) / "model"
        if not args.model:
            write_serving_model(folder, tokenizer=args.tokenizer)
        servers = [
            Server(
                _REFERENCE, _python("tests.benchmarks.serving.reference_server", str(folder), *args.reference.split())
            ),
            Server(_OURS, _python("server.main", str(folder), *args.ours.split())),
        ]
        texts = load_texts(seed=0)
        load = f"{wait_until_quiet(args.wait_minutes)} {take_priority()}"
        measured = measure(servers, texts, rounds=args.rounds, seconds=args.seconds)
        how = _description(args.rounds, args.seconds, mean_tokens(folder, texts), measured, load)
    args.output.mkdir(parents=True, exist_ok=True)
    write(
        str(args.output.absolute() / "serve"),
        title="Our server against the tutorials'",
        command=f"python -m tests.benchmarks.serving.compare --seconds {args.seconds:g} --rounds {args.rounds}"
        + "".join(
            f' --{name} "{flags}"' for name, flags in ((_OURS, args.ours), (_REFERENCE, args.reference)) if flags
        ),
        packages=("onnxruntime", "tokenizers", "torch", "transformers", "fastapi", "uvicorn"),
        parts=[
            how,
            table(list(_targets(measured[_OURS], measured[_REFERENCE]))),
            *(_details(name, measured[name]) for name in (_OURS, _REFERENCE)),
        ],
    )


def _python(module: str, *args: str) -> list[str]:
    return [sys.executable, "-m", module, *args, "--port"]


def measure(servers: Sequence[Server], texts: Sequence[str], *, rounds: int, seconds: float) -> dict[str, Measured]:
    """Starts and measures the servers in turn; every other round begins with the last, so that none always comes first."""
    measured = {server.name: Measured() for server in servers}
    with Progress("serve", rounds * len(servers) * len(_STEPS), "measurements") as progress:
        for number in range(rounds):
            for server in servers if number % 2 == 0 else servers[::-1]:
                prefix = f"serve: round {number + 1}/{rounds}, {server.name}"
                _measure_one(server, texts, measured[server.name], seconds, number, progress, prefix)
    return measured


def _measure_one(
    server: Server, texts: Sequence[str], measured: Measured, seconds: float, seed: int, progress: Progress, prefix: str
) -> None:
    singles, batches = single_requests(texts), batch_requests(texts, _BATCH)
    with started(server, partial(_classify, text=texts[0]), measured) as port:
        health = request(port, "GET", "/health")
        measured.engine = str(health.get("engine", ""))
        measured.probabilities = [_classify(port, text) for text in texts[:_COMPARED]]
        measured.probabilities_in_batches = _classify_together(port, texts[:_COMPARED])
        loops = {with_clients(number): partial(closed_loop, port, singles, clients=number) for number in _CLIENTS}
        for what, loop in loops.items():
            record(run(loop(seconds=seconds)), what, measured, progress, prefix)
        load = run(closed_loop(port, batches, clients=1, seconds=seconds))
        record(load, _BATCHES, measured, progress, prefix, texts_each=_BATCH)
        capacity = max(measured.loads[what][-1].per_second for what in loops)
        for share in _SHARES:
            measured.rates[share].append(capacity * share)
            arriving = open_loop(port, singles, rate=capacity * share, seconds=seconds, seed=seed)
            record(run(arriving), at_share(share), measured, progress, prefix)
        paths = ("/livez", "/readyz", "/health") if server.name == _OURS else ("/health",)
        with probing(port, paths, measured.probes):
            arriving = open_loop(port, singles, rate=capacity * _OVERLOAD, seconds=seconds, seed=seed)
            record(run(arriving), at_share(_OVERLOAD), measured, progress, prefix)


def _classify(port: int, text: str) -> list[float]:
    return list(request(port, "POST", "/predict", {"text": text})["probabilities"].values())


def _classify_together(port: int, texts: Sequence[str]) -> list[list[float]]:
    parts = (texts[start : start + _BATCH] for start in range(0, len(texts), _BATCH))
    answers = [answer for part in parts for answer in request(port, "POST", "/predict/batch", {"texts": part})]
    return [list(answer["probabilities"].values()) for answer in answers]


def _differ(some: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> float:
    pairs = zip(some, others, strict=True)
    return max(abs(one - other) for pair in pairs for one, other in zip(*pair, strict=True))


def _description(rounds: int, seconds: float, tokens: float, measured: dict[str, Measured], load: str) -> str:
    differ = _differ(measured[_OURS].probabilities, measured[_REFERENCE].probabilities)
    generator = max(load.cpu_share for one in measured.values() for loads in one.loads.values() for load in loads)
    late = max(load.late_seconds for one in measured.values() for loads in one.loads.values() for load in loads)
    return (
        f"DistilBERT size with random weights, texts of news ({tokens:.1f} tokens on average); {rounds} rounds in which each server "
        f"is started and gets every load for {seconds:g} s, the servers in turn, generator and server on the same cores. Speeds, starts "
        "and memory are medians of the rounds, percentiles come from the samples of all rounds. Capacity is the best speed of the closed "
        "loops on /predict in the same round. In the open loop latency counts from when a request should have been sent. The servers' "
        f"probabilities differ by {differ:.3f} at most; that a quantised model is no more than half a point less accurate is for the "
        "export step to see, with a trained one. Probes are health checks on new connections at twice the capacity. "
        f"The generator took up to {generator:.0%} of one core, and sent 99% of the requests no more than {late * 1e3:.1f} ms late. {load}"
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
    slowest = max(ours.probes) * 1e3, max(reference.probes) * 1e3
    yield row("slowest probe at twice the capacity, ms", slowest, _ratio(*slowest), "≤ 50", slowest[0] <= 50)
    apart = [_differ(one.probabilities, one.probabilities_in_batches) for one in (ours, reference)]
    most_apart = 1e-2 if "bf16" in ours.engine else 2e-3
    yield {
        "What": f"probabilities of a text alone and in a batch of {_BATCH}: largest difference", "Ours": f"{apart[0]:.1e}",
        "Reference": f"{apart[1]:.1e}", "Ratio": "", "Target": f"≤ {most_apart:g}", "Met": "yes" if apart[0] <= most_apart else "no",
    }  # fmt: skip


def _ratio(ours: float, theirs: float) -> float:
    return ours / theirs if theirs else math.nan


def _details(name: str, measured: Measured) -> str:
    rows = []
    for what in _STEPS:
        texts_each = measured.texts_each[what]
        speeds = [load.per_second * texts_each for load in measured.loads[what]]
        described = describe(measured.pooled(what), texts_each=texts_each)
        rows.append({"Load": what, **described, "Texts/s of the rounds": f"{min(speeds):.1f} to {max(speeds):.1f}"})
    return f"## {name.capitalize()}\n\n{table(rows)}"


if __name__ == "__main__":
    main()
