"""Memory of a rank in training, beyond what any trainer needs: weights, gradients, optimizer and activations.

    python -m tests.benchmarks.train_memory [--encoder FOLDER] [--steps 60]

Two ranks of one thread train AG News, 10,000 rows of it and all, with a model of DistilBERT size with random weights, and
with an encoder where one is given. The peak is of pages of the process alone: VmHWM, begun anew after the first step, without
weights, gradients and moments, and without RssFile of /proc, which is the libraries' code and the mapped dataset and can be
dropped by the system. So this needs Linux.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from tests.benchmarks.record import memory, table, write
from tests.benchmarks.reference_trainer import write_model
from tests.support.data import AG_NEWS
from trainer.config import PreprocessConfig, TrainConfig
from trainer.data.batches import BatchSampler, Step, collate
from trainer.data.dataset import Dataset
from trainer.distributed.parallel import parallelize
from trainer.distributed.process_group import Process, process_group, seed_step
from trainer.model.classifier import build_trainable
from trainer.model.optimizer import choose_precision, make_optimizer
from trainer.model.packing import is_packed
from trainer.preprocess import preprocess
from trainer.train import forward_backward, optimizer_step, warm_up

_MB = 2**20
_FEW_ROWS = 10_000
_RANKS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=AG_NEWS, help="folder with AG News")
    parser.add_argument("--tokenizer", default="tiny", help="folder of an uncased BERT; by default one is trained")
    parser.add_argument("--encoder", type=Path, help="folder of an encoder to be measured besides")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument(
        "--measure", nargs=4, metavar=("DATASET", "MODEL", "PRECISION", "RESULT"), help=argparse.SUPPRESS
    )
    args = parser.parse_args()
    if args.measure:
        dataset, model, precision, result = args.measure
        with process_group(timeout_minutes=10) as process:
            found = measure(Dataset(Path(dataset)), model, precision, steps=args.steps, process=process)
        Path(f"{result}{process.rank}").write_text(json.dumps(found), encoding="utf-8")
    else:
        compare(args)


def compare(args: argparse.Namespace) -> None:
    data, found = str(args.data) if args.data.is_dir() else "sample:120000", []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        encoders = {
            "DistilBERT size": args.tokenizer,
            **({args.encoder.parent.name: args.encoder} if args.encoder else {}),
        }
        for name, encoder in encoders.items():
            for rows in (_FEW_ROWS, None):
                dataset = folder / f"{name}-{rows}"
                preprocess(PreprocessConfig(data=data, model=str(encoder), max_train_rows=rows), dataset)
                model = encoder if encoder == args.encoder else folder / f"{name}-{rows}-model"
                if model != encoder:
                    write_model(model, Dataset(dataset))  # with its own tokenizer
                for precision in ("bf16", "fp32"):
                    ranks = in_ranks(dataset, model, precision, steps=args.steps, folder=folder)
                    found.append(line(f"{name}, {precision}", ranks))
                    print(found[-1], flush=True)
    write(
        "train_memory", title="Memory of a rank in training",
        command=f"python -m tests.benchmarks.train_memory --steps {args.steps}" + (" --encoder FOLDER" if args.encoder else ""),
        packages=("torch", "transformers", "numpy"), parts=[*description(args.steps), table(found)],
    )  # fmt: skip


def in_ranks(dataset: Path, model: Path, precision: str, *, steps: int, folder: Path) -> list[dict[str, Any]]:
    """Returns the measurements of each of two processes of one thread."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(_RANKS)]
    this = ["-m", "tests.benchmarks.train_memory", "--steps", str(steps), "--measure"]
    given = [str(dataset), str(model), precision, str(folder / "rank")]
    subprocess.run([*torchrun, *this, *given], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    return [json.loads((folder / f"rank{rank}").read_text(encoding="utf-8")) for rank in range(_RANKS)]


def measure(dataset: Dataset, model: str, precision: str, *, steps: int, process: Process) -> dict[str, Any]:
    imported = memory("RssAnon")
    config = TrainConfig.model_validate({"model": model, "precision": precision})
    raw_model = build_trainable(config, dataset, process)
    replica = parallelize(raw_model, config, process)
    optimizer = make_optimizer(replica, config)
    number_format, _ = choose_precision(precision, process.device)
    plan = BatchSampler(
        dataset.train.lengths, config, rank=process.rank, world_size=process.world_size, packed=is_packed(raw_model)
    )
    warm_up(replica, plan.largest_step(1), dataset, process, number_format)
    for number, step in enumerate([*plan.epoch(0)[:steps], plan.largest_step(1)]):
        seed_step(0, step=number, rank=process.rank)
        forward_backward(replica, step, dataset, process, number_format)
        optimizer_step(replica, optimizer, 1e-5, max_grad_norm=1.0)
        if number == 0:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM begins anew
    trained = 4 * sum(parameter.nbytes for parameter in raw_model.parameters()) / _MB  # weights, gradients, two moments
    peak, code = memory("VmHWM") - memory("RssFile") - memory("RssShmem") - trained, memory("RssFile")
    activations = saved_for_backward(raw_model, loss_of(plan.largest_step(1), dataset), number_format) / _MB
    return {
        "rows": len(dataset.train), "imported": imported, "code": code, "peak": peak, "activations": activations,
        "trained": trained,
    }  # fmt: skip


def line(name: str, ranks: list[dict[str, Any]]) -> dict[str, str]:
    """Returns a row of the table, from the rank with the higher peak."""
    of = max(ranks, key=lambda rank: float(rank["peak"]))
    beyond = of["peak"] - of["activations"]
    return {
        "Model": name, "Rows": f"{of['rows']:,}", "Weights, gradients, moments": f"{of['trained']:.0f}", "Peak besides": f"{of['peak']:.0f}",
        "Activations": f"{of['activations']:.0f}", "Beyond": f"{beyond:.0f}", "of which imports": f"{of['imported']:.0f}",
        "Beyond without imports": f"{beyond - of['imported']:.0f}", "Code": f"{of['code']:.0f}",
    }  # fmt: skip


def description(steps: int) -> list[str]:
    how = (
        f"MB of one of {_RANKS} ranks of a thread each, 32 rows a rank, after {steps} steps and the largest of the epoch. "
        "Each rank has weights, gradients and two moments of its own; its peak is of what it has besides. Activations are what one forward pass of that keeps for the backward pass, the bf16 copies of weights included, and not the "
        "temporaries of either pass. Imports are what the process held before it opened dataset and model: Python, torch, transformers. "
        "Code is file-backed: the libraries, and the parts of the dataset that were read."
    )
    return [how, "Not in it: while a checkpoint is written, the main rank holds a copy of weights and moments."]


def loss_of(step: Step, dataset: Dataset) -> Callable[[PreTrainedModel], torch.Tensor]:
    batch = collate(dataset.train, step.micro_batches[0], padding=dataset.padding, packed=step.packed)

    def loss(model: PreTrainedModel) -> torch.Tensor:
        logits = model(**batch.inputs).logits
        return functional.cross_entropy(logits.float(), batch.labels)

    return loss


def saved_for_backward(
    model: PreTrainedModel, loss: Callable[[PreTrainedModel], torch.Tensor], precision: torch.dtype
) -> int:
    """Bytes that one forward pass keeps for the backward pass, each storage counted once and no weight."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    kept = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with kept, torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
        loss(model)
    return sum(found.values())


if __name__ == "__main__":
    main()
