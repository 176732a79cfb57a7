"""The lock of a run, or of its training: a file in the run's folder, which its owner renews while it works.

It needs nothing of the disk but exclusive creation, so it holds on shared disks too. An owner on this machine is looked up among
the processes; the file of any other is watched for a while, since the clocks of machines differ: renewed, its owner lives.
"""

import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any, NamedTuple

from server.errors import UserError
from trainer.monitoring.console import print0

NAME, OF_RUN = "train.lock", "run.lock"
_RENEW_SECONDS = 10.0
STALE_SECONDS = 60.0
"""Time without a renewal after which an owner on another machine counts as dead."""


class _Seen(NamedTuple):
    facts: dict[str, Any]
    renewed_ns: int

    @property
    def owner(self) -> str:
        who = f"process {self.facts.get('pid', '?')} on {self.facts.get('host', 'an unknown machine')}"
        return f"{who} since {self.facts.get('since', 'an unknown time')}"


class Lock:
    """Held by the one process that runs a run's steps, or the one training that writes its checkpoints, logs and model."""

    def __init__(self, run: Path, name: str = NAME) -> None:
        self._path = run / name
        self._token = ""
        self._released, self._busy = threading.Event(), threading.Lock()

    def acquire(self) -> None:
        """Makes the file, in place of one whose owner is dead; UserError names an owner that lives."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        while not self._create():
            free_lock(self._path.parent, *([OF_RUN, NAME] if self._path.name == OF_RUN else [NAME]))
        threading.Thread(target=self._renew, name="lock", daemon=True).start()

    def release(self) -> None:
        """Removes the file, if it is still this owner's."""
        with self._busy:
            self._released.set()
            if self._token and (seen := _read(self._path)) and seen.facts.get("token") == self._token:
                self._path.unlink(missing_ok=True)

    def _create(self) -> bool:
        try:
            handle = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        self._token = uuid.uuid4().hex
        facts = _this_process() | {"token": self._token, "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")
        return True

    def _renew(self) -> None:
        while not self._released.wait(_RENEW_SECONDS):
            with self._busy:
                try:
                    seen = None if self._released.is_set() or self._create() else _read(self._path)
                    if seen is None:
                        continue
                    if seen.facts.get("token") != self._token:
                        print0(
                            f"train: error: {self._path} is now of {seen.owner}: this process ends, or both would write"
                        )
                        os._exit(1)
                    os.utime(self._path)
                except OSError as error:  # a share that is away for a moment
                    print0(f"train: warning: {self._path} cannot be renewed: {error.strerror or error}")


def free_lock(run: Path, *names: str) -> None:
    """Removes these locks of dead owners, by default that of the training; UserError when one's owner lives.

    Owners on other machines are watched together, for up to a minute.
    """
    found = {path: seen for name in names or (NAME,) if (seen := _read(path := run / name))}
    live = {path: _lives(seen) for path, seen in found.items()}
    unknown = {path: found[path] for path, lives in live.items() if lives is None}
    if held := next((path for path, lives in live.items() if lives), None) or _watch(unknown):
        doing = "trained" if held.name == NAME else "run"
        raise UserError(
            f"{run}: is being {doing} by {found[held].owner} ({held}): wait until it ends, or stop it first"
        )
    for path, seen in found.items():
        _remove_stale(path, seen)


def _lives(seen: _Seen) -> bool | None:
    """Returns True if the owner of a lock lives; None where that cannot be seen from this machine."""
    here, facts = _this_process(), seen.facts
    if here["place"] and facts.get("place") == here["place"]:
        pid = facts.get("pid")
        return pid != os.getpid() and _started(pid) == facts.get("started")
    if here["pod"] and facts.get("pod") == here["pod"]:
        return False  # the pod was started again, and has one main process
    return None


def _watch(locks: dict[Path, _Seen]) -> Path | None:
    """Watches locks for a while; returns one that was renewed, or None."""
    for path, seen in locks.items():
        print0(f"train: {path} is of {seen.owner}: watching for up to {STALE_SECONDS:.0f} s whether that still works")
    end, watched = time.monotonic() + STALE_SECONDS, dict(locks)
    while watched and time.monotonic() < end:
        time.sleep(min(1.0, STALE_SECONDS / 4))
        for path, seen in [*watched.items()]:
            if (now := _read(path)) != seen:
                if now is not None:
                    return path
                del watched[path]  # its owner has ended
    return None


def _remove_stale(path: Path, seen: _Seen) -> None:
    """Removes the lock of a dead owner; of several that want to, the one that makes the second file."""
    claim = path.with_name(f"{path.name}.{seen.facts.get('token', 'torn')}")
    try:
        os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        raise UserError(
            f"{claim}: another start takes over this run at this moment; if there is none, remove this file"
        ) from None
    try:
        if _read(path) == seen:
            print0(f"train: {path} was of {seen.owner}, which has ended: taken over")
            path.unlink()
    finally:
        claim.unlink()


def _read(path: Path) -> _Seen | None:
    """Reads a lock through its open file, whose time a shared disk does not cache; None where there is none."""
    try:
        with path.open(encoding="utf-8") as file:
            text, renewed = file.read(), os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None
    try:
        facts = json.loads(text)
    except ValueError:  # being written, or torn: it is watched like that of another machine
        facts = {}
    return _Seen(facts if isinstance(facts, dict) else {}, renewed)


def _this_process() -> dict[str, Any]:
    host = socket.gethostname()
    return {
        "pid": os.getpid(), "host": host, "started": _started(os.getpid()), "place": _place(),
        "pod": host if "KUBERNETES_SERVICE_HOST" in os.environ else "",
    }  # fmt: skip


def _place() -> str:
    """Names the boot and the process namespace, in which a process number means one process; "" where that is not known."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: object) -> str | None:
    """Returns when a process was started, in ticks since boot; None for one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, UnicodeDecodeError):
        return None
    return None if fields[0] in "ZX" else fields[19]
