"""Compares the validation loss of the reference and our trainer after the same rows, over seeds, for a small model.

python -m tests.benchmarks.train_loss [--dataset FOLDER] [--rows 12800] [--seeds 8]
"""

import argparse
import tempfile
from pathlib import Path
from statistics import fmean, median, stdev

import numpy as np
from transformers import PreTrainedModel

from server.inference.encoder import softmax
from tests.benchmarks.record import table, write
from tests.benchmarks.reference_trainer import PaddedTexts, train_reference
from tests.support.data import AG_NEWS
from trainer.config import PreprocessConfig, TrainConfig
from trainer.data.batches import BatchSampler
from trainer.data.dataset import Dataset
from trainer.distributed.parallel import parallelize
from trainer.distributed.process_group import Process, process_group, seed_step
from trainer.evaluation.predict import predict, score
from trainer.model.classifier import build_model
from trainer.model.optimizer import choose_precision, make_optimizer
from trainer.model.packing import enable_packing
from trainer.preprocess import preprocess
from trainer.train import forward_backward, optimizer_step

_LEARNING_RATE, _BATCH_ROWS = 1e-3, 32
_PADDED = "ours but padded, by length"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, help="that preprocess wrote; by default of AG News where it is there")
    parser.add_argument("--rows", type=int, default=12_800)
    parser.add_argument("--seeds", type=int, default=8)
    args = parser.parse_args()
    with process_group(timeout_minutes=10) as process, tempfile.TemporaryDirectory() as scratch:
        folder = args.dataset or Path(scratch) / "dataset"
        if args.dataset is None:
            source = str(AG_NEWS) if AG_NEWS.is_dir() else "sample:24000"
            preprocess(PreprocessConfig(data=source, max_train_rows=24_000), folder)
        dataset = Dataset(folder)
        names = ("the reference", "ours, fp32", "ours, bf16", f"{_PADDED}, fp32")
        found: dict[str, list[float]] = {name: [] for name in names}
        for seed in range(args.seeds):
            for name, losses in found.items():
                model = build_model("tiny", dataset, seed=seed, device=process.device)
                if name == "the reference":
                    data = PaddedTexts(dataset.train, range(args.rows), pad_token_id=dataset.padding.token_id)
                    for _ in train_reference(
                        model, data, batch_size=_BATCH_ROWS, learning_rate=_LEARNING_RATE, seed=seed
                    ):
                        pass
                else:
                    config = TrainConfig.model_validate(
                        {"precision": name.split()[-1], "learning_rate": _LEARNING_RATE, "seed": seed}
                    )
                    train_ours(model, config, dataset, process, rows=args.rows, packed=not name.startswith(_PADDED))
                logits = predict(model, dataset.validation, process, padding=dataset.padding, what=name)
                losses.append(score(softmax(logits), dataset.validation.labels).loss)
                print(f"seed {seed}: {name}: {losses[-1]:.4f}", flush=True)
    rows = [_row(name, losses, found["the reference"]) for name, losses in found.items()]
    what = (
        f"The small model, {args.rows:,} of {len(dataset.train):,} training rows once, {_BATCH_ROWS} a step, learning rate {_LEARNING_RATE:g} that falls in a line, "
        f"{args.seeds} seeds; the loss is of {len(dataset.validation):,} validation rows. "
        "With a seed all have the same weights at first, and rows in another order. The number after ± is the standard error of a difference of means."
    )
    write(
        "train_loss", title="Validation loss of the reference and our trainer after the same rows",
        command=f"python -m tests.benchmarks.train_loss --rows {args.rows} --seeds {args.seeds}", packages=("torch", "transformers", "numpy"), parts=[what, table(rows)],
    )  # fmt: skip


def _row(name: str, losses: list[float], of_reference: list[float]) -> dict[str, str]:
    error = ((stdev(losses) ** 2 + stdev(of_reference) ** 2) / len(losses)) ** 0.5
    difference = "" if losses is of_reference else f"{fmean(losses) - fmean(of_reference):+.4f} ± {error:.4f}"
    return {
        "Trainer": name, "Validation loss, mean": f"{fmean(losses):.4f}", "sd": f"{stdev(losses):.4f}", "median": f"{median(losses):.4f}",
        "Beside the reference": difference, "of each seed": ", ".join(f"{loss:.4f}" for loss in losses),
    }  # fmt: skip


def train_ours(
    model: PreTrainedModel, config: TrainConfig, dataset: Dataset, process: Process, *, rows: int, packed: bool
) -> None:
    """The same rows and learning rates as the reference has."""
    enable_packing(model)
    wrapped = parallelize(model, config, process)
    optimizer = make_optimizer(wrapped, config)
    lengths = dataset.train.lengths[np.arange(rows)]
    plan = BatchSampler(lengths, config.model_copy(update={"batch_size": _BATCH_ROWS}), packed=packed)
    steps = list(plan.epoch(0))
    dtype, _ = choose_precision(config.precision, process.device)
    for number, step in enumerate(steps):
        seed_step(config.seed, step=number, rank=0)
        forward_backward(wrapped, step, dataset, process, dtype)
        optimizer_step(wrapped, optimizer, _LEARNING_RATE * (1 - number / len(steps)), max_grad_norm=1.0)


if __name__ == "__main__":
    main()
