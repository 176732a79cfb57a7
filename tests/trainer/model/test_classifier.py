"""The classifier is built for training."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from trainer.data.dataset import Dataset
from trainer.model.classifier import build_model


def saved_encoder(dataset: Dataset, folder: Path, dtype: torch.dtype) -> Path:
    model = build_model("tiny", dataset, seed=0, device=torch.device("cpu"))
    nn.Module.to(model, dtype).save_pretrained(folder)
    for file in dataset.tokenizer_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_an_encoder_that_was_saved_in_half_precision_is_trained_in_full(dataset: Dataset, tmp_path: Path) -> None:
    folder = saved_encoder(dataset, tmp_path, torch.bfloat16)
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    built = build_model(str(folder), dataset, seed=0, device=torch.device("cpu"))
    assert {parameter.dtype for parameter in built.parameters()} == {torch.float32}


def test_an_encoder_from_a_folder_is_trained_with_dropout(dataset: Dataset, tmp_path: Path) -> None:
    folder = saved_encoder(dataset, tmp_path, torch.float32)
    built = build_model(str(folder), dataset, seed=0, device=torch.device("cpu"))
    assert all(part.training for part in built.modules())
    text = torch.tensor([[5, 6, 7, 8]])
    assert not torch.equal(built(input_ids=text).logits, built(input_ids=text).logits)
