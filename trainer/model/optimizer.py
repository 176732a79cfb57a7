"""AdamW's groups and the number format."""

import platform

import torch
from torch import nn

from trainer.config import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Makes a fused AdamW that decays matrices, but neither biases nor norms."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, fused=True)  # each step sets its own


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
