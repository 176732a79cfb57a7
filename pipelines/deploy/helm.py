"""Helm, as a program: one release of the server's chart, what it was and what becomes of it."""

import json
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from pipelines.cluster.logs import Console
from pipelines.job.settings import Object
from server.errors import UserError

_READ_SECONDS = 120  # of a call that only asks
_QUIT_SECONDS = 8  # in which helm, told to stop, notes the release as failed
_SAID_LINES = 20
_HISTORY_MAX = 5


class HelmError(UserError):
    """Helm ended without success; the message has its last words."""


@dataclass(frozen=True)
class Revision:
    """One state of a release, as `helm history` tells it."""

    number: int
    status: str
    updated: datetime

    @property
    def is_pending(self) -> bool:
        """Whether an operation made it that has not ended, or was killed."""
        return self.status.startswith("pending-") or self.status == "uninstalling"

    @property
    def was_served(self) -> bool:
        return self.status in ("deployed", "superseded")

    @property
    def age_seconds(self) -> float:
        return (datetime.now(UTC) - self.updated).total_seconds()


class Helm:
    def __init__(self, program: str, *, release: str, namespace: str, chart: Path, console: Console) -> None:
        self._program, self.release, self.namespace, self._chart, self._console = program, release, namespace, chart, console  # fmt: skip

    def version(self) -> str:
        return self._ask("version", "--short").strip()

    def history(self) -> list[Revision]:
        """All that is kept of the release, the newest last; nothing where there is none."""
        try:
            listed = json.loads(self._ask("history", self.release, "--output", "json"))
        except HelmError as error:
            if "release: not found" in str(error):
                return []
            raise
        return [
            Revision(int(one["revision"]), one["status"], datetime.fromisoformat(one["updated"]).astimezone(UTC))
            for one in listed
        ]

    def values(self, revision: int) -> Object:
        """What was given with this revision, without the chart's defaults."""
        said = self._ask("get", "values", self.release, "--revision", str(revision), "--output", "json")
        return json.loads(said) or {}

    def render(self, values: Path) -> list[Object]:
        """The objects that these values make."""
        said = self._ask("template", self.release, str(self._chart), "--values", str(values))
        return [item for item in yaml.safe_load_all(said) if item]

    def upgrade(self, values: Path, *, description: str, seconds: float, meanwhile: Callable[[], None]) -> None:
        """Install the release or bring it to these values alone, and wait until its pods are ready."""
        args = ["upgrade", "--install", self.release, str(self._chart), "--values", str(values), "--reset-values"]
        wait = ["--wait", "--timeout", f"{seconds:.0f}s", "--history-max", str(_HISTORY_MAX)]
        self._work([*args, *wait, "--description", description], seconds=seconds, meanwhile=meanwhile)

    def rollback(self, revision: int, *, seconds: float) -> None:
        """Bring the release back to a revision, as a new one, without waiting for its pods."""
        args = ["rollback", self.release, str(revision), "--history-max", str(_HISTORY_MAX)]
        self._work([*args, "--timeout", f"{seconds:.0f}s"], seconds=seconds)

    def uninstall(self, *, seconds: float) -> None:
        self._work(["uninstall", self.release, "--ignore-not-found", "--timeout", f"{seconds:.0f}s"], seconds=seconds)

    def _command(self, args: Sequence[str]) -> list[str]:
        return [self._program, *args, "--namespace", self.namespace]

    def _ask(self, *args: str) -> str:
        try:
            done = subprocess.run(self._command(args), capture_output=True, text=True, check=False, timeout=_READ_SECONDS)  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise HelmError(f"helm {args[0]}: no answer within {_READ_SECONDS} s") from error
        if done.returncode:
            raise HelmError(f"helm {args[0]}: {' '.join(done.stderr.split())}")
        return done.stdout

    def _work(
        self, args: Sequence[str], *, seconds: float, meanwhile: Callable[[], None] = lambda: time.sleep(0.1)
    ) -> None:
        """Run helm to its end, its lines told as they come; it is stopped when we are, and when it outlives its own timeout."""
        said: list[str] = []
        end = time.monotonic() + seconds + _READ_SECONDS
        with subprocess.Popen(self._command(args), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as process:  # fmt: skip
            reader = threading.Thread(target=self._tell, args=(process.stdout, said), daemon=True)
            reader.start()
            try:
                while process.poll() is None:
                    meanwhile()
                    if time.monotonic() > end:
                        raise HelmError(f"helm {args[0]} does not end, {_READ_SECONDS} s after its timeout")
            finally:
                _stop(process)
                reader.join(_QUIT_SECONDS)
        if process.returncode:
            errors = [line for line in said if line.startswith("Error:")] or said[-1:]
            raise HelmError(f"helm {args[0]}: {' '.join(errors).removeprefix('Error: ')}")

    def _tell(self, lines: Any, said: list[str]) -> None:  # noqa: ANN401 - a pipe
        for line in lines:
            if text := line.rstrip():
                self._console.print("helm", text)
                said[:] = [*said[1 - _SAID_LINES :], text]


def _stop(process: "subprocess.Popen[str]") -> None:
    """Tell it to stop, so that it can note what it left, and kill it if it does not."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_QUIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
