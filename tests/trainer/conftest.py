"""Fixtures of the trainer's tests."""

import json
from pathlib import Path

import pytest

from tests.support.data import labelled, write
from tests.support.datasets import make
from trainer.data.dataset import Dataset
from trainer.data.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes the files of an encoder's folder that preprocess reads."""
    folder = tmp_path_factory.mktemp("encoder")
    train_tokenizer((text for text, _ in labelled(50)), max_length=512).save_pretrained(folder)
    write(folder / "config.json", json.dumps({"model_type": "distilbert"}))
    return folder


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Makes a dataset of 5,000 rows: more than are read, tokenised and written at a time."""
    return make("sample:5000", tmp_path_factory.mktemp("sample") / "dataset", max_length=48)
