"""AdamW's groups, the learning rate schedule and the number format."""

import platform

import torch
from torch import nn

from trainer.config import TrainConfig

_PEAK_LEARNING_RATE = 5e-5  # of pretrained encoders: Devlin et al. 2019, appendix A.3
_TINY_PEAK_LEARNING_RATE = 1e-3  # random weights have further to go


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Makes a fused AdamW that decays matrices, but neither biases nor norms."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=peak_learning_rate(config), fused=True)


def peak_learning_rate(config: TrainConfig) -> float:
    if config.learning_rate is not None:
        return config.learning_rate
    return _TINY_PEAK_LEARNING_RATE if config.model == "tiny" else _PEAK_LEARNING_RATE


def schedule(step: float, total_steps: float, config: TrainConfig) -> float:
    """Returns the learning rate of a step, counted from 0: up in a line over the warm-up, then down in a line to 0.

    Steps are counted in rows seen, so that a resume with another number of rows a step continues the same line.
    """
    warmup_steps = round(total_steps * config.warmup_fraction)
    if step < warmup_steps:
        return peak_learning_rate(config) * (step + 1) / warmup_steps
    return peak_learning_rate(config) * (total_steps - step) / max(total_steps - warmup_steps, 1)


def choose_precision(precision: str, device: torch.device) -> tuple[torch.dtype, str]:
    """Chooses the number format of the forward pass; returns it with the reason."""
    native = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else _cpu_has_bf16()
    if precision == "fp32" or (precision == "auto" and not native):
        return torch.float32, "as set" if precision == "fp32" else "this processor does not compute in bf16"
    if native:
        return torch.bfloat16, "this processor computes in bf16" if precision == "auto" else "as set"
    return torch.bfloat16, "as set, though this processor only emulates it and fp32 would be faster"


def _cpu_has_bf16() -> bool:
    if platform.machine().lower() in ("arm64", "aarch64"):
        available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # not in macOS' builds
        return available and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001 - has no public name
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # noqa: SLF001 - has no public name
