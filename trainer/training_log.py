"""What training writes while it runs: JSON Lines and TensorBoard, from the main process alone."""

import json
import time
from pathlib import Path
from typing import Any, Self

from torch.utils.tensorboard import SummaryWriter


class TrainingLog:
    """`train.jsonl`, one object a line with its kind, and TensorBoard events beside it; on other processes, nothing."""

    def __init__(self, folder: Path, *, enabled: bool, step: int = 0) -> None:
        self._enabled = enabled
        if enabled:
            folder.mkdir(parents=True, exist_ok=True)
            self._lines = (folder / "train.jsonl").open("a" if step else "w", encoding="utf-8")
            self._board = SummaryWriter(str(folder), purge_step=step or None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._enabled:
            self._lines.close()
            self._board.close()

    def write(self, kind: str, *, step: int, **values: Any) -> None:  # noqa: ANN401 - whatever JSON takes
        """One line; its numbers go to TensorBoard too, as <kind>/<name>."""
        if not self._enabled:
            return
        json.dump({"kind": kind, "time": round(time.time(), 3), "step": step, **values}, self._lines)
        self._lines.write("\n")
        self._lines.flush()
        for name, value in values.items():
            if isinstance(value, int | float):
                self._board.add_scalar(f"{kind}/{name}", value, step)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Lines of a run's training log; of a step logged twice, because training was resumed before it, the later one."""
    path = folder / "train.jsonl"
    if not path.is_file():
        return []
    latest: dict[tuple[str, int], dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        latest[entry["kind"], entry["step"]] = entry
    return sorted(latest.values(), key=lambda entry: entry["step"])
