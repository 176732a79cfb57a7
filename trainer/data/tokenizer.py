"""Load the fast tokenizer of an encoder, or train one on the data for `tiny`."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from server.errors import UserError
from server.model_folder import Padding

_TINY_VOCABULARY = 8192
_HUB_SECONDS = 10.0  # for the first answer of the hub
_SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def load_tokenizer(model: str) -> PreTrainedTokenizerFast:
    """Loads the tokenizer of an encoder given by folder or Hugging Face id; UserError when it has no fast one.

    It is saved with its sides of padding and truncation, but without the lengths that its file may set: texts are padded to
    the longest of a batch, and truncated at --max-length. Its inputs are those that we train with.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            model, use_fast=True, local_files_only=is_local(model), trust_remote_code=False
        )
    except Exception as error:  # the library raises many kinds; each becomes one line with its reason
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"--model {model}: its tokenizer cannot be loaded: {reason}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(
            f"--model {model}: has no fast tokenizer (tokenizer.json), which preprocess and the server need"
        )
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # as the library makes one where it finds none
        raise UserError(f"--model {model}: its tokenizer has no vocabulary; is tokenizer.json or vocab.txt missing?")
    if tokenizer.pad_token_id is None:
        raise UserError(f"--model {model}: its tokenizer has no padding token; choose an encoder that has one")
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    for name in ("padding_side", "truncation_side", "model_input_names"):
        tokenizer.init_kwargs[name] = getattr(tokenizer, name)  # what save_pretrained writes
    return tokenizer


def padding_of(tokenizer: PreTrainedTokenizerFast) -> Padding:
    """Reads how a tokenizer pads and truncates."""
    sides = {"side": tokenizer.padding_side, "truncation_side": tokenizer.truncation_side}
    return Padding.model_validate({"token_id": tokenizer.pad_token_id, **sides})


def check_model(model: str) -> None:
    """Raises UserError when the encoder is neither `tiny`, nor a folder with a model, nor a model of the Hugging Face hub."""
    folder = Path(model)
    if model == "tiny":
        return
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"--model {model}: holds no config.json, so it is no encoder; name the folder that has one")
    elif model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise UserError(f"--model {model}: no such folder")
    else:
        is_local(model)


@cache
def is_local(model: str) -> bool:
    """Returns True for a folder, and for a model in the cache of a machine that does not reach the hub; UserError when it is nowhere.

    It asks the hub once: the library's own download tries for half a minute to reach it.
    """
    if Path(model).is_dir():
        return True
    choose = "give a folder with config.json, the id of a model there, or tiny"
    try:
        HfApi().model_info(model, timeout=_HUB_SECONDS)
    except (RepositoryNotFoundError, HFValidationError):
        raise UserError(
            f"--model {model}: neither a folder here nor a model of {constants.ENDPOINT}: {choose}"
        ) from None
    except HfHubHTTPError:
        return False  # it answers, but not this question, as a mirror may
    except Exception as error:  # noqa: BLE001 - those of whichever HTTP library it uses
        if isinstance(try_to_load_from_cache(model, "config.json"), str):
            return True
        raise UserError(
            f"--model {model}: no such folder, and {constants.ENDPOINT} cannot be reached ({type(error).__name__}): {choose}"
        ) from None
    return False


def train_tokenizer(texts: Iterator[str], *, max_length: int) -> PreTrainedTokenizerFast:
    """Trains an uncased WordPiece tokenizer: the most frequent words of these texts, and their characters for all others.

    The library's own trainer breaks ties at random, so the same seed would give another model each time.
    """
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    special = list(_SPECIAL.values())
    characters = sorted({character for word in counts for character in word})
    pieces = [*special, *characters, *("##" + character for character in characters)]
    words = sorted((word for word in counts if len(word) > 1), key=lambda word: (-counts[word], word))
    vocabulary = {piece: number for number, piece in enumerate([*pieces, *words][: max(_TINY_VOCABULARY, len(pieces))])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=_SPECIAL["unk_token"]))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    ends = [(token, vocabulary[token]) for token in (_SPECIAL["cls_token"], _SPECIAL["sep_token"])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_length, **_SPECIAL)


def tokenizer_digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """Returns a digest that is equal for tokenizers with the same tokens, however they truncate and pad."""
    fast = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    fast.no_truncation()
    fast.no_padding()
    return hashlib.sha256(fast.to_str().encode()).hexdigest()


def use_all_cores() -> None:
    """Lets `encode_batch` use every core; set before its first call, which otherwise warns in a forked process."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
