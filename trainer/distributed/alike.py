"""Whether all ranks are about to do the same: asked once, before the first step."""

import platform
from importlib.metadata import version
from typing import Any

import torch.distributed as dist

from server.errors import UserError
from trainer.config import TrainConfig
from trainer.data.dataset import Dataset

_LIBRARIES = ("distrinews", "torch", "transformers", "tokenizers", "safetensors", "numpy")


def environment() -> dict[str, str]:
    """Versions that the result depends on."""
    return {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}}


def check_ranks_agree(config: TrainConfig, dataset: Dataset) -> None:
    """UserError that says which rank has what, where they differ in versions, settings or data."""
    own = {**environment(), **config.model_dump(mode="json"), "dataset": dataset.fingerprint}
    found: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(found, own)
    if differences := [_who_has_what(name, found) for name in own if any(rank[name] != own[name] for rank in found)]:
        raise UserError(f"the processes of this training differ: {'; '.join(differences)}")


def _who_has_what(name: str, found: list[dict[str, Any]]) -> str:
    ranks: dict[str, list[int]] = {}
    for rank, values in enumerate(found):
        ranks.setdefault(str(values[name]), []).append(rank)
    return f"{name} is " + ", ".join(f"{value} on rank {', '.join(map(str, who))}" for value, who in ranks.items())
