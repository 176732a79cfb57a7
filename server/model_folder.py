"""What a model folder must hold to be served, checked before anything is loaded. Nothing in it is ever unpickled."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field, ValidationError
from tokenizers import Tokenizer

from server.errors import ModelFolderError
from server.files import recover_directory
from server.manifest import FIX, Manifest, refuse_pickles

TORCH_FILES = ("model.safetensors", "config.json")  # of the variant torch: the trained model itself


def _model_name(name: str) -> str:
    if not re.fullmatch(r"[^/\\]+\.(onnx|xml)", name):
        raise ValueError(
            f"{name!r} should be a file of this folder that ends in .onnx or .xml; a pickle is never loaded"
        )
    return name


class _Variant(BaseModel):
    file: Annotated[str, AfterValidator(_model_name)]


class _ModelJson(BaseModel):
    labels: list[Annotated[str, Field(min_length=1)]] = Field(min_length=2)
    max_length: int = Field(ge=3)  # [CLS], a token, [SEP]
    temperature: float = Field(default=1, ge=0.05, le=20)
    variants: dict[str, _Variant] = Field(min_length=1)


@dataclass(frozen=True)
class ModelFolder:
    labels: tuple[str, ...]
    max_length: int
    """Tokens of a text at most; what is longer is truncated."""
    variant: str
    file: Path
    """The model in this variant; an .xml has its weights in a .bin of the same name, a .safetensors its shape in config.json."""
    tokenizer: Tokenizer
    temperature: float
    """What the logits are divided by, so that a confidence says how often it is right; no label depends on it."""
    sha256: str
    """Of the manifest, which has that of every file: two folders with the same hold the same model."""


def read_model_folder(folder: Path, variants: Sequence[str]) -> ModelFolder:
    """The folder's model in the first of these variants that it has."""
    onnx = _onnx_folder(folder)
    refuse_pickles(folder, onnx)
    manifest = Manifest(folder)
    model = _read_model_json(manifest, onnx / "model.json")
    name = _first_variant(model, variants, torch=manifest.has(*TORCH_FILES), where=str(onnx / "model.json"))
    files = [manifest.verified_path(file) for file in _files(model, name)]
    return ModelFolder(
        labels=tuple(model.labels),
        max_length=model.max_length,
        variant=name,
        file=files[0],
        tokenizer=_read_tokenizer(manifest, onnx / "tokenizer.json", max_length=model.max_length),
        temperature=model.temperature,
        sha256=manifest.sha256,
    )


def _onnx_folder(folder: Path) -> Path:
    if not recover_directory(folder).is_dir():
        raise ModelFolderError(f"{folder} is not a folder: give the model folder that distrinews run wrote")
    if recover_directory(folder / "onnx").is_dir():
        return folder / "onnx"
    near = [
        place for place in (folder / "model", folder.absolute().parent) if (place / "onnx" / "model.json").is_file()
    ]
    meant = f"did you mean {near[0]}?" if near else "run distrinews run, or the export step, which write it"
    raise ModelFolderError(f"{folder} has no folder onnx: {meant}")


def files_to_fetch(manifest: Manifest, model_json: Path, variants: Sequence[str], *, where: str) -> list[str]:
    """The files besides manifest and model.json that a server reads of a folder that may not be here yet, for the first of these variants that it has."""
    model = _read_model_json(manifest, model_json)
    listed = set(TORCH_FILES) <= set(manifest.names)
    return ["onnx/tokenizer.json", *_files(model, _first_variant(model, variants, torch=listed, where=where))]


def _first_variant(model: _ModelJson, variants: Sequence[str], *, torch: bool, where: str) -> str:
    there = {*model.variants, *(["torch"] if torch else [])}
    name = next((name for name in variants if name in there), None)
    if name is None and tuple(variants) == ("torch",):
        return "torch"  # to say which of its files is missing
    if name is None:
        raise ModelFolderError(
            f"{where} has no variant {' or '.join(variants)}, only {', '.join(model.variants)}: choose with --engine"
        )
    return name


def _files(model: _ModelJson, variant: str) -> tuple[str, ...]:
    """The model in a variant, and what has to be beside it; by their names in the model folder."""
    if variant == "torch" and variant not in model.variants:
        return TORCH_FILES
    file = f"onnx/{model.variants[variant].file}"
    return (file, f"{file.removesuffix('.xml')}.bin") if file.endswith(".xml") else (file,)


def _read_model_json(manifest: Manifest, file: Path) -> _ModelJson:
    """What stands in it, compared with the manifest; the file says only where it is."""
    try:
        model = _ModelJson.model_validate_json(manifest.verified_bytes("onnx/model.json"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ModelFolderError(
            f"{file}: {where}{': ' if where else ''}{first['msg'].removeprefix('Value error, ')}; {FIX}"
        ) from None
    if len(set(model.labels)) < len(model.labels):
        raise ModelFolderError(f"{file}: labels has a name twice: {', '.join(model.labels)}")
    return model


def _read_tokenizer(manifest: Manifest, file: Path, *, max_length: int) -> Tokenizer:
    content = manifest.verified_bytes("onnx/tokenizer.json")
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises nothing narrower
        raise ModelFolderError(f"{file} holds no tokenizer ({error}): {FIX}") from error
    if not tokenizer.num_special_tokens_to_add(is_pair=False):
        # A text of which nothing is left, such as a lone control character, would have no tokens at all.
        raise ModelFolderError(f"{file} adds no special token such as [CLS]: {FIX}")
    # The file may ask for padding to a fixed length, which would only cost time: one text at a time needs none.
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return tokenizer
