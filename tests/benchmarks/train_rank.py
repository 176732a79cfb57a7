"""One process of a measurement of training: variants in turn, round after round, each on a model and an optimizer of its own.

    OMP_NUM_THREADS=2 python -m tests.benchmarks.train_rank SPEC.json RESULT.json

Variants of ours run the trainer's own functions; what a variant changes besides stands in `Variant`.
"""

import json
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from pydantic import BaseModel
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.benchmarks.reference_trainer import MAX_LENGTH, PaddedTexts, train_reference
from trainer.config import TrainConfig
from trainer.data.batches import BatchSampler, Rows, Step, computed_tokens
from trainer.data.dataset import Dataset
from trainer.distributed import parallel
from trainer.distributed.launch import worker
from trainer.distributed.parallel import parallelize
from trainer.distributed.process_group import Process, process_group, seed_step
from trainer.model.classifier import build_model, freeze_unused
from trainer.model.optimizer import Meter, choose_precision, make_optimizer
from trainer.model.packing import enable_packing
from trainer.train import train_step, update

_WARM_UP_STEPS = 2
_LEARNING_RATE = 5e-5


class Variant(BaseModel):
    name: str
    reference: bool = False
    """The whole loop of `reference_trainer`, instead of ours."""
    precision: Literal["fp32", "bf16"] = "fp32"
    batch_size: int = 32
    batches: Literal["packed", "by length", "as drawn"] = "packed"
    """Those that are not packed are padded to the longest of each."""
    fused: bool = True
    first_position_only: bool = True
    """In the last layer; of packed texts always."""
    compiled: bool = False
    token_budget: int | None = None
    """Tokens a batch by length, with padding, instead of a number of rows."""
    accumulation_steps: int = 1
    settings: dict[str, Any] = {}
    """Of TrainConfig."""
    ddp: dict[str, Any] | None = None
    """Arguments of DistributedDataParallel instead of ours."""


class Spec(BaseModel):
    dataset: Path
    model: Path
    variants: list[Variant]
    rounds: int
    steps: int
    """Of a round, spread over all lengths."""


def steps_of(variant: Variant, dataset: Dataset, process: Process, count: int) -> list[Step]:
    """Steps of the same rows for all variants: so many batches at equal distances through all lengths stand for the whole."""
    lengths = dataset.train.lengths
    config = TrainConfig(batch_size=variant.batch_size, accumulation_steps=variant.accumulation_steps)
    plan = partial(BatchSampler, config=config, rank=process.rank, world_size=process.world_size)
    by_length = plan(lengths, packed=False)
    in_order = sorted(by_length.epoch(0), key=lambda step: int(lengths[step.rows].max()))
    whole = [step for step in in_order if step.global_rows == by_length.step_rows]
    rows = np.concatenate([whole[int((number + 0.5) * len(whole) / count)].rows for number in range(count)])
    if variant.token_budget:
        return [Step([part], part) for part in _by_budget(rows, lengths, variant.token_budget)]
    dealt = plan(lengths[rows], packed=variant.batches != "by length").epoch(0)
    packed = variant.batches == "packed"
    steps = [Step([rows[part] for part in step.micro_batches], rows[step.rows], packed=packed) for step in dealt]
    return sorted(steps, key=lambda step: computed_tokens(lengths[step.rows], packed=packed))


def _by_budget(rows: Rows, lengths: Any, budget: int) -> Iterator[Rows]:  # noqa: ANN401 - an array
    in_order, start = rows[np.argsort(lengths[rows], kind="stable")], 0
    for end in range(1, len(in_order) + 1):
        if end == len(in_order) or (end + 1 - start) * lengths[in_order[end]] > budget:
            yield in_order[start:end]
            start = end


class Runner:
    """A variant with its model and optimizer, to be run again and again over the same rows."""

    def __init__(self, variant: Variant, spec: Spec, dataset: Dataset, process: Process) -> None:
        self.variant, self.dataset, self.process = variant, dataset, process
        self.steps = steps_of(variant, dataset, process, spec.steps)
        self.config = TrainConfig.model_validate(
            {"model": str(spec.model), "precision": variant.precision, **variant.settings}
        )
        self.bare = build_model(self.config.model, dataset, seed=0, device=process.device)
        self.losses: list[float] = []
        if not variant.reference:
            self._prepare()

    def _prepare(self) -> None:
        if self.variant.first_position_only:
            enable_packing(self.bare)
        freeze_unused(self.bare)
        if self.variant.compiled:
            self.bare.compile(dynamic=True)
        self.model: nn.Module = (
            parallelize(self.bare, self.config, self.process)
            if self.variant.ddp is None
            else DistributedDataParallel(self.bare, **self.variant.ddp)
        )
        self.optimizer = (
            make_optimizer(self.model, self.config)
            if self.variant.fused
            else torch.optim.AdamW(self.bare.parameters(), lr=_LEARNING_RATE)
        )
        self.precision, _ = choose_precision(self.variant.precision, self.process.device)
        self.meter = Meter(self.process.device)

    def warm_up(self) -> None:
        self._run(self.steps[-_WARM_UP_STEPS:])  # the longest: what is allocated for them serves the others

    def round(self) -> dict[str, float]:
        """Seconds, and of all processes together rows, tokens real and computed, and the mean loss."""
        dist.barrier()
        self._wait()
        started = time.perf_counter()
        loss = self._run(self.steps)
        self._wait()
        seconds = time.perf_counter() - started
        parts = [rows for step in self.steps for rows in step.micro_batches]
        lengths = self.dataset.train.lengths
        rows = sum(len(part) for part in parts)
        packed = self.variant.batches == "packed"
        computed = sum(computed_tokens(lengths[part], packed=packed) for part in parts)
        if self.variant.reference:
            computed = rows * MAX_LENGTH
        real = sum(int(lengths[part].sum()) for part in parts)
        counts = torch.tensor([rows, real, computed], device=self.process.device)
        dist.all_reduce(counts)
        rows, real, computed = counts.tolist()
        return {"seconds": seconds, "rows": rows, "tokens": real, "computed": computed, "loss": loss}

    def _run(self, steps: list[Step]) -> float:
        if self.variant.reference:
            rows = np.concatenate([part for step in steps for part in step.micro_batches])
            data = PaddedTexts(self.dataset.train, rows, pad_token_id=self.dataset.pad_token_id)
            found = list(
                train_reference(self.bare, data, batch_size=self.variant.batch_size, learning_rate=_LEARNING_RATE)
            )
            return sum(step.loss for step in found) / len(found)
        self.meter.restart()
        for number, step in enumerate(steps):
            seed_step(0, step=number, rank=self.process.rank)
            train_step(self.model, step, self.dataset, self.process, self.precision, self.meter)
            rate = _LEARNING_RATE * (1 - number / len(steps))  # as the reference's falls
            self._update(rate)
        return self.meter.read()["loss"]

    def _update(self, learning_rate: float) -> None:
        if self.variant.fused:
            update(self.model, self.optimizer, learning_rate=learning_rate, max_grad_norm=1.0)
            return
        nn.utils.clip_grad_norm_(
            self.bare.parameters(), 1.0
        )  # only a fused optimizer skips what is not finite by itself
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _wait(self) -> None:
        if self.process.device.type == "cuda":
            torch.cuda.synchronize()


def main() -> None:
    vars(parallel)["_POWER_SGD_START"] = _WARM_UP_STEPS  # not after a hundred steps: they would not be measured
    spec = Spec.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    with process_group(timeout_minutes=10) as process:
        dataset = Dataset(spec.dataset)
        runners = [Runner(variant, spec, dataset, process) for variant in spec.variants]
        found: dict[str, list[dict[str, float]]] = {runner.variant.name: [] for runner in runners}
        for runner in runners:
            started = time.perf_counter()
            runner.warm_up()
            if process.is_main:
                print(f"  {runner.variant.name}: warm after {time.perf_counter() - started:.0f} s", flush=True)
        for turn in range(spec.rounds):
            for runner in runners:
                one = runner.round()
                found[runner.variant.name].append(one)
                if process.is_main:
                    print(
                        f"  round {turn + 1}: {runner.variant.name}: {one['rows'] / one['seconds']:.1f} rows/s",
                        flush=True,
                    )
        if process.is_main:
            device = torch.cuda.get_device_name() if process.device.type == "cuda" else "CPU"
            result = {
                "rounds": found, "threads": torch.get_num_threads(), "world_size": process.world_size, "device": device
            }  # fmt: skip
            Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    worker(main)
