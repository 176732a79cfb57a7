"""Checkpoints on disk: whole or not there, each file with its sha256; safetensors and JSON, never pickle.

checkpoints/latest                        name of the newest
checkpoints/epoch-0002/                   after an epoch: model.safetensors optimizer.safetensors state.json manifest.json
checkpoints/epoch-0002-step-00000900/     in mid-epoch: 2 epochs and, in all, 900 steps are done
"""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from server.files import atomic_directory, disk_errors, fsync, recover_directory, write_json
from trainer.checkpoint.state import TrainState
from trainer.distributed.parallel import put_optimizer_state, put_weights

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Snapshot:
    """All that a checkpoint holds, copied: training may go on and change the originals."""

    name: str
    state: dict[str, Any]
    made_with: dict[str, Any]
    best: list[str]
    """Names of the checkpoints of the best epochs, which are kept."""
    model: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    param_groups: list[dict[str, Any]]


def snapshot(
    state: TrainState,
    weights: dict[str, torch.Tensor],
    optimizer_state: dict[str, Any],
    *,
    made_with: dict[str, Any],
    keep_best: int,
) -> Snapshot:
    return Snapshot(
        name=epoch_name(state.epoch) + (f"-step-{state.step:08}" if state.parts else ""),
        state=json.loads(json.dumps(asdict(state))),
        made_with=made_with,
        best=[epoch_name(epoch) for epoch in state.best_epochs(keep_best)],
        model={name: _copied(tensor) for name, tensor in weights.items()},
        optimizer={
            f"{number}.{name}": _copied(tensor)
            for number, entry in optimizer_state["state"].items()
            for name, tensor in entry.items()
        },
        param_groups=json.loads(json.dumps(optimizer_state["param_groups"])),
    )


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def write(folder: Path, taken: Snapshot, *, keep_last: int) -> None:
    """Write a checkpoint, then point `latest` at it, then remove those that are neither among the last nor the best."""
    with atomic_directory(folder / taken.name) as target:
        for name, tensors in (("model", taken.model), ("optimizer", taken.optimizer)):
            with disk_errors(target / f"{name}.safetensors"):
                save_file(tensors, target / f"{name}.safetensors")
        how = {"state": taken.state, "made_with": taken.made_with, "param_groups": taken.param_groups}
        write_json(target / "state.json", how)
        files = {
            file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in sorted(target.iterdir())
        }
        write_json(target / MANIFEST, {"files": files})
    _point(folder, taken.name)
    for other in names(folder)[keep_last:]:
        if other not in taken.best:
            shutil.rmtree(folder / other)


def _point(folder: Path, name: str) -> None:
    temporary = folder / ".latest.tmp"
    temporary.write_text(name, encoding="utf-8")
    fsync(temporary)
    temporary.replace(folder / "latest")
    fsync(folder)


def names(folder: Path) -> list[str]:
    """Names of the checkpoints that are there, the newest first."""
    return sorted((path.name for path in folder.glob("epoch-*")), reverse=True)


def what_is_wrong(checkpoint: Path) -> str:
    """What is torn or changed in a checkpoint, in words; empty when each file is the one that was written."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, entry in files.items():
            size = (checkpoint / name).stat().st_size
            if size != entry["bytes"]:
                return f"{name} has {size:,} bytes, not {entry['bytes']:,}"
            if (found := _sha256(checkpoint / name)) != entry["sha256"]:
                return f"{name} has the sha256 {found[:12]}…, not {entry['sha256'][:12]}…"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def read_state(checkpoint: Path) -> dict[str, Any]:
    saved: dict[str, Any] = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    return saved


def restore(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainState:
    """Put a checkpoint's weights and optimizer state into these, and say how far it is."""
    put_weights(model, read_weights(checkpoint))
    saved, state = read_state(checkpoint), dict[int, dict[str, torch.Tensor]]()
    for key, tensor in load_file(checkpoint / "optimizer.safetensors").items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = tensor
    put_optimizer_state(optimizer, {"state": state, "param_groups": saved["param_groups"]})
    return TrainState(**saved["state"])


def read_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = load_file(checkpoint / "model.safetensors")
    return weights


def remove_unfinished(folder: Path) -> None:
    """Removes the incomplete checkpoints of a process that was killed, and keeps the one that it was replacing."""
    for path in folder.glob(".epoch-*.old"):
        recover_directory(folder / path.name.split(".")[1])
    for path in folder.glob(".epoch-*"):
        shutil.rmtree(path)


def put_aside(checkpoint: Path) -> Path:
    """Rename a torn checkpoint, so that it is looked at by people alone."""
    aside = checkpoint.with_name(f"torn-{checkpoint.name}-{os.getpid()}")
    return checkpoint.rename(aside)


def epoch_name(epoch: int) -> str:
    return f"epoch-{epoch:04}"


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
