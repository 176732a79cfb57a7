"""Compares our trainer with the one that tutorials write, and two ranks with one.

    python -m tests.benchmarks.train [--part speed] [--device cuda]

A model of DistilBERT size with random weights, and the lengths of AG News where it is there, else of the sample. Each part
runs its variants in turn, round after round, and its measurements are kept, so that parts can be measured one by one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from pydantic import BaseModel

from server.inference.hardware import available_cpus
from tests.benchmarks.record import RESULTS, table, wait_until_quiet, write
from tests.benchmarks.reference_trainer import MAX_LENGTH, PaddedTexts, train_reference, write_inputs
from tests.support.data import AG_NEWS
from trainer.config import TrainConfig
from trainer.data.batches import BatchSampler, Step, computed_tokens
from trainer.data.dataset import Dataset
from trainer.distributed.launch import worker
from trainer.distributed.parallel import parallelize
from trainer.distributed.process_group import Process, process_group, seed_step
from trainer.model.classifier import build_model, freeze_unused
from trainer.model.optimizer import choose_precision, make_optimizer
from trainer.model.packing import enable_packing
from trainer.monitoring.monitor import Meter
from trainer.train import forward_backward, optimizer_step

_WARM_UP_STEPS = 2
_LEARNING_RATE = 5e-5
_TITLES = {
    "speed": "## Beside the reference\n\nThe same rows, the same threads; tokens computed are those of the batches with their padding.",
    "ranks": "## Ranks, bf16\n\nCompared by tokens, as lengths differ; 32 rows a rank, or 32 over both ranks.",
    "ranks-fp32": "## Ranks, fp32",
}


class Variant(BaseModel):
    name: str
    reference: bool = False
    """Runs the whole loop of `reference_trainer` instead of ours."""
    precision: Literal["fp32", "bf16"] = "fp32"
    batch_size: int = 32


@dataclass(frozen=True)
class Group:
    """Processes that run these variants in turn."""

    label: str
    variants: list[Variant]
    steps: int
    """Steps of a round, spread over all lengths."""
    ranks: int = 1
    threads: int = 2


class Spec(BaseModel):
    dataset: Path
    model: Path
    variants: list[Variant]
    rounds: int
    steps: int


REFERENCE = Variant(name="the reference", reference=True)
OURS = Variant(name="ours, fp32")
BF16 = Variant(name="ours, bf16", precision="bf16")


def parts(device: str) -> dict[str, list[Group]]:
    if device == "cuda":
        large = [variant.model_copy(update={"batch_size": 256}) for variant in (REFERENCE, OURS, BF16)]
        return {"speed": [Group("one GPU", large, steps=24)]}
    speed = [Group("2 threads", [REFERENCE, OURS, BF16], steps=8)]
    return {"speed": speed, "ranks": _ranks(BF16), "ranks-fp32": _ranks(OURS)}


def _ranks(variant: Variant) -> list[Group]:
    smaller = variant.model_copy(update={"name": f"{variant.name}, 16 rows a rank", "batch_size": 16})
    return [
        Group("1 rank × 1 thread", [variant], steps=3, threads=1),
        Group("1 rank × 2 threads", [variant], steps=3),
        Group("2 ranks × 1 thread", [variant], steps=3, ranks=2, threads=1),
        Group("2 ranks × 1 thread, same rows a step", [smaller], steps=3, ranks=2, threads=1),
    ]


def measure(group: Group, folder: Path, *, rounds: int) -> dict[str, Any]:
    """Runs the group's processes, with their share of the cores, and reads their measurements."""
    where = {"dataset": folder / "dataset", "model": folder / "model"}
    spec = Spec(**where, variants=group.variants, rounds=rounds, steps=group.steps)
    given, result = folder / "spec.json", folder / "result.json"
    given.write_text(spec.model_dump_json(), encoding="utf-8")
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(group.ranks), "-m"]
    start = [sys.executable, "-m", *(torchrun if group.ranks > 1 else []), "tests.benchmarks.train"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(group.threads)}
    subprocess.run([*start, "--measure", str(given), str(result)], env=environment, check=True)
    measured: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return measured


def in_turn(groups: list[Group], folder: Path, *, rounds: int) -> dict[str, dict[str, Any]]:
    """Returns the measurements of each group; several groups take turns, too."""
    if len(groups) == 1:
        return {groups[0].label: measure(groups[0], folder, rounds=rounds)}
    turns = [{group.label: measure(group, folder, rounds=1) for group in groups} for _ in range(rounds)]
    found = turns[0]
    for turn in turns[1:]:
        for label, group in turn.items():
            for name, measured in group["rounds"].items():
                found[label]["rounds"][name] += measured
    return found


def steps_of(variant: Variant, dataset: Dataset, process: Process, count: int) -> list[Step]:
    """Returns steps of the same rows for all variants: batches at equal distances through all lengths represent the whole."""
    lengths = dataset.train.lengths
    config = TrainConfig(batch_size=variant.batch_size)
    sampler = partial(BatchSampler, config=config, rank=process.rank, world_size=process.world_size)
    by_length = sampler(lengths, packed=False)
    in_order = sorted(by_length.epoch(0), key=lambda step: int(lengths[step.rows].max()))
    full = [step for step in in_order if step.global_rows == by_length.step_rows]
    rows = np.concatenate([full[int((number + 0.5) * len(full) / count)].rows for number in range(count)])
    steps = [
        Step([rows[part] for part in step.micro_batches], rows[step.rows], packed=True)
        for step in sampler(lengths[rows], packed=True).epoch(0)
    ]
    return sorted(steps, key=lambda step: computed_tokens(lengths[step.rows], packed=True))


class Runner:
    """A variant with its model and optimizer, which runs again and again over the same rows."""

    def __init__(self, variant: Variant, spec: Spec, dataset: Dataset, process: Process) -> None:
        self.variant, self.dataset, self.process = variant, dataset, process
        self.steps = steps_of(variant, dataset, process, spec.steps)
        config = TrainConfig(model=str(spec.model), precision=variant.precision)
        self.raw_model = build_model(config.model, dataset, seed=0, device=process.device)
        if variant.reference:
            return
        enable_packing(self.raw_model)
        freeze_unused(self.raw_model)
        self.model = parallelize(self.raw_model, config, process)
        self.optimizer = make_optimizer(self.model, config)
        self.precision, _ = choose_precision(variant.precision, process.device)
        self.meter = Meter(process.device)

    def warm_up(self) -> None:
        self._run(self.steps[-_WARM_UP_STEPS:])  # the longest: their memory serves the others

    def round(self) -> dict[str, float]:
        """Returns seconds, rows, tokens real and computed of all processes, and the mean loss."""
        dist.barrier()
        self._wait()
        started = time.perf_counter()
        loss = self._run(self.steps)
        self._wait()
        seconds = time.perf_counter() - started
        batches = [self.dataset.train.lengths[rows] for step in self.steps for rows in step.micro_batches]
        computed = sum(computed_tokens(lengths, packed=True) for lengths in batches)
        rows, real = sum(map(len, batches)), sum(int(lengths.sum()) for lengths in batches)
        counts = torch.tensor([rows, real, rows * MAX_LENGTH if self.variant.reference else computed], device=self.process.device)  # fmt: skip
        dist.all_reduce(counts)
        rows, real, computed = counts.tolist()
        return {"seconds": seconds, "rows": rows, "tokens": real, "computed": computed, "loss": loss}

    def _run(self, steps: list[Step]) -> float:
        if self.variant.reference:
            rows = np.concatenate([part for step in steps for part in step.micro_batches])
            data = PaddedTexts(self.dataset.train, rows, pad_token_id=self.dataset.padding.token_id)
            size = self.variant.batch_size
            found = list(train_reference(self.raw_model, data, batch_size=size, learning_rate=_LEARNING_RATE))
            return sum(step.loss for step in found) / len(found)
        self.meter.restart()
        for number, step in enumerate(steps):
            seed_step(0, step=number, rank=self.process.rank)
            loss = forward_backward(self.model, step, self.dataset, self.process, self.precision)
            self.meter.add(loss, rows=sum(map(len, step.micro_batches)), tokens=0)
            rate = _LEARNING_RATE * (1 - number / len(steps))  # as the reference's falls
            optimizer_step(self.model, self.optimizer, rate, max_grad_norm=1.0)
        return self.meter.read()["loss"]

    def _wait(self) -> None:
        if self.process.device.type == "cuda":
            torch.cuda.synchronize()


def measure_rank(given: Path, result: Path) -> None:
    """Runs the variants in this process of a group; the first process writes the measurements."""
    spec = Spec.model_validate_json(given.read_text(encoding="utf-8"))
    with process_group(timeout_minutes=10) as process:
        dataset = Dataset(spec.dataset)
        runners = [Runner(variant, spec, dataset, process) for variant in spec.variants]
        rounds: dict[str, list[dict[str, float]]] = {runner.variant.name: [] for runner in runners}
        for runner in runners:
            runner.warm_up()
        for turn in range(spec.rounds):
            for runner in runners:
                one = runner.round()
                rounds[runner.variant.name].append(one)
                if process.is_main:
                    print(f"  round {turn + 1}: {runner.variant.name}: {one['rows'] / one['seconds']:.1f} rows/s", flush=True)  # fmt: skip
        if process.is_main:
            device = torch.cuda.get_device_name() if process.device.type == "cuda" else "CPU"
            result.write_text(json.dumps({"rounds": rounds, "device": device}), encoding="utf-8")


def middle(rounds: list[dict[str, float]], fact: str) -> float:
    """Returns the median over the rounds of rows or tokens a second."""
    return median(one[fact] / one["seconds"] for one in rounds)


def _lines(part: dict[str, Any]) -> list[dict[str, object]]:
    lines: list[dict[str, object]] = []
    several, base = len(part["groups"]) > 1, 0.0
    for label, group in part["groups"].items():
        for name, rounds in group["rounds"].items():
            speed = middle(rounds, "tokens")
            base = base or speed
            rates = [one["rows"] / one["seconds"] for one in rounds]
            lines.append(
                {
                    "Variant": f"{label}: {name}" if several else name,
                    "Samples/s": f"{middle(rounds, 'rows'):.1f}",
                    "Lowest to highest": f"{min(rates):.1f} to {max(rates):.1f}",
                    "Tokens/s": f"{speed:,.0f}",
                    "Against the first": f"{speed / base:.2f} ×",
                    "Tokens computed for each": f"{median(one['computed'] / one['tokens'] for one in rounds):.3f}",
                    "Loss, last round": f"{rounds[-1]['loss']:.4f}",
                }
            )
    return lines


def report(found: dict[str, Any]) -> list[str]:
    """Returns the parts of a Markdown file that were measured."""
    texts = []
    for name, title in _TITLES.items():
        if name in found:
            rounds = len(next(iter(next(iter(found[name]["groups"].values()))["rounds"].values())))
            how = f"Each figure is the median of {rounds} rounds in turn. {found[name]['load']}"
            texts += [title, table(_lines(found[name])), how]
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--part", action="append", help="speed, ranks or ranks-fp32; by default all")
    parser.add_argument("--rounds", type=int, default=3, help="of which the median counts")
    parser.add_argument("--data", type=Path, default=AG_NEWS, help="folder with AG News")
    parser.add_argument("--tokenizer", default="tiny", help="folder of an uncased BERT; by default one is trained")
    parser.add_argument("--folder", type=Path, help="where dataset and model are made, or are already")
    parser.add_argument("--wait-minutes", type=float, default=10, help="for a quiet machine, at most")
    parser.add_argument("--measure", type=Path, nargs=2, metavar=("SPEC", "RESULT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        worker(partial(measure_rank, *args.measure))
        return
    if (args.device == "cuda") != torch.cuda.is_available():
        parser.error(f"--device {args.device}: this machine has {torch.cuda.device_count()} CUDA devices")
    if args.device == "cpu" and available_cpus() < 2:
        parser.error("two ranks of a thread each need two cores, this process has one")
    load = wait_until_quiet(args.wait_minutes)
    kept = RESULTS / f"train-{args.device}.json"
    found = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch) / "inputs"
        if not (folder / "model").is_dir():
            write_inputs(folder, data=str(args.data) if args.data.is_dir() else "sample", tokenizer=args.tokenizer)
        for name, groups in parts(args.device).items():
            if name in (args.part or parts(args.device)):
                found[name] = {"load": load, "groups": in_turn(groups, folder, rounds=args.rounds)}
                kept.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    write(
        f"train-{args.device}",
        title="Training beside the reference",
        command=f"python -m tests.benchmarks.train --device {args.device}"
        + (" --tokenizer FOLDER" if args.tokenizer != "tiny" else ""),
        packages=("torch", "transformers", "numpy"),
        parts=report(found),
    )


if __name__ == "__main__":
    main()
