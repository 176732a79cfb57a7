"""Memory of a rank in training stays constant, whatever the number of steps and of lengths."""

import ctypes
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.benchmarks.record import memory
from tests.support.ranks import in_ranks
from trainer.config import TrainConfig
from trainer.data.batches import Step
from trainer.data.dataset import Dataset
from trainer.distributed.process_group import process_group
from trainer.model.classifier import build_trainable
from trainer.model.optimizer import make_optimizer
from trainer.train import forward_backward, optimizer_step

_MB_MORE = 30  # with the libraries' own limits it is 240


def learn_from_many_shapes(folder: Path) -> None:
    """Each step has a number of rows and a length that none had before it."""
    dataset = Dataset(folder)
    with process_group(timeout_minutes=1) as process:
        config = TrainConfig(precision="bf16")
        model = build_trainable(config, dataset, process)
        optimizer = make_optimizer(model, config)
        lengths, places = np.unique(dataset.train.lengths, return_index=True)
        assert len(lengths) > 20
        seen = []
        for number, (count, row) in enumerate(itertools.product((8, 9, 10), places[-21:])):
            batch = np.full(count, row)
            forward_backward(model, Step([batch], batch, packed=True), dataset, process, torch.bfloat16)
            optimizer_step(model, optimizer, 1e-5, max_grad_norm=1.0)
            if number in (12, 62):
                ctypes.CDLL(None).malloc_trim(0)  # the rest is in use
                seen.append(memory("RssAnon"))
        assert seen[1] - seen[0] < _MB_MORE, seen


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and calls glibc")
@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_steps_and_of_lengths(dataset_folder: Path) -> None:
    in_ranks(learn_from_many_shapes, dataset_folder, world_size=1)
