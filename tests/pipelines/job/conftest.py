"""Fixtures of jobs: a namespace with a launcher, and its output."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.api_server import serving
from tests.support.stage import Output, Stage
from tests.support.store import Store


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setenv("KFP_POD_NAME", "train-step")
    monkeypatch.setenv("KFP_POD_UID", "uid-of-the-step")
    store = Store()
    with serving(store) as port:
        yield Stage(store, port, tmp_path)


@pytest.fixture
def output(capsys: pytest.CaptureFixture[str]) -> Output:
    return Output(capsys)
