"""The command `distrinews fetch`: copies a model folder to where a server reads it; the server itself only reads folders."""

import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit
from urllib.request import url2pathname

import obstore
from obstore.exceptions import BaseError
from obstore.store import HTTPStore, ObjectStore, from_url
from pydantic import AfterValidator, SecretStr, model_validator
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from server.cli import Command, Environment, build
from server.errors import ModelFolderError, UserError
from server.inference.backends import candidates
from server.model_folder import TORCH_FILES, Manifest, files_to_fetch
from server.settings import Settings

_HUB = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_MODEL_JSON = "onnx/model.json"
_CHUNK_BYTES = 8 << 20


class FetchError(UserError):
    """A file cannot be fetched; the message names it and the reason."""


class _Hub(Environment):
    """The Hugging Face hub, in the variables that its own library reads."""

    model_config = SettingsConfigDict(env_prefix="HF_")

    endpoint: str = "https://huggingface.co"
    """The hub, or a mirror of it."""
    token: SecretStr | None = None
    """A token for repositories that are not public."""


def _digest(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise ValueError("should be 64 hexadecimal digits, as sha256sum prints them")
    return text


class Fetch(Command):
    """Copy a model folder here, complete and as it was exported; or check one that is here."""

    uri: CliPositionalArg[str]
    """The model: s3://, gs://, hf://OWNER/NAME[@REVISION], https:// or file:///."""

    to: Path | None = None
    """Folder for the model, whose present model is replaced. Without it, a file:/// is checked in its place."""

    sha256: Annotated[str, AfterValidator(_digest)] | None = None
    """SHA-256 of onnx/manifest.json; another model is refused."""

    @model_validator(mode="after")
    def _has_a_target(self) -> Self:
        if not self.to and not self.uri.startswith("file:///"):
            raise ValueError(f"{self.uri} needs --to FOLDER; only a file:/// can be checked in its place")
        return self

    def run(self) -> None:
        started = time.monotonic()
        try:
            if self.to:
                variants = candidates(build(Settings, {}).engine)
                size = fetch(self.uri, self.to, sha256=self.sha256, variants=variants)
                print(f"fetched {self.uri}: {size / 1e6:.1f} MB in {time.monotonic() - started:.1f} s", flush=True)
            else:
                check(Path(url2pathname(urlsplit(self.uri).path)), sha256=self.sha256)
                print(f"checked {self.uri}", flush=True)
        except OSError as error:  # a full disk, or a folder that may not be written, which it names
            raise FetchError(str(error)) from error


def fetch(uri: str, folder: Path, *, sha256: str | None, variants: Sequence[str]) -> int:
    """Replaces the folder's model by the one at `uri`, in the first of these variants that it has; returns its bytes.

    It copies only what a server reads, and only as the manifest lists it; `sha256` is that of the manifest.
    """
    store, staging = _store(uri), folder / ".fetching"
    shutil.rmtree(staging, ignore_errors=True)  # of an earlier attempt
    (staging / "onnx").mkdir(parents=True)
    try:
        _download(store, "onnx/manifest.json", staging, uri)
        manifest = Manifest(staging)
        _compare(manifest, sha256, uri)
        _download(store, _MODEL_JSON, staging, uri)
        for name in files_to_fetch(manifest, staging / _MODEL_JSON, variants, where=uri):
            _download(store, name, staging, uri)
            manifest.verified_path(name)
        size = sum(file.stat().st_size for file in staging.rglob("*") if file.is_file())
        _replace(folder, staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return size


def _replace(folder: Path, staging: Path) -> None:
    """Removes onnx/ first and adds it last: without it, nothing in the folder counts."""
    shutil.rmtree(folder / "onnx", ignore_errors=True)
    for name in TORCH_FILES:
        (folder / name).unlink(missing_ok=True)
        if (staging / name).exists():
            (staging / name).rename(folder / name)
    (staging / "onnx").rename(folder / "onnx")


def check(folder: Path, *, sha256: str | None) -> None:
    """Raises ModelFolderError unless the folder has the manifest with this digest; its files are checked when they are loaded."""
    _compare(Manifest(folder), sha256, str(folder))


def _store(uri: str) -> ObjectStore:
    """Opens the store of a URI, with credentials from the variables that its own tools read, or of the machine's identity."""
    try:
        if uri.startswith("hf://"):
            return _hub_store(uri)
        if uri.startswith("http://"):
            return from_url(uri, client_options={"allow_http": True})
        if uri.startswith(("s3://", "gs://", "https://", "file:///")):
            return from_url(uri)
    except (BaseError, ValueError) as error:
        raise FetchError(f"cannot fetch from {uri}: {_first_line(error)}") from error
    raise FetchError(f"cannot fetch from {uri}: it should begin with s3://, gs://, hf://, https:// or file:///")


def _hub_store(uri: str) -> ObjectStore:
    match = _HUB.fullmatch(uri)
    if not match:
        raise FetchError(f"cannot fetch from {uri}: it should be hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    hub = _Hub()
    headers = {"Authorization": f"Bearer {hub.token.get_secret_value()}"} if hub.token else {}
    url = f"{hub.endpoint.rstrip('/')}/{match['repository']}/resolve/{match['revision'] or 'main'}"
    return HTTPStore(url, client_options={"allow_http": url.startswith("http://"), "default_headers": headers})


def _download(store: ObjectStore, name: str, folder: Path, uri: str) -> None:
    try:
        with (folder / name).open("wb") as file:
            for chunk in obstore.get(store, name).stream(min_chunk_size=_CHUNK_BYTES):
                file.write(chunk)
    except (BaseError, FileNotFoundError) as error:
        raise FetchError(f"cannot fetch {uri.rstrip('/')}/{name}: {_first_line(error)}") from error


def _compare(manifest: Manifest, sha256: str | None, where: str) -> None:
    if sha256 and manifest.sha256 != sha256:
        raise ModelFolderError(
            f"{where} holds another model: the sha256 of its onnx/manifest.json is {manifest.sha256}, not {sha256}"
        )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
