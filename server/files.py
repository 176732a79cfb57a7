"""Writes folders and files so that a reader finds the old or the new content, and never a half of either."""

import errno
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from server.errors import UserError

_LOG = logging.getLogger(__name__)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yields a new empty folder, which replaces `path` when the block ends without an error."""
    recover_directory(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        readable = temporary.stat().st_mode & 0o666  # what the umask allows; safetensors' own files are private
        for file in (*temporary.rglob("*"), temporary):
            if ~file.stat().st_mode & readable:
                file.chmod(file.stat().st_mode | readable)
            fsync(file)
        _replace(path, temporary)
        fsync(path.parent)
        for old in _replaced(path):
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def recover_directory(path: Path) -> Path:
    """Brings a folder back that a process was killed while replacing; every reader of such a folder calls this first."""
    if not path.exists() and (replaced := _replaced(path)):
        replaced[-1].rename(path)
    return path


def _replace(path: Path, new: Path) -> None:
    """Renames the old folder away and the new one into its place; killed between, `recover_directory` undoes the first."""
    while True:
        if path.exists():
            path.rename(path.with_name(f".{path.name}.{os.getpid()}.old"))
        try:
            new.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise  # else: a reader has recovered the old folder between the two renames
        else:
            return


def _replaced(path: Path) -> list[Path]:
    """Returns the former contents of a folder that were not removed, the newest last."""
    if not path.parent.is_dir():
        return []
    start, end = f".{path.name}.", ".old"
    found = [
        other
        for other in path.parent.iterdir()
        if other.name.startswith(start) and other.name.endswith(end) and other.name[len(start) : -len(end)].isdigit()
    ]
    return sorted(found, key=lambda folder: folder.stat().st_mtime)


def write_json(path: Path, value: object) -> None:
    """Writes a JSON file under a temporary name and renames it, so that it is complete or absent."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def read_json(path: Path, *, fix: str) -> dict[str, Any]:
    """Reads a JSON object; UserError with how to fix it for a file that is torn, as a full disk or a stopped copy leaves it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: is damaged, it is no JSON ({error}): {fix}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: is damaged, it holds no object: {fix}")
    return found


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns safetensors' own error, which it raises for a full disk too, into an OSError with the path."""
    from safetensors import SafetensorError  # not every program that writes folders has it installed

    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error


def link_folder(source: Path, target: Path) -> None:
    """Makes the same files in another folder, as hard links, or as copies on file systems without links."""
    with atomic_directory(target) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links: a copy is the same to every reader
        shutil.copy2(source, target)


def fsync(path: Path) -> None:
    """Returns when a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
        _warn_unsynced(path.parent)
    finally:
        os.close(handle)


@cache
def _warn_unsynced(folder: Path) -> None:
    """Warns once for each folder, and not for every folder in it."""
    _LOG.warning(
        "warning: %s is on a file system that cannot sync folders; it decides when new names are on the disk", folder
    )


def read_file(path: Path) -> dict[str, Any]:
    """Reads settings from a JSON or YAML file."""
    kind = "JSON" if path.suffix == ".json" else "YAML"
    try:
        text = path.read_text(encoding="utf-8-sig")
        values = json.loads(text) if kind == "JSON" else yaml.safe_load(text)
    except OSError as error:
        raise UserError(f"--config {path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"--config {path}: is not valid {kind}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        found = "nothing" if values is None else f"a {type(values).__name__}"
        raise UserError(f"--config {path}: holds {found}, not settings by name, such as epochs: 3")
    return {str(key).replace("-", "_"): value for key, value in values.items()}
