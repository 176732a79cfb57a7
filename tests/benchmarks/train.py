"""Our trainer beside the one that tutorials write, and what each of its ways brings.

    python -m tests.benchmarks.train [--part speed] [--device cuda]

A model of DistilBERT size with random weights, and the lengths of AG News where it is there, else of the sample. Each part
runs its variants in turn, round after round, and what it measured is kept, so that parts can be measured one by one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from server.hardware import available_cpus
from tests.benchmarks.record import RESULTS, wait_until_quiet, write
from tests.benchmarks.train_rank import Spec, Variant
from tests.benchmarks.train_report import report
from tests.support.data import AG_NEWS
from trainer.config import PreprocessConfig
from trainer.data.dataset import Dataset
from trainer.preprocess import preprocess

_ROWS = 24_000


@dataclass(frozen=True)
class Group:
    """Processes that run these variants in turn."""

    label: str
    variants: list[Variant]
    steps: int
    ranks: int = 1
    threads: int = 2


REFERENCE = Variant(name="the reference", reference=True)
OURS = Variant(name="ours, fp32")
BF16 = Variant(name="ours, bf16", precision="bf16")


def but(name: str, base: Variant = BF16, **changes: Any) -> Variant:  # noqa: ANN401 - any field
    return base.model_copy(update={"name": name, **changes})


def parts(device: str) -> dict[str, list[Group]]:
    if device == "cuda":
        large = [but(variant.name, variant, batch_size=256) for variant in (REFERENCE, OURS, BF16)]
        compiled = but("ours but padded, bf16, compiled", large[-1], batches="by length", compiled=True)
        return {"speed": [Group("one GPU", [*large, compiled], steps=24)]}
    plain = {"gradient_as_bucket_view": True}
    eager = but("padded to the longest of a batch", batches="as drawn", fused=False, first_position_only=False, ddp=plain)  # fmt: skip
    padded = but("+ last layer for [CLS] alone", batches="by length", ddp=plain)
    ways = [
        but(f"{eager.name}, bf16", eager),
        but("+ batches of like length", eager, batches="by length"),
        but("+ fused AdamW", padded, first_position_only=False),
        padded,
        but("+ texts drawn at random and packed: ours"),
        but("ours, with 2 × 16 rows accumulated", batch_size=16, accumulation_steps=2),
        but("ours but padded, batches of 1,664 tokens", batches="by length", token_budget=1664),
        but("ours but padded, with torch.compile", batches="by length", compiled=True),
    ]
    return {
        "speed": [Group("2 threads", [REFERENCE, OURS, BF16], steps=8)],
        "ways": [Group("2 threads", ways, steps=4)],
        "ranks": _ranks(BF16),
        "ranks-fp32": _ranks(OURS),
    }


def _ranks(variant: Variant) -> list[Group]:
    smaller = but(f"{variant.name}, 16 rows a rank", variant, batch_size=16)
    return [
        Group("1 rank × 1 thread", [variant], steps=3, threads=1),
        Group("1 rank × 2 threads", [variant], steps=3),
        Group("2 ranks × 1 thread", [variant], steps=3, ranks=2, threads=1),
        Group("2 ranks × 1 thread, same rows a step", [smaller], steps=3, ranks=2, threads=1),
    ]


def measure(group: Group, folder: Path, *, rounds: int) -> dict[str, Any]:
    """Run the group's processes, with their share of the cores, and read what they measured."""
    spec = Spec(
        dataset=folder / "dataset", model=folder / "model", variants=group.variants, rounds=rounds, steps=group.steps
    )
    given, result = folder / "spec.json", folder / "result.json"
    given.write_text(spec.model_dump_json(), encoding="utf-8")
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(group.ranks), "-m"]
    start = [sys.executable, "-m", *(torchrun if group.ranks > 1 else []), "tests.benchmarks.train_rank"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(group.threads)}
    subprocess.run([*start, str(given), str(result)], env=environment, check=True)
    measured: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return measured


def in_turn(groups: list[Group], folder: Path, *, rounds: int) -> dict[str, dict[str, Any]]:
    """What each group measured; where there are several, they too take turns."""
    if len(groups) == 1:
        return {groups[0].label: measure(groups[0], folder, rounds=rounds)}
    turns = [{group.label: measure(group, folder, rounds=1) for group in groups} for _ in range(rounds)]
    found = turns[0]
    for turn in turns[1:]:
        for label, group in turn.items():
            for name, measured in group["rounds"].items():
                found[label]["rounds"][name] += measured
    return found


def write_inputs(folder: Path, *, data: str, tokenizer: str) -> None:
    """A dataset, and beside it a model of DistilBERT size that reads it."""
    preprocess(PreprocessConfig(data=data, model=tokenizer, max_train_rows=_ROWS), folder / "dataset")
    write_model(folder / "model", Dataset(folder / "dataset"))


def write_model(folder: Path, dataset: Dataset) -> None:
    """Random weights of DistilBERT size, and the dataset's tokenizer."""
    torch.manual_seed(0)
    DistilBertForSequenceClassification(DistilBertConfig()).save_pretrained(folder)
    for file in dataset.tokenizer_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--part", action="append", help="speed, ways, ranks or ranks-fp32; by default all")
    parser.add_argument("--rounds", type=int, default=3, help="of which the median counts")
    parser.add_argument("--data", type=Path, default=AG_NEWS, help="folder with AG News")
    parser.add_argument("--tokenizer", default="tiny", help="folder of an uncased BERT; by default one is trained")
    parser.add_argument("--folder", type=Path, help="where dataset and model are made, or are already")
    parser.add_argument("--wait-minutes", type=float, default=10, help="for a quiet machine, at most")
    args = parser.parse_args()
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
