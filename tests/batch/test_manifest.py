"""The manifest holds what was appended, whatever happened to the process since."""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path

import pytest
from pyarrow import parquet

from axs_lib.batch import manifest as module
from axs_lib.batch.items import Item
from axs_lib.batch.manifest import JOURNAL, LOCK, MANIFEST, Manifest, Record, open_manifest, read_manifest
from axs_lib.batch.work import Job, make_record
from axs_lib.errors import InputError, OutputError

from .fakes import make_runner


def record(name: str, error: str = "") -> Record:
    job = Job(make_runner, {"stage": "ground"}, {"w": "0"}, "/out")
    return make_record(
        job, Item(name, f"/in/{name}.npz"), "failed" if error else "done", error, output_bytes=5
    )


def names(folder: Path) -> list[str]:
    return [each.id for each in read_manifest(folder)]


def test_records_come_back_as_they_were_and_the_last_one_counts(tmp_path: Path) -> None:
    first, second, again = record("b", "bad"), record("a"), record("b")
    with open_manifest(tmp_path) as manifest:
        manifest.claim([])
        for each in (first, second, again):
            manifest.append(each)
    assert read_manifest(tmp_path) == [second, again]
    assert not (tmp_path / JOURNAL).exists()
    table = parquet.read_table(tmp_path / MANIFEST)
    assert table.column_names == [field.name for field in dataclasses.fields(Record)]
    assert table.column("output_bytes").to_pylist() == [5, 5]


def test_a_record_is_durable_before_the_parquet_file_is_written(tmp_path: Path) -> None:
    with open_manifest(tmp_path) as manifest:
        manifest.claim([])
        manifest.append(record("a"))
        assert not (tmp_path / MANIFEST).exists()
        assert names(tmp_path) == ["a"]


def test_a_torn_line_is_forgotten_and_does_not_harm_the_next(tmp_path: Path) -> None:
    with open_manifest(tmp_path) as manifest:
        manifest.claim([])
        manifest.append(record("a"))
        kept = (tmp_path / JOURNAL).read_bytes()
    (tmp_path / MANIFEST).unlink()
    (tmp_path / JOURNAL).write_bytes(kept + b"not json\n" + kept[: len(kept) // 2])
    with open_manifest(tmp_path) as manifest:
        manifest.claim([])
        manifest.append(record("b"))
    assert names(tmp_path) == ["a", "b"]


def test_the_journal_is_compacted_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMPACT_FROM", 3)
    with open_manifest(tmp_path) as manifest:
        manifest.claim([])
        for number in range(4):
            manifest.append(record(f"t{number}"))
        assert parquet.read_metadata(tmp_path / MANIFEST).num_rows == 3
        assert (tmp_path / JOURNAL).read_bytes().count(b"\n") == 1
        assert names(tmp_path) == ["t0", "t1", "t2", "t3"]


def test_a_disk_that_refuses_half_a_line_leaves_whole_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, room = os.write, [50]

    def full(descriptor: int, data: bytes) -> int:
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written(descriptor, data[: room.pop()])

    with open_manifest(tmp_path) as manifest:
        manifest.claim([])
        manifest.append(record("a"))
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OutputError, match=r"manifest\.journal: No space left"):
            manifest.append(record("b"))
        monkeypatch.setattr(os, "write", written)
        assert (tmp_path / JOURNAL).read_bytes().endswith(b"}\n")
        manifest.append(record("c"))
    assert names(tmp_path) == ["a", "c"]


def test_a_line_that_ctrl_c_kept_out_of_memory_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush = os.fsync

    def stopped(descriptor: int) -> None:
        flush(descriptor)
        monkeypatch.setattr(Manifest, "records", property(lambda manifest: interrupt()), raising=False)

    def interrupt() -> dict[str, Record]:
        monkeypatch.delattr(Manifest, "records")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_manifest(tmp_path) as manifest:
        manifest.claim([])
        manifest.append(record("a"))
        monkeypatch.setattr(os, "fsync", stopped)
        manifest.append(record("b"))
    monkeypatch.undo()
    assert names(tmp_path) == ["a", "b"]


def test_a_parquet_file_that_cannot_be_written_leaves_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> bytes:
        raise OutputError("the disk is full")

    with pytest.raises(OutputError, match="full"), open_manifest(tmp_path) as manifest:
        manifest.claim([])
        manifest.append(record("a"))
        monkeypatch.setattr(module, "_parquet_bytes", full)
    assert names(tmp_path) == ["a"]
    monkeypatch.undo()
    with open_manifest(tmp_path) as manifest:
        manifest.claim([])
    assert parquet.read_metadata(tmp_path / MANIFEST).num_rows == 1


def test_a_folder_with_files_of_others_is_refused_and_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "a.npz"
    precious.write_bytes(b"precious")
    for _ in range(2):
        with (
            pytest.raises(OutputError, match=r"has no manifest\.parquet that accounts for it"),
            open_manifest(tmp_path) as manifest,
        ):
            manifest.claim([tmp_path / "b.npz", precious])
    assert precious.read_bytes() == b"precious"
    assert not (tmp_path / MANIFEST).exists() and not (tmp_path / JOURNAL).exists()


def test_temporary_files_of_killed_workers_go_and_others_stay(tmp_path: Path) -> None:
    left_behind = (".axs-0123456789abcdef.tmp", "sub/.axs-0123456789abcdea.tmp")
    for name in left_behind:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "rows.tif").touch()
    for name in (".a.tmp.npz", "a.npz"):
        (tmp_path / name).touch()
    with open_manifest(tmp_path):
        left = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*"))
    assert left == [".a.tmp.npz", ".axs-batch.lock", "a.npz", "sub"]


def test_temporary_files_of_a_batch_in_a_folder_below_stay(tmp_path: Path) -> None:
    other = tmp_path / "sub" / "other" / ".axs-0123456789abcdef.tmp"
    other.mkdir(parents=True)
    (other.parent / LOCK).touch()
    with open_manifest(tmp_path):
        pass
    assert other.exists()


def test_a_damaged_manifest_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(b"PAR1 garbage")
    with pytest.raises(InputError, match=r"cannot be read .*choose another --out"), open_manifest(tmp_path):
        pytest.fail("the block must not run")
    with pytest.raises(InputError, match=r"has no manifest\.parquet"):
        read_manifest(tmp_path / "nowhere")


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"), open_manifest(tmp_path / "file"):
        pytest.fail("the block must not run")
