"""Which int8 model to ship: how PyTorch exports it, whether it is fused, and how its weights are quantised.

    python -m tests.benchmarks.int8 --run runs/<name>

Speed is measured on a DistilBERT of the real size with random weights and on the model of the run, with texts as long
as the run's test texts are; accuracy on all test rows of the run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
import torch
from onnxruntime import InferenceSession
from transformers import DistilBertConfig, DistilBertForSequenceClassification, PreTrainedModel

from tests.benchmarks.int8_variants import BLOCKS, EAGER, GRAPHS, quieten, write_variants
from tests.benchmarks.one_session import open_session
from tests.benchmarks.record import table, wait_until_quiet, write
from trainer.data.batches import collate
from trainer.data.dataset import Dataset, Split
from trainer.evaluation.predict import Probabilities
from trainer.model.classifier import load_model
from trainer.monitoring.console import Progress, print0

Tokens = list[npt.NDArray[np.int64]]
_BATCH = 32
_PROCESSES = 3  # that load a model, of which the median counts
_ACCURACY_DROP = 0.005  # as trainer.export allows
_SLOWER = 0.03  # what we do not tell apart
_CHUNK = 8  # texts that a variant gets before it is the turn of the next


@dataclass
class Variant:
    graph: str
    weights: str
    path: Path
    seconds: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    """[rounds, texts]"""
    cost: dict[str, float] = field(default_factory=dict)
    """Medians: load in seconds, resident and peak in MB."""
    found: dict[int, Probabilities] = field(default_factory=dict)
    """Probabilities of the test rows, by batch size."""

    @property
    def speed(self) -> float:
        """Texts/s, from the median time of each text: what disturbs one round does not count."""
        times: npt.NDArray[np.float64] = np.median(self.seconds, axis=0)
        return len(times) / float(times.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a run that was evaluated")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each speed, of which the median counts")
    parser.add_argument("--texts", type=int, default=64, help="texts of a round")
    parser.add_argument("--check-rows", type=int, help="test rows to take the accuracy from; by default all")
    parser.add_argument("--wait-minutes", type=float, default=10, help="for a quiet machine, at most")
    args = parser.parse_args()
    quieten()
    dataset = Dataset(args.run / "dataset")
    chosen = np.random.default_rng(0).permutation(len(dataset.test))
    texts = [dataset.test.tokens(int(row)).astype(np.int64) for row in chosen[: args.texts]]
    trained = load_model(args.run / "model")
    with tempfile.TemporaryDirectory() as name:
        real = [Variant(*made) for made in write_variants(_distilbert, Path(name) / "distilbert")]
        own = [Variant(*made) for made in write_variants(lambda: load_model(args.run / "model"), Path(name) / "run")]
        load = wait_until_quiet(args.wait_minutes)
        for what, variants in (("DistilBERT size", real), ("the run's model", own)):
            _time(variants, texts, rounds=args.rounds, what=what)
            _weigh(variants, texts, Path(name) / "texts.npz")
        rows = np.sort(chosen[: args.check_rows])
        _classify(own, dataset, rows)
    labels, expected = dataset.test.labels[rows], np.load(args.run / "predictions.npy")[rows]
    how = (
        f"One text at a time through a session of one thread, {len(texts)} texts of the run's lengths "
        f"(mean {np.mean([len(text) for text in texts]):.1f} tokens), tokenising not counted; the variants take turns every "
        f"{_CHUNK} texts; of each text the median of {args.rounds} rounds counts. Load and memory: medians of {_PROCESSES} processes of one session. {load}"
    )
    write(
        "int8",
        title="Which int8 model to ship",
        command="python -m tests.benchmarks.int8 --run runs/<name>",
        packages=("onnxruntime", "onnx", "onnxscript", "torch", "transformers"),
        parts=[
            how,
            "## DistilBERT size, random weights",
            table([_speed_row(variant, real[0]) for variant in real]),
            f"## The run's model: {_described(trained)}, {dataset.info['title']}",
            table([_speed_row(variant, own[0]) for variant in own]),
            f"Its answers on {len(rows):,} test rows; the trained model's accuracy is {_accuracy(expected, labels):.2%}.",
            table([_accuracy_row(variant, expected, labels) for variant in own]),
            _conclusion(real, own, expected, labels),
        ],
    )


def _distilbert() -> PreTrainedModel:
    torch.manual_seed(0)
    config = DistilBertConfig(id2label=dict(enumerate("abcd")))
    return DistilBertForSequenceClassification(config)


def _time(variants: Sequence[Variant], texts: Tokens, *, rounds: int, what: str) -> None:
    sessions = [open_session(variant.path, threads=1) for variant in variants]
    inputs = [{"input_ids": ids[None], "attention_mask": np.ones_like(ids[None])} for ids in texts]
    for session in sessions:
        for given in inputs[:4]:
            session.run(None, given)
    seconds = np.zeros((len(variants), rounds, len(inputs)))
    with Progress(f"int8: {what}", rounds * len(inputs), "texts") as progress:
        for number, start in product(range(rounds), range(0, len(inputs), _CHUNK)):
            for place, session in enumerate(sessions):
                for text in range(start, min(start + _CHUNK, len(inputs))):
                    started = time.perf_counter()
                    session.run(None, inputs[text])
                    seconds[place, number, text] = time.perf_counter() - started
            progress.advance(min(_CHUNK, len(inputs) - start))
    for variant, measured in zip(variants, seconds, strict=True):
        variant.seconds = measured
        print0(f"int8: {what}: {variant.graph}, {variant.weights}: {variant.speed:.1f} texts/s")


def _weigh(variants: Sequence[Variant], texts: Tokens, file: Path) -> None:
    np.savez(file, *texts)
    with Progress("int8: loading", len(variants), "variants") as progress:
        for variant in variants:
            command = [sys.executable, "-m", "tests.benchmarks.one_session", str(variant.path), str(file)]
            costs = [json.loads(subprocess.check_output(command)) for _ in range(_PROCESSES)]
            variant.cost = {fact: median(cost[fact] for cost in costs) for fact in costs[0]}
            variant.cost["file"] = variant.path.stat().st_size / 1e6
            progress.advance()


def _classify(variants: Sequence[Variant], dataset: Dataset, rows: npt.NDArray[np.int64]) -> None:
    """As many variants at once as there are cores."""
    todo = list(product(variants, (1, _BATCH)))
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        Progress("int8: answers", len(todo) * len(rows), "texts") as progress,
    ):
        answered = pool.map(lambda part: _answers(part[0].path, dataset, rows, batch_size=part[1]), todo)
        for (variant, batch_size), found in zip(todo, answered, strict=True):
            variant.found[batch_size] = found
            progress.advance(len(rows))


def _answers(path: Path, dataset: Dataset, rows: npt.NDArray[np.int64], *, batch_size: int) -> Probabilities:
    session = open_session(path, threads=1)
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return np.concatenate([_logits(session, dataset.test, batch, dataset.pad_token_id) for batch in batches])


def _logits(
    session: InferenceSession, split: Split, rows: npt.NDArray[np.int64], pad_token_id: int
) -> npt.NDArray[np.float32]:
    batch = collate(split, rows, pad_token_id=pad_token_id)
    inputs = {name: given.numpy() for name, given in batch.inputs.items()}
    logits: npt.NDArray[np.float32] = session.run(["logits"], inputs)[0]
    return logits


def _accuracy(found: Probabilities, labels: npt.NDArray[np.int32]) -> float:
    return float((found.argmax(axis=1) == labels).mean())


def _same(found: Probabilities, expected: Probabilities) -> float:
    return float((found.argmax(axis=1) == expected.argmax(axis=1)).mean())


def _speed_row(variant: Variant, first: Variant) -> dict[str, str]:
    return {
        "Graph": variant.graph,
        "Weights": variant.weights,
        "Texts/s": f"{variant.speed:.1f}",
        "×": f"{variant.speed / first.speed:.2f}",
        "File, MB": f"{variant.cost['file']:.1f}",
        "Load, s": f"{variant.cost['load']:.2f}",
        "Resident, MB": f"{variant.cost['resident']:.0f}",
        "Peak, MB": f"{variant.cost['peak']:.0f}",
    }


def _accuracy_row(variant: Variant, expected: Probabilities, labels: npt.NDArray[np.int32]) -> dict[str, str]:
    alone, batched = variant.found[1], variant.found[_BATCH]
    return {
        "Graph": variant.graph,
        "Weights": variant.weights,
        "Accuracy alone": f"{_accuracy(alone, labels):.2%}",
        f"in batches of {_BATCH}": f"{_accuracy(batched, labels):.2%}",
        "Same label as trained, alone": f"{_same(alone, expected):.2%}",
        f"in {_BATCH}": f"{_same(batched, expected):.2%}",
        f"Alone the same as in {_BATCH}": f"{_same(alone, batched):.2%}",
    }


def _described(model: PreTrainedModel) -> str:
    config = model.config
    return f"{config.model_type}, {config.num_hidden_layers} layers of {config.hidden_size}"


def _conclusion(real: list[Variant], own: list[Variant], expected: Probabilities, labels: npt.NDArray[np.int32]) -> str:
    """What to ship by one rule, and what each of its parts is worth."""
    chosen = _choice(real, own, expected, labels)

    def speed(graph: str, weights: str) -> str:
        """Of a variant in parts of the chosen one's, for both models."""
        parts = [_named(found, graph, weights).speed / _named(found, *chosen).speed for found in (real, own)]
        return " and ".join(f"{share:.2f}" for share in parts)

    def same(graph: str, weights: str) -> str:
        found = _named(own, graph, weights).found
        return f"{min(_same(probabilities, expected) for probabilities in found.values()):.2%}"

    blocks = _named(own, EAGER, BLOCKS)
    compared = {
        **{name: (name, chosen[1]) for name in GRAPHS},
        "one scale for a whole tensor": (chosen[0], "int8 per tensor"),
        "unsigned weights": (EAGER, "uint8 per channel"),
        "blocks of 128, whose activations are quantised block by block": (EAGER, BLOCKS),
    }
    others = [f"{what}: {speed(*key)}, {same(*key)}" for what, key in compared.items() if key != chosen]
    return (
        f"**Ship {', '.join(chosen)}**: of the variants within {_ACCURACY_DROP * 100} points of the trained model's accuracy, alone and in "
        f"batches, and at most {_SLOWER:.0%} slower than the fastest, it gives the trained model's label most often: on {same(*chosen)} at "
        f"least. The others, by speed in parts of its own for the two models, and by how often they give the trained model's label at least: "
        f"{'; '.join(others)}. Only blocks make an answer independent of its batch mates (the same label on "
        f"{_same(blocks.found[1], blocks.found[_BATCH]):.2%}); their file is "
        f"{blocks.cost['file'] / _named(own, *chosen).cost['file']:.1f} × as large."
    )


def _choice(
    real: list[Variant], own: list[Variant], expected: Probabilities, labels: npt.NDArray[np.int32]
) -> tuple[str, str]:
    """Graph and weights of the int8 variant that agrees with the trained model most, out of the accurate and fast ones."""
    least = _accuracy(expected, labels) - _ACCURACY_DROP
    accurate = [
        (fast, answers)
        for fast, answers in zip(real, own, strict=True)
        if answers.weights != "fp32" and min(_accuracy(found, labels) for found in answers.found.values()) >= least
    ]
    enough = (1 - _SLOWER) * max(fast.speed for fast, _ in accurate)
    _, best = max(
        (pair for pair in accurate if pair[0].speed >= enough),
        key=lambda pair: min(_same(found, expected) for found in pair[1].found.values()),
    )
    return best.graph, best.weights


def _named(variants: list[Variant], graph: str, weights: str) -> Variant:
    return next(variant for variant in variants if (variant.graph, variant.weights) == (graph, weights))


if __name__ == "__main__":
    main()
