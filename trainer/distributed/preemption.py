"""SIGTERM: training saves what it has and leaves, with a status that says so."""

import faulthandler
import os
import signal
import sys
import threading
from types import FrameType
from typing import Self

PREEMPTED = os.EX_TEMPFAIL  # 75: nothing is wrong, it goes on when it is started again
_GRACE_SECONDS = 15.0  # for all processes to come to the end of a step; torchrun kills 30 seconds after SIGTERM


class Preempted(SystemExit):
    """Raised when a checkpoint is saved and this process should end."""

    def __init__(self) -> None:
        super().__init__(PREEMPTED)


class Preemption:
    """Remembers SIGTERM; ends this process if training could not be brought to a checkpoint in time."""

    def __init__(self) -> None:
        self.requested = False
        self._timer: threading.Timer | None = None
        self._before: signal._HANDLER = signal.SIG_DFL

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._remember)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.saving()
        if threading.current_thread() is threading.main_thread():
            # Once one process has left, torchrun sends SIGTERM to the others, which are leaving: their status is their own.
            signal.signal(signal.SIGTERM, signal.SIG_IGN if kind is Preempted else self._before)

    def saving(self) -> None:
        """The step is agreed on: what is left takes as long as it takes to write a checkpoint."""
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
        f"train: SIGTERM came {_GRACE_SECONDS:.0f} s ago and no step ended since: leaving without a checkpoint, the last one stands",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    os._exit(PREEMPTED)
