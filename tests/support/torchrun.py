"""Ranks of a training as users start them: by torchrun, which sees to it that none is left alone."""

import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil

from tests.support.ranks import steps_done

SECONDS = 90
"""No run of a test takes longer."""


class Run:
    """Ranks under torchrun, which train into this folder; what they say goes to a file."""

    def __init__(
        self, output: Path, *flags: str, fault: str = "", ranks: int = 2, restarts: int = 0, before: tuple[str, ...] = ()
    ) -> None:  # fmt: skip
        self.output, self.said_in = output, output.with_suffix(".txt")
        torchrun = ["--standalone", "--nproc-per-node", str(ranks), "--max-restarts", str(restarts)]
        module = ["tests.support.faults", fault] if fault else ["trainer.train"]
        where = ["--dataset", str(output.with_name("dataset")), "--output", str(output)]
        self._command = [
            *before, sys.executable, "-m", "torch.distributed.run", *torchrun, "-m", *module, *where, *flags,
        ]  # fmt: skip

    def __enter__(self) -> Self:
        self.began = time.time()
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with self.said_in.open("w", encoding="utf-8") as said:
            self.process = subprocess.Popen(self._command, stdout=said, stderr=said, env=environment)
        return self

    def __exit__(self, *_: object) -> None:
        for process in [*self._children(), psutil.Process(self.process.pid)] if self.process.poll() is None else []:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()

    @property
    def said(self) -> str:
        return self.said_in.read_text(encoding="utf-8")

    @property
    def ranks(self) -> list[psutil.Process]:
        """The processes that train, in the order of their ranks."""
        return sorted((child for child in self._children() if _trains(child)), key=lambda child: child.pid)

    def _children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []

    def at_step(self, step: int) -> Self:
        """Wait until this step is in the log; what is done to the ranks comes next."""
        deadline = time.monotonic() + SECONDS
        while steps_done(self.output) < step:
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.005)
        self.began = time.time()
        return self

    def end(self) -> tuple[str, float]:
        """Exit status of torchrun, and of the ranks where it tells them, and the seconds since the fault."""
        try:
            status = self.process.wait(SECONDS)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"still there: {[rank.status() for rank in self.ranks]}\n{self.said}") from error
        injected = re.search(r"^injected at ([\d.]+)$", self.said, re.MULTILINE)
        seconds = time.time() - (float(injected[1]) if injected else self.began)
        codes = dict(re.findall(r"rank +: (\d) \(local_rank: \d\)\n +exitcode +: (-?\d+)", self.said))
        told = ", ".join(f"rank {rank}: {codes[rank]}" for rank in sorted(codes))
        return f"{status}" + (f" ({told})" if told else ""), seconds


def _trains(process: psutil.Process) -> bool:
    try:
        return "trainer.train" in process.cmdline()
    except psutil.NoSuchProcess:  # it has ended since it was listed
        return False
