"""Reads and writes the description of a model folder: model.json, and a manifest with the sha256 of every file that a server reads.

The export step writes both, the server reads both, and nothing in a model folder is ever unpickled.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from tokenizers import Tokenizer

from server.errors import ModelFolderError
from server.files import recover_directory, write_json

TORCH_FILES = ("model.safetensors", "config.json")  # the trained model itself, which the variant torch loads
_FIX = "run distrinews run, or the export step, to write it anew"
_COPY = "copy the model folder again, or run the export step again"
_MODEL_JSON, _TOKENIZER, _MANIFEST = "onnx/model.json", "onnx/tokenizer.json", "onnx/manifest.json"
_PICKLE_SUFFIXES = frozenset({".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
_ZIP = b"PK\x03\x04"  # torch.save writes it, joblib when it compresses, and numpy.savez
_OLD_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save wrote it before version 1.6


def _model_name(name: str) -> str:
    if not re.fullmatch(r"[^/\\]+\.(onnx|xml)", name):
        raise ValueError(
            f"{name!r} should be a file of this folder that ends in .onnx or .xml; a pickle is never loaded"
        )
    return name


class Variant(BaseModel):
    """A model file of the folder onnx/ and, where the export step checked it, how it differs from the trained model."""

    model_config = ConfigDict(extra="allow")

    file: Annotated[str, AfterValidator(_model_name)]
    bytes: int | None = None


class Padding(BaseModel):
    """Settings of a tokenizer by which texts are padded and truncated; a folder without them has the defaults."""

    model_config = ConfigDict(frozen=True)

    token_id: int = Field(default=0, ge=0)
    side: Literal["right", "left"] = "right"
    truncation_side: Literal["right", "left"] = "right"


class ModelJson(BaseModel):
    """The content of onnx/model.json; the export step writes it, the server reads it."""

    labels: list[Annotated[str, Field(min_length=1)]] = Field(min_length=2)
    max_length: int = Field(ge=3)  # [CLS], a token, [SEP]
    padding: Padding = Padding()
    temperature: float = Field(default=1, ge=0.05, le=20)
    text_columns: list[str] = []
    """The columns of the training rows that make the text, or their numbers from 1 where there was no header."""
    variants: dict[str, Variant] = Field(min_length=1)
    default: str | None = None
    """The variant for other readers of the folder: the server has its own order."""

    def write(self, folder: Path) -> None:
        write_json(folder / _MODEL_JSON, self.model_dump(exclude_none=True))


@dataclass(frozen=True)
class ModelFolder:
    labels: tuple[str, ...]
    max_length: int
    """Tokens of a text at most; what is longer is truncated."""
    variant: str
    file: Path
    """The model in this variant; an .xml has its weights in a .bin of the same name, a .safetensors its shape in config.json."""
    tokenizer: Tokenizer
    padding: Padding
    text_columns: tuple[str, ...]
    """The columns that the model was trained on; none where they are unknown."""
    temperature: float
    """The logits are divided by it, so that a confidence is the share of right answers; no label depends on it."""
    sha256: str
    """The digest of the manifest, which has that of every file: two folders with the same hold the same model."""


def read_model_folder(folder: Path, variants: Sequence[str]) -> ModelFolder:
    """Reads the first of these variants that the folder has, and checks every file that it needs against the manifest."""
    onnx = _onnx_folder(folder)
    _refuse_pickles(folder, onnx)
    manifest = Manifest(folder)
    model = _read_model_json(manifest, folder / _MODEL_JSON)
    name = _first_variant(model, variants, torch=manifest.has(*TORCH_FILES), where=str(folder / _MODEL_JSON))
    files = [manifest.verified_path(file) for file in _files(model, name)]
    return ModelFolder(
        labels=tuple(model.labels),
        max_length=model.max_length,
        variant=name,
        file=files[0],
        tokenizer=_read_tokenizer(manifest, folder / _TOKENIZER, model),
        padding=model.padding,
        text_columns=tuple(model.text_columns),
        temperature=model.temperature,
        sha256=manifest.sha256,
    )


def files_to_fetch(manifest: "Manifest", model_json: Path, variants: Sequence[str], *, where: str) -> list[str]:
    """Names the files besides manifest and model.json that serve the first of these variants; they may not be here yet."""
    model = _read_model_json(manifest, model_json)
    listed = set(TORCH_FILES) <= set(manifest.names)
    return [_TOKENIZER, *_files(model, _first_variant(model, variants, torch=listed, where=where))]


class _Entry(BaseModel):
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class _Files(BaseModel):
    files: dict[str, _Entry]


class Manifest:
    """Lists the files of a model folder by their names in it; `sha256` identifies them all.

    Files may be links to elsewhere, as those of a mounted ConfigMap are: only their content counts.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        content = self._existing(_MANIFEST).read_bytes()
        try:
            self._files = _Files.model_validate_json(content).files
        except ValidationError as error:
            raise ModelFolderError(f"{folder / _MANIFEST}: {_first_fault(error)}; {_FIX}") from None
        self.sha256 = hashlib.sha256(content).hexdigest()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._files)

    def has(self, *names: str) -> bool:
        """Returns True when all of these are listed and there."""
        return all(name in self._files and (self._folder / name).is_file() for name in names)

    def verified_path(self, name: str) -> Path:
        """Returns the path of a file with the listed size and digest; raises ModelFolderError otherwise."""
        file = self._existing(name)
        listed = self._listed(name, size=file.stat().st_size)
        self._compare(name, _digest(file), listed.sha256)
        return file

    def verified_bytes(self, name: str) -> bytes:
        """Returns the content of a small file: the very bytes that were compared."""
        content = self._existing(name).read_bytes()
        listed = self._listed(name, size=len(content))
        self._compare(name, hashlib.sha256(content).hexdigest(), listed.sha256)
        return content

    def _existing(self, name: str) -> Path:
        file = self._folder / name
        if not file.is_file():
            raise ModelFolderError(f"{file} is missing: {_FIX}")
        return file

    def _listed(self, name: str, *, size: int) -> _Entry:
        if name not in self._files:
            raise ModelFolderError(f"{self._folder / name} is not in {_MANIFEST}: {_FIX}")
        if size != self._files[name].bytes:
            raise ModelFolderError(
                f"{self._folder / name} has {size:,} bytes, {_MANIFEST} lists {self._files[name].bytes:,}: {_COPY}"
            )
        return self._files[name]

    def _compare(self, name: str, found: str, listed: str) -> None:
        if found != listed:
            raise ModelFolderError(
                f"{self._folder / name} is not the file that was exported: its sha256 is {found[:12]}…, {_MANIFEST} lists {listed[:12]}…; {_COPY}"
            )


def write_manifest(folder: Path) -> None:
    """Writes onnx/manifest.json with bytes and sha256 of each file that a server reads; call it last, for a file that changes afterwards is refused."""
    names = [f"onnx/{file.name}" for file in sorted((folder / "onnx").iterdir())] + sorted(TORCH_FILES)
    files = {name: folder / name for name in names if name != _MANIFEST and (folder / name).is_file()}
    entries = {name: {"bytes": file.stat().st_size, "sha256": _digest(file)} for name, file in files.items()}
    write_json(folder / _MANIFEST, {"files": entries})


def is_pickle(file: Path) -> bool:
    """Returns True for a file that is called like a pickle, or has the content of one."""
    if file.suffix.lower() in _PICKLE_SUFFIXES:
        return True
    with file.open("rb") as opened:
        head = opened.read(len(_OLD_TORCH))
        if head.startswith(_ZIP) or head == _OLD_TORCH:
            return True
        # A version from 2 to 5, and a full stop at the end. Raw weights, which an OpenVINO .bin is, may begin like that.
        if head[:1] != b"\x80" or head[1:2] not in {b"\x02", b"\x03", b"\x04", b"\x05"}:
            return False
        opened.seek(-1, 2)
        return opened.read() == b"."


def _refuse_pickles(*folders: Path) -> None:
    """Refuses a folder that holds a pickle, loaded or not: loading one may run any program."""
    for file in (file for folder in folders for file in sorted(folder.iterdir()) if file.is_file()):
        if not is_pickle(file):
            continue
        if file.suffix.lower() == ".npz":  # an archive of arrays, each of which may be a pickle
            raise ModelFolderError(f"{file} may hold pickles and is not allowed: write its arrays as .safetensors")
        raise ModelFolderError(
            f"{file} is a pickle, which may run any program when it is loaded: remove it; a model folder has .onnx, .xml with .bin, or .safetensors"
        )


def _onnx_folder(folder: Path) -> Path:
    if not recover_directory(folder).is_dir():
        raise ModelFolderError(f"{folder} is not a folder: give the model folder that distrinews run wrote")
    if recover_directory(folder / "onnx").is_dir():
        return folder / "onnx"
    near = [place for place in (folder / "model", folder.absolute().parent) if (place / _MODEL_JSON).is_file()]
    meant = f"did you mean {near[0]}?" if near else "run distrinews run, or the export step, which write it"
    raise ModelFolderError(f"{folder} has no folder onnx: {meant}")


def _first_variant(model: ModelJson, variants: Sequence[str], *, torch: bool, where: str) -> str:
    there = {*model.variants, *(["torch"] if torch else [])}
    name = next((name for name in variants if name in there), None)
    if name is None and tuple(variants) == ("torch",):
        return "torch"  # the error will name which of its files is missing
    if name is None:
        raise ModelFolderError(
            f"{where} has no variant {' or '.join(variants)}, only {', '.join(model.variants)}: choose with --engine"
        )
    return name


def _files(model: ModelJson, variant: str) -> tuple[str, ...]:
    """Names the model file of a variant and its companions."""
    if variant == "torch" and variant not in model.variants:
        return TORCH_FILES
    file = f"onnx/{model.variants[variant].file}"
    return (file, f"{file.removesuffix('.xml')}.bin") if file.endswith(".xml") else (file,)


def _read_model_json(manifest: Manifest, file: Path) -> ModelJson:
    """Reads model.json through the manifest; `file` is its path for messages."""
    try:
        model = ModelJson.model_validate_json(manifest.verified_bytes(_MODEL_JSON))
    except ValidationError as error:
        raise ModelFolderError(f"{file}: {_first_fault(error)}; {_FIX}") from None
    if len(set(model.labels)) < len(model.labels):
        raise ModelFolderError(f"{file}: labels has a name twice: {', '.join(model.labels)}")
    return model


def _read_tokenizer(manifest: Manifest, file: Path, model: ModelJson) -> Tokenizer:
    content = manifest.verified_bytes(_TOKENIZER)
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises nothing narrower
        raise ModelFolderError(f"{file} holds no tokenizer ({error}): {_FIX}") from error
    tokenizer.no_padding()  # the file may set it to a fixed length: the encoder pads to the longest text of a batch
    tokenizer.enable_truncation(model.max_length, direction=model.padding.truncation_side)
    return tokenizer


def _first_fault(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}{': ' if where else ''}{first['msg'].removeprefix('Value error, ')}"


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
