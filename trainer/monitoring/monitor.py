"""Steps that must not be taken: a loss or a gradient that is not finite. They are skipped on the device, and counted here."""

import math
import statistics
from collections import deque
from contextlib import nullcontext
from pathlib import Path

import torch
from torch.profiler import profile, schedule, tensorboard_trace_handler

from server.errors import UserError
from trainer.checkpoint.state import TrainState
from trainer.data.batches import Rows, Step
from trainer.data.dataset import Split
from trainer.distributed.process_group import Process
from trainer.monitoring.console import print0
from trainer.monitoring.training_log import TrainingLog

PHASES = ("load", "forward", "backward", "optimizer", "log", "save")
"""Parts of a training step, as the trace names them."""
_FIRST_STEPS = 3  # not profiled: they allocate and choose kernels, as no later one does
_AT_LEAST, _TIMES = 10, 3.0  # a spike is three times the median of the last losses logged, once there are ten


class Guard:
    """Knows which steps were skipped; it reads the device only when training does, or after `most` steps.

    After clipping, each process has the same gradient norm, so all skip the same steps without a word between them.
    """

    def __init__(self, state: TrainState, log: TrainingLog, split: Split, *, most: int, is_main: bool) -> None:
        self._state, self._log, self._split, self._most, self._is_main = state, log, split, most, is_main
        self._unread: list[tuple[int, Rows, torch.Tensor]] = []
        self._in_a_row = 0
        self._losses: deque[float] = deque(maxlen=50)

    def note(self, step: Step, norm: torch.Tensor) -> None:
        """Remember the norm of a step that is counted, without waiting for the device."""
        self._unread.append((self._state.step, step.rows, norm))
        if len(self._unread) >= self._most or norm.device.type == "cpu":
            self.read()

    def read(self) -> None:
        """Count and report what was skipped; UserError when it were too many in a row."""
        unread, self._unread = self._unread, []
        norms = torch.stack([norm for _, _, norm in unread]).tolist() if unread else []
        for (number, rows, _), norm in zip(unread, norms, strict=True):
            self._in_a_row = 0 if math.isfinite(norm) else self._in_a_row + 1
            if self._in_a_row:
                self._state.skipped += 1
                self._report(number, rows, norm)

    def _report(self, step: int, rows: Rows, norm: float) -> None:
        numbers = sorted(rows.tolist())
        self._log.event("skipped", step=step, norm=str(norm), in_a_row=self._in_a_row, rows=numbers)
        if self._is_main:
            print0(
                f"train: warning: step {step:,} is skipped: its gradient norm is {norm}; {self._state.skipped:,} skipped so far"
            )
        if self._in_a_row >= self._most:
            lines = ", ".join(str(line) for line in sorted(self._split.lines[numbers].tolist()))
            raise UserError(
                f"{self._in_a_row} steps in a row, the last of them {step:,}, had a loss or gradient that is not finite; "
                f"a smaller --learning-rate or --precision fp32 may help, or mend the data: "
                f"the last batch has the training rows {', '.join(map(str, numbers))}, of the source's lines {lines}"
            )

    def loss(self, found: float) -> None:
        """Report a loss that is about to be logged where it is far above those before it, and what was skipped."""
        self.read()
        usual = statistics.median(self._losses) if len(self._losses) >= _AT_LEAST else math.inf
        if found > _TIMES * usual:
            self._log.event("spike", step=self._state.step, loss=found, median=usual)
            if self._is_main:
                print0(
                    f"train: warning: step {self._state.step:,}: the loss is {found:.4f}, of the last {len(self._losses)} the median is {usual:.4f}"
                )
        if math.isfinite(found):
            self._losses.append(found)


def skip_unless_finite(optimizer: torch.optim.Optimizer, norm: torch.Tensor) -> None:
    """Have the fused optimizer leave everything as it is where the norm is not finite, decided on the device."""
    optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]  # what GradScaler sets, too


def profiler(steps: int, process: Process, *, folder: Path) -> "profile | nullcontext[None]":
    """Profiles this many steps after the first few, into one trace a rank; the main process prints a summary by phase."""
    if not steps:
        return nullcontext()
    write_trace = tensorboard_trace_handler(str(folder), worker_name=f"rank{process.rank}")

    def report(finished: profile) -> None:
        write_trace(finished)
        spent = {event.key: event.cpu_time_total / 1000 for event in finished.key_averages()}
        whole = spent["ProfilerStep*"]
        if process.is_main:
            shares = ", ".join(f"{name} {spent[name] / whole:.1%}" for name in PHASES)
            print0(f"train: {steps} steps of {whole / steps:,.1f} ms of the host: {shares}; the traces are in {folder}")

    return profile(schedule=schedule(wait=0, warmup=_FIRST_STEPS, active=steps, repeat=1), on_trace_ready=report)
