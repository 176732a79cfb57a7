"""A model folder of DistilBERT size with random weights, as both servers load it: speed does not ask what was learned.

    python -m tests.benchmarks.serving_model FOLDER --vocabulary vocab.txt

The folder holds what `transformers` loads, and in onnx/ the same weights as the export step writes them.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import DistilBertConfig, DistilBertForSequenceClassification, PreTrainedTokenizerFast

from tests.benchmarks.load import load_texts
from trainer.export import FILES, write_fp32, write_int8
from trainer.flags import write_json
from trainer.folders import whole_folder
from trainer.progress import say
from trainer.sample import CLASSES
from trainer.tokenizer import use_all_cores

_MAX_LENGTH = 128
_UNKNOWN, _START, _END = "[UNK]", "[CLS]", "[SEP]"
_SPECIAL = {"pad_token": "[PAD]", "unk_token": _UNKNOWN, "cls_token": _START, "sep_token": _END}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="to write; a folder of that name is replaced")
    parser.add_argument("--vocabulary", type=Path, help="vocab.txt of an uncased BERT; by default one is trained")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_serving_model(args.folder, vocabulary=args.vocabulary, seed=args.seed)


def write_serving_model(
    folder: Path, *, vocabulary: Path | None, seed: int, config: DistilBertConfig | None = None
) -> None:
    """Write the folder; without a vocabulary, WordPiece is trained on the texts that the load generator sends."""
    config = config or DistilBertConfig()
    config.id2label = dict(enumerate(CLASSES))
    config.label2id = {label: number for number, label in config.id2label.items()}
    tokenizer = _read_vocabulary(vocabulary) if vocabulary else _train(load_texts(seed=seed), config.vocab_size)
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise ValueError(f"{vocabulary}: has {tokenizer.get_vocab_size()} tokens, the model {config.vocab_size}")
    as_transformers_has_it: Any = PreTrainedTokenizerFast
    torch.manual_seed(seed)
    model = DistilBertForSequenceClassification(config)
    with whole_folder(folder) as written:
        model.save_pretrained(written)
        as_transformers_has_it(tokenizer_object=tokenizer, model_max_length=_MAX_LENGTH, **_SPECIAL).save_pretrained(
            written
        )
        onnx = written / "onnx"
        onnx.mkdir()
        shutil.copy2(written / "tokenizer.json", onnx)
        say("serving model: writing ONNX, fp32 and int8")
        fp32, int8 = FILES["fp32"], FILES["int8"]
        write_fp32(model, onnx / fp32["file"])  # last: it changes the model
        write_int8(onnx / fp32["file"], onnx / int8["file"])
        variants = {"fp32": fp32, "int8": int8}
        facts = {"labels": CLASSES, "max_length": _MAX_LENGTH, "default": "int8", "variants": variants}
        write_json(onnx / "model.json", facts)
    say(f"serving model: {folder}, {model.num_parameters() / 1e6:.1f} million parameters")


def mean_tokens(folder: Path, texts: Sequence[str]) -> float:
    """Tokens of a text on average, as the model reads it."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(_MAX_LENGTH)
    tokenizer.no_padding()
    return sum(len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))) / len(texts)


def _read_vocabulary(file: Path) -> Tokenizer:
    tokens = file.read_text(encoding="utf-8").splitlines()
    return _uncased(models.WordPiece({token: number for number, token in enumerate(tokens)}, unk_token=_UNKNOWN))


def _train(texts: Sequence[str], size: int) -> Tokenizer:
    use_all_cores()
    tokenizer = _uncased(None)
    tokenizer.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=size, special_tokens=list(_SPECIAL.values()), show_progress=False)
    )
    return _uncased(cast("models.WordPiece", tokenizer.model))


def _uncased(model: models.WordPiece | None) -> Tokenizer:
    """BERT's way to cut texts up; [CLS] and [SEP] go around where the model has them already."""
    tokenizer = Tokenizer(model or models.WordPiece(unk_token=_UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if model:
        vocabulary = tokenizer.get_vocab()
        tokenizer.post_processor = processors.BertProcessing((_END, vocabulary[_END]), (_START, vocabulary[_START]))
    return tokenizer


if __name__ == "__main__":
    main()
