"""The log of training: JSON Lines and TensorBoard, written by the main process alone."""

import json
import math
import threading
import time
from pathlib import Path
from typing import Any, Self

_MEASURED = ("train", "validation")  # kinds of lines that are numbers at a step; all others are events


class TrainingLog:
    """`train.jsonl`, one object a line with its kind, and TensorBoard events beside it; on other processes, nothing."""

    def __init__(self, folder: Path, *, enabled: bool, step: int = 0) -> None:
        self._enabled, self._lock = enabled, threading.Lock()
        if enabled:
            from torch.utils.tensorboard import SummaryWriter  # here, so that reading a log takes no seconds

            folder.mkdir(parents=True, exist_ok=True)
            end_torn_line(folder / "train.jsonl")
            self._lines = (folder / "train.jsonl").open("a", encoding="utf-8")
            self._board = SummaryWriter(str(folder), purge_step=step + 1)  # the first step that is trained again

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._enabled:
            self._lines.close()
            self._board.close()

    def write(self, kind: str, *, step: int, **values: Any) -> None:  # noqa: ANN401 - whatever JSON takes
        """One line; its numbers go to TensorBoard too, as <kind>/<name>."""
        self.event(kind, step=step, **values)
        if self._enabled:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{kind}/{name}", value, step)

    def event(self, kind: str, *, step: int, **values: Any) -> None:  # noqa: ANN401 - whatever JSON takes
        """One line, from any thread: a start, a checkpoint, a preemption."""
        if self._enabled:
            line = _line(kind, step, values)
            with self._lock:
                self._lines.write(line)
                self._lines.flush()


def _line(kind: str, step: int, values: dict[str, Any]) -> str:
    known = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }
    return json.dumps({"kind": kind, "time": round(time.time(), 3), "step": step, **known}) + "\n"


def end_torn_line(path: Path) -> None:
    """Ends a line that a killed process left unfinished, so that the next one is a line of its own."""
    if path.is_file() and not path.read_bytes().endswith(b"\n"):
        with path.open("ab") as lines:
            lines.write(b"\n")


def append_event(folder: Path, kind: str, **values: Any) -> None:  # noqa: ANN401 - whatever JSON takes
    """One line by a process that does not train, such as who starts it again."""
    path = folder / "train.jsonl"
    if path.is_file():
        end_torn_line(path)
        step = max((line["step"] for line in read_log(folder)), default=0)
        with path.open("a", encoding="utf-8") as lines:
            lines.write(_line(kind, step, values))


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Reads the lines of a run's training log in order, without those of steps that a later start trained again."""
    path = folder / "train.jsonl"
    kept: dict[tuple[str, int, int], dict[str, Any]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.is_file() else ()):
        try:
            entry = json.loads(line)
        except ValueError:  # half a line, the last that a killed process wrote
            continue
        if entry["kind"] == "start":
            kept = {
                key: old for key, old in kept.items() if old["kind"] not in _MEASURED or old["step"] <= entry["step"]
            }
        kept[entry["kind"], entry["step"], 0 if entry["kind"] in _MEASURED else number] = entry
    return list(kept.values())
