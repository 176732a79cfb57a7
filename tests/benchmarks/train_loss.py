"""What the reference and our trainer have learned after the same number of rows: validation loss over seeds, of a small model.

python -m tests.benchmarks.train_loss DATASET --rows 6400
"""

import argparse
import json
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
from transformers import PreTrainedModel

from tests.benchmarks.reference_trainer import PaddedTexts, train_reference
from trainer.batches import TrainingPlan
from trainer.cls_only import train_first_position_only
from trainer.config import TrainConfig
from trainer.dataset import Dataset
from trainer.distributed import Process, process_group, seed_step
from trainer.model import build_model
from trainer.optimization import Meter, choose_precision, make_optimizer
from trainer.parallel import parallelize
from trainer.predict import predict, score
from trainer.train import train_step, update

_LEARNING_RATE, _BATCH_ROWS, _SEEDS = 1e-3, 32, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--rows", type=int, default=6400)
    args = parser.parse_args()
    with process_group(timeout_minutes=10) as process:
        dataset = Dataset(args.dataset)
        found: dict[str, list[float]] = {"the reference": [], "ours, fp32": [], "ours, bf16": []}
        for seed in range(_SEEDS):
            for name, losses in found.items():
                model = build_model("tiny", dataset, seed=seed, device=process.device)
                if name == "the reference":
                    data = PaddedTexts(dataset.train, range(args.rows), pad_token_id=dataset.pad_token_id)
                    for _ in train_reference(
                        model, data, batch_size=_BATCH_ROWS, learning_rate=_LEARNING_RATE, seed=seed
                    ):
                        pass
                else:
                    train_ours(model, dataset, process, rows=args.rows, seed=seed, precision=name.split()[-1])
                probabilities = predict(
                    model, dataset.validation, process, pad_token_id=dataset.pad_token_id, what=name
                )
                losses.append(score(probabilities, dataset.validation.labels).loss)
    summary = {name: {"mean": fmean(losses), "sd": stdev(losses)} for name, losses in found.items()}
    print(json.dumps({"rows": args.rows, "seeds": _SEEDS, "loss": summary}))


def train_ours(
    model: PreTrainedModel, dataset: Dataset, process: Process, *, rows: int, seed: int, precision: str
) -> None:
    """The same rows and learning rates as the reference has."""
    config = TrainConfig.model_validate({"precision": precision, "learning_rate": _LEARNING_RATE, "seed": seed})
    train_first_position_only(model)
    wrapped, optimizer = parallelize(model, config, process), make_optimizer(model, config)
    lengths = dataset.train.lengths[np.arange(rows)]
    plan = TrainingPlan(lengths, batch_size=_BATCH_ROWS, accumulation_steps=1, rank=0, world_size=1, seed=seed)
    steps = list(plan.epoch(0))
    dtype, _ = choose_precision(precision, process.device)
    for number, step in enumerate(steps):
        seed_step(seed, step=number, rank=0)
        train_step(wrapped, step, dataset, process, dtype, Meter(process.device))
        update(model, optimizer, learning_rate=_LEARNING_RATE * (1 - number / len(steps)), max_grad_norm=1.0)


if __name__ == "__main__":
    main()
