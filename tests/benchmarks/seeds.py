"""Accuracy on the real data over seeds: mean, standard deviation, and how long it took.

    python -m tests.benchmarks.seeds --model FOLDER_OF_AN_ENCODER --folder runs/seeds

Each seed draws its own split for validation, its own order, classes' weights and dropout; the test rows are the same for all. A
seed that was stopped, by SIGTERM or otherwise, continues from there when the same command runs again.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from server.inference.hardware import available_cpus
from tests.benchmarks.record import table, write
from tests.support.data import AG_NEWS
from trainer.distributed.launch import default_ranks
from trainer.monitoring.training_log import read_log


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a pretrained encoder")
    parser.add_argument("--data", type=Path, default=AG_NEWS, help="folder with AG News")
    parser.add_argument("--folder", type=Path, required=True, help="where the runs are made, or are already")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    args = parser.parse_args()
    found = [_run(args, seed) for seed in range(args.seeds)]
    accuracies = [one["accuracy"] for one in found]
    rows = [
        {
            "Seed": str(seed), "Accuracy": f"{one['accuracy']:.4f}", "Macro F1": f"{one['macro_f1']:.4f}",
            "Validation accuracy": f"{one['validation']:.4f}", "Training, minutes": f"{one['minutes']:.1f}",
            "Samples/s": f"{one['samples_per_second']:.0f}",
        }
        for seed, one in enumerate(found)
    ]  # fmt: skip
    how = (
        f"**Accuracy {fmean(accuracies):.4f} ± {stdev(accuracies):.4f}** (mean and standard deviation of {args.seeds} seeds) on all "
        f"{found[0]['test_rows']:,} test rows of AG News, after {args.epochs} epoch{'s' * (args.epochs > 1)} of all {found[0]['rows']:,} "
        f"training rows; {default_ranks()} processes. The minutes are those of training, validation left out."
    )
    write(
        "seeds",
        title="Accuracy over seeds",
        command=f"python -m tests.benchmarks.seeds --model {args.model.name} --epochs {args.epochs} --learning-rate {args.learning_rate:g}",
        packages=("torch", "transformers", "tokenizers", "numpy"),
        parts=[
            how,
            table(rows),
        ],
    )


def _run(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    output = args.folder / f"seed-{seed}"
    common = ["--model", str(args.model), "--seed", str(seed)]
    if not (output / "dataset").is_dir():
        _start("trainer.preprocess", [*common, "--data", str(args.data), "--output", str(output / "dataset")])
    dataset = ["--dataset", str(output / "dataset"), "--output", str(output)]
    if not (output / "model").is_dir():
        rate = ["--epochs", str(args.epochs), "--learning-rate", str(args.learning_rate)]
        _start("trainer.train", [*common, *dataset, *rate, "--checkpoint-minutes", "2"], ranks=default_ranks())
    if not (output / "metrics.json").is_file():
        _start("trainer.evaluate", dataset, ranks=default_ranks())
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    lines = [line for line in read_log(output / "logs") if "samples_per_second" in line]
    before = [0, *(line["samples"] for line in lines)]
    seconds = sum(
        (line["samples"] - start) / line["samples_per_second"] for start, line in zip(before, lines, strict=False)
    )
    validation = max(line["accuracy"] for line in read_log(output / "logs") if line.get("kind") == "validation")
    return {
        "accuracy": metrics["accuracy"], "macro_f1": metrics["macro_f1"], "test_rows": metrics["rows"], "minutes": seconds / 60, "samples_per_second": before[-1] / seconds, "rows": before[-1] // args.epochs,
        "validation": validation,
    }  # fmt: skip


def _start(module: str, arguments: list[str], *, ranks: int = 1) -> None:
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"] if ranks > 1 else []
    threads = {"OMP_NUM_THREADS": str(max(1, available_cpus() // ranks))}
    subprocess.run([sys.executable, "-m", *torchrun, module, *arguments], env={**os.environ, **threads}, check=True)


if __name__ == "__main__":
    main()
