"""Checkpoints of a run: whole or not there, safetensors and JSON, never pickle.

checkpoints/latest             name of the newest whole checkpoint
checkpoints/epoch-0002/        model.safetensors  optimizer.safetensors  state.json
"""

import json
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn

from trainer.distributed import Process
from trainer.errors import UserError
from trainer.flags import write_json
from trainer.folders import whole_folder
from trainer.predict import Score
from trainer.progress import say

_MAY_CHANGE = {
    "resume",
    "log_steps",
    "timeout_minutes",
}  # settings that another start may change: the model is the same


@dataclass
class TrainingState:
    """How far training is; what a checkpoint's state.json holds besides the settings."""

    epoch: int = 0
    """Epochs finished."""
    step: int = 0
    """Optimizer steps finished."""
    samples: int = 0
    """Rows seen, over all processes."""
    best_epoch: int = 0
    stopped_early: bool = False
    validation: list[dict[str, float]] = field(default_factory=list)
    """Accuracy and loss on the validation rows after each epoch."""

    def count(self, rows: int) -> None:
        """One more step, which saw these rows."""
        self.step += 1
        self.samples += rows

    def finish_epoch(self, found: Score, *, patience: int | None) -> None:
        """One more epoch; the best has the highest accuracy and, of equals, the lowest loss."""
        self.epoch += 1
        self.validation.append({"epoch": self.epoch, "loss": found.loss, "accuracy": found.accuracy})
        best = max(self.validation, key=lambda found: (found["accuracy"], -found["loss"]))
        self.best_epoch = int(best["epoch"])
        self.stopped_early = patience is not None and self.epoch - self.best_epoch >= patience

    def conclusion(self) -> str:
        ended = (
            f"stopped after epoch {self.epoch}, no better since"
            if self.stopped_early
            else f"{self.epoch} epochs done, the best is"
        )
        accuracy = self.validation[self.best_epoch - 1]["accuracy"]
        return f"{ended} epoch {self.best_epoch} with validation accuracy {accuracy:.4f}"


def resume(
    output: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    made_with: dict[str, Any],
    process: Process,
    start_over: bool,
) -> TrainingState:
    """Put the latest checkpoint into model and optimizer and say where training goes on; without one, it starts.

    UserError when it was made with other settings: the same command would have given another model.
    """
    folder = output / "checkpoints"
    if start_over and folder.exists() and process.is_main:
        aside = output / time.strftime("before-%Y%m%d-%H%M%S")
        aside.mkdir()
        for name in ("checkpoints", "logs"):
            (output / name).rename(aside / name)
        say(f"train: starting over; the earlier checkpoints and logs are in {aside}")
    dist.barrier()
    pointer = folder / "latest"
    if not pointer.is_file():
        return TrainingState()
    checkpoint = folder / pointer.read_text(encoding="utf-8")
    saved = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    for name, now in made_with.items():
        then = saved["made_with"].get(name)
        if now != then and name not in _MAY_CHANGE:
            raise UserError(
                f"{checkpoint} was made with {name} = {then}, now it is {now}: "
                f"give {then} again to go on, or --resume never to start over and keep the earlier checkpoints aside"
            )
    restore(checkpoint, model, optimizer, saved["param_groups"])
    state = TrainingState(**saved["state"])
    if process.is_main:
        say(
            f"train: going on from {checkpoint}: {state.epoch} epochs, {state.step:,} steps, {state.samples:,} rows seen"
        )
    return state


def save_checkpoint(
    folder: Path, state: TrainingState, model: nn.Module, optimizer: torch.optim.Optimizer, *, made_with: dict[str, Any]
) -> None:
    """Write one, then point `latest` at it, then remove what is neither the latest nor the best epoch."""
    name = _name(state.epoch)
    with whole_folder(folder / name) as target:
        save_file(model.state_dict(), target / "model.safetensors")
        tensors, groups = _flatten(optimizer.state_dict())
        save_file(tensors, target / "optimizer.safetensors")
        write_json(target / "state.json", {"state": asdict(state), "made_with": made_with, "param_groups": groups})
    point = folder / ".latest.tmp"
    point.write_text(name, encoding="utf-8")
    point.replace(folder / "latest")
    for other in folder.glob("epoch-*"):
        if other.name not in (name, _name(state.best_epoch)):
            shutil.rmtree(other)


def restore(
    checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer, param_groups: list[dict[str, Any]]
) -> None:
    """Put a checkpoint's weights and optimizer state into these."""
    model.load_state_dict(load_file(checkpoint / "model.safetensors"))
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(checkpoint / "optimizer.safetensors").items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": param_groups})


def load_best(folder: Path, state: TrainingState, model: nn.Module) -> None:
    """Put the weights of the best epoch into the model."""
    model.load_state_dict(load_file(folder / _name(state.best_epoch) / "model.safetensors"))


def _flatten(state: dict[str, Any]) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    tensors = {f"{number}.{name}": tensor for number, entry in state["state"].items() for name, tensor in entry.items()}
    return tensors, state["param_groups"]


def _name(epoch: int) -> str:
    return f"epoch-{epoch:04}"
