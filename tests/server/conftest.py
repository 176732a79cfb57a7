from pathlib import Path

import pytest

from tests.support.model_folder import write_model_folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that many tests share and none changes."""
    return write_model_folder(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    """A model folder that its test may change."""
    return write_model_folder(tmp_path / "model")
