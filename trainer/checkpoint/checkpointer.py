"""When checkpoints are written, and by whom: a thread of the main process, while training goes on."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from server.errors import UserError
from trainer.checkpoint.state import TrainState
from trainer.checkpoint.store import Snapshot, snapshot, write
from trainer.config import TrainConfig
from trainer.distributed.agreement import Agreement
from trainer.distributed.parallel import whole, whole_optimizer_state
from trainer.distributed.preemption import Preempted, Preemption
from trainer.distributed.process_group import Process
from trainer.model.optimizer import Meter
from trainer.monitoring.console import print0
from trainer.monitoring.training_log import TrainingLog

_LONG_SECONDS = 1.0  # a wait that is worth a word


class Checkpoints:
    """Copies what is trained to memory, and has it written in the background, one checkpoint at a time."""

    def __init__(
        self, folder: Path, config: TrainConfig, *, made_with: dict[str, Any], process: Process, log: TrainingLog
    ) -> None:
        self._folder, self._config, self._made_with, self._process, self._log = folder, config, made_with, process, log
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._saved_at = time.monotonic()
        self._agreement, self._preemption = Agreement(), Preemption()

    def __enter__(self) -> Self:
        self._preemption.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._thread.shutdown()  # what is being written is finished, whatever ended training
        self._preemption.__exit__(kind, *error)

    def after_step(self, state: TrainState, model: nn.Module, optimizer: torch.optim.Optimizer, meter: Meter) -> None:
        """Save if it is time to, and leave after that if a process was sent SIGTERM: all processes at the same step."""
        self._check()
        old = self._process.is_main and time.monotonic() - self._saved_at >= self._config.checkpoint_minutes * 60
        due = self.leave_if_told(state, model, optimizer, meter, save=old)
        if due or state.step % (self._config.checkpoint_steps or state.step + 1) == 0:
            self._preemption.saving()
            self.save(state, model, optimizer, meter)

    def leave_if_told(
        self, state: TrainState, model: nn.Module, optimizer: torch.optim.Optimizer, meter: Meter, *, save: bool = False
    ) -> bool:  # fmt: skip
        """Save and leave if a process was sent SIGTERM, all at the same call; else whether one wished to save."""
        due, stop = self._agreement.after_step(save=save, stop=self._preemption.requested)
        if stop:
            self._preemption.saving()
            self.save(state, model, optimizer, meter)
            self._leave(state)
        return due

    def _leave(self, state: TrainState) -> None:
        self.wait()
        self._log.event("preemption", step=state.step, samples=state.samples)
        if self._process.is_main:
            print0(f"train: SIGTERM: step {state.step:,} is saved; start again to go on")
        self._agreement.barrier()  # whoever leaves first has the others ended, and they wait for the main process to write
        raise Preempted

    def save(self, state: TrainState, model: nn.Module, optimizer: torch.optim.Optimizer, meter: Meter) -> None:
        """Take a snapshot and begin to write it; all processes call this, at the same step."""
        state.meter = meter.shares() if state.parts else []
        self._saved_at = time.monotonic()
        weights = whole(model.state_dict(), keep=self._process.is_main)
        moments = whole_optimizer_state(optimizer, keep=self._process.is_main)
        if not self._process.is_main:
            return
        self.wait()
        waited = time.monotonic() - self._saved_at
        taken = snapshot(state, weights, moments, made_with=self._made_with, keep_best=self._config.keep_best)
        copied = time.monotonic() - self._saved_at - waited
        self._writing = self._thread.submit(self._write, taken, state.step, copied=copied, waited=waited)

    def _check(self) -> None:
        """Raise what the thread met, if it has met anything."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Return when everything is on the disk."""
        if self._writing is not None:
            try:
                self._writing.result()
            except OSError as error:
                raise UserError(
                    f"{self._folder}: a checkpoint cannot be written: {error.strerror or error}; "
                    "earlier ones are whole, training goes on from them when it is started again"
                ) from error
            self._writing = None

    def _write(self, taken: Snapshot, step: int, *, copied: float, waited: float) -> None:
        started = time.monotonic()
        write(self._folder, taken, keep_last=self._config.keep_last)
        facts = {"name": taken.name, "copy_seconds": copied, "write_seconds": time.monotonic() - started}
        self._log.event(
            "checkpoint", step=step, **facts, **({"waited_seconds": waited} if waited > _LONG_SECONDS else {})
        )
