"""Which int8 model to ship: how PyTorch exports it, whether it is fused, and how its weights are quantised.

    python -m tests.benchmarks.int8 --run runs/<name>

Speed is measured on a DistilBERT of the real size with random weights and on the model of the run, with texts as long
as the run's test texts are; accuracy on all test rows of the run.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnxruntime import InferenceSession
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.transformers.optimizer import optimize_model
from transformers import DistilBertConfig, DistilBertForSequenceClassification, PreTrainedModel

from tests.benchmarks.one_session import open_session
from tests.benchmarks.record import table, wait_until_quiet, write
from trainer.batches import collate
from trainer.dataset import Dataset, Split
from trainer.export import _Logits
from trainer.model import load_model
from trainer.predict import Probabilities
from trainer.progress import Progress, say

Tokens = list[npt.NDArray[np.int64]]
_NAMES: dict[str, Any] = {"input_names": ["input_ids", "attention_mask"], "output_names": ["logits"]}
_BATCH = 32
_PROCESSES = 3  # that load a model, of which the median counts
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
        return self.seconds.shape[1] / float(np.median(self.seconds, axis=0).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a run that was evaluated")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each speed, of which the median counts")
    parser.add_argument("--texts", type=int, default=64, help="texts of a round")
    parser.add_argument("--check-rows", type=int, help="test rows to take the accuracy from; by default all")
    parser.add_argument("--wait-minutes", type=float, default=10, help="for a quiet machine, at most")
    args = parser.parse_args()
    _quieten()
    dataset = Dataset(args.run / "dataset")
    chosen = np.random.default_rng(0).permutation(len(dataset.test))
    texts = [dataset.test.tokens(int(row)).astype(np.int64) for row in chosen[: args.texts]]
    trained = load_model(args.run / "model")
    with tempfile.TemporaryDirectory() as name:
        real = list(_write_variants(_distilbert, Path(name) / "distilbert"))
        own = list(_write_variants(lambda: load_model(args.run / "model"), Path(name) / "run"))
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
            _conclusion(real, own, labels),
        ],
    )


def _quieten() -> None:
    logging.getLogger().setLevel(logging.ERROR)  # the quantiser advises a preparation that changes nothing here
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("onnxruntime").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")  # both exporters warn of their own internals


def _distilbert() -> PreTrainedModel:
    torch.manual_seed(0)
    config = DistilBertConfig(id2label=dict(enumerate("abcd")))
    return DistilBertForSequenceClassification(config)


def _write_variants(build: Callable[[], PreTrainedModel], folder: Path) -> Iterator[Variant]:
    folder.mkdir()
    for number, (name, export) in enumerate(_GRAPHS.items()):
        source = folder / f"{number}.onnx"
        say(f"int8: writing {folder.name}, {name}")
        export(build(), source)
        yield Variant(name, "fp32", source)
        for weights in ("int8", "uint8") if name == _EAGER else ("int8",):
            for scale in ("per tensor", "per channel"):
                path = folder / f"{number}-{weights}-{scale[4]}.onnx"
                quantize_dynamic(
                    str(source), str(path), weight_type=_TYPES[weights], per_channel=scale == "per channel",
                    extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # of what fused nodes give, which it cannot infer
                )  # fmt: skip
                yield Variant(name, f"{weights} {scale}", path)
    name, source = _EAGER, folder / f"{list(_GRAPHS).index(_EAGER)}.onnx"
    blocks = MatMulNBitsQuantizer(onnx.load(str(source)), bits=8, block_size=128, is_symmetric=True, accuracy_level=4)
    blocks.process()
    blocks.model.save_model_to_file(str(folder / "blocks.onnx"))
    yield Variant(name, "int8 in blocks of 128", folder / "blocks.onnx")


def _export_dynamo(model: PreTrainedModel, path: Path, attention: str) -> None:
    model.set_attn_implementation(attention)
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    torch.onnx.export(
        _Logits(model).eval(), _example(), str(path), dynamo=True, external_data=False, verbose=False,
        dynamic_shapes={"input_ids": dynamic, "attention_mask": dynamic}, **_NAMES,
    )  # fmt: skip
    exported = onnx.load(str(path))
    exported.graph.ClearField("value_info")  # as trainer.export does, with the reason
    onnx.save(exported, str(path))


def _export_fused(model: PreTrainedModel, path: Path) -> None:
    """The TorchScript exporter with eager attention writes the one graph whose attention the optimizer knows."""
    model.set_attn_implementation("eager")
    dynamic = {0: "rows", 1: "length"}
    torch.onnx.export(
        _Logits(model).eval(), _example(), str(path), dynamo=False, opset_version=17,
        dynamic_axes={"input_ids": dynamic, "attention_mask": dynamic, "logits": {0: "rows"}}, **_NAMES,
    )  # fmt: skip
    config = model.config
    fused = optimize_model(
        str(path), "bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size, opt_level=0
    )
    assert fused.get_fused_operator_statistics()["Attention"] == config.num_hidden_layers, "attention was not fused"
    fused.save_model_to_file(str(path))


def _example() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.full((2, 16), 5)
    return ids, torch.ones_like(ids)


_TYPES = {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}
_EAGER = "eager attention"
_GRAPHS: dict[str, Callable[[PreTrainedModel, Path], None]] = {
    "sdpa attention": lambda model, path: _export_dynamo(model, path, "sdpa"),
    _EAGER: lambda model, path: _export_dynamo(model, path, "eager"),
    "fused": _export_fused,
}


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
        say(f"int8: {what}: {variant.graph}, {variant.weights}: {variant.speed:.1f} texts/s")


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
    inputs = {"input_ids": batch.input_ids.numpy(), "attention_mask": batch.attention_mask.numpy()}
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


def _conclusion(real: list[Variant], own: list[Variant], labels: npt.NDArray[np.int32]) -> str:
    return ""


if __name__ == "__main__":
    main()
