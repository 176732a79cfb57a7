"""SIGTERM, consensus of all ranks on the step at which they stop or save, and a watchdog for ranks that hang."""

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

import torch
import torch.distributed as dist

PREEMPTED = os.EX_TEMPFAIL  # 75: nothing is wrong, training resumes when it is started again
_GRACE_SECONDS = 15.0  # for all processes to reach the end of a step; torchrun kills 30 seconds after SIGTERM
_EXCHANGE_SECONDS = 1.0  # from one exchange of a consensus to the next, about
_MOST_STEPS = 100  # from one exchange to the next
_ARM_SECONDS = 1.0  # to arm the watchdog costs a millisecond


class Preempted(SystemExit):
    """Raised when a checkpoint is saved and this process should end."""

    def __init__(self) -> None:
        super().__init__(PREEMPTED)


class Preemption:
    """Remembers SIGTERM or SIGINT; ends this process if training could not reach a checkpoint in time."""

    def __init__(self) -> None:
        self.requested = False
        self._timer: threading.Timer | None = None
        self._before: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._remember) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.saving()
        for number, handler in self._before.items():
            # Once one process has left, torchrun sends SIGTERM to the others, which are leaving: their status is their own.
            signal.signal(number, signal.SIG_IGN if kind is Preempted else handler)

    def saving(self) -> None:
        """Stops the clock: all ranks agree on the step, and a checkpoint takes as long as the disk needs."""
        if self._timer is not None:
            self._timer.cancel()

    def _remember(self, _number: int, _frame: FrameType | None) -> None:
        if not self.requested:
            self.requested = True
            self._timer = threading.Timer(_GRACE_SECONDS, _leave)
            self._timer.daemon = True
            self._timer.start()


def _leave() -> None:
    print(
        f"train: SIGTERM came {_GRACE_SECONDS:.0f} s ago and no step ended since: leaving without a new checkpoint",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    os._exit(PREEMPTED)


class Consensus:
    """A few numbers that processes exchange about once a second, in the background of a step, over the CPU.

    Each exchange begins after one step and ends after the next, so nobody waits for it, and all learn its result at the same
    step. It carries the number of steps to the exchange after it, since only the step is a clock that all share.
    """

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo")
        self._numbers = torch.zeros(3, dtype=torch.int64)
        self._pending: dist.Work | None = None
        self._wait = 0
        self._begun, self._steps = time.monotonic(), 0

    def after_step(self, *, save: bool, stop: bool) -> tuple[bool, bool]:
        """Returns (save, stop) as any process requested them when the exchange began that ends here; else two False."""
        self._steps += 1
        if self._pending is not None:
            self._pending.wait()
            self._pending = None
            wants_save, wants_stop, negative_steps = self._numbers.tolist()
            self._wait = -negative_steps
            return bool(wants_save), bool(wants_stop)
        self._wait -= 1
        if self._wait <= 0:
            seconds = (time.monotonic() - self._begun) / self._steps
            self._begun, self._steps = time.monotonic(), 0
            steps = max(1, min(_MOST_STEPS, int(_EXCHANGE_SECONDS / max(seconds, 1e-9))))
            self._numbers = torch.tensor([save, stop, -steps])  # the maximum is any request, and the slowest clock
            self._pending = dist.all_reduce(self._numbers, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return False, False

    def barrier(self) -> None:
        dist.barrier(self._group)


class HangWatchdog:
    """Ends this process with status 1, after the stacks of its threads, when `beat` was not called for so many minutes."""

    def __init__(self, minutes: float) -> None:
        self._seconds = minutes * 60
        self._armed_at = 0.0

    def __enter__(self) -> Self:
        self._arm()
        return self

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()

    def beat(self) -> None:
        """Starts the time anew: there is progress."""
        if time.monotonic() - self._armed_at >= min(_ARM_SECONDS, self._seconds / 4):
            self._arm()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Does not watch while the block runs: it waits for a disk, which may be slow."""
        faulthandler.cancel_dump_traceback_later()
        try:
            yield
        finally:
            self._arm()

    def _arm(self) -> None:
        self._armed_at = time.monotonic()
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=2)
