"""What of a run is in MLflow already: logs/mlflow.json, beside the log that it is about."""

import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Self

from server.files import write_json

_LINES = 150  # of the log in one request, which may hold 1,000 metrics


@dataclass
class TrackingState:
    folder: Path
    """The logs of the run."""
    uri: str = ""
    """Without its credentials."""
    run_id: str = ""
    proven: bool = False
    """Whether MLflow there has taken a run's parameters and a file."""
    sent: int = 0
    """Bytes of train.jsonl that it has."""
    events: dict[str, int] = field(default_factory=dict)
    """How many events of each kind these hold."""
    model: bool = False
    """Whether it has the model that was trained last."""

    @classmethod
    def of(cls, output: Path) -> Self:
        """That of a run's folder, whatever was written there, or that of one not tracked yet."""
        folder = output / "logs"
        path = folder / "mlflow.json"
        return cls(folder, **(json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}))

    def note(self, **values: Any) -> None:  # noqa: ANN401 - whatever the fields are
        """Remember, on the disk, too."""
        for name, value in values.items():
            setattr(self, name, value)
        kept = {name: value for name, value in dataclasses.asdict(self).items() if name != "folder"}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "mlflow.json", kept)

    def chunks(self) -> Iterator[tuple[list[dict[str, Any]], int]]:
        """Whole lines of the log that were not sent, and where they end; what a kill tore is left out."""
        if not (self.folder / "train.jsonl").is_file():
            return
        with (self.folder / "train.jsonl").open("rb") as log:
            end = log.seek(self.sent)
            while lines := [line for line in islice(log, _LINES) if line.endswith(b"\n")]:
                end += sum(map(len, lines))
                yield _read(lines), end
                log.seek(end)  # half a line may be whole by now

    def unsent(self) -> int:
        """Lines of the log that MLflow does not have."""
        return sum(len(lines) for lines, _ in self.chunks())


def _read(lines: list[bytes]) -> list[dict[str, Any]]:
    entries = []
    for line in lines:
        try:
            entries.append(json.loads(line))
        except ValueError:  # half a line, the last that a killed process wrote
            continue
    return entries


def redacted(text: object) -> str:
    """One line of text, short enough for a log, without the credentials of any URL in it."""
    line = " ".join(str(text).split())
    line = re.sub(r"//[^/\s]*@", "//", line)
    return re.sub(r"(?i)(password|token|secret)=[^&\s]+", r"\1=…", line)[:500]
