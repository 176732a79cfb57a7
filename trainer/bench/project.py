"""Project training to more processes, from measured compute and the latency and bandwidth of the network."""

from pathlib import Path
from statistics import fmean, median

from pydantic import BaseModel

from server.cli import as_flags
from server.errors import UserError
from trainer.bench.collectives import Collectives, bench_collectives, bus_factor
from trainer.bench.report import read, table, write
from trainer.bench.scaling import ScalingResult, bench_scaling
from trainer.bench.settings import CollectivesConfig, ProjectConfig, ScalingConfig
from trainer.bench.step import StepPoint
from trainer.monitoring.console import print0


class Network(BaseModel):
    """Costs of one hop of a ring: α' + bytes/β."""

    latency_seconds: float
    bytes_per_second: float
    source: str


class Projected(BaseModel):
    ranks: int
    seconds: float
    exchange_seconds: float
    exposed_seconds: float
    tokens_per_second: float
    efficiency: float


class PointError(BaseModel):
    ranks: int
    scaling: str
    predicted_seconds: float
    measured_seconds: float
    error: float


class Projection(BaseModel):
    network: Network
    overlap: float
    overlap_source: str
    buckets: int
    gradient_bytes: int
    projected: list[Projected]
    errors: list[PointError]


def all_reduce_seconds(ranks: int, *, size_bytes: int, messages: int, network: Network) -> float:
    """Returns the time of a ring all-reduce: messages · 2(n-1)·α' + 2(n-1)/n · bytes/β.

    Reduce-scatter and all-gather are n-1 hops each, and send (n-1)/n of the bytes each (Patarasuk and Yuan 2009,
    Bandwidth optimal all-reduce algorithms for clusters of workstations). Each of DDP's messages pays the hops' latency.
    """
    hops = 2 * (ranks - 1)
    return messages * hops * network.latency_seconds + hops / ranks * size_bytes / network.bytes_per_second


def step_seconds(compute: float, *, backward: float, exchange: float, overlap: float) -> float:
    """Returns compute + max(0, exchange - overlap · backward): the exchange hides behind a share of the backward pass, not more.

    A slow rank among many, which all others wait for, is not in it, nor is a network that many jobs share.
    """
    return compute + max(0.0, exchange - overlap * backward)


def find_network(config: ProjectConfig, collectives: Path) -> Network:
    """Returns the network as set, or else as measured."""
    latency, bandwidth = config.latency_microseconds, config.bandwidth_gigabytes
    if latency is not None and bandwidth is not None:
        return Network(latency_seconds=latency / 1e6, bytes_per_second=bandwidth * 1e9, source="as set")
    return network_of(read(collectives, Collectives), config)


def network_of(collectives: Collectives, config: ProjectConfig) -> Network:
    """Reads the fitted all-reduce t = α + size/β of n ranks as hops of a ring: α' = α / 2(n-1), and β times 2(n-1)/n."""
    latency, bandwidth, ranks = config.latency_microseconds, config.bandwidth_gigabytes, collectives.ranks
    if "all-reduce" not in collectives.fits:
        raise UserError(
            f"collectives.json has no latency and bandwidth of all-reduce: {collectives.not_fitted.get('all-reduce')}; "
            "or name both --latency-microseconds and --bandwidth-gigabytes"
        )
    fitted = collectives.fits["all-reduce"]
    given = "".join(
        f"{name} as set, the other " for name, value in (("latency", latency), ("bandwidth", bandwidth)) if value
    )
    return Network(
        latency_seconds=latency / 1e6 if latency is not None else fitted.latency_seconds / (2 * (ranks - 1)),
        bytes_per_second=bandwidth * 1e9
        if bandwidth is not None
        else fitted.bytes_per_second * bus_factor("all-reduce", ranks),
        source=f"{given}fitted on {ranks} processes of {collectives.machine}",
    )


def measured_overlap(scaling: ScalingResult, network: Network) -> float:
    """Returns the share of the backward pass that hid communication, by weak scaling: (exchange - (step - compute)) / backward.

    The median over the numbers of ranks, each within 0 to 1. Below 0 it would mean that the exchange cost more than the
    network alone explains, as on CPUs, whose cores it takes from the computation.
    """
    points = [point for point in scaling.points if point.ranks > 1 and point.scaling == "weak"]
    if not points:
        raise UserError(
            "scaling.json has one process only, which does not show how much communication hides behind computation: "
            "measure with --ranks 1..2, or name --overlap, 0 for nothing hidden"
        )
    return median(
        min(1.0, max(0.0, (_exchange(point.ranks, scaling, network) - point.seconds + point.compute_seconds) / point.backward_seconds))
        for point in points
    )  # fmt: skip


def project(scaling: ScalingResult, network: Network, config: ProjectConfig) -> Projection:
    """Projects weak scaling to each number of ranks: compute is that of as many measured ranks, or else of the most measured.

    Efficiency is tokens/s of a rank beside those of one rank alone, computed in the same way. Errors compare the same formula, with each
    point's own compute, with the measured step: they test the formula of the exchange.
    """
    chosen = config.overlap is not None
    overlap = config.overlap if config.overlap is not None else measured_overlap(scaling, network)
    return Projection(
        network=network, overlap=overlap, overlap_source="as set" if chosen else "by the measured weak scaling",
        buckets=scaling.buckets, gradient_bytes=scaling.gradient_bytes,
        projected=[_project_one(ranks, scaling, network, overlap) for ranks in config.world],
        errors=[_error(point, scaling, network, overlap) for point in scaling.points if point.ranks > 1],
    )  # fmt: skip


def _exchange(ranks: int, scaling: ScalingResult, network: Network) -> float:
    return all_reduce_seconds(ranks, size_bytes=scaling.gradient_bytes, messages=scaling.buckets, network=network)


def _project_one(ranks: int, scaling: ScalingResult, network: Network, overlap: float) -> Projected:
    weak = [point for point in scaling.points if point.scaling == "weak"]
    base = scaling.point(ranks, "weak") or max(weak, key=lambda point: point.ranks)
    exchange = _exchange(ranks, scaling, network)
    seconds = step_seconds(base.compute_seconds, backward=base.backward_seconds, exchange=exchange, overlap=overlap)
    speed = ranks * _tokens_a_rank(base) / seconds
    alone = _tokens_a_rank(weak[0]) / weak[0].compute_seconds
    return Projected(
        ranks=ranks, seconds=seconds, exchange_seconds=exchange, exposed_seconds=seconds - base.compute_seconds,
        tokens_per_second=speed, efficiency=speed / ranks / alone,
    )  # fmt: skip


def _tokens_a_rank(point: StepPoint) -> float:
    return point.tokens_per_second * point.seconds / point.ranks


def _error(point: StepPoint, scaling: ScalingResult, network: Network, overlap: float) -> PointError:
    exchange = _exchange(point.ranks, scaling, network)
    predicted = step_seconds(point.compute_seconds, backward=point.backward_seconds, exchange=exchange, overlap=overlap)
    return PointError(
        ranks=point.ranks, scaling=point.scaling, predicted_seconds=predicted, measured_seconds=point.seconds,
        error=predicted / point.seconds - 1,
    )  # fmt: skip


def bench_project(config: ProjectConfig) -> Projection:
    """Projects from files, or measures first."""
    if config.measured is None:
        print0("bench: nothing to project from is named with --from, so scaling and collectives are measured first")
        bench_scaling(ScalingConfig(output=config.output))
        bench_collectives(CollectivesConfig(output=config.output))
    source = config.measured or config.output / "scaling.json"
    scaling = read(source, ScalingResult)
    if not scaling.buckets:
        raise UserError(
            f"{source}: holds no exchange of gradients, as it was measured with one process: measure with two or more"
        )
    network = find_network(config, config.collectives or source.with_name("collectives.json"))
    projection = project(scaling, network, config)
    _report(projection, config)
    return projection


def _report(found: Projection, config: ProjectConfig) -> None:
    network = found.network
    said = (
        f"Exchange = {found.buckets} · 2(n-1) · {network.latency_seconds * 1e6:,.1f} µs + 2(n-1)/n · {found.gradient_bytes / 1e6:,.1f} MB / "
        f"{network.bytes_per_second / 1e9:.3f} GB/s ({network.source}). Step = compute + max(0, exchange - {found.overlap:.2f} · backward); "
        f"the overlap is {found.overlap_source}. The same batch for each process, as if every link were like the one named."
    )
    projected = [
        {
            "ranks": f"{one.ranks:,}",
            "step (ms)": f"{one.seconds * 1e3:,.1f}",
            "exchange (ms)": f"{one.exchange_seconds * 1e3:,.1f}",
            "not hidden (ms)": f"{one.exposed_seconds * 1e3:,.1f}",
            "tokens/s": f"{one.tokens_per_second:,.0f}",
            "efficiency": f"{one.efficiency:.1%}",
        }
        for one in found.projected
    ]
    parts = [said, table(projected)]
    if found.errors:
        errors = [
            {
                "ranks": str(one.ranks),
                "scaling": one.scaling,
                "predicted (ms)": f"{one.predicted_seconds * 1e3:,.1f}",
                "measured (ms)": f"{one.measured_seconds * 1e3:,.1f}",
                "error": f"{one.error:+.1%}",
            }
            for one in found.errors
        ]
        mean = fmean(abs(one.error) for one in found.errors)
        parts += [f"Error on the measured points, {mean:.1%} in the mean:", table(errors)]
    flags = [flag.replace("--measured=", "--from=") for flag in as_flags(config)]
    write(config.output, "project", flags=flags, result=found, parts=parts)
