"""A small real model folder: a tiny ONNX model in two variants, a tokenizer, model.json and the manifest."""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from server.model_folder import write_manifest

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = [*SPECIAL, "goal", "match", "team", "bank", "market", "shares", "chip", "software", "minister", "vote"]
LABELS = ["World", "Sports", "Business"]
MAX_LENGTH = 16
TEXTS = ["Goal! The team won the match", "Shares fell", "minister", "market bank chip vote " * 9, "xyz"]


def write_onnx(file: Path, *, seed: int, labels: int = len(LABELS), positions: int = MAX_LENGTH) -> None:
    """Writes a model whose answer depends, like dynamic int8, on everything in its batch."""
    random = np.random.default_rng(seed)
    weights = {
        "words": random.normal(size=(len(WORDS), 8)),
        "positions": random.normal(size=(positions, 8)) / 8,
        "classes": random.normal(size=(8, labels)) * 4,
    }
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["word"]),
        helper.make_node("CumSum", ["attention_mask", "axis"], ["counted"]),
        helper.make_node("Sub", ["counted", "axis"], ["place"]),  # 0, 1, 2 …
        helper.make_node("Gather", ["positions", "place"], ["position"]),
        helper.make_node("Add", ["word", "position"], ["hidden"]),
        helper.make_node("ReduceMax", ["hidden"], ["scale"], keepdims=0),  # the maximum of the whole batch
        helper.make_node("Div", ["hidden", "scale"], ["scaled"]),
        helper.make_node("ReduceMean", ["scaled"], ["pooled"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["pooled", "classes"], ["logits"]),
    ]
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", labels])],
        [*constants, numpy_helper.from_array(np.array(1, dtype=np.int64), "axis")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)


def write_tokenizer(file: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token=SPECIAL[1]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    # A training run may leave these settings: the server has to set its own.
    tokenizer.enable_padding(length=64)
    tokenizer.enable_truncation(4)
    tokenizer.save(str(file))


def write_model_folder(folder: Path) -> Path:
    onnx_folder = folder / "onnx"
    onnx_folder.mkdir(parents=True)
    write_onnx(onnx_folder / "model.onnx", seed=1)
    write_onnx(onnx_folder / "model_int8.onnx", seed=2)
    write_tokenizer(onnx_folder / "tokenizer.json")
    facts = {
        "labels": LABELS,
        "max_length": MAX_LENGTH,
        "default": "int8",  # for other readers: the server has its own order
        "variants": {"fp32": {"file": "model.onnx", "accuracy": 0.9}, "int8": {"file": "model_int8.onnx"}},
    }
    write_into(folder, "model.json", json.dumps(facts))
    return folder


def change(folder: Path, **facts: object) -> None:
    file = folder / "onnx" / "model.json"
    write_into(folder, file.name, json.dumps(json.loads(file.read_text()) | facts))


def write_into(folder: Path, name: str, text: str) -> None:
    """Writes a file of onnx/ and the manifest anew, like an export."""
    (folder / "onnx" / name).write_text(text)
    write_manifest(folder)
