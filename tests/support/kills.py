"""A run that is killed at random steps, again and again, beside the same run left alone."""

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.support.ranks import Hook, Ranks, steps_done, wait_for
from trainer.monitoring.training_log import read_log


@dataclass(frozen=True)
class Killed:
    at: list[int]
    """The step that was the last in the log when all processes were killed, of each kill."""
    losses_equal: bool
    weights_equal: bool
    steps: int


def kill_and_compare(
    dataset: Path, folder: Path, *, kills: int, seed: int, flags: list[str], world_size: int = 2, hook: Hook | None = None
) -> Killed:  # fmt: skip
    """Trains twice with these processes; the second run is killed with SIGKILL, all processes at once, at random moments."""
    chance = random.Random(seed)
    whole, killed = folder / "whole", folder / "killed"
    common = ["--dataset", str(dataset), "--log-steps", "1", "--checkpoint-steps", "1", *flags]
    with Ranks(whole, [*common, "--output", str(whole)], world_size=world_size, hook=hook) as ranks:
        assert ranks.wait(600) == [0] * world_size, ranks.log
    steps, at = steps_done(whole), list[int]()
    for number in range(kills):
        with Ranks(killed, [*common, "--output", str(killed)], world_size=world_size, hook=hook) as ranks:
            here = at[-1] if at else 0
            target = chance.randint(here + 1, max(here + 1, here + 2 * (steps - here) // (kills - number + 1)))
            wait_for(lambda target=target: steps_done(killed) >= target, ranks)  # type: ignore[misc]
            time.sleep(chance.random() * 0.05)  # anywhere in a step, or in the writing of a checkpoint
            ranks.kill()
        at.append(steps_done(killed))
    with Ranks(killed, [*common, "--output", str(killed)], world_size=world_size, hook=hook) as ranks:
        assert ranks.wait(600) == [0] * world_size, ranks.log
    return Killed(at, losses(whole) == losses(killed), same_weights(whole, killed), steps)


def losses(run: Path) -> list[Any]:
    """Returns the measurements of each step, without speeds."""
    lines = [line for line in read_log(run / "logs") if line["kind"] in ("train", "validation")]
    return [
        {name: value for name, value in line.items() if name != "time" and "per_second" not in name} for line in lines
    ]


def same_weights(one: Path, other: Path) -> bool:
    weights = [load_file(run / "model" / "model.safetensors") for run in (one, other)]
    return weights[0].keys() == weights[1].keys() and all(
        torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items()
    )
