"""The classifier: an encoder with a head, built, saved and loaded by `transformers`."""

import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, DistilBertConfig, PreTrainedModel

from server.errors import UserError
from server.files import disk_errors, recover_directory
from server.inference.encoder import pad
from trainer.config import TrainConfig
from trainer.data.dataset import Dataset
from trainer.data.tokenizer import load_tokenizer, tokenizer_digest
from trainer.distributed.process_group import Process, on_main
from trainer.model.exporters import check_export
from trainer.model.packing import enable_packing
from trainer.model.pretrained import check_encoder, check_padding, load_encoder
from trainer.monitoring.console import print0


def build_trainable(
    config: TrainConfig, dataset: Dataset, process: Process, *, try_export: bool = False
) -> PreTrainedModel:
    """Builds the model to train: on packed texts where it can, and with what the classes do not depend on frozen."""
    model = build_model(config.model, dataset, seed=config.seed, device=process.device)
    if not enable_packing(model):
        if try_export:
            on_main(process, lambda: check_export(config.model, model.config))
        print0("train: this architecture cannot read packed texts: those of similar length are padded together")
    if unused := freeze_unused(model):
        print0(f"train: {len(unused)} parameters that the classes do not depend on are frozen: {', '.join(unused[:4])}")
    return model


def build_model(model: str, dataset: Dataset, *, seed: int, device: torch.device) -> PreTrainedModel:
    """Builds the encoder that `model` names, with one output a class and the class names in its configuration."""
    torch.manual_seed(seed)  # a fresh head, and all of `tiny`
    names = dict(enumerate(dataset.classes))
    labels: dict[str, Any] = {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    if model == "tiny":
        config = DistilBertConfig(
            vocab_size=dataset.vocabulary_size, dim=128, hidden_dim=256, n_layers=2, n_heads=4, pad_token_id=dataset.padding.token_id,
            max_position_embeddings=max(dataset.max_length, 512), **labels,
        )  # fmt: skip
        return cast("PreTrainedModel", AutoModelForSequenceClassification.from_config(config).to(device))
    tokenizer = load_tokenizer(model)
    if tokenizer_digest(tokenizer) != dataset.info["tokenizer"]:
        raise UserError(
            f"--model {model}: {dataset.folder} was made with another tokenizer; preprocess with this model first"
        )
    check_encoder(model, tokenizer, max_length=dataset.max_length)
    built = load_encoder(model, pad_token_id=dataset.padding.token_id, labels=labels)
    nn.Module.to(built, device)
    text = dataset.train.tokens(int(dataset.train.lengths.argmax()))[:32].astype(np.int64)
    ids, mask = pad([text, text[: max(1, len(text) // 2)]], len(text), dataset.padding)
    inputs = {"input_ids": torch.from_numpy(ids).to(device), "attention_mask": torch.from_numpy(mask).to(device)}
    check_padding(built, inputs, name=model)
    built.train()  # as loaded, it would leave dropout out
    return built


def freeze_unused(model: PreTrainedModel) -> list[str]:
    """Freezes the parameters that the loss does not depend on, for which DDP would wait for ever; returns their names."""
    example = torch.full((1, 4), 5, device=model.device)
    model(input_ids=example, attention_mask=torch.ones_like(example)).logits.sum().backward()
    unused = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    for name in unused:
        model.get_parameter(name).requires_grad_(False)
    model.zero_grad(set_to_none=True)
    return unused


def save_model(
    model: PreTrainedModel, dataset: Dataset, folder: Path, *, weights: dict[str, torch.Tensor] | None = None
) -> None:
    """Writes a folder that `transformers` loads, with these weights or else the model's, class names and tokenizer."""
    with disk_errors(folder):
        model.save_pretrained(folder, state_dict=weights)
    shutil.copytree(dataset.tokenizer_folder, folder, dirs_exist_ok=True)


def load_model(folder: Path, *, device: torch.device | None = None) -> PreTrainedModel:
    """Loads a model folder that `save_model` wrote, for inference."""
    if not (recover_directory(folder) / "config.json").is_file():
        raise UserError(f"{folder}: is no model folder, it has no config.json; make it with the train step")
    loaded = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    return cast("PreTrainedModel", loaded.eval().to(device or torch.device("cpu")))
