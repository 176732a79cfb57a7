"""A quick training that stops where a test wants it, and a sampler of random lengths."""

from pathlib import Path

import numpy as np
import pytest

from trainer.config import TrainConfig
from trainer.data.batches import BatchSampler
from trainer.data.dataset import Dataset
from trainer.distributed.process_group import Process, seed_step
from trainer.train import train

QUICK = TrainConfig(epochs=2, batch_size=32, precision="fp32", log_steps=1, checkpoint_steps=4)
LENGTHS = np.random.default_rng(0).integers(5, 120, size=1003).astype(np.int32)


def sampler(
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    accumulation_steps: int = 1,
    seed: int = 0,
    packed: bool = False,
) -> BatchSampler:
    config = TrainConfig(batch_size=batch_size, accumulation_steps=accumulation_steps, seed=seed)
    return BatchSampler(LENGTHS, config, rank=rank, world_size=world_size, packed=packed)


def stopped_at(step: int, config: TrainConfig, dataset: Dataset, output: Path, process: Process) -> None:
    """Trains until this step begins, and ends there with an exception."""
    with pytest.MonkeyPatch.context() as patched:
        begun = iter(range(10_000))

        def end(seed: int, *, step: int, rank: int) -> None:
            if next(begun) == wanted:
                raise KeyboardInterrupt
            seed_step(seed, step=step, rank=rank)

        wanted = step
        patched.setattr("trainer.train.seed_step", end)
        with pytest.raises(KeyboardInterrupt):
            train(config, dataset, output, process)
