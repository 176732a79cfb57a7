"""A model folder from where models are kept to where a server reads it: `python -m server.fetch URI --to FOLDER`.

On a cluster, before the server starts; the server itself only reads folders.
"""

import argparse
import re
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import obstore
from obstore.exceptions import BaseError
from obstore.store import HTTPStore, ObjectStore, from_url
from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from server.errors import ModelFolderError
from server.inference.backends import candidates
from server.model_folder import TORCH_FILES, Manifest, files_to_fetch
from server.settings import Settings

_PROGRAM = "python -m server.fetch"
_HUB = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_MODEL_JSON = "onnx/model.json"
_CHUNK_BYTES = 8 << 20


class FetchError(RuntimeError):
    """What could not be fetched, and why."""


class _Hub(BaseSettings):
    """Of the Hugging Face hub, in the variables that its own library reads."""

    model_config = SettingsConfigDict(frozen=True, env_prefix="HF_")

    endpoint: str = "https://huggingface.co"
    """A mirror, where there is one."""
    token: SecretStr | None = None
    """For repositories that are not public."""


def fetch(uri: str, folder: Path, *, sha256: str | None, variants: Sequence[str]) -> int:
    """Bring the model in the first of these variants that it has; returns its bytes. The model that stands there is replaced.

    Only what a server reads of it is taken, and only as the manifest lists it; `sha256` is that of the manifest.
    """
    store, staging = _store(uri), folder / ".fetching"
    shutil.rmtree(staging, ignore_errors=True)  # what an attempt before this one left
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
    """onnx/ goes first and comes last: without it, nothing in the folder counts."""
    shutil.rmtree(folder / "onnx", ignore_errors=True)
    for name in TORCH_FILES:
        (folder / name).unlink(missing_ok=True)
        if (staging / name).exists():
            (staging / name).rename(folder / name)
    (staging / "onnx").rename(folder / "onnx")


def check(folder: Path, *, sha256: str | None) -> None:
    """ModelFolderError unless the folder has the manifest with this digest; its files are compared when they are loaded."""
    _compare(Manifest(folder), sha256, str(folder))


def _store(uri: str) -> ObjectStore:
    """Credentials come from the variables that each store's own tools read, or from the machine's identity."""
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


def _sha256(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise argparse.ArgumentTypeError(f"{text!r} should be 64 hexadecimal digits, as sha256sum prints them")
    return text


def main(args: list[str] | None = None) -> None:
    """Fetch or check; status 1 when the model cannot be had or is another one."""
    parser = argparse.ArgumentParser(
        prog=_PROGRAM, description="Bring a model folder here, whole and as it was exported."
    )
    parser.add_argument("uri", metavar="URI", help="s3://, gs://, hf://OWNER/NAME[@REVISION], https:// or file:///")
    parser.add_argument("--to", metavar="FOLDER", type=Path, help="without it, a file:/// is checked where it is")
    parser.add_argument("--sha256", type=_sha256, help="of onnx/manifest.json; another model is refused")
    given = parser.parse_args(args)
    if not given.to and not given.uri.startswith("file:///"):
        parser.error(f"{given.uri} needs --to FOLDER; only a file:/// can be checked where it is")
    started = time.monotonic()
    try:
        if given.to:
            size = fetch(given.uri, given.to, sha256=given.sha256, variants=candidates(Settings().engine))
            print(f"fetched {given.uri}: {size / 1e6:.1f} MB in {time.monotonic() - started:.1f} s", flush=True)
        else:
            check(Path(url2pathname(urlsplit(given.uri).path)), sha256=given.sha256)
            print(f"checked {given.uri}", flush=True)
    except (FetchError, ModelFolderError, OSError) as error:
        print(f"{_PROGRAM}: error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
