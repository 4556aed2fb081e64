"""Outputs appear whole or not at all, and never replace a file by accident."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from axs_lib.errors import InputError, OutputError
from axs_lib.io.atomic import atomic_write, check_output


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_the_output_appears_with_its_content_and_its_folder(tmp_path: Path) -> None:
    target = tmp_path / "new" / "deep" / "tile.tif"
    with atomic_write(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.suffix == ".tif"
        assert not target.exists()
        temporary.write_bytes(b"whole")
    assert target.read_bytes() == b"whole"
    assert names(target.parent) == ["tile.tif"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a.npz") as temporary:
        temporary.write_bytes(b"x")
    (tmp_path / "b.npz").write_bytes(b"x")
    assert (tmp_path / "a.npz").stat().st_mode == (tmp_path / "b.npz").stat().st_mode


def test_a_failure_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    target = tmp_path / "tile.npz"
    target.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_write(target, overwrite=True) as temporary:
        temporary.write_bytes(b"half")
        raise ZeroDivisionError
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["tile.npz"]


def test_an_interruption_leaves_no_rubbish(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "tile.npz") as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_an_existing_file_is_refused_by_name_of_the_switch(tmp_path: Path) -> None:
    target = tmp_path / "tile.npz"
    target.write_bytes(b"old")
    with pytest.raises(OutputError, match=r"--overwrite .*overwrite=True"), atomic_write(target):
        pytest.fail("the block must not run")
    with atomic_write(target, overwrite=True) as temporary:
        temporary.write_bytes(b"new")
    assert target.read_bytes() == b"new"


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "tile.npz"
    with pytest.raises(OutputError, match="exists already"), atomic_write(target) as temporary:
        temporary.write_bytes(b"mine")
        target.write_bytes(b"theirs")
    assert target.read_bytes() == b"theirs"
    assert names(tmp_path) == ["tile.npz"]


def test_without_hard_links_the_file_is_still_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(self: Path, target: Path) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(Path, "hardlink_to", no_links)
    with atomic_write(tmp_path / "a.pt") as temporary:
        temporary.write_bytes(b"x")
    assert names(tmp_path) == ["a.pt"]


def test_a_link_is_followed_not_replaced(tmp_path: Path) -> None:
    real, link = tmp_path / "real.npz", tmp_path / "link.npz"
    real.write_bytes(b"old")
    link.symlink_to(real)
    with atomic_write(link, overwrite=True) as temporary:
        temporary.write_bytes(b"new")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"


def test_a_full_disk_is_an_output_error_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="disk is full"), atomic_write(tmp_path / "tile.npz"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path) == []


def test_errors_of_other_kinds_pass_through(tmp_path: Path) -> None:
    with pytest.raises(InputError), atomic_write(tmp_path / "a.npz"):
        raise InputError("bad tile")
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a.npz"):
        (tmp_path / "missing").read_bytes()


def test_a_missing_permission_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OutputError, match="permission denied"), atomic_write(tmp_path / "tile.npz"):
        pytest.fail("the block must not run")


def test_a_file_where_a_folder_is_needed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="not a folder"), atomic_write(tmp_path / "file" / "tile.npz"):
        pytest.fail("the block must not run")


def test_folders_and_special_files_are_never_replaced(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder"):
        check_output(tmp_path, overwrite=True)
    with pytest.raises(OutputError, match="not a regular file"):
        check_output("/dev/null", overwrite=True)
