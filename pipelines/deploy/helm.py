"""Helm, as a program, for one release of the server's chart."""

import json
import re
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, NamedTuple

from pipelines.cluster import go_yaml
from pipelines.cluster.client import Object
from pipelines.cluster.logs import Console
from server.errors import UserError

_READ_SECONDS = 120  # of a call that changes nothing
_STOP_SECONDS = 8  # in which helm, after SIGTERM, records the release as failed
_KEPT_LINES = 20
_HISTORY_MAX = 5
_MIN_VERSION = (4, 1)  # whose --wait waits for the old pods too


class HelmError(UserError):
    """A failure of Helm, with its last words."""


class Revision(NamedTuple):
    """One revision of a release, as `helm history` lists it."""

    number: int
    status: str
    updated: datetime

    @property
    def is_pending(self) -> bool:
        """True while an operation runs, and for ever after one that was killed."""
        return self.status.startswith("pending-") or self.status == "uninstalling"

    @property
    def was_served(self) -> bool:
        return self.status in ("deployed", "superseded")

    @property
    def age_seconds(self) -> float:
        return (datetime.now(UTC) - self.updated).total_seconds()


class DryRun(NamedTuple):
    values: Object
    """All values but the chart's defaults."""
    objects: list[Object]


class Helm:
    def __init__(self, program: str, *, release: str, namespace: str, chart: Path, console: Console) -> None:
        self._program, self.release, self.namespace, self._chart, self._console = program, release, namespace, chart, console  # fmt: skip

    def version(self) -> str:
        """Returns the version; UserError when it is too old."""
        version = self._read("version", "--short").strip()
        numbers = re.match(r"v?(\d+)\.(\d+)", version)
        if not numbers or (int(numbers[1]), int(numbers[2])) < _MIN_VERSION:
            raise UserError(f"{self._program} is {version}: install Helm 4.1 or newer")
        return version

    def history(self) -> list[Revision]:
        """Returns the revisions that are kept, the newest last; none where there is no release."""
        try:
            listed = json.loads(self._read("history", self.release, "--output", "json"))
        except HelmError as error:
            if "release: not found" in str(error):
                return []
            raise
        return [
            Revision(int(one["revision"]), one["status"], datetime.fromisoformat(one["updated"]).astimezone(UTC))
            for one in listed
        ]

    def model_sha256(self, revision: int) -> str:
        """Returns the digest of the model that a revision serves; empty where it is not known."""
        try:
            values = json.loads(self._read("get", "values", self.release, "--revision", str(revision), "--output", "json"))  # fmt: skip
        except HelmError:
            return ""  # a revision that was pruned, or that this Helm cannot read, is not ours
        return str(((values or {}).get("model") or {}).get("sha256") or "")

    def dry_run(self, values: Sequence[Path], *, keep: bool) -> DryRun:
        """Returns what `upgrade` would install, and changes nothing."""
        answer = json.loads(self._read(*self._upgrade(values, keep=keep), "--dry-run=server", "--output", "json"))
        return DryRun(answer.get("config") or {}, go_yaml.load_all(answer["manifest"]))

    def upgrade(
        self, values: Sequence[Path], *, keep: bool, description: str, seconds: float, on_tick: Callable[[], None]
    ) -> None:
        """Installs the release or upgrades it, and waits until all its pods are new and ready; `keep` keeps its other values."""
        wait = ["--wait", "--timeout", f"{seconds:.0f}s", "--history-max", str(_HISTORY_MAX)]
        command = [*self._upgrade(values, keep=keep), *wait, "--description", description]
        self._run(command, seconds=seconds, on_tick=on_tick)

    def rollback(self, revision: int, *, seconds: float) -> None:
        """Rolls the release back to a revision, as a new one, without waiting for its pods."""
        command = ["rollback", self.release, str(revision), "--history-max", str(_HISTORY_MAX)]
        self._run([*command, "--timeout", f"{seconds:.0f}s"], seconds=seconds)

    def uninstall(self, *, seconds: float) -> None:
        self._run(["uninstall", self.release, "--ignore-not-found", "--timeout", f"{seconds:.0f}s"], seconds=seconds)

    def _upgrade(self, values: Sequence[Path], *, keep: bool) -> list[str]:
        files = [word for file in values for word in ("--values", str(file))]
        how = "--reset-then-reuse-values" if keep else "--reset-values"
        return ["upgrade", "--install", self.release, str(self._chart), *files, how]

    def _command(self, args: Sequence[str]) -> list[str]:
        return [self._program, *args, "--namespace", self.namespace]

    def _read(self, *args: str) -> str:
        try:
            done = subprocess.run(self._command(args), capture_output=True, text=True, check=False, timeout=_READ_SECONDS)  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise HelmError(f"helm {args[0]}: no answer within {_READ_SECONDS} s") from error
        if done.returncode:
            raise HelmError(f"helm {args[0]}: {' '.join(done.stderr.split()).removeprefix('Error: ')}")
        return done.stdout

    def _run(
        self, args: Sequence[str], *, seconds: float, on_tick: Callable[[], None] = lambda: time.sleep(0.1)
    ) -> None:
        """Runs helm to its end and prints its lines as they come; stops it when we are stopped, or when it outlives its own timeout."""
        lines: list[str] = []
        end = time.monotonic() + seconds + _READ_SECONDS
        with subprocess.Popen(self._command(args), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as process:  # fmt: skip
            reader = threading.Thread(target=self._print, args=(process.stdout, lines), daemon=True)
            reader.start()
            try:
                while process.poll() is None:
                    on_tick()
                    if time.monotonic() > end:
                        raise HelmError(f"helm {args[0]} still runs, {_READ_SECONDS} s after its timeout")
            finally:
                _stop(process)
                reader.join(_STOP_SECONDS)
        if process.returncode:
            errors = [line for line in lines if line.startswith("Error:")] or lines[-1:]
            raise HelmError(f"helm {args[0]}: {' '.join(errors).removeprefix('Error: ')}")

    def _print(self, output: IO[str], lines: list[str]) -> None:
        for line in output:
            if text := line.rstrip():
                self._console.print("helm", text)
                lines[:] = [*lines[1 - _KEPT_LINES :], text]


def _stop(process: "subprocess.Popen[Any]") -> None:
    """Stops a program; kills it when it does not end in time."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
