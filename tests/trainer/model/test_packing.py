"""Packed texts: the same logits and gradients as of padded ones, of a model that is changed in nothing else."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from tests.support.models import SIZE, Build, bert, distilbert, padded_batch, with_large_weights
from trainer.config import TrainConfig
from trainer.data.batches import PackedSequences
from trainer.data.dataset import Dataset
from trainer.distributed.process_group import Process
from trainer.model import packing
from trainer.model.packing import attend_padded, enable_packing, is_packed
from trainer.train import train

LENGTHS = [(7,), (16, 16), (3, 40, 17, 1), (1, 1, 1)]


def packed_batch(lengths: tuple[int, ...]) -> dict[str, Any]:
    """Returns the batch of `padded_batch`, packed."""
    padded, texts = padded_batch(lengths), PackedSequences.of(lengths)
    ids = padded["input_ids"][padded["attention_mask"] == 1]
    return {"input_ids": ids[None], "position_ids": texts.positions, "sequences": texts}


def learned(model: PreTrainedModel, batch: dict[str, Any], count: int) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    loss = functional.cross_entropy(model(**batch).logits, torch.arange(count))
    return loss.item(), dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


@pytest.mark.parametrize("attend", ["each text", "padded, as on a GPU"])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("build", [distilbert, bert])
def test_packed_and_padded_texts_have_the_loss_and_gradients_of_the_plain_model(
    build: Build, lengths: tuple[int, ...], attend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if attend != "each text":
        monkeypatch.setattr(packing, "_attend", attend_padded)
    plain = with_large_weights(build)  # without dropout, as its draws differ with the shape
    changed = copy.deepcopy(plain)
    assert not is_packed(changed)
    assert enable_packing(changed)
    assert is_packed(changed)
    expected_loss, expected = learned(plain, padded_batch(lengths), len(lengths))
    for batch in (packed_batch(lengths), padded_batch(lengths)):
        loss, found = learned(changed, batch, len(lengths))
        assert loss == pytest.approx(
            expected_loss, rel=1e-5
        )  # some hundred roundings of 6e-8, in another order of sums
        assert list(found) == list(expected)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("build", [distilbert, bert])
def test_a_text_does_not_see_its_neighbours(build: Build) -> None:
    model = with_large_weights(build)
    assert enable_packing(model)
    batch = packed_batch((9, 30, 4))
    before = model(**batch).logits
    batch["input_ids"][:, 9:39] = batch["input_ids"][:, 9:39].flip(1)  # the text in the middle
    after = model(**batch).logits
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert (before[1] - after[1]).abs().max() > 0.05


@pytest.mark.parametrize("build", [distilbert, bert])
def test_each_dropout_of_a_layer_drops_at_random_in_packed_texts(build: Build) -> None:
    model = with_large_weights(build).train()
    assert enable_packing(model)
    layers = model.distilbert.transformer.layer if build is distilbert else model.bert.encoder.layer
    hidden, texts = torch.randn(1, 12, 32), PackedSequences.of((7, 5))
    for layer in (layers[0], layers[-1]):
        dropouts = [part for part in layer.modules() if isinstance(part, torch.nn.Dropout)]
        assert len(dropouts) >= 2, "of attention and outputs"
        for dropout in dropouts:
            for other in dropouts:
                other.p = 0.5 if other is dropout else 0.0
            assert not torch.equal(layer(hidden, sequences=texts), layer(hidden, sequences=texts))
            dropout.p = 0.0
            assert torch.equal(layer(hidden, sequences=texts), layer(hidden, sequences=texts))


@pytest.mark.parametrize("build", [distilbert, bert])
def test_the_saved_model_is_a_plain_one(build: Build, tmp_path: Path) -> None:
    model = with_large_weights(build)
    expected = model(**padded_batch((5, 9))).logits
    assert enable_packing(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert not is_packed(loaded)
    assert "packed" not in (tmp_path / "config.json").read_text(encoding="utf-8")
    torch.testing.assert_close(loaded(**padded_batch((5, 9))).logits, expected)


def test_another_architecture_is_left_as_it_is() -> None:
    roberta = RobertaForSequenceClassification(
        RobertaConfig(**SIZE, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    )
    assert not enable_packing(roberta)
    assert not is_packed(roberta)
    assert "forward" not in vars(roberta.roberta.encoder.layer[-1])


@pytest.mark.slow
def test_it_is_trained_on_padded_texts_of_similar_length_and_that_is_reported(
    dataset: Dataset,
    tmp_path: Path,
    process: Process,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[str] = []
    monkeypatch.setattr("trainer.model.classifier.check_export", lambda name, _: tried.append(name))
    sizes = RobertaConfig(
        vocab_size=dataset.vocabulary_size, max_position_embeddings=80, pad_token_id=dataset.padding.token_id,
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
    )  # fmt: skip
    torch.manual_seed(0)
    RobertaForSequenceClassification(sizes).save_pretrained(tmp_path / "encoder")
    shutil.copytree(dataset.tokenizer_folder, tmp_path / "encoder", dirs_exist_ok=True)
    settings = {
        "model": str(tmp_path / "encoder"),
        "epochs": 4,
        "batch_size": 8,
        "learning_rate": 3e-3,
        "precision": "fp32",
    }
    state = train(TrainConfig.model_validate(settings), dataset, tmp_path, process)
    assert tried == [settings["model"]], "the export is tried before training"
    assert "cannot read packed texts: those of similar length are padded together" in capsys.readouterr().out
    assert min(epoch["loss"] for epoch in state.validation) < 1.2, "it learns: a model that guesses has ln 4, 1.386"
    assert state.validation[-1]["loss"] < state.validation[0]["loss"]
