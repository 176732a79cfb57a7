"""Checkpoints on a disk: what is damaged, what is removed, and what is left alone."""

import errno
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch

from server import files
from server.errors import UserError
from trainer.checkpoint.store import Snapshot, check_best, find_damage, names, remove_unfinished, write


def save(folder: Path, name: str, *, best: int = 0, keep_last: int = 2) -> Path:
    tensors = {"weight": torch.arange(100.0)}
    epoch, _, step = name.removeprefix("epoch-").partition("-step-")
    state = {"epoch": int(epoch), "step": int(step or 0), "segments": [[8, 1]] if step else [], "best_epoch": best}
    kept = [f"epoch-{best:04}"] if best else []
    snapshot = Snapshot(
        name=name, state=state, provenance={}, best=kept, model=tensors, optimizer=tensors, param_groups=[]
    )
    write(folder, snapshot, keep_last=keep_last)
    return folder / name


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["torn", "flipped", "missing"])
def test_damage_names_the_file(file: str, damage: str, tmp_path: Path) -> None:
    checkpoint = save(tmp_path, "epoch-0001")
    assert find_damage(checkpoint) == ""
    check_best(checkpoint)
    path = checkpoint / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "torn" else content)
    assert file in find_damage(checkpoint)
    with pytest.raises(UserError, match=rf"epoch-0001: the model is made of .*{file}.*--resume never"):
        check_best(checkpoint)
    shutil.rmtree(checkpoint)
    with pytest.raises(UserError, match="but it is missing; bring it back"):
        check_best(checkpoint)


def test_a_user_s_copies_and_notes_are_no_checkpoints_and_stay(tmp_path: Path) -> None:
    save(tmp_path, "epoch-0001")
    users = {
        "epoch-0001.keep",
        "epoch-0001-before-the-drop",
        "epoch-0009-backup",
        "epoch-0009",
        "epoch-0009-step-00000009",
        "epoch-0001-notes",
        ".epoch-0001.keep",
    }
    for name in users:
        shutil.copytree(tmp_path / "epoch-0001", tmp_path / name)
    for epoch in (2, 3):
        save(tmp_path, f"epoch-{epoch:04}", keep_last=1)
    remove_unfinished(tmp_path)
    assert names(tmp_path) == ["epoch-0003"]
    with pytest.raises(UserError, match=r"epoch-0009: the model is made of .* but it is a copy of epoch-0001"):
        check_best(tmp_path / "epoch-0009")
    assert {path.name for path in tmp_path.iterdir()} == {*users, "epoch-0003", "latest"}
    save(tmp_path, "epoch-0009")  # training reaches the name of a copy
    assert find_damage(tmp_path / "epoch-0009") == ""
    assert find_damage(tmp_path / f"copy-of-epoch-0001-{os.getpid()}") == "it is a copy of epoch-0001"


def test_the_best_epoch_of_each_checkpoint_that_is_kept_is_kept(tmp_path: Path) -> None:
    save(tmp_path, "epoch-0001", best=1)
    save(tmp_path, "epoch-0001-step-00000009", best=1)
    save(tmp_path, "epoch-0002", best=2)
    assert names(tmp_path) == ["epoch-0002", "epoch-0001-step-00000009", "epoch-0001"]


def test_an_old_checkpoint_that_cannot_be_removed_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def busy(path: Path, ignore_errors: bool = False) -> None:
        if ignore_errors:
            return
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)

    with monkeypatch.context() as patched:
        patched.setattr("trainer.checkpoint.store.shutil.rmtree", busy)
        for epoch in (1, 2):
            save(tmp_path, f"epoch-{epoch:04}", keep_last=1)
    assert names(tmp_path) == ["epoch-0002"]
    (left,) = tmp_path.glob(".epoch-*")
    assert (
        f"warning: {left} cannot be removed: Device or resource busy; the next start tries" in capsys.readouterr().out
    )
    remove_unfinished(tmp_path)
    assert not left.exists()


def test_a_disk_that_cannot_sync_folders_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    work = os.fsync

    def refuse_folders(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):  # noqa: PTH112 - a link of the system
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        work(handle)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    with caplog.at_level(logging.WARNING):
        for epoch in (1, 2):
            assert find_damage(save(tmp_path, f"epoch-{epoch:04}")) == ""
    assert [record.message for record in caplog.records if "cannot sync folders" in record.message]
    assert len(caplog.records) <= 2  # the folder of checkpoints, and the one around it
    file = tmp_path / "latest"
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "no more")))
    with pytest.raises(OSError, match="no more"):
        files.fsync(file)


def test_a_checkpoint_that_was_being_replaced_is_brought_back(tmp_path: Path) -> None:
    save(tmp_path, "epoch-0001")
    newest = save(tmp_path, "epoch-0001-step-00000004")
    newest.rename(tmp_path / f".{newest.name}.123.old")
    (tmp_path / f".{newest.name}.123.tmp").mkdir()
    remove_unfinished(tmp_path)
    assert names(tmp_path) == [newest.name, "epoch-0001"]
    assert find_damage(newest) == ""
    assert not list(tmp_path.glob(".epoch-*"))
