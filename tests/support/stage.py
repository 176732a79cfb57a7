"""A launcher at work against the API server of the tests, and its output."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import kubernetes
import pytest

from pipelines.cluster.client import Cluster, Polling
from pipelines.job.launcher import Result, launch
from pipelines.job.settings import Deadlines, JobConfig
from server.errors import UserError
from tests.support.jobs import leave_model
from tests.support.operator import Operator
from tests.support.store import Store
from trainer.config import TrainConfig

HURRY = Polling(
    interval_seconds=0.05, max_interval_seconds=0.2, read_timeout_seconds=2, timeout_seconds=4, heartbeat_seconds=0.1
)

TRAIN = TrainConfig(epochs=2)

NO_END = Deadlines(schedule_minutes=None, run_minutes=None, progress_minutes=None)

SECOND = 1 / 60


class Stage:
    """A namespace with the objects that a job needs, and a launcher at work in it."""

    def __init__(self, store: Store, port: int, folder: Path) -> None:
        self.store, self.port, self.run_folder = store, port, folder / "runs" / "first"
        self.operator = Operator(store)
        self._pool, self.polling = ThreadPoolExecutor(), HURRY
        self.run_folder.mkdir(parents=True)
        claim = {"metadata": {"name": "distrinews-workspace"}, "spec": {"accessModes": ["ReadWriteMany"]}}
        store.put("persistentvolumeclaims", claim)

    def cluster(self) -> Cluster:
        configuration = kubernetes.client.Configuration(host=f"http://127.0.0.1:{self.port}")
        return Cluster(configuration, "news", self.polling)

    def launch(
        self, deadlines: Deadlines = NO_END, *, train: TrainConfig = TRAIN, **job: Any  # noqa: ANN401 - settings of a job
    ) -> "Future[Result]":  # fmt: skip
        config = JobConfig(mount_path=str(self.run_folder.parent), **{"nodes": 2, **job})
        return self._pool.submit(
            launch, train, config, run_folder=self.run_folder, deadlines=deadlines, cluster=self.cluster()
        )

    def train(self, *, whole: bool = True) -> None:
        """Writes the model that the trainer would write."""
        leave_model(self.run_folder / "model", TRAIN, whole=whole)

    def request_times(self, method: str, part: str, *, watch: bool | None = None) -> list[float]:
        """Returns the times at which requests of this kind came."""
        found = [
            (when, path)
            for when, how, path in self.store.requests
            if how == method and part in path and "dryRun" not in path
        ]
        return [when for when, path in found if watch in (None, "watch=true" in path)]

    def polled_often(self, part: str) -> bool:
        return len(self.request_times("GET", part, watch=True)) > 5

    def jobs(self) -> list[str]:
        return list(self.store.objects["pytorchjobs"])


def failure_of(running: "Future[Result]") -> str:
    with pytest.raises(UserError) as caught:
        running.result(10)
    return str(caught.value)


class Output:
    """Collects all output so far."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys, self.text = capsys, ""

    def all(self) -> str:
        self.text += self._capsys.readouterr().out
        return self.text

    def until(self, part: str, *, times: int = 1) -> str:
        end = time.monotonic() + 8
        while self.all().count(part) < times:
            assert time.monotonic() < end, f"{part!r} was not printed {times} times in:\n{self.text}"
            time.sleep(0.01)
        return self.text
