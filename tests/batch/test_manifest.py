"""The manifest holds what was appended, whatever happened to the process or to its files since."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path

import pytest
from pyarrow import parquet

from axs_lib.batch.items import Item
from axs_lib.batch.manifest import JOURNAL, LOCK, MANIFEST, ManifestWarning, Record, open_manifest, read_manifest
from axs_lib.batch.work import Job, Task, make_record
from axs_lib.errors import InputError, OutputError

from .fakes import make_runner


def record(name: str, error: str = "") -> Record:
    job = Job(make_runner, {"stage": "ground"}, {"w": "0"}, "/out")
    task = Task(Item(name, f"/in/{name}.npz"), 0)
    return make_record(job, task, "failed" if error else "done", error, size=5)


def fill(folder: Path, *names: str) -> None:
    with open_manifest(folder) as manifest:
        for name in names:
            manifest.append(record(name))


def names(folder: Path) -> list[str]:
    return [each.id for each in read_manifest(folder)]


def test_records_come_back_as_they_were_and_the_last_one_counts(tmp_path: Path) -> None:
    first, second, again = record("b", "bad"), record("a"), record("b")
    with open_manifest(tmp_path) as manifest:
        for each in (first, second, again):
            manifest.append(each)
        # Durable before the table is written.
        assert not (tmp_path / MANIFEST).exists() and names(tmp_path) == ["a", "b"]
    assert read_manifest(tmp_path) == [second, again]
    table = parquet.read_table(tmp_path / MANIFEST)
    assert table.column_names == [field.name for field in dataclasses.fields(Record)]
    assert table.column("output_bytes").to_pylist() == [5, 5]
    (tmp_path / JOURNAL).unlink()  # then the table stands in for it
    assert read_manifest(tmp_path) == [second, again]
    fill(tmp_path, "c")
    assert names(tmp_path) == ["a", "b", "c"]


WRONG = [b"not json", b"[" * 100_000, b'{"id":' * 5000, b"null", b"[]", b"{}", b"\xff\xfe", b"1" * 5000]
FIELDS = ({"id": ["w"]}, {"id": 3}, {"status": "fine"}, {"output_bytes": 2**70}, {"seconds": {"a": 1}}, {"more": 1})
FIELDS += ({"output_bytes": True},)
WRONG += [json.dumps(dataclasses.asdict(record("w")) | wrong).encode() for wrong in FIELDS]


@pytest.mark.parametrize("line", WRONG, ids=range(len(WRONG)))
def test_a_line_that_is_no_record_is_set_aside_with_a_word(tmp_path: Path, line: bytes) -> None:
    fill(tmp_path, "a", "b")
    (tmp_path / MANIFEST).unlink()
    first, second = (tmp_path / JOURNAL).read_bytes().splitlines(keepends=True)
    (tmp_path / JOURNAL).write_bytes(first + line + b"\n" + second)
    with pytest.warns(ManifestWarning, match=r"manifest\.jsonl: 1 line that cannot be read .* done again"):
        fill(tmp_path, "c")
    assert names(tmp_path) == ["a", "b", "c"]
    assert line in (tmp_path / "manifest.damaged").read_bytes()


def test_a_torn_line_is_forgotten_and_a_damaged_one_made_good_from_the_table(tmp_path: Path) -> None:
    fill(tmp_path, "a", "b")
    lines = (tmp_path / JOURNAL).read_bytes().splitlines(keepends=True)
    (tmp_path / JOURNAL).write_bytes(lines[0][:50] + b"\n" + lines[1])
    with pytest.warns(ManifestWarning):
        assert names(tmp_path) == ["a", "b"]
    (tmp_path / MANIFEST).unlink()
    (tmp_path / JOURNAL).write_bytes(lines[0] + lines[1][:50])
    with pytest.warns(ManifestWarning):
        fill(tmp_path, "c")
    assert names(tmp_path) == ["a", "c"]


def test_a_truncated_table_is_written_anew_from_the_journal(tmp_path: Path) -> None:
    fill(tmp_path, "a", "b")
    whole = (tmp_path / MANIFEST).read_bytes()
    (tmp_path / MANIFEST).write_bytes(whole[:100])
    fill(tmp_path)
    assert (tmp_path / MANIFEST).read_bytes() == whole
    (tmp_path / JOURNAL).write_bytes(b"")
    assert names(tmp_path) == ["a", "b"]
    (tmp_path / MANIFEST).write_bytes(whole[:100])
    for journal, state in ((b"", "is missing or empty"), (b"torn", "no line of")):
        (tmp_path / JOURNAL).write_bytes(journal)
        with pytest.raises(InputError, match=rf"manifest\.parquet cannot be read .*{state}.*--overwrite"):
            names(tmp_path)


def test_a_disk_that_refuses_half_a_line_leaves_whole_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written, room = os.write, [50]

    def full(descriptor: int, data: bytes) -> int:
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written(descriptor, data[: room.pop()])

    with open_manifest(tmp_path) as manifest:
        manifest.append(record("a"))
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OutputError, match=r"manifest\.jsonl: the disk is full"):
            manifest.append(record("b"))
        monkeypatch.setattr(os, "write", written)
        assert (tmp_path / JOURNAL).read_bytes().endswith(b"}\n")
        manifest.append(record("c"))
    assert names(tmp_path) == ["a", "c"]


def test_a_folder_with_files_of_others_is_refused_and_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "a.npz"
    precious.write_bytes(b"precious")
    for _ in range(2):
        with (
            pytest.raises(OutputError, match=r"1 of the outputs exist already \(a\.npz\) .*--overwrite"),
            open_manifest(tmp_path, [tmp_path / "b.npz", precious]),
        ):
            pytest.fail("the block must not run")
    assert precious.read_bytes() == b"precious"
    assert not (tmp_path / MANIFEST).exists() and not (tmp_path / JOURNAL).exists()


@pytest.mark.parametrize("name", [JOURNAL, LOCK, MANIFEST])
def test_links_and_pipes_in_place_of_the_manifest_are_refused(tmp_path: Path, name: str) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"")
    out = tmp_path / "out"
    out.mkdir()
    (out / name).symlink_to(precious)
    with pytest.raises((OutputError, InputError), match=r"link|cannot be read"):
        fill(out, "a")
    assert precious.read_bytes() == b""
    (out / name).unlink()
    if name != LOCK:
        os.mkfifo(out / name)
        with pytest.raises((InputError, OutputError), match=r"is a named pipe|not a regular file"):
            fill(out, "a")


def test_a_copy_by_hard_links_keeps_what_it_has(tmp_path: Path) -> None:
    out, copy = tmp_path / "out", tmp_path / "copy"
    fill(out, "a")
    copy.mkdir()
    for name in (JOURNAL, MANIFEST):
        (copy / name).hardlink_to(out / name)
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    (out / LOCK).unlink()
    (out / LOCK).hardlink_to(precious)
    fill(out, "b")
    assert names(out) == ["a", "b"] and names(copy) == ["a"]
    (copy / JOURNAL).unlink()
    assert names(copy) == ["a"] and precious.read_bytes() == b"precious"


def test_temporary_files_of_killed_workers_go_and_others_stay(tmp_path: Path) -> None:
    left_behind = (".axs-0123456789abcdef.tmp", "sub/.axs-0123456789abcdea.tmp")
    for name in left_behind:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "rows.tif").touch()
    for name in (".a.tmp.npz", "a.npz"):
        (tmp_path / name).touch()
    other = tmp_path / "other" / ".axs-0123456789abcdef.tmp"  # of another batch, in a folder below
    other.mkdir(parents=True)
    (other.parent / LOCK).touch()
    with open_manifest(tmp_path):
        left = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.parent != other.parent)
    assert left == [".a.tmp.npz", ".axs-batch.lock", "a.npz", "manifest.jsonl", "other", "sub"] and other.exists()
