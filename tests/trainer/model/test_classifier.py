"""The classifier is built for training."""

import platform
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from trainer.data.dataset import Dataset
from trainer.model.classifier import build_model
from trainer.model.optimizer import choose_precision


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


@pytest.mark.parametrize("machine", ["aarch64", "arm64"])
@pytest.mark.parametrize("supported", [True, False])
def test_an_arm_processor_computes_in_bf16_where_its_kernels_do(
    monkeypatch: pytest.MonkeyPatch, machine: str, *, supported: bool
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    precision, _ = choose_precision("auto", torch.device("cpu"))
    assert precision == (torch.bfloat16 if supported else torch.float32)
