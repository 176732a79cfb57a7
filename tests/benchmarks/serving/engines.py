"""Measures texts/s and memory of all that can run the model, against PyTorch as tutorials use it.

    python -m tests.benchmarks.serving.engines

The model has DistilBERT's size and random weights. Each engine is a process of its own, and they take turns on the same texts.
Tokenising is counted, HTTP is not. Reads /proc, so this needs Linux.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tests.benchmarks.record import memory, table, wait_until_quiet, write

# An engine's process imports this file: so heavy imports are inside the functions.
from tests.benchmarks.serving.load import load_texts

_WINDOW = 64  # texts out of which batches of similar length are made, as of a queue that long
_MAX_LENGTH = 128
Work = Callable[[list[str]], None]


@dataclass
class Way:
    """One way to run the model."""

    title: str
    engine: str
    """`torch`, or a value of `server --engine`."""
    callers: int
    batch_size: int = 1
    texts: int = 256
    """Texts in a turn; a turn should last a few seconds."""
    speeds: list[float] = field(default_factory=list)
    """Texts/s of each round."""
    efficiencies: list[float] = field(default_factory=list)
    """Texts per second of processor time in each round: others who use the machine disturb it less."""
    resident: list[float] = field(default_factory=list)
    """MB after each round."""


WAYS = {
    "torch": Way("PyTorch fp32, one text padded to 128", "torch", callers=1, texts=32),
    "onnx-fp32": Way("ONNX Runtime fp32, one text, two callers", "onnx-fp32", callers=2, texts=128),
    "onnx-1": Way("ONNX Runtime int8, one text, one caller", "onnx", callers=1),
    "onnx-2": Way("ONNX Runtime int8, one text, two callers", "onnx", callers=2),
    "openvino-1": Way("OpenVINO int8, one text, one stream", "openvino", callers=1),
    "openvino-2": Way("OpenVINO int8, one text, two streams", "openvino", callers=2),
    "openvino-4": Way(
        "OpenVINO int8, batches of 4 of similar length, two streams", "openvino", callers=2, batch_size=4
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", default="tiny", help="folder of an encoder; by default one is trained")
    parser.add_argument("--folder", type=Path, help="where to keep the models, or to take them from")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each, of which the median counts")
    parser.add_argument("--wait-minutes", type=float, default=10, help="for a quiet machine, at most")
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        _measure(WAYS[args.measure[0]], Path(args.measure[1]))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = args.folder or Path(name) / "models"
        if not folder.is_dir():
            from tests.benchmarks.serving.model import write_serving_model

            write_serving_model(folder, tokenizer=args.tokenizer)
        load = wait_until_quiet(args.wait_minutes)
        _compare(folder, rounds=args.rounds)
        _report(folder, load, rounds=args.rounds)


def _compare(folder: Path, *, rounds: int) -> None:
    """Lets the ways take turns; a line requests each turn, and a line answers it."""
    with ExitStack() as stack:
        processes = {}
        for name in WAYS:
            command = [sys.executable, "-m", "tests.benchmarks.serving.engines", "--measure", name, str(folder)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.enter_context(process)
            assert process.stdout
            process.stdout.readline()  # loaded and warm
            processes[name] = process
        for number in range(rounds):
            for name, way in WAYS.items():
                stdin, stdout = processes[name].stdin, processes[name].stdout
                assert stdin
                assert stdout
                print(number, file=stdin, flush=True)
                turn = json.loads(stdout.readline())
                way.speeds.append(way.texts / turn["seconds"])
                way.efficiencies.append(way.texts / turn["cpu_seconds"])
                way.resident.append(turn["resident"])
            speeds = ", ".join(f"{name} {way.speeds[-1]:.1f}" for name, way in WAYS.items())
            print(f"engines: round {number + 1}/{rounds}, texts/s: {speeds}", flush=True)
        for process in processes.values():
            process.communicate()  # the end of its input ends it


def _measure(way: Way, folder: Path) -> None:
    texts = load_texts(seed=0, count=4096)
    work = _torch(folder) if way.engine == "torch" else _served(way, folder)
    work(texts[:16])
    print("ready", flush=True)
    for line in sys.stdin:
        start = int(line) * 256 % len(texts)  # the same texts for all, as far as a way gets
        started, cpu_started = time.perf_counter(), time.process_time()
        work(texts[start : start + way.texts])
        turn = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu_started}
        print(json.dumps(turn | {"resident": memory("VmRSS")}), flush=True)


def _torch(folder: Path) -> Work:
    """Runs the model as tutorials do."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()

    def work(texts: list[str]) -> None:
        for text in texts:
            with torch.no_grad():
                model(
                    **tokenizer(
                        text, padding="max_length", truncation=True, max_length=_MAX_LENGTH, return_tensors="pt"
                    )
                )

    return work


def _served(way: Way, folder: Path) -> Work:
    """Runs the server's own encoder from as many threads as it has workers."""
    from server.inference.backends import candidates, load_backend
    from server.inference.encoder import Encoder
    from server.model_folder import read_model_folder

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as in the server
    model = read_model_folder(folder, candidates(way.engine))  # type: ignore[arg-type]
    classify = Encoder(model, load_backend(model, workers=way.callers)).classify
    threads = ThreadPoolExecutor(way.callers)

    def work(texts: list[str]) -> None:
        batches = [texts[start : start + 1] for start in range(len(texts))]
        if way.batch_size > 1:
            windows = [sorted(texts[start : start + _WINDOW], key=len) for start in range(0, len(texts), _WINDOW)]
            batches = [
                window[start : start + way.batch_size]
                for window in windows
                for start in range(0, len(window), way.batch_size)
            ]
        list(threads.map(classify, batches))

    return work


def _report(folder: Path, load: str, *, rounds: int) -> None:
    from tests.benchmarks.serving.model import mean_tokens

    first = WAYS["torch"]
    rows = [
        {
            "Backend": way.title,
            "Texts/s": f"{median(way.speeds):.1f}",
            "×": f"{median(own / other for own, other in zip(way.speeds, first.speeds, strict=True)):.1f}",
            "× in the rounds": f"{min(ratios):.1f}-{max(ratios):.1f}",
            "Texts per CPU second": f"{median(way.efficiencies):.1f}",
            "Resident after one round, MB": f"{way.resident[0]:.0f}",
            "after all, MB": f"{way.resident[-1]:.0f}",
        }
        for way in WAYS.values()
        for ratios in [[own / other for own, other in zip(way.speeds, first.speeds, strict=True)]]
    ]
    how = (
        f"DistilBERT size, random weights; texts of news, {mean_tokens(folder, load_texts(seed=0)):.1f} tokens on average; tokenising counted, HTTP not. "
        f"Each engine is a process of its own; they take turns on the same texts, {rounds} rounds, of which the median counts, and × is "
        f"against the first line in the same round. Batches are made of windows of {_WINDOW} texts, sorted by length. {load}"
    )
    write(
        "engines",
        title="Speed of the engines",
        command="python -m tests.benchmarks.serving.engines",
        packages=("openvino", "nncf", "onnxruntime", "tokenizers", "torch", "transformers"),
        parts=[how, table(rows)],
    )


if __name__ == "__main__":
    main()
