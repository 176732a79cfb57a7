"""Checkpoints of a run: saved on time by a background thread of the main process, and resumed by all processes."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.profiler import record_function
from transformers import PreTrainedModel

from server.errors import UserError
from trainer.checkpoint import store
from trainer.checkpoint.lock import Lock
from trainer.checkpoint.state import TrainState, start_over
from trainer.config import CHOSEN, NOT_OF_THE_MODEL, TrainConfig
from trainer.data.batches import BatchSampler
from trainer.data.dataset import Dataset
from trainer.distributed.preemption import Consensus, Preempted, Preemption
from trainer.distributed.process_group import Process, on_main
from trainer.monitoring.console import print0
from trainer.monitoring.monitor import Monitor

_WORLD = ("world_size", "batch_size", "accumulation_steps")  # may change with --allow-changed-world
_NUMERICS = ("device", "threads", "instructions")  # the order of sums follows them
_LONG_SECONDS = 1.0  # a wait for the disk that is logged
_WARN_SECONDS = 10.0  # a wait for the disk that is a warning
_FULL = StateDictOptions(full_state_dict=True)  # the same files, however processes share the model
_FULL_ON_RANK0 = StateDictOptions(full_state_dict=True, cpu_offload=True)


def describe(config: TrainConfig, dataset: Dataset, sampler: BatchSampler, process: Process) -> dict[str, Any]:
    """Returns the provenance of a model: its settings, its data, and the processes that train it."""
    facts = {"dataset": dataset.fingerprint, "world_size": process.world_size, "packed": sampler.packed}
    numerics = (process.device.type, torch.get_num_threads(), torch.backends.cpu.get_cpu_capability())
    return config.model_dump(mode="json") | facts | dict(zip(_NUMERICS, numerics, strict=True))


class Checkpointer:
    """Holds the state of training; copies it with model and optimizer to memory, and writes one checkpoint at a time."""

    def __init__(
        self, output: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, config: TrainConfig,
        provenance: dict[str, Any], process: Process,
    ) -> None:  # fmt: skip
        self._output, self._folder = output, output / "checkpoints"
        self._model, self._optimizer, self._config = model, optimizer, config
        self._provenance, self._process = provenance, process
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._saved_at = time.monotonic()
        self._consensus, self._preemption = Consensus(), Preemption()
        self._lock = Lock(output)
        self.state = TrainState()
        self.earlier: dict[str, Any] = {}
        """Settings of the training that is resumed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()
        self._lock.release()

    @contextmanager
    def report_to(self, monitor: Monitor) -> Iterator[None]:
        """Saves while the block runs, and logs to this monitor; at its end the last checkpoint is on the disk."""
        self._monitor = monitor
        with self._preemption:
            try:
                yield
            finally:
                self._thread.shutdown()

    def resume(self) -> TrainState:
        """Loads the newest undamaged checkpoint into model and optimizer, if there is one, and returns the state.

        UserError when it was made with other settings: the same command would have trained another model; or when another
        process trains this run.
        """
        if found := on_main(self._process, self._find):
            self._load(Path(found))
            seen = f"{self.state.epoch} epochs, {self.state.step:,} steps, {self.state.samples:,} rows seen"
            print0(f"train: resuming from {found}: {seen}")
        return self.state

    def _load(self, checkpoint: Path) -> None:
        saved = store.read_state(checkpoint)
        optimizer = {"state": store.read_moments(checkpoint), "param_groups": saved["param_groups"]}
        weights: dict[str, Any] = dict(store.read_weights(checkpoint))
        set_state_dict(
            self._model, self._optimizer, model_state_dict=weights, optim_state_dict=optimizer, options=_FULL
        )  # fmt: skip
        self._optimizer.zero_grad(set_to_none=True)
        self.state, self.earlier = TrainState(**saved["state"]), saved["provenance"]

    def _find(self) -> str | None:
        self._lock.acquire()
        restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        if self._config.resume == "never" and not restarted and (before := start_over(self._output)):
            print0(f"train: starting over; the earlier checkpoints and logs are in {before}")
        store.remove_unfinished(self._folder)
        there = store.names(self._folder)
        for name in there:
            checkpoint = self._folder / name
            if not (damage := store.find_damage(checkpoint)):
                self._compare(checkpoint)
                best = store.epoch_name(store.read_state(checkpoint)["state"]["best_epoch"])
                if best not in (name, store.epoch_name(0)):
                    store.check_best(self._folder / best)
                return str(checkpoint)
            aside = store.quarantine(checkpoint).name
            print0(f"train: warning: {checkpoint} is damaged: {damage}; it is now {aside}, the one before is used")
        if there:
            raise UserError(
                f"{self._folder}: all of {len(there)} checkpoints are damaged, see the warnings above; "
                "bring one back, or start over with --resume never"
            )
        return None

    def _compare(self, checkpoint: Path) -> None:
        """Compares settings; one that an older version did not save had its default."""
        defaults = TrainConfig().model_dump(mode="json")
        saved = store.read_state(checkpoint)["provenance"]
        for name, now in self._provenance.items():
            then = saved.get(name, defaults.get(name, now))
            if now == then or name in NOT_OF_THE_MODEL or (name in CHOSEN and now is None):
                continue
            if name in _NUMERICS:
                why = f"{checkpoint} was made with {name} = {then}, now it is {now}"
                print0(f"train: warning: {why}: training resumes, but not bit for bit as it would have been")
                continue
            if name in _WORLD and self._config.allow_changed_world:
                print0(f"train: {name} was {then}, now it is {now}: resuming with the rows that this epoch has left")
                continue
            again = f"give {then} again to resume, " if name in defaults else ""
            again = "leave it out to resume, " if name in CHOSEN else again
            other = "--allow-changed-world to resume with the rows that are left, " if name in _WORLD else ""
            rows = " (other rows, or split otherwise, as by another version)" if name == "dataset" else ""
            raise UserError(
                f"{checkpoint} was made with {name} = {then}, now it is {now}{rows}: "
                f"{again}{other}{'or ' if again or other else ''}--resume never to start over and keep the earlier checkpoints aside"
            )

    def after_step(self) -> None:
        """Saves when it is time, and stops as `stop_if_asked` does: all processes at the same step."""
        with record_function("save"):
            if self._writing is not None and self._writing.done():
                self.wait()  # raises an error of the thread
            old = self._process.is_main and time.monotonic() - self._saved_at >= self._config.checkpoint_minutes * 60
            due = self.stop_if_asked(save=old)
            if due or self.state.step % (self._config.checkpoint_steps or self.state.step + 1) == 0:
                self.save()

    def stop_if_asked(self, *, save: bool = False) -> bool:
        """Saves and raises Preempted if a process received SIGTERM; else returns True if one requested a save."""
        due, stop = self._consensus.after_step(save=save, stop=self._preemption.requested)
        if stop:
            self._preemption.saving()
            self.save()
            self.wait()
            self._monitor.event("preemption", samples=self.state.samples)
            print0(f"train: SIGTERM: step {self.state.step:,} is saved; start again to resume")
            self._consensus.barrier()  # the first to leave ends the others, and the main process has yet to write
            raise Preempted
        return due

    def save(self) -> None:
        """Copies everything to memory and begins to write it; a collective call."""
        self._saved_at = time.monotonic()
        weights, moments = get_state_dict(self._model, self._optimizer, options=_FULL_ON_RANK0)
        if not self._process.is_main:
            return
        gathered = time.monotonic()
        self.wait()
        waited = time.monotonic() - gathered
        snapshot = self._snapshot(weights, moments)
        copy_seconds = time.monotonic() - self._saved_at - waited
        self._writing = self._thread.submit(
            self._write, snapshot, self.state.step, copy_seconds=copy_seconds, waited=waited
        )  # fmt: skip

    def _snapshot(self, weights: dict[str, Any], moments: dict[str, Any]) -> store.Snapshot:
        state = store.copied(asdict(self.state))
        return store.Snapshot(
            name=store.name_of(state),
            state=state,
            provenance=self._provenance,
            best=[store.epoch_name(epoch) for epoch in self.state.best_epochs(self._config.keep_best)],
            model={name: self._copied(tensor) for name, tensor in weights.items()},
            optimizer={
                f"{parameter}.{name}": self._copied(tensor)
                for parameter, entry in moments["state"].items() for name, tensor in entry.items()
            },
            param_groups=store.copied(moments["param_groups"]),
        )  # fmt: skip

    def _copied(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns a tensor of its own: on a CPU the state dicts share the live ones."""
        on_cpu = self._process.device.type == "cpu"
        return tensor.detach().clone(memory_format=torch.contiguous_format) if on_cpu else tensor.contiguous()

    def wait(self) -> None:
        """Returns when everything is on the disk; UserError when it cannot be written."""
        if self._writing is None:
            return
        started = time.monotonic()
        try:
            with self._monitor.paused():
                self._writing.result()
        except OSError as error:
            raise UserError(
                f"{self._folder}: a checkpoint cannot be written: {error.strerror or error}; "
                + (
                    "earlier ones are complete, training resumes from them when it is started again"
                    if store.names(self._folder)
                    else "there is none yet: make room, training then starts from its beginning"
                )
            ) from error
        self._writing = None
        if (seconds := time.monotonic() - started) > _WARN_SECONDS:
            print0(f"train: warning: training waited {seconds:,.0f} s for the disk of {self._folder}")

    def _write(self, snapshot: store.Snapshot, step: int, *, copy_seconds: float, waited: float) -> None:
        started = time.monotonic()
        store.write(self._folder, snapshot, keep_last=self._config.keep_last)
        facts = {
            "name": snapshot.name,
            "samples": snapshot.state["samples"],
            "copy_seconds": copy_seconds,
            "write_seconds": time.monotonic() - started,
        }
        late = {"waited_seconds": waited} if waited > _LONG_SECONDS else {}
        self._monitor.event("checkpoint", step=step, **facts, **late)
