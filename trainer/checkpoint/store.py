"""Checkpoints on disk, complete or absent, with the sha256 of each file; safetensors and JSON, never pickle.

checkpoints/latest                        name of the newest
checkpoints/epoch-0002/                   after an epoch: model.safetensors optimizer.safetensors state.json manifest.json
checkpoints/epoch-0002-step-00000900/     in mid-epoch: after 2 epochs and 900 steps in all
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from server.errors import UserError
from server.files import atomic_directory, disk_errors, fsync, read_json, recover_directory, write_json
from trainer.monitoring.console import print0

FORMAT = 3
"""Number of this layout. Format 1, which named no number, had the optimizer's tensors by number; format 2 did not name the chosen schedule."""
MANIFEST = "manifest.json"
_FIX = "bring the checkpoint back from a copy, or start over with --resume never"
_NAME = re.compile(r"epoch-\d{4,}(-step-\d{8,})?")
_UNFINISHED = re.compile(rf"\.({_NAME.pattern})\.\d+\.(tmp|old|removed)")


@dataclass(frozen=True)
class Snapshot:
    """A copy of all that a checkpoint holds: training may change the originals."""

    name: str
    state: dict[str, Any]
    provenance: dict[str, Any]
    best: list[str]
    """Names of the checkpoints of the best epochs, which are kept."""
    model: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    """Moments by "<parameter>.<moment>"."""
    param_groups: list[dict[str, Any]]


def write(folder: Path, snapshot: Snapshot, *, keep_last: int) -> None:
    """Writes a checkpoint, then points `latest` at it, then removes those that are neither among the last nor the best."""
    _keep_copy(folder / snapshot.name)
    with atomic_directory(folder / snapshot.name) as target:
        for name, tensors in (("model", snapshot.model), ("optimizer", snapshot.optimizer)):
            with disk_errors(target / f"{name}.safetensors"):
                save_file(tensors, target / f"{name}.safetensors")
        facts = {"state": snapshot.state, "provenance": snapshot.provenance, "param_groups": snapshot.param_groups}
        write_json(target / "state.json", {"format": FORMAT, **facts})
        files = {
            file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in sorted(target.iterdir())
        }
        write_json(target / MANIFEST, {"files": files})
    _point(folder, snapshot.name)
    there = names(folder)
    kept = {*snapshot.best, *(epoch_name(_best_epoch(folder / name)) for name in there[:keep_last])}
    for other in there[keep_last:]:
        if other not in kept:
            _remove(folder / other)


def _keep_copy(checkpoint: Path) -> None:
    """Renames a user's copy of another checkpoint that has the name of one about to be written."""
    if (written := _name_in(checkpoint)) not in (checkpoint.name, ""):
        aside = checkpoint.rename(checkpoint.with_name(f"copy-of-{written}-{os.getpid()}"))
        print0(f"train: warning: {checkpoint} is a copy of {written}; it is now {aside.name}")


def _best_epoch(checkpoint: Path) -> int:
    """Returns the epoch whose weights a training that resumes from here may need; 0 where none has ended."""
    try:
        return int(read_json(checkpoint / "state.json", fix=_FIX)["state"]["best_epoch"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0  # a damaged one, which a resume passes over


def _remove(folder: Path) -> None:
    """Removes a checkpoint, by another name first, so that it is complete or none; what cannot be removed is a warning."""
    try:
        if not folder.name.startswith("."):
            folder = folder.rename(folder.with_name(f".{folder.name}.{os.getpid()}.removed"))
        shutil.rmtree(folder)
    except OSError as error:
        print0(f"train: warning: {folder} cannot be removed: {error.strerror or error}; the next start tries again")


def _point(folder: Path, name: str) -> None:
    temporary = folder / ".latest.tmp"
    temporary.write_text(name, encoding="utf-8")
    fsync(temporary)
    temporary.replace(folder / "latest")
    fsync(folder)


def names(folder: Path) -> list[str]:
    """Lists the names of the checkpoints, the newest first, without copies and notes of a user, under whatever name."""
    found = (path for path in folder.glob("epoch-*") if _NAME.fullmatch(path.name))
    return sorted((path.name for path in found if _name_in(path) in (path.name, "")), reverse=True)


def name_of(state: Mapping[str, Any]) -> str:
    """Names the checkpoint of a state of training."""
    return epoch_name(state["epoch"]) + (f"-step-{state['step']:08}" if state["segments"] else "")


def _name_in(checkpoint: Path) -> str:
    """Returns the name under which a checkpoint was written; "" for a damaged one."""
    try:
        return name_of(read_json(checkpoint / "state.json", fix=_FIX)["state"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def find_damage(checkpoint: Path) -> str:
    """Describes what is torn or changed in a checkpoint; returns "" when each file is the one that was written."""
    try:
        for name, entry in read_json(checkpoint / MANIFEST, fix=_FIX)["files"].items():
            size = (checkpoint / name).stat().st_size
            if size != entry["bytes"]:
                return f"{name} has {size:,} bytes, not {entry['bytes']:,}"
            if (found := _sha256(checkpoint / name)) != entry["sha256"]:
                return f"{name} has the sha256 {found[:12]}…, not {entry['sha256'][:12]}…"
        if (written := _name_in(checkpoint)) not in (checkpoint.name, ""):
            return f"it is a copy of {written}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def check_best(checkpoint: Path) -> None:
    """Raises UserError when the checkpoint of the best epoch, whose weights become the model, is damaged or missing."""
    if damage := "it is missing" if not checkpoint.is_dir() else find_damage(checkpoint):
        raise UserError(
            f"{checkpoint}: the model is made of this checkpoint, of the best epoch, but {damage}; "
            "bring it back from a copy and start again, or start over with --resume never"
        )


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Reads state, provenance and param_groups; UserError for a checkpoint of another format."""
    saved = read_json(checkpoint / "state.json", fix=_FIX)
    if (found := saved.get("format", 1)) != FORMAT:
        raise UserError(
            f"{checkpoint}: has format {found}, and this version resumes format {FORMAT}: "
            "finish the run with the version that began it, or start over with --resume never"
        )
    return saved


def read_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = load_file(checkpoint / "model.safetensors")
    return weights


def read_moments(checkpoint: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Reads the optimizer's tensors by parameter."""
    moments: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(checkpoint / "optimizer.safetensors").items():
        parameter, _, name = key.rpartition(".")
        moments.setdefault(parameter, {})[name] = tensor
    return moments


def remove_unfinished(folder: Path) -> None:
    """Removes what a killed process had begun to write; a checkpoint that it was replacing is brought back first."""
    for path in sorted(folder.glob(".epoch-*")):
        if (found := _UNFINISHED.fullmatch(path.name)) and path.suffix == ".old":
            recover_directory(folder / found[1])
        if found and path.exists():
            _remove(path)


def quarantine(checkpoint: Path) -> Path:
    """Renames a damaged checkpoint, so that no start reads it again."""
    return checkpoint.rename(checkpoint.with_name(f"corrupt-{checkpoint.name}-{os.getpid()}"))


def epoch_name(epoch: int) -> str:
    return f"epoch-{epoch:04}"


def copied(value: Any) -> Any:  # noqa: ANN401 - JSON
    return json.loads(json.dumps(value))


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
