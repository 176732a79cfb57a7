"""Where the time of a training step goes: a summary by phase, and a trace that Perfetto and TensorBoard open."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function, tensorboard_trace_handler

from server.files import write_json
from trainer.distributed.process_group import Process
from trainer.monitoring.console import say

_FIRST_STEPS = 3  # they allocate and choose kernels, as no later one does
COMPUTING = ("forward", "backward", "optimizer")
"""What training is about. All else is outside of it: load, exchange, log, save, and the rest, which has no name."""


class Phases:
    """Measures `steps` training steps after the first few; before and after it costs nothing.

    Each process writes <folder>/rank<N>.….pt.trace.json and <folder>/phases-rank<N>.json. `exchange` is what the processes'
    waiting for each other adds to a step: the time from the last gradient that this process computes in a backward pass to
    the end of that pass, when those of all processes are there. What is exchanged before that is hidden behind computing,
    and counts as backward. Where processes share memory, it is adding gradients up, and to wait until all have updated their part
    of the weights is in optimizer. Where weights are sharded, exchange is a part of forward and backward.
    """

    def __init__(
        self,
        steps: int = 0,
        model: nn.Module | None = None,
        process: Process | None = None,
        *,
        folder: Path = Path(),
        trace: bool = True,
    ) -> None:
        self._steps, self._model, self._folder, self._trace = steps, model, folder, trace
        self._rank = process.rank if process else 0
        self._on_gpu = process is not None and process.device.type == "cuda"
        self._step = -_FIRST_STEPS
        self._seconds: dict[str, float] = defaultdict(float)
        self._profiler: profile | None = None
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._last_gradient: float | torch.cuda.Event | None = None

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
        exchange = self._since_last_gradient() if name == "backward" else 0.0
        self._seconds[name] += self._now() - started - exchange
        if exchange:
            self._seconds["exchange"] += exchange

    def step(self) -> None:
        """To be called at the end of each training step."""
        self._step += 1
        if self._step == 0 and self._steps:
            self._start()
        elif self._step == self._steps and self._steps:
            self._stop()

    def _start(self) -> None:
        trained = (
            [parameter for parameter in self._model.parameters() if parameter.requires_grad] if self._model else []
        )
        self._hooks = [parameter.register_post_accumulate_grad_hook(self._note_gradient) for parameter in trained]
        if self._trace:
            on_gpu = [ProfilerActivity.CUDA] if self._on_gpu else []
            handler = tensorboard_trace_handler(str(self._folder), worker_name=f"rank{self._rank}")
            self._profiler = profile(activities=[ProfilerActivity.CPU, *on_gpu], on_trace_ready=handler)
            self._profiler.start()
        self._started = self._now()

    def _stop(self) -> None:
        whole = self._now() - self._started
        for hook in self._hooks:
            hook.remove()
        if self._profiler:
            self._profiler.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        seconds = {**self._seconds, "rest": whole - sum(self._seconds.values())}
        outside = 1 - sum(self._seconds[name] for name in COMPUTING) / whole
        summary = {
            "steps": self._steps,
            "step_ms": 1000 * whole / self._steps,
            "outside": outside,
            "phases": {name: spent / whole for name, spent in seconds.items()},
        }
        write_json(self._folder / f"phases-rank{self._rank}.json", summary)
        if self._rank == 0:
            shares = ", ".join(f"{name} {spent / whole:.1%}" for name, spent in seconds.items())
            say(
                f"train: {self._steps} steps of {1000 * whole / self._steps:,.1f} ms: {shares}; "
                f"outside of {', '.join(COMPUTING)} {outside:.1%}; see {self._folder}"
            )

    def _note_gradient(self, _: torch.Tensor) -> None:
        self._last_gradient = self._mark()

    def _since_last_gradient(self) -> float:
        """Seconds between the last gradient of a backward pass and now, on the device that computes."""
        last, self._last_gradient, now = self._last_gradient, None, self._mark()
        if isinstance(last, torch.cuda.Event) and isinstance(now, torch.cuda.Event):
            torch.cuda.synchronize()
            return float(last.elapsed_time(now)) / 1000
        return now - last if isinstance(last, float) and isinstance(now, float) else 0.0

    def _mark(self) -> float | torch.cuda.Event:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _now(self) -> float:
        if self._on_gpu:
            torch.cuda.synchronize()  # else the phase that waits has the time of the one that computes
        return time.perf_counter()
