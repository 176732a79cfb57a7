"""A model folder of DistilBERT size with random weights, in all variants: speed does not depend on the weights.

    python -m tests.benchmarks.serving.model FOLDER --tokenizer FOLDER_OF_AN_UNCASED_BERT

The folder holds what `transformers` loads, and in onnx/ the same weights as the export step writes them.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from server.files import atomic_directory, write_json
from server.model_folder import write_manifest
from tests.support.data import AG_NEWS
from trainer.config import PreprocessConfig
from trainer.data.dataset import Dataset
from trainer.export import FILES
from trainer.model.classifier import load_model
from trainer.model.exporters import write_fp32, write_int8, write_openvino
from trainer.monitoring.console import print0
from trainer.preprocess import preprocess

_MAX_LENGTH = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="to write; a folder of that name is replaced")
    parser.add_argument("--tokenizer", default="tiny", help="folder of an encoder; by default one is trained")
    args = parser.parse_args()
    write_serving_model(args.folder, tokenizer=args.tokenizer)


def write_serving_model(folder: Path, *, tokenizer: str, config: DistilBertConfig | None = None) -> None:
    """Writes the folder, with scales of AG News where it is there, else of the sample; `tokenizer` takes the values of `--model` of a run."""
    config = config or DistilBertConfig()
    with atomic_directory(folder) as written:
        data = str(AG_NEWS / "test.csv") if (AG_NEWS / "test.csv").is_file() else "sample:6000"
        preprocess(PreprocessConfig(data=data, model=tokenizer, max_length=_MAX_LENGTH), written / "dataset")
        dataset = Dataset(written / "dataset")
        if dataset.vocabulary_size > config.vocab_size:
            raise ValueError(f"{tokenizer} has {dataset.vocabulary_size} tokens, the model only {config.vocab_size}")
        config.id2label = dict(enumerate(dataset.classes))
        config.label2id = {label: number for number, label in config.id2label.items()}
        torch.manual_seed(0)
        DistilBertForSequenceClassification(config).save_pretrained(written)
        shutil.copytree(dataset.tokenizer_folder, written, dirs_exist_ok=True)
        onnx = written / "onnx"
        onnx.mkdir()
        shutil.copy2(written / "tokenizer.json", onnx)
        print0("serving model: writing ONNX fp32 and int8, and OpenVINO")
        files = {name: onnx / entry["file"] for name, entry in FILES.items()}
        write_fp32(load_model(written), files["fp32"])
        write_int8(files["fp32"], files["int8"])
        write_openvino(files["fp32"], files["openvino"], texts=dataset.train)
        facts = {"labels": dataset.classes, "max_length": _MAX_LENGTH, "default": "int8", "variants": FILES}
        write_json(onnx / "model.json", facts)
        write_manifest(written)
        shutil.rmtree(written / "dataset")
    print0(f"serving model: {folder} is written")


def mean_tokens(folder: Path, texts: Sequence[str]) -> float:
    """Tokens of a text on average, as the model reads it."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(_MAX_LENGTH)
    tokenizer.no_padding()
    return sum(len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))) / len(texts)


if __name__ == "__main__":
    main()
