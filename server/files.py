"""Folders that are whole or not there: written under a temporary name beside their place, then renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new empty folder to write into, which takes the place of `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        readable = temporary.stat().st_mode & 0o666  # as the umask allows; safetensors' files are for their owner alone
        for file in (*temporary.rglob("*"), temporary):
            if ~file.stat().st_mode & readable:
                file.chmod(file.stat().st_mode | readable)
            sync(file)
        if path.exists():
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """OSError with the path where safetensors cannot write: it has an error of its own, for a full disk too."""
    from safetensors import SafetensorError  # here, for not all that makes folders has it

    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error


def link_folder(source: Path, target: Path) -> None:
    """The same files under another folder, as hard links, or as copies where the file system has no links."""
    with whole_folder(target) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links: a copy is the same to every reader
        shutil.copy2(source, target)


def sync(path: Path) -> None:
    """Return when a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
