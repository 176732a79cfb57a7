"""The last layer for the first position alone: the same logits, in PyTorch and in the exported graph."""

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import (
    RobertaConfig,
    RobertaForSequenceClassification,
)

from tests.support.models import SIZE, Build, bert, distilbert, padded_batch, with_large_weights
from trainer.model.cls_only import enable_cls_only
from trainer.model.exporters import write_fp32

pytestmark = pytest.mark.slow  # the module takes seconds


@pytest.mark.parametrize("build", [distilbert, bert])
@torch.inference_mode()
def test_the_logits_are_those_of_the_plain_model_in_padded_batches_too(build: Build) -> None:
    plain = with_large_weights(build)
    short = copy.deepcopy(plain)
    assert enable_cls_only(short)
    for lengths in ((7,), (16, 16), (3, 40, 17, 1)):
        batch = padded_batch(lengths)
        expected = plain(**batch).logits
        assert len(lengths) == 1 or (expected[0] - expected[1]).abs().max() > 0.05, "the texts have different logits"
        torch.testing.assert_close(short(**batch).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("build", [distilbert, bert])
@torch.inference_mode()
def test_the_exported_graph_has_the_same_logits_and_computes_one_position_at_its_end(
    build: Build, tmp_path: Path
) -> None:
    plain = with_large_weights(build)
    write_fp32(copy.deepcopy(plain), tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx")
    feed_forwards = [node.output[0] for node in graph.graph.node if node.op_type in {"Erf", "Gelu"}]
    assert len(feed_forwards) == plain.config.num_hidden_layers
    graph.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in feed_forwards)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    for lengths in ((7,), (16, 16), (3, 40, 17, 1)):
        batch = padded_batch(lengths)
        given = {name: values.numpy() for name, values in batch.items()}
        logits, *computed = session.run(["logits", *feed_forwards], given)
        np.testing.assert_allclose(
            logits, plain(**batch).logits.numpy(), rtol=1e-5, atol=1e-5
        )  # logits of about 8, fp32
        *whole, last = [values.shape[1] for values in computed]
        assert set(whole) == {max(lengths)}
        assert last == 1


def test_another_architecture_is_left_unchanged_and_that_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    roberta = RobertaForSequenceClassification(
        RobertaConfig(**SIZE, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    )
    layers = list(roberta.modules())
    assert not enable_cls_only(roberta)
    assert list(roberta.modules()) == layers
    write_fp32(roberta, tmp_path / "model.onnx")
    assert "roberta" in capsys.readouterr().out
