"""What a model folder must hold to be served, checked before anything is loaded. Nothing in it is ever unpickled."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError
from tokenizers import Tokenizer

_MEND = "run distrinews run, or the export step, to write it anew"


class ModelFolderError(ValueError):
    """A model folder that cannot be served: which file, and what to do."""


class _Variant(BaseModel):
    file: str = Field(pattern=r"^[^/\\]+\.onnx$")  # a name inside the folder, not a path out of it


class _ModelJson(BaseModel):
    labels: list[Annotated[str, Field(min_length=1)]] = Field(min_length=2)
    max_length: int = Field(ge=3)  # [CLS], a token, [SEP]
    default: str
    variants: dict[str, _Variant] = Field(min_length=1)


@dataclass(frozen=True)
class ModelFolder:
    labels: tuple[str, ...]
    max_length: int
    """Tokens of a text at most; what is longer is truncated."""
    variant: str
    onnx_file: Path
    tokenizer: Tokenizer


def read_model_folder(folder: Path, variant: str) -> ModelFolder:
    """The folder's model in one variant; `auto` is the folder's default."""
    onnx = _onnx_folder(folder)
    model = _read_model_json(onnx / "model.json")
    name = model.default if variant == "auto" else variant
    if name not in model.variants:
        raise ModelFolderError(
            f"{onnx / 'model.json'} has no variant {name}, only {', '.join(model.variants)}: choose with --variant"
        )
    return ModelFolder(
        labels=tuple(model.labels),
        max_length=model.max_length,
        variant=name,
        onnx_file=_existing(onnx / model.variants[name].file),
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
