"""What all processes decide alike in the middle of training: that a checkpoint is due, that one was told to stop."""

import time

import torch
import torch.distributed as dist

_SECONDS = 1.0  # from one exchange to the next, about
_MOST_STEPS = 100


class Agreement:
    """A few numbers that processes exchange about once a second, in the background of a step, over the CPU.

    Each exchange begins after one step and ends after the next, so nobody waits for it, and everybody learns of it at
    the same step. It carries how many steps there are to the one after, since only the step is a clock that all share.
    """

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo")
        self._words = torch.zeros(3, dtype=torch.int64)
        self._pending: dist.Work | None = None
        self._wait = 0
        self._begun, self._steps = time.monotonic(), 0

    def after_step(self, *, save: bool, stop: bool) -> tuple[bool, bool]:
        """Whether any process wanted to (save, stop) when the exchange began that ends here; else neither."""
        self._steps += 1
        if self._pending is not None:
            self._pending.wait()
            self._pending = None
            wants_save, wants_stop, negative_steps = self._words.tolist()
            self._wait = -negative_steps
            return bool(wants_save), bool(wants_stop)
        self._wait -= 1
        if self._wait <= 0:
            seconds = (time.monotonic() - self._begun) / self._steps
            self._begun, self._steps = time.monotonic(), 0
            steps = max(1, min(_MOST_STEPS, int(_SECONDS / max(seconds, 1e-9))))
            self._words = torch.tensor([save, stop, -steps])  # of the largest: any wish, and the slowest clock
            self._pending = dist.all_reduce(self._words, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return False, False

    def barrier(self) -> None:
        dist.barrier(self._group)
