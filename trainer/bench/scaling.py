"""Speed-up and efficiency of training with 1 … N processes."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np

from server.cli import as_flags
from server.files import write_json
from server.inference.hardware import available_cpus
from trainer.bench.report import Machine, most_ranks, read, speedup_plot, table, this_machine, write
from trainer.bench.settings import ScalingConfig, StepConfig, doubling
from trainer.bench.step import Facts, Measured, StepArguments, StepPoint
from trainer.data.dataset import FORMAT, SPLITS, RaggedWriter
from trainer.data.tokenizer import load_tokenizer, padding_of, tokenizer_digest
from trainer.distributed.launch import launch
from trainer.monitoring.console import print0

_VOCABULARIES = {"tiny": 8192, "distilbert": 30522}
_MEDIAN_LENGTH, _SIGMA = 50.0, 0.28  # log-normal, with the percentiles 5/50/95 of AG News: 31/50/79 tokens
_MAX_LENGTH = 128
_CLASSES = ("World", "Sports", "Business", "Sci/Tech")
_FIRST_WORD = 5  # ids below are [PAD] and the other special tokens


class ScalingResult(Facts):
    """`points` are the medians of `rounds`."""

    machine: Machine
    config: ScalingConfig
    points: list[StepPoint]
    rounds: list[StepPoint]

    def point(self, ranks: int, scaling: str) -> StepPoint | None:
        """Returns a point; with one process weak and strong scaling are the same."""
        wanted = (ranks, "weak" if ranks == 1 else scaling)
        return next((point for point in self.points if (point.ranks, point.scaling) == wanted), None)


def bench_scaling(config: ScalingConfig) -> ScalingResult:
    """Trains with each number of processes in turn, several rounds, and writes the medians."""
    ranks = config.ranks or doubling(1, most_ranks())
    threads = config.threads or max(1, available_cpus() // max(ranks))
    config = ScalingConfig.model_validate({**config.model_dump(), "ranks": ranks, "threads": threads})
    with tempfile.TemporaryDirectory(prefix="distrinews-") as scratch:
        dataset = config.dataset or Path(scratch) / "dataset"
        if config.dataset is None:
            rows = config.batch_size * max(ranks) * (config.steps + config.warmup_steps)
            write_random_dataset(dataset, model=config.model, rows=rows, seed=config.seed)
        rounds = [
            _launch(config, dataset, Path(scratch) / "result.json", number, number_of_round)
            for number_of_round in range(config.rounds)
            for number in ranks
        ]
    result = _gather(config, rounds)
    config.output.mkdir(parents=True, exist_ok=True)
    plotted = ([(float(point.ranks), speed) for point, speed in _speedups(result) if point.ranks == 1 or point.scaling == kind] for kind in ("weak", "strong"))  # fmt: skip
    (config.output / "scaling.svg").write_text(speedup_plot(*plotted, most=max(ranks)), encoding="utf-8")
    parts = [_introduce(result), table(_rows(result)), "![Speed-up against processes](scaling.svg)"]
    write(config.output, "scaling", flags=as_flags(config), result=result, parts=parts)
    return result


def write_random_dataset(folder: Path, *, model: str, rows: int, seed: int) -> None:
    """Writes training rows that are random but for their lengths; the same for the same seed."""
    tokenizer = None if model in _VOCABULARIES else load_tokenizer(model)
    vocabulary = len(tokenizer) if tokenizer else _VOCABULARIES[model]
    random = np.random.default_rng(seed)
    lengths = np.clip(random.lognormal(np.log(_MEDIAN_LENGTH), _SIGMA, rows).round(), 8, _MAX_LENGTH).astype(int)
    folder.mkdir(parents=True)
    with RaggedWriter(folder, "texts", np.uint8) as texts, RaggedWriter(folder, "tokens", np.int32) as tokens:
        texts.append([b""] * rows)
        tokens.append([random.integers(_FIRST_WORD, vocabulary, size=length).tolist() for length in lengths])
    random.integers(len(_CLASSES), size=rows, dtype=np.int32).tofile(folder / "labels.bin")
    np.arange(rows).tofile(folder / "lines.bin")
    np.full(rows, SPLITS.index("train"), dtype=np.uint8).tofile(folder / "splits.bin")
    info = {
        "format": FORMAT, "classes": _CLASSES, "fingerprint": f"random-{seed}", "max_length": _MAX_LENGTH,
        "padding": padding_of(tokenizer).model_dump() if tokenizer else {}, "vocabulary_size": vocabulary, "token_dtype": "int32",
        "tokenizer": tokenizer_digest(tokenizer) if tokenizer else None,
    }  # fmt: skip
    write_json(folder / "dataset.json", info)


def _launch(config: ScalingConfig, dataset: Path, result: Path, ranks: int, number_of_round: int) -> Measured:
    step = config.model_dump(include=set(StepConfig.model_fields))
    launch("trainer.bench.step", as_flags(StepArguments(**step, dataset=dataset, result=result)), ranks=ranks)
    measured = read(result, Measured)
    speeds = ", ".join(f"{point.tokens_per_second:,.0f} ({point.scaling})" for point in measured.points)
    print0(f"bench: round {number_of_round + 1}/{config.rounds}, {ranks} ranks: tokens/s {speeds}")
    return measured


def _gather(config: ScalingConfig, rounds: Sequence[Measured]) -> ScalingResult:
    grouped: dict[tuple[int, str], list[StepPoint]] = {}
    for measured in rounds:
        for point in measured.points:
            grouped.setdefault((point.ranks, point.scaling), []).append(point)
    names = ("seconds", "compute_seconds", "backward_seconds", "tokens_per_second")
    medians = [
        seen[0].model_copy(update={name: median(getattr(point, name) for point in seen) for name in names})
        for seen in grouped.values()
    ]
    every = [point for seen in grouped.values() for point in seen]
    facts = rounds[-1].model_dump(exclude={"points"})
    return ScalingResult(machine=this_machine(), config=config, points=medians, rounds=every, **facts)


def _speedups(result: ScalingResult) -> list[tuple[StepPoint, float]]:
    """Returns each point with its speed-up in tokens/s, since samples differ in length."""
    return [(point, point.tokens_per_second / result.points[0].tokens_per_second) for point in result.points]


def _rows(result: ScalingResult) -> list[dict[str, str]]:
    rows = []
    for point, speedup in _speedups(result):
        same = [seen for seen in result.rounds if (seen.ranks, seen.scaling) == (point.ranks, point.scaling)]
        speeds = [seen.tokens_per_second for seen in same]
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
