"""Optimizer, learning rate schedule, number format, and the meter of a training run."""

import math
import time
from typing import Self

import torch
import torch.distributed as dist
from torch import nn

from trainer.config import TrainConfig

_PEAK_LEARNING_RATE = 5e-5  # of pretrained encoders: Devlin et al. 2019, appendix A.3
_TINY_PEAK_LEARNING_RATE = 1e-3  # random weights have further to go


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW, of what `parallelize` made, that decays matrices, but neither biases nor norms; its moments are there from the start."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=peak_learning_rate(config), fused=True)
    for parameter in trained:  # else the first step would make them, in the room that later steps need for activations
        moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}
    return optimizer


def clip(optimizer: torch.optim.Optimizer, norm: torch.Tensor, *, max_norm: float) -> None:
    """Have the next fused step divide gradients of this norm so that it is `max_norm` at most: one pass over them less than to scale them first."""
    optimizer.grad_scale = (norm / max_norm).clamp(min=1)  # type: ignore[attr-defined]  # what GradScaler sets, too


def peak_learning_rate(config: TrainConfig) -> float:
    if config.learning_rate is not None:
        return config.learning_rate
    return _TINY_PEAK_LEARNING_RATE if config.model == "tiny" else _PEAK_LEARNING_RATE


def schedule(step: float, total_steps: float, config: TrainConfig) -> float:
    """Learning rate of a step, counted from 0: up in a line over the warm-up, then down in a line to 0.

    Steps are counted in rows seen, so that another number of rows a step goes on where it was.
    """
    warmup_steps = round(total_steps * config.warmup_fraction)
    if step < warmup_steps:
        return peak_learning_rate(config) * (step + 1) / warmup_steps
    return peak_learning_rate(config) * (total_steps - step) / max(total_steps - warmup_steps, 1)


def choose_precision(precision: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The number format of the forward pass, and the reason in words."""
    native = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else _cpu_has_bf16()
    if precision == "fp32" or (precision == "auto" and not native):
        return torch.float32, "as set" if precision == "fp32" else "this processor does not compute in bf16"
    if native:
        return torch.bfloat16, "this processor computes in bf16" if precision == "auto" else "as set"
    return torch.bfloat16, "as set, though this processor only emulates it and fp32 would be faster"


def _cpu_has_bf16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # noqa: SLF001 - has no public name


class Meter:
    """Sums loss, rows and tokens on the device; they are read, over all processes, only when logged."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)
        self._since = time.perf_counter()

    def add(self, loss_sum: torch.Tensor, *, rows: int, tokens: int) -> None:
        finite = torch.isfinite(loss_sum.detach())
        self._sums[0] += torch.where(finite, loss_sum.detach(), 0)
        self._sums[1] += rows * finite
        self._sums[2] += (
            rows  # a number goes along with the kernel; a tensor made of it would have the device waited for
        )
        self._sums[3] += tokens

    def read(self) -> dict[str, float]:
        """Mean loss of what was finite, samples/s and tokens/s since the last reading; a collective call."""
        dist.all_reduce(self._sums)
        loss, of_rows, rows, tokens = self._sums.tolist()  # waits for the device: only when logging
        seconds = time.perf_counter() - self._since
        self.restart()
        mean = loss / of_rows if of_rows else math.nan
        return {"loss": mean, "samples_per_second": rows / seconds, "tokens_per_second": tokens / seconds}

    def shares(self) -> list[list[float]]:
        """What each process has counted since the last reading, and for how many seconds; a collective call."""
        seconds = torch.tensor([time.perf_counter() - self._since], dtype=torch.float64, device=self._sums.device)
        own = torch.cat([self._sums, seconds])
        found = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(found, own)
        return [share.tolist() for share in found]

    def take(self, shares: list[list[float]]) -> Self:
        """Go on from what `shares` said; where there were more or fewer processes, the first goes on for all."""
        rank, shape = dist.get_rank(), (-1, len(self._sums) + 1)
        kept = torch.tensor(shares, dtype=torch.float64, device=self._sums.device).reshape(shape)
        if len(kept) == dist.get_world_size():
            self._sums.copy_(kept[rank, :-1])
        elif rank == 0:
            self._sums.copy_(kept[:, :-1].sum(dim=0))
        self._since = time.perf_counter() - max((share[-1] for share in shares), default=0.0)
        return self

    def restart(self) -> None:
        """Count from here, so that what was not training is not counted."""
        self._sums.zero_()
        self._since = time.perf_counter()
