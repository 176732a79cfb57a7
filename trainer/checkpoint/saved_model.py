"""Checks that a training left a complete model, and the one that was configured."""

import json
from pathlib import Path

from trainer.config import CHOSEN, NOT_OF_THE_MODEL, TrainConfig

_HEADER = 8  # bytes that hold the length of the header of a safetensors file


def check_saved_model(folder: Path, config: TrainConfig) -> str:
    """Returns the fault of a model folder; empty when it is complete and was trained with these settings."""
    if not folder.is_dir():
        return f"{folder} is not there: is the volume of the job mounted here?"
    for name in ("config.json", "tokenizer.json", "train_config.json"):
        try:
            json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            return f"{folder / name} is missing or broken: {error}"
    if fault := _check_weights(folder / "model.safetensors"):
        return fault
    trained = json.loads((folder / "train_config.json").read_text(encoding="utf-8")).get("settings", {})
    for name, wanted in config.model_dump(mode="json").items():
        chosen = name in CHOSEN and wanted is None
        if name not in NOT_OF_THE_MODEL and not chosen and trained.get(name) != wanted:
            return (
                f"{folder} was trained with {name} = {trained.get(name)!r}, not {wanted!r}: it is of another training"
            )
    return ""


def _check_weights(file: Path) -> str:
    """Returns the fault of a safetensors file: its header has the end of each tensor, the last of which ends the file."""
    try:
        with file.open("rb") as weights:
            length = int.from_bytes(weights.read(_HEADER), "little")
            size = file.stat().st_size
            if length > size:
                return f"{file} is cut off"
            header = json.loads(weights.read(length))
        end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{file} is missing or broken: {error}"
    expected = _HEADER + length + end
    return "" if size == expected else f"{file} has {size:,} bytes, not {expected:,}: it is cut off"
