"""Our server beside LitServe and BentoML: the same int8 model on ONNX Runtime, their dynamic batching on; and ours on OpenVINO.

    python -m tests.benchmarks.serving.others --tokenizer FOLDER_OF_AN_UNCASED_BERT

Each of the others gets an environment of its own from the package index, and runs both ways that fill the processor: one worker
that uses every core, and a worker of one thread for each core.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import NamedTuple

from server.inference.hardware import available_cpus
from tests.benchmarks.record import RESULTS, table, wait_until_quiet, write
from tests.benchmarks.serving.load import closed_loop, describe, load_texts, open_loop, post, run
from tests.benchmarks.serving.model import mean_tokens, write_serving_model
from tests.benchmarks.serving.running import (
    Measured,
    Server,
    at_share,
    record,
    request,
    started,
    take_priority,
    with_clients,
)
from trainer.monitoring.console import Progress, print0

_CLIENTS = (1, 8, 32)
_SHARE = 0.7
_BATCH = 8
_OURS, _ENGINES = "DistriNews", ("onnx", "openvino")

_CLASSIFIER = """
import json
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer


class Classifier:
    def __init__(self, folder, threads):
        facts = json.loads((Path(folder) / "model.json").read_text())
        self.labels = facts["labels"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        file = Path(folder) / facts["variants"]["int8"]["file"]
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        self.tokenizer.enable_truncation(facts["max_length"])
        self.tokenizer.enable_padding()

    def classify(self, texts):
        encodings = self.tokenizer.encode_batch(list(texts))
        inputs = {
            "input_ids": np.array([encoding.ids for encoding in encodings], dtype=np.int64),
            "attention_mask": np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64),
        }
        logits = self.session.run(["logits"], inputs)[0]
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        rows = (exponents / exponents.sum(axis=1, keepdims=True)).tolist()
        best = [max(range(len(row)), key=row.__getitem__) for row in rows]
        return [
            {"label": self.labels[at], "confidence": row[at], "probabilities": dict(zip(self.labels, row))}
            for at, row in zip(best, rows)
        ]
"""
_LITSERVE = """
import sys

import litserve
from classifier import Classifier

folder, workers, threads, batch, _, port = sys.argv[1:]


class Api(litserve.LitAPI):
    def setup(self, device):
        self.classifier = Classifier(folder, int(threads))

    def decode_request(self, request):
        return request["text"]

    def predict(self, texts):
        return self.classifier.classify(texts)

    def encode_response(self, output):
        return output


if __name__ == "__main__":
    api = Api(max_batch_size=int(batch), batch_timeout=0.005)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=int(workers), timeout=60)
    server.run(host="127.0.0.1", port=int(port), log_level="warning", generate_client_file=False)
"""
_BENTOML = """
import os

import bentoml
from classifier import Classifier


@bentoml.service(workers=int(os.environ["WORKERS"]), traffic={"timeout": 60})
class Service:
    def __init__(self):
        self.classifier = Classifier(os.environ["FOLDER"], int(os.environ["THREADS"]))

    @bentoml.api(batchable=True, max_batch_size=int(os.environ["BATCH"]))
    def predict(self, texts: list[str]) -> list[dict]:
        return self.classifier.classify(texts)
"""


class Contender(NamedTuple):
    server: Server
    body: Callable[[str], object]
    """Builds the body of a request to its /predict from a text."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="in which all servers are started and measured")
    parser.add_argument("--batch", type=int, default=_BATCH, help="texts that the others batch, at most")
    parser.add_argument(
        "--model", type=Path, help="folder that tests.benchmarks.serving.model wrote; by default one is written"
    )
    parser.add_argument("--tokenizer", default="tiny", help="folder of an encoder; by default one is trained")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for serve_others.md")
    parser.add_argument("--wait-minutes", type=float, default=10, help="for a quiet machine, at most")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.model or Path(temporary) / "model").absolute()
        if not args.model:
            write_serving_model(folder, tokenizer=args.tokenizer)
        contenders, versions = _prepare(Path(temporary), folder, batch=args.batch)
        texts = load_texts(seed=0)
        load = f"{wait_until_quiet(args.wait_minutes)} {take_priority()}"
        measured = _measure(contenders, texts, rounds=args.rounds, seconds=args.seconds)
        tokens = mean_tokens(folder, texts)
    how = (
        f"DistilBERT size with random weights, int8, texts of news ({tokens:.1f} tokens on average); the others batch up to {args.batch} "
        f"texts. {args.rounds} rounds in which each server is started and gets every load for {args.seconds:g} s, the servers in turn, "
        "generator and servers on the same cores. Speeds, starts and memory are medians of the rounds, percentiles come from all samples; the "
        f"open loop sends at {_SHARE:.0%} of each server's own best speed. Memory adds up the processes of a server, and counts in each "
        f"what they share. {load} Others: {', '.join(versions)}."
    )
    args.output.mkdir(parents=True, exist_ok=True)
    write(
        str(args.output.absolute() / "serve_others"),
        title="Our server beside LitServe and BentoML",
        command=f"python -m tests.benchmarks.serving.others --seconds {args.seconds:g} --rounds {args.rounds}",
        packages=("onnxruntime", "tokenizers", "fastapi", "uvicorn"),
        parts=[how, table([_row(name, one) for name, one in measured.items()])],
    )


def _prepare(temporary: Path, folder: Path, *, batch: int) -> tuple[list[Contender], list[str]]:
    cores = available_cpus()
    ours = [sys.executable, "-m", "server.main", str(folder), "--engine"]
    contenders = [Contender(Server(f"{_OURS}, {engine}", [*ours, engine, "--port"]), _one) for engine in _ENGINES]
    (temporary / "classifier.py").write_text(_CLASSIFIER, encoding="utf-8")
    (temporary / "with_litserve.py").write_text(_LITSERVE, encoding="utf-8")
    (temporary / "with_bentoml.py").write_text(_BENTOML, encoding="utf-8")
    litserve, bentoml = _environment(temporary, "litserve"), _environment(temporary, "bentoml")
    for workers, threads in dict.fromkeys([(1, cores), (cores, 1)]):
        way = f"{workers} worker{'s' if workers > 1 else ''} of {threads} thread{'s' if threads > 1 else ''}"
        arguments = [str(folder / "onnx"), str(workers), str(threads), str(batch), "--port"]
        script = str(temporary / "with_litserve.py")
        contenders.append(Contender(Server(f"LitServe, {way}", [str(litserve / "python"), script, *arguments]), _one))
        command = [str(bentoml / "bentoml"), "serve", "with_bentoml:Service", "--working-dir", str(temporary)]
        environment = {
            "FOLDER": str(folder / "onnx"), "WORKERS": str(workers), "THREADS": str(threads), "BATCH": str(batch),
            "BENTOML_HOME": str(temporary / "bentoml_home"), "BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOST": "127.0.0.1",
        }  # fmt: skip
        contenders.append(Contender(Server(f"BentoML, {way}", [*command, "--port"], environment), _list_of_one))
    return contenders, [_version(litserve, "litserve"), _version(bentoml, "bentoml")]


def _one(text: str) -> object:
    return {"text": text}


def _list_of_one(text: str) -> object:
    return {"texts": [text]}  # where BentoML batches, a request is a part of a batch


def _environment(temporary: Path, package: str) -> Path:
    """Makes a virtual environment with the package and our versions of the engines; returns its folder of commands."""
    folder = temporary / f"{package}_environment"
    print0(f"serve_others: installing {package} (about a minute)")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    same = [f"{name}=={version(name)}" for name in ("onnxruntime", "tokenizers", "numpy")]
    subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", package, *same], check=True)
    return folder / "bin"


def _version(commands: Path, package: str) -> str:
    code = f"from importlib.metadata import version; print({package!r}, version({package!r}))"
    return subprocess.check_output([commands / "python", "-c", code], text=True).strip()


def _measure(
    contenders: Sequence[Contender], texts: Sequence[str], *, rounds: int, seconds: float
) -> dict[str, Measured]:
    measured = {contender.server.name: Measured() for contender in contenders}
    with Progress("serve_others", rounds * len(contenders) * (len(_CLIENTS) + 1), "measurements") as progress:
        for number in range(rounds):
            for server, body in contenders if number % 2 == 0 else contenders[::-1]:
                found, prefix = measured[server.name], f"serve_others: round {number + 1}/{rounds}, {server.name}"
                requests = [post("/predict", body(text)) for text in texts]
                first = partial(request, method="POST", path="/predict", body=body(texts[0]))
                with started(server, first, found) as port:
                    for clients in _CLIENTS:
                        load = run(closed_loop(port, requests, clients=clients, seconds=seconds))
                        record(load, with_clients(clients), found, progress, prefix)
                    rate = _SHARE * max(found.loads[with_clients(clients)][-1].per_second for clients in _CLIENTS)
                    load = run(open_loop(port, requests, rate=rate, seconds=seconds, seed=number))
                    record(load, at_share(_SHARE), found, progress, prefix)
    return measured


def _row(name: str, measured: Measured) -> dict[str, str]:
    speeds = {
        f"Texts/s, {clients} clients": f"{measured.per_second(with_clients(clients)):.1f}" for clients in _CLIENTS[1:]
    }
    failed = {describe(measured.pooled(what))["Failed"] for what in measured.loads} - {"0"}
    return {
        "Server": name,
        **speeds,
        "p50 alone, ms": f"{measured.milliseconds(with_clients(1), 50):.1f}",
        f"p99 at {_SHARE:.0%}, ms": f"{measured.milliseconds(at_share(_SHARE), 99):.1f}",
        "Start to first answer, s": f"{median(measured.start_seconds):.1f}",
        "Resident, MB": f"{median(measured.resident_mb):.0f}",
        "Failed": "; ".join(sorted(failed)) or "0",
    }


if __name__ == "__main__":
    main()
