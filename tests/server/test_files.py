"""Folders and files that are complete or absent, whenever their writer is killed."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from server.errors import UserError
from server.files import atomic_directory, link_folder, read_json, recover_directory, write_json

KILLED_BETWEEN_THE_RENAMES = """
import os, sys
from pathlib import Path
from server.files import atomic_directory
rename = Path.rename
def rename_and_die(self, target):
    rename(self, target)
    os._exit(9)
Path.rename = rename_and_die
with atomic_directory(Path(sys.argv[1])) as folder:
    (folder / "content").write_text("new")
"""


def write(path: Path, content: str) -> None:
    with atomic_directory(path) as folder:
        (folder / "content").write_text(content, encoding="utf-8")


def test_a_folder_is_replaced_as_a_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    for content in ("one", "two"):
        write(tmp_path / "model", content)
        assert (tmp_path / "model" / "content").read_text(encoding="utf-8") == content
        assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_error_leaves_the_folder_of_before(tmp_path: Path) -> None:
    write(tmp_path / "model", "one")
    with pytest.raises(IsADirectoryError), atomic_directory(tmp_path / "model") as folder:
        folder.write_text("two", encoding="utf-8")
    assert (tmp_path / "model" / "content").read_text(encoding="utf-8") == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("next_is", ["a reader", "a writer", "a writer that fails"])
def test_a_folder_whose_writer_is_killed_between_two_renames_comes_back(tmp_path: Path, next_is: str) -> None:
    model = tmp_path / "model"
    write(model, "old")
    killed = subprocess.run([sys.executable, "-c", KILLED_BETWEEN_THE_RENAMES, str(model)], check=False)
    assert killed.returncode == 9
    assert not model.exists()
    if next_is == "a reader":
        assert recover_directory(model) == model
    elif next_is == "a writer":
        write(model, "newer")
        assert not list(tmp_path.glob(".*.old"))
    else:
        with pytest.raises(KeyError), atomic_directory(model):
            raise KeyError
    assert (model / "content").read_text(encoding="utf-8") == ("newer" if next_is == "a writer" else "old")


def test_a_reader_that_recovers_the_old_folder_meanwhile_does_not_stop_a_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rename, moved = tmp_path / "model", Path.rename, list[Path]()
    write(model, "old")

    def rename_and_read(self: Path, target: Path) -> Path:
        renamed = rename(self, target)
        if self == model and not moved:
            moved.append(recover_directory(model))
        return renamed

    monkeypatch.setattr(Path, "rename", rename_and_read)
    write(model, "new")
    assert moved
    assert (model / "content").read_text(encoding="utf-8") == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_another_error_of_a_rename_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "model", "new")


def test_a_folder_whose_name_has_the_same_prefix_is_not_brought_back(tmp_path: Path) -> None:
    (tmp_path / ".model.best.7.old").mkdir()
    recover_directory(tmp_path / "model")
    recover_directory(tmp_path / "absent" / "model")
    assert not (tmp_path / "model").exists()


def test_linked_folders_share_their_files(tmp_path: Path) -> None:
    write(tmp_path / "one", "content")
    link_folder(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "two" / "content").samefile(tmp_path / "one" / "content")


def test_json_is_written_and_read_the_same(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "Zürich", "rows": [1, 2.5, None]})
    assert read_json(tmp_path / "a.json", fix="none") == {"name": "Zürich", "rows": [1, 2.5, None]}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("content", ["", '{"name": "ne', "[]", "null"])
def test_a_torn_json_file_is_named_with_how_to_fix_it(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"run\.json: is damaged, it .*: start a new run$"):
        read_json(tmp_path / "run.json", fix="start a new run")
