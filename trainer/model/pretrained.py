"""Checks a pretrained encoder before any work is done with it, and loads its weights: all of them, or none."""

import re
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers import __version__ as transformers_version
from transformers.utils import logging as transformers_logging

from server.errors import UserError
from trainer.data.tokenizer import is_local
from trainer.monitoring.console import print0

_ONNX_BYTES = 2**31  # a protobuf cannot hold more
_WRAPPERS = r"(?:module|_orig_mod|model)\."  # of DataParallel, torch.compile and Lightning, before the names of weights

transformers_logging.set_verbosity_error()  # it warns of the fresh head, which is what fine-tuning starts with
transformers_logging.disable_progress_bar()


def check_encoder(model: str, tokenizer: PreTrainedTokenizerFast, *, max_length: int) -> None:
    """Raises UserError when the encoder cannot become a classifier that is served; reads its configuration, but no weights."""
    try:
        config = AutoConfig.from_pretrained(model, local_files_only=is_local(model), trust_remote_code=False)
    except Exception as error:  # the library raises many kinds; each becomes one line with its reason
        raise UserError(f"--model {model}: its config.json cannot be used: {_one_line(error)}") from error
    if config.is_encoder_decoder:
        raise UserError(
            f"--model {model}: is an encoder-decoder ({config.model_type}), whose classifier fails on texts with its end token; choose an encoder"
        )
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise UserError(
            f"--model {model}: transformers {transformers_version} has no text classifier of the architecture {config.model_type}; choose another encoder"
        )
    with torch.device("meta"):  # shapes alone
        built = AutoModelForSequenceClassification.from_config(config)
    tokens, rows = max(tokenizer.get_vocab().values()) + 1, built.get_input_embeddings().num_embeddings
    if tokens > rows:
        raise UserError(
            f"--model {model}: its tokenizer has {tokens:,} tokens, its embeddings are of {rows:,}: save it again after resize_token_embeddings({tokens})"
        )
    positions = _positions(built)
    if positions < max_length:
        raise UserError(f"--max-length {max_length}: {model} takes texts of {positions} tokens at most")
    size = 4 * sum(parameter.numel() for parameter in built.parameters())
    if size >= _ONNX_BYTES:
        raise UserError(
            f"--model {model}: its weights are {size / 1e9:.1f} GB in fp32, an ONNX file has 2.1 GB at most; choose a smaller encoder"
        )


def load_encoder(model: str, *, pad_token_id: int, labels: dict[str, Any]) -> PreTrainedModel:
    """Loads an encoder in fp32, with a fresh head unless it has one of as many classes; UserError when any other weight would be random."""
    built, loading = _load(model, labels)
    missing = _missing(built, loading)
    if missing and any(re.match(_WRAPPERS, name) for name in loading["unexpected_keys"]):
        # Where the architecture's own names begin with "model.", only one more is a wrapper's.
        own = rf"(?={_WRAPPERS})" if built.base_model_prefix == "model" else ""
        built, loading = _load(model, labels, key_mapping={rf"^(?:(?:module|_orig_mod)\.|model\.{own})+": ""})
        del built._weight_conversions  # noqa: SLF001 - has no public name; save_pretrained would write the prefix again
        missing = _missing(built, loading)
        if not missing:
            print0(f"train: {model}: the prefix of a wrapper is left out of the names of its weights")
    unused = _deeper(built, loading["unexpected_keys"])
    if missing or unused:
        shapes = [
            f"{name} is {_shape(found)} in its weights and {_shape(wanted)} by its config.json"
            for name, found, wanted in sorted(loading["mismatched_keys"], key=lambda of: (-of[1].numel(), of[0]))
            if name in missing
        ]
        facts = [
            *shapes[:1],
            f"weights of the encoder that are missing: {_some(missing)}",
            f"weights that are not used: {_some(loading['unexpected_keys'])}",
        ]
        raise UserError(f"--model {model}: its weights do not belong to its config.json: {'; '.join(facts)}")
    if not any(_is_of_head(built, name) for name in _random(loading)):
        print0(f"train: {model}: its head, of as many classes, is trained further")
    config = built.config
    config.problem_type = "single_label_classification"  # or transformers' pipeline() may apply a sigmoid
    config.use_cache = False  # it would keep keys and values for generating
    if config.pad_token_id is None or not _counts_from_padding(built):
        config.pad_token_id = pad_token_id  # by which a decoder's classifier finds the last token
    return built


def check_padding(model: PreTrainedModel, inputs: dict[str, torch.Tensor], *, name: str) -> None:
    """Raises UserError when the answer for the last of these padded texts depends on its padding."""
    mask = inputs["attention_mask"][-1].bool()
    was_training = model.training
    model.train(mode=False)
    with torch.inference_mode():
        padded = model(**inputs).logits[-1]
        alone = model(**{key: value[-1:, mask] for key, value in inputs.items()}).logits[0]
    model.train(was_training)
    if bool((padded - alone).abs().max() > 1e-3 * alone.abs().max()):
        side = "left" if not mask[0] else "right"
        other = "right" if side == "left" else "left"
        raise UserError(
            f"--model {name}: its answers depend on the padding of a text, which is on the {side}: set padding_side to {other} in its tokenizer_config.json, or choose an encoder that has an attention mask"
        )


def _load(
    model: str, labels: dict[str, Any], *, key_mapping: dict[str, str] | None = None
) -> tuple[PreTrainedModel, dict[str, Any]]:
    try:
        built, loading = AutoModelForSequenceClassification.from_pretrained(
            model,
            local_files_only=is_local(model),
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            key_mapping=key_mapping,
            **labels,
        )
    except Exception as error:  # the library raises many kinds; each becomes one line with its reason
        raise UserError(f"--model {model}: cannot be loaded: {_one_line(error)}") from error
    return cast("PreTrainedModel", built), loading


def _missing(model: PreTrainedModel, loading: dict[str, Any]) -> set[str]:
    """Names the weights that are random, but for those of the head and the pooler."""
    return {name for name in _random(loading) if not _is_of_head(model, name) and ".pooler." not in name}


def _random(loading: dict[str, Any]) -> set[str]:
    return {*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])}


def _is_of_head(model: PreTrainedModel, name: str) -> bool:
    return not name.startswith(f"{model.base_model_prefix}.")


def _deeper(model: PreTrainedModel, unused: Iterable[str]) -> set[str]:
    """Names unused weights that are those of another layer of the model."""
    known = {_any_layer(name) for name in model.state_dict()}
    return {name for name in unused if {_any_layer(name), f"{model.base_model_prefix}.{_any_layer(name)}"} & known}


def _any_layer(name: str) -> str:
    return re.sub(r"\.\d+\.", ".N.", f".{name}")[1:]


def _positions(model: PreTrainedModel) -> int:
    """Returns the tokens of the longest text that the model takes."""
    stated = getattr(model.config, "max_position_embeddings", None) or 0
    tables = [
        table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1) for table in _tables(model)
    ]
    return min([*tables, *([stated] if stated > 0 else [])], default=2**31)


def _counts_from_padding(model: PreTrainedModel) -> bool:
    """Returns True for RoBERTa and its kin, whose first position is the one after that of their padding id."""
    return any(table.padding_idx is not None for table in _tables(model))


def _tables(model: PreTrainedModel) -> list[nn.Embedding]:
    """Lists the learned positions of BERT, RoBERTa and their kin."""
    return [
        module
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
    ]


def _shape(size: Iterable[int]) -> str:
    return " × ".join(f"{length:,}" for length in size)


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return f"{len(listed):,} ({', '.join(listed[:3])}{', …' if len(listed) > 3 else ''})" if listed else "none"


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
