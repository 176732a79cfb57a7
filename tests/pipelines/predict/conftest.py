"""Fixtures of predict: a folder whose model was trained on the columns title and body, and its server."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.files import write_json
from server.model_folder import write_manifest
from tests.support.data import write_csv
from tests.support.model_folder import write_model_folder
from tests.support.predicting import ROWS
from tests.support.servers import serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_model_folder(tmp_path_factory.mktemp("predict") / "model")
    described = json.loads((folder / "onnx" / "model.json").read_text())
    write_json(folder / "onnx" / "model.json", {**described, "text_columns": ["title", "body"]})
    write_manifest(folder)
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    with serving(folder, "--max-text-characters", "200") as (_, client):
        yield client


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("rows") / "rows.csv", ROWS, ("title", "body", "label"))
