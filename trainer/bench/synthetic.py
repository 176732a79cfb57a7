"""A dataset folder of random tokens, for measuring speed where there is no data."""

from pathlib import Path

import numpy as np

from server.files import write_json
from trainer.data.dataset import FORMAT, SPLITS, RaggedWriter
from trainer.data.tokenizer import load_tokenizer, tokenizer_digest

_VOCABULARIES = {"tiny": 8192, "distilbert": 30522}
_MEDIAN_LENGTH, _SIGMA = 50.0, 0.28  # log-normal, with the percentiles 5/50/95 of AG News: 31/50/79 tokens
_MAX_LENGTH = 128
_CLASSES = ("World", "Sports", "Business", "Sci/Tech")
_FIRST_WORD = 5  # before it stand [PAD] and the other special tokens


def write_synthetic(folder: Path, *, model: str, rows: int, seed: int) -> None:
    """Training rows that are random but for their lengths; the same for the same seed."""
    tokenizer = None if model in _VOCABULARIES else load_tokenizer(model)
    vocabulary = len(tokenizer) if tokenizer else _VOCABULARIES[model]
    random = np.random.default_rng(seed)
    lengths = np.clip(random.lognormal(np.log(_MEDIAN_LENGTH), _SIGMA, rows).round(), 8, _MAX_LENGTH).astype(int)
    folder.mkdir(parents=True)
    with RaggedWriter(folder, "texts", np.uint8) as texts, RaggedWriter(folder, "tokens", np.int32) as tokens:
        texts.append([b""] * rows)
        tokens.append([random.integers(_FIRST_WORD, vocabulary, size=length).tolist() for length in lengths])
    random.integers(len(_CLASSES), size=rows, dtype=np.int32).tofile(folder / "labels.bin")
    np.arange(rows).tofile(folder / "lines.bin")
    np.full(rows, SPLITS.index("train"), dtype=np.uint8).tofile(folder / "splits.bin")
    pad_token_id = tokenizer.pad_token_id if tokenizer else 0
    info = {
        "format": FORMAT, "classes": _CLASSES, "fingerprint": f"synthetic-{seed}", "max_length": _MAX_LENGTH, "pad_token_id": pad_token_id,
        "vocabulary_size": vocabulary, "token_dtype": "int32", "tokenizer": tokenizer_digest(tokenizer) if tokenizer else None,
    }  # fmt: skip
    write_json(folder / "dataset.json", info)
