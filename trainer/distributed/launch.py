"""Starts a module of ours on this machine as torchrun would; a failure becomes one line."""

import json
import logging
import os
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import torch
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure, record
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from server.cli import fail
from server.errors import UserError
from server.inference.hardware import available_cpus
from trainer.distributed.preemption import PREEMPTED
from trainer.monitoring.console import print0

_THREADS = "OMP_NUM_THREADS"  # threads of one process, which torch reads when it starts
_SAVE_SECONDS = 120  # from SIGTERM until a process is killed, which may be saving to a slow disk


def default_ranks() -> int:
    """Counts one process for each GPU; without a GPU, one process with all CPUs."""
    return torch.cuda.device_count() or 1


def launch(
    module: str, args: Sequence[str], *, ranks: int, max_restarts: int = 0, restarting: Callable[[str], None] = print0
) -> None:
    """Runs `python -m module args` as `ranks` processes, the CPUs shared out among them.

    When one dies or hangs, the others are ended and all are started again, `max_restarts` times at most; `restarting` gets
    the reason. Raises UserError with the message of the first process that failed.
    """
    gpus = torch.cuda.device_count()
    if gpus and ranks > gpus:
        raise UserError(f"--ranks {ranks}: this machine has {gpus} GPUs, and a process needs one for itself")
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # a failure is one line of ours
    for start in range(max_restarts + 1):
        try:
            with _threads(ranks), _one_signal():
                _start(module, args, ranks)
        except SignalException as error:
            raise UserError(
                f"{module} was terminated by {error}; what it has saved is kept, start it again to resume"
            ) from error
        except ChildFailedError as error:
            why = _explain(module, error)
            if start == max_restarts or not _may_pass(error):
                raise UserError(why) from None
            restarting(f"{why}; starting all processes again, {start + 1} of {max_restarts} times")
        else:
            return


@contextmanager
def _threads(ranks: int) -> Iterator[None]:
    """Shares the CPUs out among the processes that start in the block, unless the user has set OMP_NUM_THREADS."""
    if _THREADS in os.environ:
        yield
        return
    os.environ[_THREADS] = str(max(1, available_cpus() // ranks))
    try:
        yield
    finally:
        del os.environ[_THREADS]


@contextmanager
def _one_signal() -> Iterator[None]:
    """Ends training on the first SIGTERM or SIGINT in the block, both as SIGTERM for its processes; ignores any other, so that they can save."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python has signals in the main thread alone
        return

    def stop(number: int, _frame: FrameType | None) -> NoReturn:
        for each in before:
            signal.signal(each, lambda *_: None)
        raise SignalException(signal.Signals(number).name, signal.SIGTERM)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(module: str, args: Sequence[str], ranks: int) -> None:
    # torch's own restarts would repeat a user's error, and restart what SIGTERM has stopped.
    with tempfile.TemporaryDirectory(prefix="distrinews-") as logs:
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=ranks, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
            rdzv_endpoint="localhost:0", rdzv_configs={"is_host": True}, max_restarts=0, signals_to_handle="SIGHUP,SIGQUIT",
            shutdown_timeout=_SAVE_SECONDS, logs_specs=DefaultLogsSpecs(log_dir=logs), local_addr="localhost",
        )  # fmt: skip
        elastic_launch(config, sys.executable)("-m", module, *args)


def _first_failure(error: ChildFailedError) -> tuple[int, ProcessFailure]:
    """Returns the process that failed first: the others get SIGTERM because of it, and may be recorded before it."""
    causes = {rank: failure for rank, failure in error.failures.items() if failure.exitcode != -signal.SIGTERM}
    return min((causes or error.failures).items(), key=lambda found: found[1].timestamp)


def _may_pass(error: ChildFailedError) -> bool:
    """Returns True where a restart may help."""
    _, failure = _first_failure(error)
    return failure.exitcode != PREEMPTED and not _message(failure).startswith("UserError: ")


def _message(failure: ProcessFailure) -> str:
    text = failure.message if isinstance(failure.message, str) else failure.message["message"]
    return str(json.loads(text)["message"]) if text.startswith("{") else str(text)


def _explain(module: str, error: ChildFailedError) -> str:
    rank, failure = _first_failure(error)
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        hint = (
            "; the machine may have run out of memory: a smaller --batch-size needs less" if name == "SIGKILL" else ""
        )
        return f"process {rank} of {module} was ended by {name}{hint}"
    if failure.exitcode == PREEMPTED:
        return f"{module} was stopped by SIGTERM and has saved a checkpoint: start it again to resume"
    return _message(failure).removeprefix("UserError: ")


def worker(main: Callable[[], None]) -> None:
    """Runs the main function of a process that `launch` or torchrun starts, and records its failure for them."""
    try:
        record(main)()
    except UserError as error:
        if "TORCHELASTIC_ERROR_FILE" not in os.environ:  # else the parent prints it, once for all processes
            fail(sys.argv[0], error)
        raise SystemExit(1) from None
