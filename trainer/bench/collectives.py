"""Latency and bandwidth of collectives at each size, measured by one process of a group.

torchrun --nproc-per-node 2 -m trainer.bench.collectives --output runs/bench
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import numpy as np
import torch
import torch.distributed as dist
from pydantic import BaseModel
from scipy.optimize import least_squares

from server.cli import as_flags, parse
from server.errors import UserError
from trainer.bench.report import Machine, most_ranks, table, this_machine, write
from trainer.bench.settings import CollectivesConfig
from trainer.distributed.launch import launch, worker
from trainer.distributed.process_group import Process, process_group
from trainer.monitoring.console import Progress, print0

OPERATIONS = ("all-reduce", "all-gather", "reduce-scatter", "broadcast")
_BURST_SECONDS = 2e-3  # small messages are timed in bursts, so that the start of a burst is small beside it
_SIZE_SECONDS = 1.0  # for the repetitions of one size
_LEAST_REPETITIONS = 3
_TYPICAL_ERROR = 0.05  # beyond it a point counts less and less: outliers do not bend the line
_NEW_NAMES = hasattr(dist, "all_gather_single")  # since torch 2.13, which warns of the old ones


class Fit(BaseModel):
    """t = α + size/β."""

    latency_seconds: float
    """α."""

    bytes_per_second: float
    """β."""

    median_error: float
    """Half of the points are nearer to the line than this share of their time."""

    worst_error: float


class Point(BaseModel):
    """One operation at one size; `size_bytes` as NCCL-tests count it: of the whole buffer, not of one rank's share."""

    operation: str
    size_bytes: int
    repetitions: int
    seconds: float
    algorithm_bandwidth: float
    bus_bandwidth: float


class Collectives(BaseModel):
    machine: Machine
    ranks: int
    points: list[Point]
    fits: dict[str, Fit]
    not_fitted: dict[str, str]
    """Operations whose times make no line, with the reason."""


def bus_factor(operation: str, ranks: int) -> float:
    """Returns the bus bandwidth for each algorithm bandwidth (size/time), which makes it comparable with the speed of the links.

    All-reduce 2(n-1)/n, all-gather and reduce-scatter (n-1)/n, broadcast 1: NCCL-tests, doc/PERFORMANCE.md.
    """
    factors = {"all-reduce": 2 * (ranks - 1) / ranks, "broadcast": 1.0}
    return factors.get(operation, (ranks - 1) / ranks)


def bench_collectives(config: CollectivesConfig) -> None:
    """Starts the processes that measure; the first of them writes."""
    ranks = config.ranks or most_ranks()
    if ranks < 2:
        raise UserError("collectives need two processes, and this machine has one GPU or core: name --ranks 2 on a CPU")
    launch("trainer.bench.collectives", as_flags(config.model_copy(update={"ranks": ranks})), ranks=ranks)


def measure(config: CollectivesConfig, process: Process) -> Collectives:
    """Measures every operation at every size; returns the same on every process."""
    sizes = [config.min_bytes * 2**power for power in range(64) if config.min_bytes * 2**power <= config.max_bytes]
    points = []
    for operation in OPERATIONS:
        with Progress(f"bench: {operation}", len(sizes), "sizes") as progress:
            for size in sizes:
                points.append(_measure_one(operation, size, config.repetitions, process))
                progress.advance()
                progress.note(size=f"{size:,}")
    fits, not_fitted = _fit_all(points)
    return Collectives(
        machine=this_machine(), ranks=process.world_size, points=points, fits=fits, not_fitted=not_fitted
    )


def fit(sizes: Sequence[int], seconds: Sequence[float]) -> Fit:
    """Returns α and β of t = α + size/β, both ≥ 0, which minimise Σ L(((α + size/β - t) / t / 0.05)²) with L(z) = 2(√(1+z) - 1).

    Errors are relative (weights 1/t²): 4 KB and 256 MB differ by 10⁴ in time, and without weights the largest alone
    would decide. L is the soft L1 loss of scipy.optimize.least_squares: near the line squares, far from it absolute values.
    """
    size, time = np.asarray(sizes, dtype=float), np.asarray(seconds, dtype=float)
    guess = np.array(
        [time.min(), time.max() / size.max()]
    )  # α, 1/β; they differ by 10⁴, so both are counted in guesses
    columns = np.stack([guess[0] / time, guess[1] * size / time], axis=1)
    found = least_squares(
        lambda factors: columns @ factors - 1, x0=[0.5, 0.5], bounds=(0, np.inf), loss="soft_l1", f_scale=_TYPICAL_ERROR,
        xtol=1e-12, ftol=1e-12, gtol=1e-12,
    )  # fmt: skip
    latency, seconds_per_byte = guess * found.x
    if seconds_per_byte * (size.max() - size.min()) < 0.01 * time.max():
        raise UserError(
            f"the times do not grow with the size, from {size.min():,.0f} to {size.max():,.0f} bytes: "
            "there is no bandwidth to find; measure larger messages with --max-bytes"
        )
    errors = np.abs(columns @ found.x - 1)
    return Fit(
        latency_seconds=float(latency), bytes_per_second=float(1 / seconds_per_byte),
        median_error=float(np.median(errors)), worst_error=float(errors.max()),
    )  # fmt: skip


def _fit_all(points: Sequence[Point]) -> tuple[dict[str, Fit], dict[str, str]]:
    """Fits a line to each operation; an operation without one keeps its times."""
    fits, not_fitted = {}, {}
    for operation in OPERATIONS:
        own = [point for point in points if point.operation == operation]
        try:
            fits[operation] = fit([point.size_bytes for point in own], [point.seconds for point in own])
        except UserError as error:
            not_fitted[operation] = str(error)
    return fits, not_fitted


def _measure_one(operation: str, size_bytes: int, repetitions: int, process: Process) -> Point:
    run, size_bytes = _prepare(operation, size_bytes, process)
    _burst(run, 2, process)  # connections and buffers are made at first use
    once = _slowest([_burst(run, 1, process)], process)[0]
    length = max(1, min(50, round(_BURST_SECONDS / once)))
    repetitions = max(_LEAST_REPETITIONS, min(repetitions, round(_SIZE_SECONDS / (once * length))))
    seconds = median(_slowest([_burst(run, length, process) for _ in range(repetitions)], process))
    speed = size_bytes / seconds
    return Point(
        operation=operation, size_bytes=size_bytes, repetitions=repetitions, seconds=seconds,
        algorithm_bandwidth=speed, bus_bandwidth=speed * bus_factor(operation, process.world_size),
    )  # fmt: skip


def _prepare(operation: str, size_bytes: int, process: Process) -> tuple[Callable[[], object], int]:
    """Returns the operation on fp32 buffers of its own, and their true size: a multiple of the number of ranks."""
    share = max(1, size_bytes // (4 * process.world_size))
    whole = torch.zeros(share * process.world_size, device=process.device)
    part = torch.zeros(share, device=process.device)
    gather = dist.all_gather_single if _NEW_NAMES else dist.all_gather_into_tensor
    scatter = dist.reduce_scatter_single if _NEW_NAMES else dist.reduce_scatter_tensor
    operations: dict[str, Callable[[], object]] = {
        "all-reduce": partial(dist.all_reduce, whole),
        "all-gather": partial(gather, whole, part),
        "reduce-scatter": partial(scatter, part, whole),
        "broadcast": partial(dist.broadcast, whole, src=0),
    }
    return operations[operation], whole.nbytes


def _burst(run: Callable[[], object], length: int, process: Process) -> float:
    """Returns the seconds of one of `length` operations in a row, started by all processes together."""
    _wait(process)
    dist.barrier()
    _wait(process)
    begin = time.perf_counter()
    for _ in range(length):
        run()
    _wait(process)
    return (time.perf_counter() - begin) / length


def _wait(process: Process) -> None:
    if process.device.type == "cuda":
        torch.cuda.synchronize(process.device)


def _slowest(seconds: list[float], process: Process) -> list[float]:
    """Returns the time of the slowest process in each repetition."""
    longest = torch.tensor(seconds, dtype=torch.float64, device=process.device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    return list(longest.tolist())


def _report(found: Collectives, config: CollectivesConfig) -> None:
    measured = [
        {
            "operation": point.operation,
            "size (B)": f"{point.size_bytes:,}",
            "repetitions": str(point.repetitions),
            "time (µs)": f"{point.seconds * 1e6:,.1f}",
            "algbw (GB/s)": f"{point.algorithm_bandwidth / 1e9:.3f}",
            "busbw (GB/s)": f"{point.bus_bandwidth / 1e9:.3f}",
        }
        for point in found.points
    ]
    fitted = [
        {
            "operation": operation,
            "latency α (µs)": f"{one.latency_seconds * 1e6:,.1f}",
            "bandwidth β (GB/s)": f"{one.bytes_per_second / 1e9:.3f}",
            "β as busbw (GB/s)": f"{one.bytes_per_second * bus_factor(operation, found.ranks) / 1e9:.3f}",
            "median error": f"{one.median_error:.1%}",
            "worst error": f"{one.worst_error:.1%}",
        }
        for operation, one in found.fits.items()
    ]
    said = f"{found.ranks} processes on {found.machine}. Times are medians over repetitions of the slowest process's."
    parts = [said, table(measured)]
    if fitted:
        parts += ["Fitted: time = α + size/β, errors relative to the measured times.", table(fitted)]
    parts += [f"No line was found for {operation}: {reason}." for operation, reason in found.not_fitted.items()]
    write(config.output, "collectives", flags=as_flags(config), result=found, parts=parts)


def main() -> None:
    config = parse(CollectivesConfig, prog="python -m trainer.bench.collectives")
    with process_group(timeout_minutes=config.timeout_minutes) as process:
        if process.world_size < 2:
            raise UserError("collectives need two processes: start them with torchrun --nproc-per-node 2")
        if process.is_main:
            print0(f"bench: collectives of {process.world_size} processes on {this_machine()}")
        found = measure(config, process)
        if process.is_main:
            _report(found, config)


if __name__ == "__main__":
    worker(main)
