"""Where the time of a training step goes: a summary by phase, and a trace that Perfetto and TensorBoard open."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function, tensorboard_trace_handler

from trainer.flags import write_json
from trainer.progress import say

_FIRST_STEPS = 3  # they allocate and choose kernels, as no later one does
COMPUTING = ("forward", "backward", "optimizer")
"""What training is about; backward has in it what the exchange of gradients adds to it."""


class Phases:
    """Measures `steps` training steps after the first few; before and after it costs nothing.

    Each process writes <folder>/rank<N>.….pt.trace.json and <folder>/phases-rank<N>.json.
    """

    def __init__(
        self,
        steps: int = 0,
        *,
        folder: Path = Path(),
        rank: int = 0,
        device: torch.device | None = None,
        trace: bool = True,
    ) -> None:
        self._steps, self._folder, self._rank, self._trace = steps, folder, rank, trace
        self._on_gpu = device is not None and device.type == "cuda"
        self._step = -_FIRST_STEPS
        self._seconds: dict[str, float] = defaultdict(float)
        self._profiler: profile | None = None

    @property
    def _measuring(self) -> bool:
        return 0 <= self._step < self._steps

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Around one phase."""
        if not self._measuring:
            yield
            return
        started = self._now()
        with record_function(name):
            yield
        self._seconds[name] += self._now() - started

    def step(self) -> None:
        """To be called at the end of each training step."""
        self._step += 1
        if self._step == 0 and self._steps:
            self._start()
        elif self._step == self._steps and self._steps:
            self._stop()

    def _start(self) -> None:
        if self._trace:
            on_gpu = [ProfilerActivity.CUDA] if self._on_gpu else []
            handler = tensorboard_trace_handler(str(self._folder), worker_name=f"rank{self._rank}")
            self._profiler = profile(activities=[ProfilerActivity.CPU, *on_gpu], on_trace_ready=handler)
            self._profiler.start()
        self._started = self._now()

    def _stop(self) -> None:
        whole = self._now() - self._started
        if self._profiler:
            self._profiler.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        seconds = {**self._seconds, "rest": whole - sum(self._seconds.values())}
        summary = {
            "steps": self._steps,
            "step_ms": 1000 * whole / self._steps,
            "outside": 1 - sum(self._seconds[name] for name in COMPUTING) / whole,
            "phases": {name: spent / whole for name, spent in seconds.items()},
        }
        write_json(self._folder / f"phases-rank{self._rank}.json", summary)
        if self._rank == 0:
            shares = ", ".join(f"{name} {spent / whole:.1%}" for name, spent in seconds.items())
            say(f"train: {self._steps} steps of {1000 * whole / self._steps:,.1f} ms: {shares}; see {self._folder}")

    def _now(self) -> float:
        if self._on_gpu:
            torch.cuda.synchronize()  # else the phase that waits has the time of the one that computes
        return time.perf_counter()
