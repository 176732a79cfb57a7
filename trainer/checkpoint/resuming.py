"""Where training goes on: the newest whole checkpoint, made with the same settings; the main process finds it, all follow."""

import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from server.errors import UserError
from trainer.checkpoint.state import TrainState
from trainer.checkpoint.store import names, put_aside, read_state, remove_unfinished, restore, what_is_wrong
from trainer.config import NOT_OF_THE_MODEL, TrainConfig
from trainer.distributed.process_group import Process
from trainer.monitoring.console import print0

_WORLD = ("world_size", "batch_size", "accumulation_steps")  # what --allow-changed-world allows to change


def resume(
    output: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    config: TrainConfig,
    made_with: dict[str, Any],
    process: Process,
) -> TrainState:
    """Put the newest whole checkpoint into model and optimizer and say where training goes on; without one, it starts.

    UserError when it was made with other settings: the same command would have given another model.
    """
    found: list[str | None] = [None, None]  # a checkpoint, and why there can be none
    if process.is_main:
        try:
            found[0] = _find(output, config, made_with)
        except UserError as error:
            found[1] = str(error)
    dist.broadcast_object_list(found, src=0, device=process.device)
    if found[1]:
        raise UserError(found[1])
    if not found[0]:
        return TrainState()
    state = restore(Path(found[0]), model, optimizer)
    if process.is_main:
        print0(
            f"train: going on from {found[0]}: {state.epoch} epochs, {state.step:,} steps, {state.samples:,} rows seen"
        )
    return state


def _find(output: Path, config: TrainConfig, made_with: dict[str, Any]) -> str | None:
    folder = output / "checkpoints"
    if config.resume == "never" and folder.exists():
        _start_over(output)
    remove_unfinished(folder)
    there = names(folder)
    for name in there:
        if wrong := what_is_wrong(folder / name):
            aside = put_aside(folder / name)
            print0(
                f"train: warning: {folder / name} is not whole: {wrong}; it is now {aside.name}, the one before is used"
            )
            continue
        _compare(folder / name, made_with, changed_world=config.allow_changed_world)
        return str(folder / name)
    if there:
        raise UserError(
            f"{folder}: none of {len(there)} checkpoints is whole, see the warnings above; "
            "bring one back, or start over with --resume never"
        )
    return None


def _start_over(output: Path) -> None:
    aside = output / time.strftime("before-%Y%m%d-%H%M%S")
    aside.mkdir()
    for name in ("checkpoints", "logs"):
        if (output / name).exists():
            (output / name).rename(aside / name)
    print0(f"train: starting over; the earlier checkpoints and logs are in {aside}")


def _compare(checkpoint: Path, made_with: dict[str, Any], *, changed_world: bool) -> None:
    saved = read_state(checkpoint)["made_with"]
    for name, now in made_with.items():
        then = saved.get(name)
        if now == then or name in NOT_OF_THE_MODEL:
            continue
        if name in _WORLD and changed_world:
            print0(f"train: {name} was {then}, now it is {now}: going on with the rows that this epoch has left")
            continue
        other = "--allow-changed-world to go on with the rows that are left, " if name in _WORLD else ""
        raise UserError(
            f"{checkpoint} was made with {name} = {then}, now it is {now}: "
            f"give {then} again to go on, {other}or --resume never to start over and keep the earlier checkpoints aside"
        )
