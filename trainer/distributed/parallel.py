"""How processes train one model: replicated (ddp), sharded (fsdp), or sharded in a machine and replicated over machines (hsdp)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import GradBucket  # as torch.distributed has it, which mypy does not see
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm
from transformers import PreTrainedModel

from server.errors import UserError
from trainer.config import TrainConfig
from trainer.distributed.process_group import Process

_POWER_SGD_RANK = 4
_POWER_SGD_START = 100  # first step to compress: gradients before it compress badly


def parallelize(model: PreTrainedModel, config: TrainConfig, process: Process) -> nn.Module:
    """The model as the processes train it together, with the same outputs; a sharded one is the model itself, changed."""
    check(config, process, backend=dist.get_backend())
    if config.strategy == "ddp":
        return _replicate(model, config, process)
    mesh = _mesh(config, process)
    for layers in (module for module in model.modules() if isinstance(module, nn.ModuleList)):
        for layer in layers:
            fully_shard(layer, mesh=mesh)  # gathered and freed one at a time
    return cast("nn.Module", fully_shard(model, mesh=mesh))


def check(config: TrainConfig, process: Process, *, backend: str) -> None:
    """UserError for what these processes cannot do together."""
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
    """PowerSGD sends again when what it sent has come. With Gloo, two buckets under way would send in an order of their own in each process."""
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
    """Of the mean gradients, the same in all processes."""
    return whole_tensor(get_total_norm([one.grad for one in model.parameters() if one.grad is not None])).detach()


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor without shards, put together on all processes; itself where it has none."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole(tensors: dict[str, torch.Tensor], *, keep: bool) -> dict[str, torch.Tensor]:
    """The same without shards: each put together on all processes, one at a time, and kept where it is asked for."""
    found = {}
    for name, tensor in tensors.items():
        gathered = whole_tensor(tensor)
        if keep:
            found[name] = gathered
    return found


def whole_optimizer_state(optimizer: torch.optim.Optimizer, *, keep: bool) -> dict[str, Any]:
    """Its state_dict without shards; a collective call where there are some."""
    state = optimizer.state_dict()
    return {**state, "state": {number: whole(entry, keep=keep) for number, entry in state["state"].items()}}


def put_weights(model: nn.Module, saved: dict[str, torch.Tensor]) -> None:
    """Put whole tensors into a model, of which each process takes its shards."""
    now = model.state_dict()
    model.load_state_dict({name: _shard_like(tensor, now.get(name)) for name, tensor in saved.items()})


def put_optimizer_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Put a whole state_dict into the state that an optimizer has, of which each process takes its shards."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, entry in saved["state"].items():
        for name, tensor in entry.items():
            there = optimizer.state[parameters[number]][name]
            there.copy_(_shard_like(tensor, there))
    for group, kept in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        group.update({name: value for name, value in kept.items() if name != "params"})


def _shard_like(tensor: torch.Tensor, like: torch.Tensor | None) -> torch.Tensor:
    if not isinstance(like, DTensor):
        return tensor
    placed = tensor.to(like.device)
    return distribute_tensor(
        placed, like.device_mesh, like.placements, src_data_rank=None
    )  # every process has the file
