"""Whether a training left a whole model, and the one that it was asked for."""

import json
from pathlib import Path

from trainer.config import NOT_OF_THE_MODEL, TrainConfig

_HEADER = 8  # bytes that say how long the header of a safetensors file is


def what_is_wrong(model: Path, train: TrainConfig) -> str:
    """What the folder lacks, in words; empty when it is whole."""
    if not model.is_dir():
        return f"{model} is not there: is the volume of the job mounted here?"
    for name in ("config.json", "tokenizer.json", "train_config.json"):
        try:
            json.loads((model / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            return f"{model / name} is missing or broken: {error}"
    if why := _weights(model / "model.safetensors"):
        return why
    made_with = json.loads((model / "train_config.json").read_text(encoding="utf-8")).get("settings", {})
    for name, wanted in train.model_dump(mode="json").items():
        if name not in NOT_OF_THE_MODEL and made_with.get(name) != wanted:
            return f"{model} was made with {name} = {made_with.get(name)!r}, not {wanted!r}: it is of another training"
    return ""


def _weights(file: Path) -> str:
    """A safetensors file says in its header where each tensor ends; the last has to end where the file does."""
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
    return (
        ""
        if size == _HEADER + length + end
        else f"{file} has {size:,} bytes, not {_HEADER + length + end:,}: it is cut off"
    )
