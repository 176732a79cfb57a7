"""Small real objects that several files share: a dataset, a process group of one, a finished run."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # fixtures import torch, which takes seconds, where a test needs it
    from collections.abc import Iterator

    from trainer.data.dataset import Dataset
    from trainer.distributed.process_group import Process

os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start, as of their own: two workers share the CPUs
os.environ.pop("MLFLOW_TRACKING_URI", None)  # no training of a test is tracked
DISTRINEWS = Path(sys.executable).with_name("distrinews")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and "finished_run" in item.fixturenames:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from trainer.config import PreprocessConfig
    from trainer.preprocess import preprocess

    folder = tmp_path_factory.mktemp("data") / "dataset"
    preprocess(PreprocessConfig(data="sample:400", max_length=64, validation_fraction=0.1), folder)
    return folder


@pytest.fixture(scope="session")
def dataset(dataset_folder: Path) -> "Dataset":
    from trainer.data.dataset import Dataset

    return Dataset(dataset_folder)


@pytest.fixture
def process() -> "Iterator[Process]":
    from trainer.distributed.process_group import process_group

    with process_group(timeout_minutes=1) as alone:
        yield alone


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The folder of a run that went through the whole pipeline, as `make run` does it; its name is "first"."""
    alone = worker_id == "master"
    runs = (tmp_path_factory.getbasetemp() if alone else tmp_path_factory.getbasetemp().parent) / "runs"
    runs.mkdir(exist_ok=True)
    with (runs / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one of the processes that run the tests makes it
        if not (runs / "first" / "output.txt").is_file():
            _run_first(runs)
    return runs / "first"


def _run_first(runs: Path) -> None:
    args = "run --data sample:1500 --epochs 2 --batch-size 8 --ranks 2 --name first"
    done = distrinews(*args.split(), "--runs-dir", str(runs))
    assert done.returncode == 0, done.stdout + done.stderr
    (runs / "first" / "output.txt").write_text(done.stdout, encoding="utf-8")


def distrinews(*args: str) -> subprocess.CompletedProcess[str]:
    """The command, as a user calls it."""
    return subprocess.run([DISTRINEWS, *args], capture_output=True, text=True, check=False, timeout=200)
