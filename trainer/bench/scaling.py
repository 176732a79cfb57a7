"""Speed-up and efficiency of training with 1 … N processes."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from pydantic import BaseModel

from server.cli import as_flags
from server.hardware import available_cpus
from trainer.bench.plot import speedup_plot
from trainer.bench.report import Machine, most_ranks, read, table, this_machine, write
from trainer.bench.settings import ScalingConfig, StepConfig, doubling
from trainer.bench.step import Measured, StepArguments, StepPoint
from trainer.bench.synthetic import write_synthetic
from trainer.distributed.launch import launch
from trainer.monitoring.console import print0


class ScalingResult(BaseModel):
    """`points` are the medians of `rounds`."""

    machine: Machine
    config: ScalingConfig
    gradient_bytes: int
    parameters: int
    buckets: int
    precision: str
    threads: int
    points: list[StepPoint]
    rounds: list[StepPoint]

    def point(self, ranks: int, scaling: str) -> StepPoint | None:
        """Of one process weak and strong scaling are the same."""
        wanted = (ranks, "weak" if ranks == 1 else scaling)
        return next((point for point in self.points if (point.ranks, point.scaling) == wanted), None)


def bench_scaling(config: ScalingConfig) -> ScalingResult:
    """Train with each number of processes in turn, several rounds, and write what was measured."""
    ranks = config.ranks or doubling(1, most_ranks())
    threads = config.threads or max(1, available_cpus() // max(ranks))
    config = ScalingConfig.model_validate({**config.model_dump(), "ranks": ranks, "threads": threads})
    with tempfile.TemporaryDirectory(prefix="distrinews-") as scratch:
        dataset = config.dataset or Path(scratch) / "dataset"
        if config.dataset is None:
            rows = config.batch_size * max(ranks) * (config.steps + config.warmup_steps)
            write_synthetic(dataset, model=config.model, rows=rows, seed=config.seed)
        rounds = [
            _launch(config, dataset, Path(scratch) / "result.json", number, number_of_round)
            for number_of_round in range(config.rounds)
            for number in ranks
        ]
    result = _gather(config, rounds)
    folder = config.output
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scaling.svg").write_text(_plot(result), encoding="utf-8")
    write(folder, "scaling", flags=as_flags(config), result=result, parts=[_introduce(result), table(rows_of(result)), "![Speed-up against processes](scaling.svg)"])  # fmt: skip
    return result


def _launch(config: ScalingConfig, dataset: Path, result: Path, ranks: int, number_of_round: int) -> Measured:
    step = config.model_dump(include=set(StepConfig.model_fields))
    launch("trainer.bench.step", as_flags(StepArguments(**step, dataset=dataset, result=result)), ranks=ranks)
    measured = read(result, Measured)
    speeds = ", ".join(f"{point.tokens_per_second:,.0f} ({point.scaling})" for point in measured.points)
    print0(f"bench: round {number_of_round + 1}/{config.rounds}, {ranks} ranks: tokens/s {speeds}")
    return measured


def _gather(config: ScalingConfig, rounds: Sequence[Measured]) -> ScalingResult:
    every = [point for measured in rounds for point in measured.points]
    keys = dict.fromkeys((point.ranks, point.scaling) for point in every)
    points = [_middle([point for point in every if (point.ranks, point.scaling) == key]) for key in keys]
    shared = rounds[-1].model_dump(exclude={"points"})
    return ScalingResult(machine=this_machine(), config=config, points=points, rounds=every, **shared)


def _middle(points: Sequence[StepPoint]) -> StepPoint:
    names = ("seconds", "compute_seconds", "backward_seconds", "tokens_per_second")
    return points[0].model_copy(update={name: median(getattr(point, name) for point in points) for name in names})


def rows_of(result: ScalingResult) -> list[dict[str, str]]:
    """The table: speed-up is in tokens/s, since samples differ in length."""
    one = result.points[0].tokens_per_second
    rows = []
    for point in result.points:
        speeds = [
            seen.tokens_per_second
            for seen in result.rounds
            if (seen.ranks, seen.scaling) == (point.ranks, point.scaling)
        ]
        speedup = point.tokens_per_second / one
        rows.append(
            {
                "ranks": str(point.ranks),
                "scaling": "-" if point.ranks == 1 else point.scaling,
                "batch a rank": str(point.batch_size),
                "step (ms)": f"{point.seconds * 1e3:,.1f}",
                "without exchange (ms)": f"{point.compute_seconds * 1e3:,.1f}",
                "tokens/s": f"{point.tokens_per_second:,.0f}",
                "of all rounds": f"{min(speeds):,.0f} to {max(speeds):,.0f}",
                "speed-up": f"{speedup:.2f} ×",
                "efficiency": f"{speedup / point.ranks:.1%}",
            }
        )
    return rows


def _introduce(result: ScalingResult) -> str:
    config = result.config
    return (
        f"{config.model} ({result.parameters:,} parameters, {result.gradient_bytes / 1e6:,.1f} MB of gradients in {result.buckets} messages), "
        f"{result.precision}, {result.threads} threads a process, on {config.dataset or 'random tokens of the lengths of AG News'}; "
        f"{result.machine}. Medians of {config.rounds} rounds of {config.steps} steps. "
        "Weak scaling: the same batch for each process; strong: the same for all together."
    )


def _plot(result: ScalingResult) -> str:
    one = result.points[0].tokens_per_second
    counts = result.config.ranks or ()
    lines = {
        scaling: [
            (float(ranks), point.tokens_per_second / one) for ranks in counts if (point := result.point(ranks, scaling))
        ]
        for scaling in ("weak", "strong")
    }
    return speedup_plot(lines["weak"], lines["strong"], most=max(counts))
