"""The manifest of a model folder: what is loaded is what the export step wrote, and none of it is a pickle."""

import hashlib
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from server.errors import ModelFolderError

FIX = "run distrinews run, or the export step, to write it anew"
_NAME = "onnx/manifest.json"
_COPY = "copy the model folder again, or run the export step again"
_PICKLE_SUFFIXES = frozenset({".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
_ZIP = b"PK\x03\x04"  # what torch.save writes, and joblib when it compresses
_OLD_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # what torch.save wrote before version 1.6


class _Entry(BaseModel):
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class _Files(BaseModel):
    files: dict[str, _Entry]


class Manifest:
    """Which files a model folder has, by their names in it; `sha256` stands for them all.

    Files may be links to elsewhere, as those of a mounted ConfigMap are: what counts is what is in them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        content = self._existing(_NAME).read_bytes()
        try:
            self._files = _Files.model_validate_json(content).files
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ModelFolderError(f"{folder / _NAME}: {where}{': ' if where else ''}{first['msg']}; {FIX}") from None
        self.sha256 = hashlib.sha256(content).hexdigest()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the files that it lists, inside the model folder."""
        return tuple(self._files)

    def has(self, *names: str) -> bool:
        """Whether these are listed and there."""
        return all(name in self._files and (self._folder / name).is_file() for name in names)

    def verified_path(self, name: str) -> Path:
        """The file, as it was written; ModelFolderError otherwise."""
        file = self._existing(name)
        listed = self._listed(name, size=file.stat().st_size)
        with file.open("rb") as opened:
            self._compare(name, hashlib.file_digest(opened, "sha256").hexdigest(), listed.sha256)
        return file

    def verified_bytes(self, name: str) -> bytes:
        """What is in a small file: the very bytes that were compared."""
        content = self._existing(name).read_bytes()
        listed = self._listed(name, size=len(content))
        self._compare(name, hashlib.sha256(content).hexdigest(), listed.sha256)
        return content

    def _existing(self, name: str) -> Path:
        file = self._folder / name
        if not file.is_file():
            raise ModelFolderError(f"{file} is missing: {FIX}")
        return file

    def _listed(self, name: str, *, size: int) -> _Entry:
        if name not in self._files:
            raise ModelFolderError(f"{self._folder / name} is not in {_NAME}: {FIX}")
        if size != self._files[name].bytes:
            raise ModelFolderError(
                f"{self._folder / name} has {size:,} bytes, {_NAME} says {self._files[name].bytes:,}: {_COPY}"
            )
        return self._files[name]

    def _compare(self, name: str, found: str, listed: str) -> None:
        if found != listed:
            raise ModelFolderError(
                f"{self._folder / name} is not the file that was exported: its sha256 is {found[:12]}…, {_NAME} says {listed[:12]}…; {_COPY}"
            )


def refuse_pickles(*folders: Path) -> None:
    """ModelFolderError for a pickle among the files of these folders, loaded or not: loading one may run any program."""
    for folder in folders:
        for file in sorted(folder.iterdir()):
            if file.is_file() and is_pickle(file):
                raise ModelFolderError(
                    f"{file} is a pickle, which may run any program when it is loaded: remove it; a model folder has .onnx, .xml with .bin, or .safetensors"
                )


def is_pickle(file: Path) -> bool:
    """Whether it is called like one, or looks like one inside."""
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
