"""The encoder tokenizes, pads, runs a backend and applies temperature and softmax: once, for the server and the trainer."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from server.inference.backends import choose, load_backend
from server.inference.encoder import Encoder, softmax
from server.model_folder import ModelFolder, Padding, read_model_folder
from tests.support.model_folder import MAX_LENGTH, TEXTS, WORDS


@pytest.fixture(scope="module")
def model(folder: Path) -> ModelFolder:
    return read_model_folder(folder, ("fp32",))


class Summed:
    """A backend that answers with sums over the tokens of a row, and records its input."""

    name, batches, gpu, length_step = "summed", True, False, 1

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        self.input_ids, self.attention_mask = input_ids, attention_mask
        sums = (input_ids * attention_mask).sum(axis=1)
        return np.stack([sums, sums / 2, np.zeros_like(sums)], axis=1).astype(np.float32)


@pytest.mark.parametrize(
    ("padding", "short", "none", "mask"),
    [
        (Padding(), [2, 3, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]),
        (Padding(token_id=9, side="left"), [9, 9, 2, 3], [9, 9, 9, 9], [0, 0, 1, 1]),
    ],
)
def test_texts_are_padded_as_the_folder_says_and_the_mask_covers_their_tokens(
    model: ModelFolder, padding: Padding, short: list[int], none: list[int], mask: list[int]
) -> None:
    backend = Summed()
    Encoder(replace(model, padding=padding), backend).probabilities([[2, 3], [2, 7, 8, 3], []])
    assert backend.input_ids.tolist() == [short, [2, 7, 8, 3], none]
    assert backend.attention_mask[:2].tolist() == [mask, [1, 1, 1, 1]]
    assert backend.attention_mask[2].sum() == 1, "a text without tokens has one to compute"


@pytest.mark.parametrize(("tokens", "length"), [(1, 8), (8, 8), (9, 12), (12, 12)])
def test_lengths_are_rounded_up_to_the_backend_s_step_but_never_past_the_model_s_limit(
    model: ModelFolder, tokens: int, length: int
) -> None:
    backend = Summed()
    backend.length_step = 8
    Encoder(replace(model, max_length=12), backend).probabilities([[5] * tokens])
    assert backend.input_ids.shape == (1, length)


def test_a_text_has_the_same_answer_alone_and_in_any_batch(model: ModelFolder) -> None:
    encoder = Encoder(model, Summed())
    alone = np.concatenate([encoder.classify([text]) for text in TEXTS])
    np.testing.assert_array_equal(encoder.classify(TEXTS), alone)
    np.testing.assert_allclose(alone.sum(axis=1), 1)


def test_a_text_longer_than_the_model_reads_is_truncated(model: ModelFolder) -> None:
    (long,) = Encoder(model, Summed()).tokenize(["goal " * 100])
    assert len(long.ids) == MAX_LENGTH
    assert long.ids[-1] == WORDS.index("[SEP]")
    assert long.overflowing


def test_the_temperature_of_the_folder_divides_the_logits(model: ModelFolder) -> None:
    backend = load_backend(model, workers=1)
    rows = [[2, 4, 3]]
    logits = backend.run(np.array(rows), np.ones((1, 3), dtype=np.int64))
    found = Encoder(replace(model, temperature=2.5), backend).probabilities(rows)
    np.testing.assert_array_equal(found, softmax(logits, temperature=2.5))
    assert found.max() < Encoder(model, backend).probabilities(rows).max()


def test_softmax_of_large_logits_does_not_overflow() -> None:
    np.testing.assert_allclose(softmax(np.array([[1e4, 0.0], [-1e4, -1e4]])), np.array([[1.0, 0.0], [0.5, 0.5]]))


def test_threads_that_call_at_once_get_their_own_answers(model: ModelFolder) -> None:
    encoder = Encoder(model, load_backend(model, workers=2))
    alone = [encoder.classify([text]) for text in TEXTS]
    with ThreadPoolExecutor(4) as callers:
        together = list(callers.map(lambda text: encoder.classify([text]), TEXTS * 20))
    np.testing.assert_array_equal(together, alone * 20)


def test_importing_it_changes_no_variable_and_needs_no_web_framework() -> None:
    """The export step tokenizes on all threads, and its image has no fastapi."""
    program = (
        "import os, sys, server.inference.encoder, server.inference.classifier\n"
        "print(os.environ.get('TOKENIZERS_PARALLELISM'), *({'fastapi', 'starlette', 'uvicorn'} & set(sys.modules)))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["None"]


def test_choose_reads_loads_and_measures_in_one_call_and_gives_the_reason(folder: Path) -> None:
    choice = choose(folder, "onnx", workers=1)
    assert choice.folder.variant == "int8"
    assert choice.backend.name.startswith("onnxruntime")
    assert choice.token_budget == 0, "its answers depend on their batch"
    assert choice.reason == "as --engine onnx says"
