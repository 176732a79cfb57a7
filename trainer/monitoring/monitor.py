"""The monitor of a training run: speed and loss, non-finite steps, spikes, the profiler, the hang watchdog, and their lines in the log."""

import math
import statistics
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import nn
from torch.profiler import profile, record_function, schedule, tensorboard_trace_handler

from server.errors import UserError
from trainer.checkpoint.state import TrainState
from trainer.data.batches import BatchSampler, Rows, Step
from trainer.data.dataset import Dataset
from trainer.distributed.preemption import HangWatchdog
from trainer.distributed.process_group import Process, versions
from trainer.model.schedule import TrainPlan
from trainer.monitoring.console import Progress, counted, print0
from trainer.monitoring.training_log import TrainingLog

PHASES = ("load", "forward", "backward", "optimizer", "log", "save")
"""Parts of a training step, as the trace names them."""
_FIRST_STEPS = 3  # not profiled: they allocate and choose kernels, as no later one does
_SPIKE_LOSSES, _SPIKE = 10, 3.0  # a spike is three times the median of the last losses logged, once there are ten


class Monitor:
    """Watches a run; it waits for the device only when a line is logged, or after `max_skipped_steps` steps.

    After clipping each process has the same gradient norm, so all skip the same steps without an exchange.
    """

    def __init__(self, output: Path, config: TrainPlan, dataset: Dataset, state: TrainState, process: Process) -> None:
        self._config, self._dataset, self._state, self._process = config, dataset, state, process
        self._logs, self._open = output / "logs", ExitStack()
        self._meter = Meter(process.device)
        self._watchdog = HangWatchdog(config.hang_minutes)
        self._unread: list[tuple[int, Rows, torch.Tensor]] = []
        self._consecutive = 0
        self._losses: deque[float] = deque(maxlen=50)
        self._profiler: profile | None = None
        self._last_of_epoch = False

    def __enter__(self) -> Self:
        log = TrainingLog(self._logs, enabled=self._process.is_main, step=self._state.step)
        self._log = self._open.enter_context(log)
        if self._config.profile_steps:
            profiler = make_profiler(self._config.profile_steps, self._process, self._logs / "profile")
            self._profiler = self._open.enter_context(profiler)
        self._open.enter_context(self._watchdog)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def start(self, model: nn.Module, sampler: BatchSampler, precision: str) -> None:
        """Logs the start, and prints what is trained."""
        state, config, process = self._state, self._config, self._process
        self.event(
            "start", samples=state.samples, epoch=state.epoch, epochs=config.epochs, world_size=process.world_size,
            total_samples=config.epochs * sampler.rows, environment=versions(),
        )  # fmt: skip
        parameters = sum(parameter.numel() for parameter in model.parameters())
        print0(
            f"train: {config.model} ({parameters:,} parameters) on {sampler.rows:,} rows, {sampler.step_rows} a step, "
            f"{sampler.steps_per_epoch:,} steps an epoch; {counted(process.world_size, 'process')} on {process.device.type} with "
            f"{counted(torch.get_num_threads(), 'thread')} each, {precision.removeprefix('torch.')}"
        )

    def event(self, kind: str, *, step: int | None = None, **facts: Any) -> None:  # noqa: ANN401 - whatever JSON takes
        """Logs a line that is no measurement, from any thread."""
        self._log.event(kind, step=self._state.step if step is None else step, **facts)

    def beat(self) -> None:
        """Notes progress outside of steps, such as in validation."""
        self._watchdog.beat()

    def paused(self) -> AbstractContextManager[None]:
        """Stops the hang watchdog in a block that waits for a disk."""
        return self._watchdog.paused()

    def watch(self, steps: list[Step]) -> Iterator[Step]:
        """Yields the steps that an epoch has left, with their progress on the console."""
        done, what = self._state.epoch_steps, f"train: epoch {self._state.epoch + 1}/{self._config.epochs}"
        with Progress(what, done + len(steps), "steps", start=done) as self._progress:
            for step in steps:
                self._last_of_epoch = step is steps[-1]
                yield step
                if self._profiler is not None:
                    self._profiler.step()

    def after_step(self, step: Step, loss: torch.Tensor, norm: torch.Tensor, learning_rate: float) -> None:
        """Counts a step of which these are the sum of the loss over this rank's rows and the norm of the gradients."""
        with record_function("log"):
            own = [int(self._dataset.train.lengths[rows].sum()) for rows in step.micro_batches]
            self._meter.add(loss, rows=sum(map(len, step.micro_batches)), tokens=sum(own))
            self._unread.append((self._state.step, step.rows, norm))
            if len(self._unread) >= self._config.max_skipped_steps or norm.device.type == "cpu":
                self._read_norms()
            self._watchdog.beat()
            self._progress.advance()
            if self._state.step % self._config.log_steps == 0 or self._last_of_epoch:
                self._log_step(learning_rate)

    def _log_step(self, learning_rate: float) -> None:
        self._read_norms()
        found = self._meter.read()
        self._check_spike(found["loss"])
        values = {"samples": self._state.samples, "learning_rate": learning_rate, **found}
        self._log.write("train", step=self._state.step, **values)
        self._progress.note(loss=f"{found['loss']:.3f}", speed=f"{found['samples_per_second']:,.0f} samples/s")

    def after_epoch(self) -> None:
        """Logs the validation of the epoch that has just ended."""
        found = self._state.validation[-1]
        self._log.write("validation", step=self._state.step, **found)
        accuracy = f"accuracy {found['accuracy']:.4f}"
        print0(f"train: epoch {self._state.epoch}: validation loss {found['loss']:.4f}, {accuracy}")
        self._meter.restart()
        self._watchdog.beat()

    def end(self) -> None:
        """Logs the end of training."""
        self.event("end", best_epoch=self._state.best_epoch)

    def _read_norms(self) -> None:
        """Counts and reports skipped steps; UserError after too many consecutive ones."""
        unread, self._unread = self._unread, []
        norms = torch.stack([norm for _, _, norm in unread]).tolist() if unread else []
        for (number, rows, _), norm in zip(unread, norms, strict=True):
            self._consecutive = 0 if math.isfinite(norm) else self._consecutive + 1
            if self._consecutive:
                self._state.skipped += 1
                self._report_skipped(number, rows, norm)

    def _report_skipped(self, step: int, rows: Rows, norm: float) -> None:
        numbers = sorted(rows.tolist())
        self.event("skipped", step=step, norm=str(norm), consecutive=self._consecutive, rows=numbers)
        so_far = f"{self._state.skipped:,} skipped so far"
        print0(f"train: warning: step {step:,} is skipped: its gradient norm is {norm}; {so_far}")
        if self._consecutive >= self._config.max_skipped_steps:
            lines = ", ".join(str(line) for line in sorted(self._dataset.train.lines[numbers].tolist()))
            raise UserError(
                f"{self._consecutive} consecutive steps, the last of them {step:,}, had a loss or gradient that is not finite; "
                f"a smaller --learning-rate or --precision fp32 may help, or correct the data: "
                f"the last batch has the training rows {', '.join(map(str, numbers))}, of the source's lines {lines}"
            )

    def _check_spike(self, loss: float) -> None:
        """Reports a loss far above those before it."""
        usual = statistics.median(self._losses) if len(self._losses) >= _SPIKE_LOSSES else math.inf
        if loss > _SPIKE * usual:
            self.event("spike", loss=loss, median=usual)
            before = f"the median of the last {len(self._losses)} is {usual:.4f}"
            print0(f"train: warning: step {self._state.step:,}: the loss is {loss:.4f}, {before}")
        if math.isfinite(loss):
            self._losses.append(loss)


class Meter:
    """Sums loss, rows and tokens on the device; they are read, over all processes, only when logged."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)
        self._since = time.perf_counter()

    def add(self, loss_sum: torch.Tensor, *, rows: int, tokens: int) -> None:
        """Adds a step; a loss that is not finite is left out of the mean."""
        finite = torch.isfinite(loss_sum.detach())
        self._sums[0] += torch.where(finite, loss_sum.detach(), 0)
        self._sums[1] += rows * finite
        self._sums[2] += rows  # a number is an argument of the kernel; a tensor made of it would wait for the device
        self._sums[3] += tokens

    def read(self) -> dict[str, float]:
        """Returns the mean loss, samples/s and tokens/s since the last reading; a collective call."""
        dist.all_reduce(self._sums)
        loss, of_rows, rows, tokens = self._sums.tolist()  # waits for the device
        seconds = time.perf_counter() - self._since
        self.restart()
        mean = loss / of_rows if of_rows else math.nan
        return {"loss": mean, "samples_per_second": rows / seconds, "tokens_per_second": tokens / seconds}

    def restart(self) -> None:
        """Counts from here, so that what was not training is not counted."""
        self._sums.zero_()
        self._since = time.perf_counter()


def make_profiler(steps: int, process: Process, folder: Path) -> profile:
    """Profiles this many steps after the first few, into one trace a rank; the main process prints a summary by phase."""
    write_trace = tensorboard_trace_handler(str(folder), worker_name=f"rank{process.rank}")

    def report(finished: profile) -> None:
        write_trace(finished)
        spent = {event.key: event.cpu_time_total / 1000 for event in finished.key_averages()}
        whole = spent["ProfilerStep*"]
        shares = ", ".join(f"{name} {spent[name] / whole:.1%}" for name in PHASES)
        print0(f"train: {steps} steps of {whole / steps:,.1f} ms of the host: {shares}; the traces are in {folder}")

    return profile(schedule=schedule(wait=0, warmup=_FIRST_STEPS, active=steps, repeat=1), on_trace_ready=report)
