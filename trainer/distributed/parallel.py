"""One model on all processes: replicated (ddp), sharded (fsdp), or sharded in a machine and replicated over machines (hsdp)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import GradBucket  # as torch.distributed has it, which mypy does not see
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm
from transformers import PreTrainedModel

from server.errors import UserError
from trainer.config import TrainConfig
from trainer.distributed.process_group import Process

_POWER_SGD_RANK = 4
_POWER_SGD_START = 100  # first step to compress: gradients before it compress badly


def parallelize(model: PreTrainedModel, config: TrainConfig, process: Process) -> nn.Module:
    """Returns the model as the processes train it together, with the same outputs; to shard it changes the model itself."""
    check(config, process, backend=dist.get_backend())
    if config.strategy == "ddp":
        return _replicate(model, config, process)
    mesh = _mesh(config, process)
    for layers in (module for module in model.modules() if isinstance(module, nn.ModuleList)):
        for layer in layers:
            fully_shard(layer, mesh=mesh)  # gathered and freed one at a time
    return cast("nn.Module", fully_shard(model, mesh=mesh))


def check(config: TrainConfig, process: Process, *, backend: str) -> None:
    """Raises a UserError for settings that these processes cannot follow."""
    if config.gradient_compression == "bf16" and backend != "nccl":
        raise UserError(
            f"--gradient-compression bf16: {backend} does not add bf16 over processes, NCCL does; choose fp16, powersgd or none"
        )
    if config.shard_ranks is not None and process.world_size % config.shard_ranks:
        raise UserError(f"--shard-ranks {config.shard_ranks}: does not divide the {process.world_size} processes")


def _replicate(model: PreTrainedModel, config: TrainConfig, process: Process) -> nn.Module:
    if process.world_size == 1:  # nothing to exchange
        return model
    replica = DistributedDataParallel(model, gradient_as_bucket_view=True)
    if config.gradient_compression == "powersgd":
        state = powerSGD_hook.PowerSGDState(None, _POWER_SGD_RANK, _POWER_SGD_START)
        in_order = powerSGD_hook.powerSGD_hook if process.device.type == "cuda" else _power_sgd_bucket_by_bucket
        replica.register_comm_hook(state, in_order)
    elif config.gradient_compression != "none":
        hooks = {"fp16": default_hooks.fp16_compress_hook, "bf16": default_hooks.bf16_compress_hook}
        replica.register_comm_hook(dist.group.WORLD, hooks[config.gradient_compression])
    return replica


def _power_sgd_bucket_by_bucket(
    state: powerSGD_hook.PowerSGDState, bucket: GradBucket
) -> torch.futures.Future[torch.Tensor]:
    """Compresses one bucket at a time: with Gloo, two buckets in flight would send in another order in each process."""
    future = powerSGD_hook.powerSGD_hook(state, bucket)
    future.wait()
    return future


def _mesh(config: TrainConfig, process: Process) -> DeviceMesh:
    if config.strategy == "fsdp":
        return init_device_mesh(process.device.type, (process.world_size,), mesh_dim_names=("shard",))
    shard = config.shard_ranks or process.local_world_size
    return init_device_mesh(
        process.device.type, (process.world_size // shard, shard), mesh_dim_names=("replicate", "shard")
    )


@contextmanager
def gradient_sync(model: nn.Module, *, when: bool) -> Iterator[None]:
    """Lets processes exchange gradients in the backward passes of the block, or keeps them apart."""
    if isinstance(model, DistributedDataParallel) and not when:
        with model.no_sync():
            yield
        return
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(when)
    yield


def gradient_norm(model: nn.Module) -> torch.Tensor:
    """Returns the norm of the mean gradients, the same in all processes."""
    norm = get_total_norm([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).detach()
