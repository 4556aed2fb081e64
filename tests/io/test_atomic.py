"""Outputs appear whole or not at all, and never replace a file by accident; only regular files are read."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from axs_lib.errors import InputError, OutputError, WeightsError
from axs_lib.io.atomic import atomic_write, check_output, remove_leftovers, temporary_folder, write_torch
from axs_lib.io.files import check_regular, open_regular


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a.npz") as temporary:
        temporary.write_bytes(b"x")
    (tmp_path / "b.npz").write_bytes(b"x")
    assert (tmp_path / "a.npz").stat().st_mode == (tmp_path / "b.npz").stat().st_mode


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ZeroDivisionError(), ZeroDivisionError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (InputError("bad tile"), InputError),
        (FileNotFoundError(errno.ENOENT, "an input"), FileNotFoundError),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), OutputError),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES)), OutputError),
    ],
)
def test_a_failure_leaves_the_old_file_and_no_rubbish(
    tmp_path: Path, raised: BaseException, expected: type[BaseException]
) -> None:
    target = tmp_path / "tile.npz"
    target.write_bytes(b"old")
    message = "disk is full|permission denied" if expected is OutputError else None
    with pytest.raises(expected, match=message), atomic_write(target, overwrite=True) as temporary:
        temporary.write_bytes(b"half")
        raise raised
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["tile.npz"]


def test_a_full_disk_is_one_for_tensors_too() -> None:
    with pytest.raises(OSError, match="No space left"):
        write_torch(Path("/dev/full"), torch.zeros(3000))


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "tile.npz"
    with pytest.raises(OutputError, match="exists already"), atomic_write(target) as temporary:
        temporary.write_bytes(b"mine")
        target.write_bytes(b"theirs")
    assert target.read_bytes() == b"theirs"
    assert names(tmp_path) == ["tile.npz"]


def test_without_hard_links_the_file_is_still_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(self: Path, target: Path) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(Path, "hardlink_to", no_links)
    with atomic_write(tmp_path / "a.pt") as temporary:
        temporary.write_bytes(b"x")
    assert names(tmp_path) == ["a.pt"]


@pytest.mark.parametrize("end", [".msk", ".aux.xml", ".ovr"])
def test_what_gdal_would_take_for_a_part_of_the_output_counts_as_it(tmp_path: Path, end: str) -> None:
    left = tmp_path / f"out.tif{end}"
    left.touch()
    with pytest.raises(OutputError, match=rf"out\.tif{end} exists already"):
        check_output(tmp_path / "out.tif")
    with atomic_write(tmp_path / "out.tif", overwrite=True) as temporary:
        temporary.touch()
    assert sorted(tmp_path.iterdir()) == [tmp_path / "out.tif"]


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_never_written_through(tmp_path: Path, exists: bool) -> None:
    real, link = tmp_path / "real.npz", tmp_path / "link.npz"
    if exists:
        real.write_bytes(b"old")
    link.symlink_to(real)
    for overwrite in (True, False):
        with pytest.raises(OutputError, match=r"link\.npz is a symbolic link"), atomic_write(link, overwrite):
            pytest.fail("the block must not run")
    assert link.is_symlink() and real.exists() == exists
    assert not exists or real.read_bytes() == b"old"


def test_a_link_that_appears_meanwhile_is_not_written_through(tmp_path: Path) -> None:
    real, link = tmp_path / "real.npz", tmp_path / "link.npz"
    real.write_bytes(b"old")
    with atomic_write(link, overwrite=True) as temporary:
        temporary.write_bytes(b"new")
        link.symlink_to(real)
    assert real.read_bytes() == b"old" and link.read_bytes() == b"new" and not link.is_symlink()


def test_temporary_names_cannot_be_foreseen(tmp_path: Path) -> None:
    with temporary_folder(tmp_path) as first, temporary_folder(tmp_path) as second:
        assert first != second and first.stat().st_mode & 0o777 == 0o700
    assert names(tmp_path) == []


KILLED = """
import os, signal, sys
from axs_lib.io.atomic import atomic_write
with atomic_write(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path, repository: Path) -> None:
    command, pipe = [sys.executable, "-c", KILLED], subprocess.PIPE
    started = [
        subprocess.Popen([*command, str(tmp_path / name)], cwd=repository, stdin=pipe, stdout=pipe)
        for name in ("a.npz", "b.npz")
    ]
    for process in started:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    assert len(names(tmp_path)) == 2
    started[0].kill()
    started[0].communicate()
    assert len(names(tmp_path)) == 2
    with atomic_write(tmp_path / "c.npz") as temporary:  # the first write of this process in this folder
        temporary.write_bytes(b"whole")
    assert len(names(tmp_path)) == 2  # b's temporary folder and c.npz
    started[1].communicate(b"")
    assert names(tmp_path) == ["b.npz", "c.npz"]


def test_only_temporary_folders_are_removed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "precious").touch()
    (tmp_path / ".axs-0123456789abcdef.tmp").symlink_to(tmp_path / "real")
    (tmp_path / ".axs-0123456789abcdea.tmp").write_bytes(b"a file")
    (tmp_path / ".axs-0123456789abcdeb.tmp").mkdir()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".axs-0123456789abcdea.tmp", ".axs-0123456789abcdef.tmp", "real"]
    assert (tmp_path / "real" / "precious").exists()
    remove_leftovers(tmp_path / "missing")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file/tile.npz", "not a folder"), ("", "is a folder"), ("/dev/null", "not a regular file"),
        ("a\0b", "no valid path"), ("x" * 300, "name is too long"),
        ("s2.tif.aux.xml", "that GDAL reads along with an image"),
        ("S2.TFW", "that GDAL reads along with an image"),
        ("/proc/tile.npz", "cannot write /proc/tile.npz"),
    ],
)  # fmt: skip
def test_paths_where_no_file_can_be(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=message):
        check_output(tmp_path / name, overwrite=True)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path, "the mask .* is a folder; expected a regular file"),
        (tmp_path / "pipe", "is a named pipe"),
        ("/dev/zero", "is a device"),
        (tmp_path / "missing", "does not exist"),
        (tmp_path / "a\0b", "cannot be read: .*embedded null"),
        (tmp_path / ("x" * 300), "name too long"),
    ):
        for function in (check_regular, open_regular):
            with pytest.raises(InputError, match=message):
                function(path, "the mask")
    with pytest.raises(WeightsError):
        check_regular("/dev/zero", error=WeightsError)
