"""The trainer's own step, timed with and without exchange of gradients, by one process of a group.

torchrun --nproc-per-node 2 -m trainer.bench.step --dataset runs/x/dataset --result points.json
"""

import time
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from pydantic import BaseModel
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForSequenceClassification, DistilBertConfig, PreTrainedModel

from server.cli import parse
from server.errors import UserError
from server.files import write_json
from trainer.bench.settings import StepConfig
from trainer.config import TrainConfig
from trainer.data.batches import BatchSampler, Step
from trainer.data.dataset import Dataset
from trainer.distributed.launch import worker
from trainer.distributed.parallel import gradient_sync, parallelize
from trainer.distributed.process_group import Process, process_group
from trainer.model.classifier import build_model, freeze_unused
from trainer.model.optimizer import choose_precision, make_optimizer
from trainer.model.packing import enable_packing, is_packed
from trainer.monitoring.console import Progress
from trainer.train import forward_backward, optimizer_step

_BLOCK_STEPS = 5
_LEARNING_RATE = 1e-5

Scaling = Literal["weak", "strong"]
_Moment = float | torch.cuda.Event


class StepArguments(StepConfig):
    """Time the trainer's step; torchrun starts it, with one process or many."""

    dataset: Path
    """Dataset folder of preprocess."""

    result: Path
    """JSON file to write."""


class StepPoint(BaseModel):
    """Seconds are means over the steps, of the slowest process."""

    ranks: int
    scaling: Scaling
    batch_size: int
    """Examples of one process."""
    seconds: float
    compute_seconds: float
    """The same steps on the same ranks without exchange of gradients, though all wait for the slowest at each step."""
    backward_seconds: float
    """Backward pass in a step without exchange."""
    tokens_per_second: float
    """Real tokens, without padding, of all processes."""


class Facts(BaseModel):
    parameters: int
    gradient_bytes: int
    buckets: int
    """Messages of one exchange; 0 with a single process."""
    precision: str
    threads: int


class Measured(Facts):
    points: list[StepPoint]


@dataclass(frozen=True)
class Trained:
    """Everything that a step of `trainer.train` works on."""

    bare: PreTrainedModel
    model: nn.Module
    optimizer: torch.optim.Optimizer
    config: TrainConfig
    dataset: Dataset
    process: Process
    precision: torch.dtype


def measure(arguments: StepArguments, dataset: Dataset, process: Process) -> Measured:
    """Measures weak and strong scaling; with one process, where they are the same, weak alone."""
    trained = _set_up(arguments, dataset, process)
    points = [_measure_one("weak", arguments.batch_size, trained, arguments)]
    if process.world_size > 1:
        if arguments.batch_size % process.world_size:
            raise UserError(f"--batch-size {arguments.batch_size} cannot be divided among {process.world_size} ranks")
        points.append(_measure_one("strong", arguments.batch_size // process.world_size, trained, arguments))
    gradients = [parameter for parameter in trained.model.parameters() if parameter.requires_grad]
    return Measured(
        parameters=sum(parameter.numel() for parameter in trained.model.parameters()),
        gradient_bytes=sum(parameter.nbytes for parameter in gradients),
        buckets=_buckets(trained.model),
        precision=str(trained.precision).removeprefix("torch."), threads=torch.get_num_threads(), points=points,
    )  # fmt: skip


def _set_up(arguments: StepArguments, dataset: Dataset, process: Process) -> Trained:
    """Makes model, optimizer and number format as `trainer.train` does."""
    config = TrainConfig(
        model=arguments.model, batch_size=arguments.batch_size, precision=arguments.precision, seed=arguments.seed
    )
    bare = _build(arguments, dataset, process.device)
    enable_packing(bare)
    freeze_unused(bare)
    precision, _ = choose_precision(config.precision, process.device)
    model = parallelize(bare, config, process)
    return Trained(bare, model, make_optimizer(model, config), config, dataset, process, precision)


def _build(arguments: StepArguments, dataset: Dataset, device: torch.device) -> PreTrainedModel:
    if arguments.model != "distilbert":
        return build_model(arguments.model, dataset, seed=arguments.seed, device=device)
    torch.manual_seed(arguments.seed)
    sizes: dict[str, Any] = {"vocab_size": dataset.vocabulary_size, "num_labels": len(dataset.classes)}
    built = AutoModelForSequenceClassification.from_config(DistilBertConfig(**sizes))
    return cast("PreTrainedModel", built.to(device))


def _buckets(model: nn.Module) -> int:
    if not isinstance(model, DistributedDataParallel):
        return 0
    logged = model._get_ddp_logging_data()  # noqa: SLF001 - the only place where DDP reports its gradient buckets
    sizes = logged.get("rebuilt_bucket_sizes") or logged["bucket_sizes"]
    return len(str(sizes).split(","))


def _measure_one(scaling: Scaling, batch_size: int, trained: Trained, arguments: StepArguments) -> StepPoint:
    process = trained.process
    config = TrainConfig(batch_size=batch_size, seed=arguments.seed)
    plan = BatchSampler(
        trained.dataset.train.lengths,
        config,
        rank=process.rank,
        world_size=process.world_size,
        packed=is_packed(trained.bare),
    )
    steps = chain.from_iterable(plan.epoch(epoch) for epoch in count())
    warmup, timed = (list(islice(steps, number)) for number in (arguments.warmup_steps, arguments.steps))
    what = f"bench: {process.world_size} ranks, {scaling} scaling"
    with Progress(what, 2 * (len(warmup) + len(timed)), "steps") as progress:
        for exchange in (True, False):
            _run(warmup, trained, progress, exchange=exchange)
        # In turn, so that what else the machine does falls on both.
        blocks = [timed[start : start + _BLOCK_STEPS] for start in range(0, len(timed), _BLOCK_STEPS)]
        times = [[_run(block, trained, progress, exchange=exchange) for exchange in (True, False)] for block in blocks]
    seconds, compute_seconds = (sum(pair[kind][0] for pair in times) / len(timed) for kind in (0, 1))
    backward_seconds = sum(pair[1][1] for pair in times) / len(timed)
    tokens = torch.tensor(sum(int(trained.dataset.train.lengths[rows].sum()) for step in timed for rows in step.micro_batches), device=process.device)  # fmt: skip
    dist.all_reduce(tokens)
    return StepPoint(
        ranks=process.world_size, scaling=scaling, batch_size=batch_size, seconds=seconds, compute_seconds=compute_seconds,
        backward_seconds=backward_seconds, tokens_per_second=tokens.item() / len(timed) / seconds,
    )  # fmt: skip


def _run(steps: list[Step], trained: Trained, progress: Progress, *, exchange: bool) -> tuple[float, float]:
    """Runs these steps; returns the seconds of all of them and of their backward passes, of the slowest process."""
    device = trained.process.device
    forwards: list[_Moment] = []
    backwards: list[_Moment] = []
    hook = trained.model.register_forward_hook(lambda *_: forwards.append(_now(device)))
    beat = torch.zeros(1, device=device)
    dist.barrier()
    _wait(device)
    begin = time.perf_counter()
    for step in steps:
        with gradient_sync(trained.model, when=exchange):
            forward_backward(trained.model, step, trained.dataset, trained.process, trained.precision)
        backwards.append(_now(device))
        if not exchange:
            dist.all_reduce(beat)
        optimizer_step(trained.model, trained.optimizer, _LEARNING_RATE, max_grad_norm=trained.config.max_grad_norm)
        progress.advance()
    _wait(device)
    whole = time.perf_counter() - begin
    hook.remove()
    backward = sum(_seconds(start, end) for start, end in zip(forwards, backwards, strict=True))
    slowest = torch.tensor([whole, backward], dtype=torch.float64, device=device)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    return float(slowest[0]), float(slowest[1])


def _now(device: torch.device) -> _Moment:
    """Marks a moment of the device's work, on a GPU without waiting for it."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds(start: _Moment, end: _Moment) -> float:
    if isinstance(start, float) or isinstance(end, float):
        return cast("float", end) - cast("float", start)
    return float(start.elapsed_time(end)) / 1000


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    arguments = parse(StepArguments, prog="python -m trainer.bench.step")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    with process_group(timeout_minutes=arguments.timeout_minutes) as process:
        measured = measure(arguments, Dataset(arguments.dataset), process)
        if process.is_main:
            write_json(arguments.result, measured.model_dump())


if __name__ == "__main__":
    worker(main)
