"""Every setting of `distrinews bench`; imports nothing heavy, so that `--help` answers at once."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_settings import NoDecode

from server.cli import Settings

_UNITS = {"": 1, "B": 1, "K": 2**10, "KB": 2**10, "M": 2**20, "MB": 2**20, "G": 2**30, "GB": 2**30}


def doubling(first: int, last: int) -> tuple[int, ...]:
    """Doubles up to the last number: 1 to 6 is 1, 2, 4, 6."""
    return (*(first * 2**power for power in range(64) if first * 2**power < last), last)


def _counts(value: object) -> object:
    """Reads `1..8`, which doubles to 1, 2, 4, 8 and ends with the last number, or a list such as `1,2,3`."""
    if not isinstance(value, str):
        return value
    if found := re.fullmatch(r"\s*(\d+)\s*\.\.\s*(\d+)\s*", value):
        first, last = int(found[1]), int(found[2])
        if not 1 <= first <= last:
            raise ValueError("a range goes from a number of at least 1 up to a larger one, such as 1..8")
        return doubling(first, last)
    if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", value):
        raise ValueError("write a range such as 1..8, which doubles, or a list such as 1,2,3")
    return tuple(sorted({int(part) for part in value.split(",")}))


def _bytes(value: object) -> object:
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"(\d+)\s*([KMG]?B?)", value.strip().upper())
    if not found:
        raise ValueError("write bytes as a whole number, or with KB, MB or GB (of 1,024), such as 256MB")
    return int(found[1]) * _UNITS[found[2]]


Counts = Annotated[tuple[Annotated[int, Field(ge=1)], ...], NoDecode, BeforeValidator(_counts)]
"""Numbers of processes, written `1..8` or `1,2,3` on a command line."""

Bytes = Annotated[int, BeforeValidator(_bytes)]


class BenchSettings(Settings):
    """Settings of every bench command."""

    output: Path = Path("runs/bench")
    """Folder for the results: JSON to continue with, Markdown and SVG to read."""


class GroupSettings(Settings):
    """Settings of the process group."""

    timeout_minutes: float = Field(default=10, gt=0)
    """Minutes after which a process that waits for another gives up."""


class StepConfig(GroupSettings):
    """Settings of the step that is measured."""

    model: str = "tiny"
    """Encoder to train: a folder, a Hugging Face id, `tiny`, or `distilbert`: of DistilBERT's size (66 M parameters) with random weights."""

    batch_size: int = Field(default=32, ge=1, le=65536)
    """Examples of one process in weak scaling; of all processes together in strong scaling."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the forward pass, as of training."""

    steps: int = Field(default=20, ge=2, le=10_000)
    """Optimizer steps that are timed, after those of the warm-up."""

    warmup_steps: int = Field(default=5, ge=2, le=1000)
    """Steps before them, in which buffers are made and kernels chosen."""

    threads: int | None = Field(default=None, ge=1, le=1024)
    """Threads of each process, the same for any number of them. By default the cores divided by the largest number of processes."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of weights and rows."""


class ScalingConfig(StepConfig, BenchSettings):
    """Settings of `bench scaling`."""

    ranks: Annotated[Counts | None, NoDecode] = None
    """Numbers of processes: 1..8 doubles, 1,2,3 is a list; 1 is among them. By default 1 to one a GPU, or two on a CPU."""

    dataset: Path | None = None
    """Dataset folder of preprocess to train on. By default rows of random tokens, as long as those of AG News."""

    rounds: int = Field(default=3, ge=1, le=100)
    """Times that each number of processes is started, in turn; each figure is the median."""

    @model_validator(mode="after")
    def _ranks_can_be_compared(self) -> Self:
        for ranks in self.ranks or ():
            if self.batch_size % ranks:
                raise ValueError(
                    f"batch_size = {self.batch_size} cannot be divided evenly among {ranks} ranks, "
                    "as strong scaling does: make it a multiple, or leave that number of ranks out"
                )
        if self.ranks and self.ranks[0] != 1:
            raise ValueError("ranks has to begin with 1, which the others are compared with")
        return self


class CollectivesConfig(GroupSettings, BenchSettings):
    """Settings of `bench collectives`."""

    ranks: int | None = Field(default=None, ge=2, le=64)
    """Processes that exchange data. By default one for each GPU, or two on a CPU."""

    min_bytes: Bytes = Field(default=4 * 2**10, ge=64)
    """Smallest size, in bytes or with KB, MB, GB; sizes double from here."""

    max_bytes: Bytes = Field(default=256 * 2**20, le=16 * 2**30)
    """Largest size. A process needs about twice as much memory."""

    repetitions: int = Field(default=20, ge=3, le=1000)
    """Times that each size is measured at most; large sizes less often, but at least three times."""

    @model_validator(mode="after")
    def _sizes_make_a_line(self) -> Self:
        if self.max_bytes < 4 * self.min_bytes:
            raise ValueError(
                f"max_bytes = {self.max_bytes:,} is too near min_bytes = {self.min_bytes:,} to fit latency and bandwidth: "
                "make it four times as large at least"
            )
        return self


class ProjectConfig(BenchSettings):
    """Settings of `bench project`."""

    world: Counts = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
    """Numbers of processes to project: 1..1024 doubles, 1,24,100 is a list."""

    measured: Path | None = Field(default=None, alias="from")
    """scaling.json to project from. By default scaling and collectives are measured first, with their defaults."""

    collectives: Path | None = None
    """collectives.json of the network to project. By default the one beside scaling.json."""

    overlap: float | None = Field(default=None, ge=0, le=1)
    """Share of the backward pass that hides communication. By default that of the measured steps."""

    latency_microseconds: float | None = Field(default=None, gt=0)
    """Latency of one hop of the ring, instead of the fitted one: to project another network."""

    bandwidth_gigabytes: float | None = Field(default=None, gt=0)
    """Bus bandwidth in GB (10^9 bytes) a second, instead of the fitted one."""
