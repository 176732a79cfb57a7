"""Progress of anything that takes more than two seconds: a bar on a terminal, a line every few seconds elsewhere."""

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TextIO

from tqdm import tqdm

TERMINAL_VARIABLE = "DISTRINEWS_TERMINAL"
"""Names the terminal that a step's bars go to when its own output is a pipe, as under a pipeline runner."""

_LINE_SECONDS = 5.0
_COLUMNS = 80


def is_rank0() -> bool:
    """Returns True in the first process of a group, and in a process that belongs to none."""
    return os.environ.get("RANK", "0") == "0"  # as torchrun sets it


def print0(text: str) -> None:
    """Prints a line at once; silent on all ranks but the first."""
    if is_rank0():
        print(text, flush=True)


class Progress:
    """Counts `total` units of work and shows progress, rate and ETA; silent on all ranks but the first."""

    def __init__(self, what: str, total: int | None, unit: str, *, start: int = 0, shown: bool = True) -> None:
        shown = shown and is_rank0()
        self._what, self._total, self._unit, self._done, self._start = what, total, unit, start, start
        self._facts: dict[str, Any] = {}
        self._shown = shown
        self._started = self._spoken = time.monotonic()
        self._terminal = _terminal() if shown else None
        self._bar = _bar(self._terminal, what, total, unit, start) if self._terminal else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._terminal not in (None, sys.stderr):
            self._terminal.close()

    def note(self, **facts: str) -> None:
        """Shows facts beside the count from now on, such as loss="0.31"."""
        self._facts.update(facts)
        if self._bar is not None:
            self._bar.set_postfix(self._facts, refresh=False)

    def advance(self, count: int = 1) -> None:
        """Counts finished units, up to the total: a process that counts for others may end up with a few too many."""
        count = min(count, self._total - self._done) if self._total is not None else count
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._shown and time.monotonic() - self._spoken >= _LINE_SECONDS:
            self._spoken = time.monotonic()
            print0(self._line())

    def _line(self) -> str:
        rate = (self._done - self._start) / (time.monotonic() - self._started)
        words = [f"{self._what}: {self._done:,}"]
        if self._total:
            words[0] += f"/{self._total:,} {self._unit} ({self._done / self._total:.0%})"
            words.append(f"ETA {_clock((self._total - self._done) / max(rate, 1e-9))}")
        else:
            words[0] += f" {self._unit}"
        words.append(f"{rate:,.1f} {self._unit}/s")
        words += [f"{name} {value}" for name, value in self._facts.items()]
        return ", ".join(words)


def _terminal() -> TextIO | None:
    if sys.stderr.isatty():
        return sys.stderr
    device = os.environ.get(TERMINAL_VARIABLE)  # the one variable read outside settings: it is about where, not what
    try:
        return Path(device).open("w", encoding="utf-8") if device else None
    except OSError as error:
        print0(f"no progress bars: {TERMINAL_VARIABLE}={device} cannot be opened: {error.strerror}")
        return None


def _bar(terminal: TextIO, what: str, total: int | None, unit: str, start: int) -> "tqdm[Any]":
    sized = os.get_terminal_size(terminal.fileno()).columns > 0  # one without a size would get a bar of no width
    return tqdm(
        total=total, initial=start, desc=what, unit=f" {unit}", file=terminal, leave=False,
        dynamic_ncols=sized, ncols=None if sized else _COLUMNS,
    )  # fmt: skip


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


@contextmanager
def quiet_logs(logger: str = "", level: int = logging.ERROR) -> Iterator[None]:
    """Lets a library's logger, by default all, log only records of at least this level while the block runs."""
    found = logging.getLogger(logger)
    before = found.level
    found.setLevel(level)
    try:
        yield
    finally:
        found.setLevel(before)


def counted(count: int, word: str) -> str:
    """Writes a count with its word, such as 1 process, 2 processes."""
    return f"{count:,} {word}" + ("" if count == 1 else "es" if word.endswith("s") else "s")
