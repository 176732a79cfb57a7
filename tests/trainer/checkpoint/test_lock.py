"""The lock of a run's training: one that lives is named, one that was left is taken over."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from server.errors import UserError
from trainer.checkpoint import lock
from trainer.checkpoint.lock import NAME, OF_RUN, Lock, free_lock


def leave(run: Path, **facts: object) -> Path:
    """Leaves the lock of another process, by default one of this machine that does not live."""
    known = lock._this_process() | {"pid": 2**22 + 1, "token": "theirs", "since": "2026-01-01"}
    (run / NAME).write_text(json.dumps(known | facts), encoding="utf-8")
    return run / NAME


@pytest.fixture
def other_machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.4)
    return {"place": "another boot", "host": "node-7", "pod": "train-master-0"}


def test_a_second_training_is_refused_and_names_the_process_that_trains(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        leave(tmp_path, pid=process.pid, started=lock._started(process.pid))
        with pytest.raises(UserError, match=rf"is being trained by process {process.pid} on \S+ since 2026-01-01"):
            Lock(tmp_path).acquire()
        process.kill()
        process.wait()
    Lock(tmp_path).acquire()  # a killed owner does not stop the next start


def test_a_run_is_locked_apart_from_its_training(tmp_path: Path) -> None:
    leave(tmp_path, pid=os.getppid(), started=lock._started(os.getppid())).rename(tmp_path / OF_RUN)
    Lock(tmp_path).acquire()
    with pytest.raises(UserError, match=rf"is being run by process {os.getppid()} .*run\.lock\): wait until it ends"):
        Lock(tmp_path, OF_RUN).acquire()


@pytest.mark.parametrize("left", ["ended", "number in use again"])
def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path: Path, left: str) -> None:
    leave(tmp_path, **({} if left == "ended" else {"pid": os.getppid(), "started": "1"}))
    mine = Lock(tmp_path)
    mine.acquire()
    assert json.loads((tmp_path / NAME).read_text(encoding="utf-8"))["pid"] == os.getpid()
    mine.release()
    assert list(tmp_path.iterdir()) == []


def test_a_pod_that_starts_again_takes_its_own_lock_over(
    tmp_path: Path, other_machine: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(tmp_path, **other_machine)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setattr("socket.gethostname", lambda: "train-master-0")
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("it waits"))
    Lock(tmp_path).acquire()


def test_a_lock_of_another_machine_is_stale_when_nobody_renews_it(
    tmp_path: Path, other_machine: dict[str, object]
) -> None:
    path = leave(tmp_path, **other_machine)
    renewing = threading.Timer(0.1, os.utime, [path])
    renewing.start()
    with pytest.raises(UserError, match=r"is being trained by process .* on node-7"):
        free_lock(tmp_path)
    renewing.join()
    free_lock(tmp_path)
    path.write_text("", encoding="utf-8")  # as a machine that went down leaves it
    Lock(tmp_path).acquire()


def test_the_locks_of_a_run_and_its_training_are_watched_together(
    tmp_path: Path, other_machine: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(tmp_path, **other_machine).rename(tmp_path / OF_RUN)
    leave(tmp_path, **other_machine)
    Lock(tmp_path, OF_RUN).acquire()
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("it waits again"))
    free_lock(tmp_path)
    Lock(tmp_path).acquire()


def test_of_several_starts_after_a_kill_one_takes_the_lock_over(tmp_path: Path) -> None:
    leave(tmp_path)
    taken, refused = list[Lock](), list[str]()

    def take() -> None:
        mine = Lock(tmp_path)
        try:
            mine.acquire()
            taken.append(mine)
        except UserError as error:
            refused.append(str(error))
        time.sleep(0.5)  # as a live owner

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "getpid", threading.get_native_id)  # threads as processes, which /proc knows too
        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(taken) == 1, refused
    assert len(refused) == 7


def test_an_owner_renews_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_RENEW_SECONDS", 0.01)
    mine = Lock(tmp_path)
    mine.acquire()
    os.utime(tmp_path / NAME, (0, 0))
    end = time.monotonic() + 5
    while (tmp_path / NAME).stat().st_mtime == 0:
        assert time.monotonic() < end
        time.sleep(0.01)
    mine.release()
    assert not (tmp_path / NAME).exists()
