"""A pretrained encoder works as it is, or is refused with one line before any work."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    FNetConfig,
    GPT2Config,
    LlamaConfig,
    LlamaModel,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    T5Config,
    XLNetConfig,
    pipeline,
)

from server.errors import UserError
from server.inference.encoder import pad
from server.model_folder import Padding
from trainer.data.dataset import Dataset
from trainer.data.tokenizer import load_tokenizer
from trainer.model import exporters
from trainer.model.exporters import check_export
from trainer.model.pretrained import check_encoder, check_padding, load_encoder

SIZE: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT = BertConfig(vocab_size=300, max_position_embeddings=64, **SIZE)
LLAMA = LlamaConfig(vocab_size=300, max_position_embeddings=64, **SIZE)
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    BertModel(BERT).save_pretrained(folder)
    return folder


def changed(source: Path, folder: Path, change: Callable[[Weights], Weights], **config: object) -> Path:
    """Copies an encoder with other weights or settings."""
    shutil.copytree(source, folder)
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def load(folder: Path) -> PreTrainedModel:
    return load_encoder(str(folder), pad_token_id=7, labels={"num_labels": 3})


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "model._orig_mod.bert."])
def test_the_prefix_of_a_wrapper_is_left_out_of_names_of_weights(bert: Path, tmp_path: Path, prefix: str) -> None:
    folder = changed(bert, tmp_path / "wrapped", lambda weights: {prefix + name: weights[name] for name in weights})
    built, plain = load(folder).base_model.state_dict(), load_file(bert / "model.safetensors")
    assert all(torch.equal(built[name], plain[name]) for name in plain)
    load(folder).save_pretrained(tmp_path / "saved")
    assert "bert.embeddings.word_embeddings.weight" in load_file(tmp_path / "saved" / "model.safetensors")


def test_names_that_begin_like_a_wrapper_s_are_the_architecture_s_own(tmp_path: Path) -> None:
    LlamaModel(LLAMA).save_pretrained(tmp_path / "plain")
    plain = load_file(tmp_path / "plain" / "model.safetensors")
    renamed = [{prefix + name: plain[name] for name in plain} for prefix in ("model.", "model.model.", "module.")]
    for number, weights in enumerate(renamed):
        folder = shutil.copytree(tmp_path / "plain", tmp_path / str(number))
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        built = load(folder).base_model.state_dict()
        assert all(torch.equal(built[name], plain[name]) for name in plain)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"vocab_size": 400}, "bert.embeddings.word_embeddings.weight is 300 × 16 in its weights and 400 × 16 by its config.json"),
        ({"hidden_size": 32}, "word_embeddings.weight is 300 × 16 in its weights and 300 × 32 by its config.json"),
        ({"num_hidden_layers": 3}, "that are missing: 16 (bert.encoder.layer.2."),
        ({"num_hidden_layers": 1}, "that are not used: 16 (encoder.layer.1."),
    ],
)  # fmt: skip
def test_weights_of_another_vocabulary_width_or_depth_are_refused(
    bert: Path, tmp_path: Path, config: dict[str, int], expected: str
) -> None:
    folder = changed(bert, tmp_path / "other", lambda weights: weights, **config)
    with pytest.raises(UserError, match="its weights do not belong to its config") as refused:
        load(folder)
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)


def test_weights_under_unknown_names_are_refused_with_both_names(bert: Path, tmp_path: Path) -> None:
    folder = changed(bert, tmp_path / "other", lambda weights: {f"tower.{name}": weights[name] for name in weights})
    with pytest.raises(UserError, match=r"missing: 37 \(bert\.emb.*not used: 39 \(tower\.emb"):
        load(folder)


def test_a_head_and_a_pooler_may_be_fresh_and_the_head_of_another_task_unused(bert: Path, tmp_path: Path) -> None:
    def masked(weights: Weights) -> Weights:
        return {f"bert.{name}": weights[name] for name in weights if "pooler" not in name} | {
            "cls.bias": torch.zeros(3)
        }

    assert load(changed(bert, tmp_path / "masked", masked)).num_labels == 3


@pytest.mark.parametrize("classes", [3, 4])
def test_the_head_of_as_many_classes_is_trained_further_which_is_a_line(
    bert: Path, tmp_path: Path, classes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    head = {"classifier.weight": torch.full((classes, 16), 2.0), "classifier.bias": torch.zeros(classes)}
    kept = load(changed(bert, tmp_path / "classifier", lambda weights: weights | head)).state_dict()
    assert torch.equal(kept["classifier.weight"], head["classifier.weight"]) == (classes == 3)
    assert ("its head, of as many classes, is trained further" in capsys.readouterr().out) == (classes == 3)


def test_the_classifier_is_one_of_single_labels_whatever_the_encoder_was(
    dataset: Dataset, bert: Path, tmp_path: Path
) -> None:
    folder = changed(bert, tmp_path / "encoder", lambda weights: weights, problem_type="multi_label_classification")
    built = load(folder)
    built.save_pretrained(tmp_path / "model")
    load_tokenizer(str(dataset.tokenizer_folder)).save_pretrained(tmp_path / "model")
    classify: Any = pipeline("text-classification", model=str(tmp_path / "model"), top_k=None)
    (scores,) = classify(["a"])
    assert sum(score["score"] for score in scores) == pytest.approx(1)


def tokenizer(tokens: int) -> Any:  # noqa: ANN401 - only its vocabulary is read
    return Mock(get_vocab=lambda: {str(number): number for number in range(tokens)})


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (RobertaConfig(vocab_size=300, max_position_embeddings=66, pad_token_id=1, **SIZE), "--max-length 65: .* takes texts of 64 tokens at most"),
        (BertConfig(vocab_size=299, max_position_embeddings=65, **SIZE), r"its tokenizer has 300 tokens, its embeddings are of 299: .*resize_token_embeddings\(300\)"),
        (T5Config(vocab_size=300), r"is an encoder-decoder \(t5\)"),
        (PreTrainedConfig(), "its config.json cannot be used"),
        (BertConfig(vocab_size=300, hidden_size=4096, num_hidden_layers=12, num_attention_heads=2, intermediate_size=8192), r"its weights are 6\.\d GB in fp32"),
    ],
    ids=["positions", "vocabulary", "encoder-decoder", "unknown", "size"],
)  # fmt: skip
def test_an_encoder_that_cannot_work_is_refused_without_its_weights(
    config: PreTrainedConfig, expected: str, tmp_path: Path
) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=expected):
        check_encoder(str(tmp_path), tokenizer(300), max_length=65)


@pytest.mark.parametrize(
    "config",
    [
        RobertaConfig(vocab_size=300, max_position_embeddings=66, pad_token_id=1, **SIZE),
        XLNetConfig(vocab_size=300, d_model=16, n_layer=1, n_head=2, d_inner=32),
        GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2, n_positions=64),
    ],
    ids=["roberta", "xlnet", "gpt2"],
)
def test_texts_may_be_as_long_as_the_encoder_has_positions(config: PreTrainedConfig, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    check_encoder(str(tmp_path), tokenizer(300), max_length=64)


def logits(model: PreTrainedModel, rows: list[list[int]], padding: Padding) -> torch.Tensor:
    ids, mask = (torch.from_numpy(array) for array in pad(rows, max(map(len, rows)), padding))
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=ids, attention_mask=mask).logits
    return found


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_decoder_classifies_by_its_last_token_before_padding_of_any_id_and_side(tmp_path: Path, side: str) -> None:
    LlamaModel(LLAMA).save_pretrained(tmp_path / "llama")
    model, rows = load(tmp_path / "llama"), [[5, 9, 8], [4, 6, 5, 9, 8]]
    assert model.config.pad_token_id == 7
    alone = torch.cat([logits(model, [row], Padding()) for row in rows])
    together = logits(model, rows, Padding.model_validate({"token_id": 7, "side": side}))
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "side", "fits"),
    [
        (BERT, "right", True),
        (BERT, "left", False),
        (LLAMA, "left", True),
        (FNetConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, intermediate_size=32), "right", False),
    ],
)
def test_an_encoder_whose_answers_depend_on_padding_is_refused(
    config: PreTrainedConfig, side: str, *, fits: bool
) -> None:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    model.config.pad_token_id = 7
    ids, mask = pad([[5, 6, 8, 9], [5, 6]], 4, Padding.model_validate({"token_id": 7, "side": side}))
    inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    if fits:
        check_padding(model, inputs, name="it")
    else:
        with pytest.raises(UserError, match=f"--model it: its answers depend on the padding .* on the {side}"):
            check_padding(model, inputs, name="it")


def test_an_architecture_that_cannot_be_exported_is_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def fails(model: PreTrainedModel, _: Path) -> None:
        seen.append(model.config)
        raise UserError("xlnet: cannot be exported as ONNX (reason)")

    monkeypatch.setattr(exporters, "write_fp32", fails)
    with pytest.raises(UserError, match=r"^--model x: xlnet: cannot be exported as ONNX \(reason\); choose another"):
        check_export("x", XLNetConfig(vocab_size=300, d_model=16, n_layer=12, n_head=2, d_inner=32))
    assert (seen[0].num_hidden_layers, seen[0].vocab_size) == (2, 64), "a small one is tried"
