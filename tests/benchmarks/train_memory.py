"""Memory of a rank in training, beyond what any trainer needs: weights, gradients, optimizer and activations.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.train_memory DATASET MODEL

It counts pages of the process itself (RssAnon of /proc), and the libraries' code beside them; pages of the mapped
dataset belong to the system, which takes them back when it needs them.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from tests.benchmarks.record import memory
from trainer.batches import Step, TrainingPlan, collate
from trainer.cls_only import train_first_position_only
from trainer.config import TrainConfig
from trainer.dataset import Dataset
from trainer.distributed import Process, process_group
from trainer.model import build_model, freeze_unused
from trainer.optimization import Meter, choose_precision, make_optimizer
from trainer.parallel import parallelize
from trainer.train import train_step, update

_MB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rows", type=int, help="of the dataset; by default all")
    args = parser.parse_args()
    with process_group(timeout_minutes=10) as process:
        print(json.dumps(measure(args, process)))


def measure(args: argparse.Namespace, process: Process) -> dict[str, float]:
    imported = memory("RssAnon")
    dataset = Dataset(args.dataset)
    config = TrainConfig(model=str(args.model), precision=args.precision)
    bare = build_model(config.model, dataset, seed=0, device=process.device)
    train_first_position_only(bare)
    freeze_unused(bare)
    model = parallelize(bare, config, process)
    optimizer = make_optimizer(bare, config)
    precision, _ = choose_precision(config.precision, process.device)
    meter = Meter(process.device)
    plan = TrainingPlan(
        dataset.train.lengths[: args.rows], batch_size=config.batch_size, accumulation_steps=1, rank=process.rank,
        world_size=process.world_size, seed=0,
    )  # fmt: skip
    steps = list(plan.epoch(0))[: args.steps]
    trained = sum(parameter.nbytes for parameter in bare.parameters() if parameter.requires_grad)
    needed = sum(parameter.nbytes for parameter in bare.parameters()) + 3 * trained  # gradients, and two moments
    activations = saved_for_backward(bare, longest(steps, dataset), precision)
    highest = 0.0
    for step in steps:
        train_step(model, step, dataset, process, precision, meter)
        highest = max(highest, memory("RssAnon"))
        update(bare, optimizer, learning_rate=1e-5, max_grad_norm=1.0)
        highest = max(highest, memory("RssAnon"))
    return {
        "imported": imported, "code": memory("RssFile"), "needed": needed / _MB, "activations": activations / _MB,
        "highest": highest, "beyond": highest - imported - (needed + activations) / _MB,
    }  # fmt: skip


def longest(steps: list[Step], dataset: Dataset) -> Callable[[PreTrainedModel], torch.Tensor]:
    """The loss of the largest batch."""
    rows = max((step.micro_batches[0] for step in steps), key=lambda rows: int(dataset.train.lengths[rows].max()))
    batch = collate(dataset.train, rows, pad_token_id=dataset.pad_token_id)

    def loss(model: PreTrainedModel) -> torch.Tensor:
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
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
