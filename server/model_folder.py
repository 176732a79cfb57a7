"""What a model folder must hold to be served, checked before anything is loaded. Nothing in it is ever unpickled."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError
from tokenizers import Tokenizer

_MEND = "run distrinews run, or the export step, to write it anew"


class ModelFolderError(ValueError):
    """A model folder that cannot be served: which file, and what to do."""


class _Variant(BaseModel):
    # Names inside the folder, not paths out of it.
    file: str = Field(pattern=r"^[^/\\]+\.(onnx|xml)$")
    weights: str | None = Field(default=None, pattern=r"^[^/\\]+\.bin$")


class _ModelJson(BaseModel):
    labels: list[Annotated[str, Field(min_length=1)]] = Field(min_length=2)
    max_length: int = Field(ge=3)  # [CLS], a token, [SEP]
    variants: dict[str, _Variant] = Field(min_length=1)


@dataclass(frozen=True)
class ModelFolder:
    labels: tuple[str, ...]
    max_length: int
    """Tokens of a text at most; what is longer is truncated."""
    variant: str
    file: Path
    """The model in this variant; an .xml has its weights in a .bin of the same name."""
    tokenizer: Tokenizer


def read_model_folder(folder: Path, variants: Sequence[str]) -> ModelFolder:
    """The folder's model in the first of these variants that it has."""
    onnx = _onnx_folder(folder)
    model = _read_model_json(onnx / "model.json")
    name = next((name for name in variants if name in model.variants), None)
    if name is None:
        raise ModelFolderError(
            f"{onnx / 'model.json'} has no variant {' or '.join(variants)}, only {', '.join(model.variants)}: choose with --engine"
        )
    return ModelFolder(
        labels=tuple(model.labels),
        max_length=model.max_length,
        variant=name,
        file=_existing_model(onnx, model.variants[name]),
        tokenizer=_read_tokenizer(_existing(onnx / "tokenizer.json"), max_length=model.max_length),
    )


def _onnx_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise ModelFolderError(f"{folder} is not a folder: give the model folder that distrinews run wrote")
    if (folder / "onnx").is_dir():
        return folder / "onnx"
    near = [
        place for place in (folder / "model", folder.absolute().parent) if (place / "onnx" / "model.json").is_file()
    ]
    meant = f"did you mean {near[0]}?" if near else "run distrinews run, or the export step, which write it"
    raise ModelFolderError(f"{folder} has no folder onnx: {meant}")


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise ModelFolderError(f"{file} is missing: {_MEND}")
    return file


def _existing_model(onnx: Path, variant: _Variant) -> Path:
    if variant.weights:
        _existing(onnx / variant.weights)
    return _existing(onnx / variant.file)


def _read_model_json(file: Path) -> _ModelJson:
    try:
        model = _ModelJson.model_validate_json(_existing(file).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ModelFolderError(f"{file}: {where}{': ' if where else ''}{first['msg']}; {_MEND}") from None
    if len(set(model.labels)) < len(model.labels):
        raise ModelFolderError(f"{file}: labels has a name twice: {', '.join(model.labels)}")
    return model


def _read_tokenizer(file: Path, *, max_length: int) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise ModelFolderError(f"{file} holds no tokenizer ({error}): {_MEND}") from error
    if not tokenizer.num_special_tokens_to_add(is_pair=False):
        # A text of which nothing is left, such as a lone control character, would have no tokens at all.
        raise ModelFolderError(f"{file} adds no special token such as [CLS]: {_MEND}")
    # The file may ask for padding to a fixed length, which would only cost time: one text at a time needs none.
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return tokenizer
