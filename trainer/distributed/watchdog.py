"""A rank that hangs: after --hang-minutes without a step, every rank writes its stacks to the log and ends."""

import faulthandler
import os
import sys
import tempfile
import threading
import time
from typing import Self

HUNG = 70  # EX_SOFTWARE
_OTHERS_SECONDS = 3.0  # for the other ranks to write theirs: who ends first has them all ended


class Watchdog:
    """A thread that looks at the time of the last `beat`; C code that holds the interpreter's lock is found by faulthandler's own."""

    def __init__(self, rank: int, *, minutes: float) -> None:
        self._rank, self._minutes, self._beaten, self._doing = rank, minutes, time.monotonic(), "the first step"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self.beat("the first step")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def beat(self, doing: str) -> None:
        """There is progress, and this is what comes next."""
        self._beaten, self._doing = time.monotonic(), doing

    def _watch(self) -> None:
        limit = self._minutes * 60
        while not self._ended.wait(min(1.0, limit / 4)):
            faulthandler.dump_traceback_later(limit + 60, exit=True, file=2)
            if time.monotonic() - self._beaten > limit:
                break
        else:
            return
        print(
            f"train: rank {self._rank} hangs: no progress for {self._minutes:g} minutes in {self._doing}; "
            "the stacks of its threads follow, then the job ends", file=sys.__stderr__, flush=True,
        )  # fmt: skip
        os.write(2, stacks())
        self._ended.wait(_OTHERS_SECONDS)
        os._exit(HUNG)


def stacks() -> bytes:
    """Of all threads; to be written at once, for other ranks write theirs into the same log."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file=file, all_threads=True)
        file.seek(0)
        return file.read()
