"""The manifest of a batch: one row an item, durable from the moment an item is finished.

In: the folder of the outputs, and a ``Record`` for each finished item. Out: ``manifest.parquet``. A record is first
appended to a journal, one JSON line flushed to disk, and from time to time all of them are put into the parquet file
atomically; so a process killed at any moment loses no finished item, and the next one goes on from both files. A
lock keeps a second job out of the folder as long as the first one lives.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from axs_lib.errors import AxionError, InputError, OutputError
from axs_lib.io.atomic import atomic_write

MANIFEST, JOURNAL, LOCK = "manifest.parquet", "manifest.journal", ".axs-batch.lock"
COMPACT_FROM = (
    1000  # lines of the journal; more where the manifest is large, so that the cost stays in proportion
)
_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{12}\.tmp(\.\w+)?")  # as axs_lib.io.atomic names them
_SCENE_FOLDER = re.compile(r"\.axs-(scene|cog)\.\w{8}")  # as axs_lib.scenes names them

Status = Literal["done", "failed", "crashed"]


@dataclass(frozen=True)
class Record:
    """One row of the manifest: an item, what was made of it, and from what exactly.

    Attributes:
        id: name of the item.
        s1: path of its SAR image (or of the .npz with everything).
        opt_v2: path of its optical estimate, where it is a file of its own.
        metadata: date, place and biome that Stage 2 was given, JSON.
        s1_sha256: SHA-256 of the bytes of ``s1``; empty where it could not be read.
        opt_v2_sha256: the same of ``opt_v2``.
        weights: SHA-256 of each weights file, JSON.
        settings: everything else that decides the pixels, JSON.
        key: SHA-256 over inputs, metadata, weights and settings; an item is done again where it differs.
        status: ``done``; ``failed``, the item or the disk is at fault; ``crashed``, its worker died twice.
        error: why it is not done, else empty.
        seconds: time it took, hashing, reading and writing included.
        worker: host and process id.
        device: ``cpu`` or ``cuda``.
        output: path of the output relative to the folder; empty where there is none.
        output_sha256: SHA-256 of its bytes.
        output_bytes: size of it.
        version: of this library.
        finished: time, ISO 8601 in UTC.
    """

    id: str
    s1: str
    opt_v2: str | None
    metadata: str
    s1_sha256: str
    opt_v2_sha256: str
    weights: str
    settings: str
    key: str
    status: Status
    error: str
    seconds: float
    worker: str
    device: str
    output: str
    output_sha256: str
    output_bytes: int
    version: str
    finished: str


_KINDS = {"seconds": "float64", "output_bytes": "int64"}


class Manifest:
    """The records of a folder, by item; open it with ``open_manifest``."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._parquet, self._journal = out / MANIFEST, out / JOURNAL
        lines = _read_journal(
            self._journal
        )  # first, since a running job empties it after writing the parquet file
        self.records = (_read_parquet(self._parquet) if self._parquet.exists() else {}) | lines
        self._pending = len(lines)
        self._descriptor: int | None = None

    def claim(self, outputs: Iterable[Path]) -> None:
        """Make the folder this job's own, before anything is written to it.

        Raises:
            OutputError: an output is there already in a folder that never held a batch.
        """
        if not self._parquet.exists() and not self._journal.exists():
            stranger = next((path for path in outputs if path.exists()), None)
            if stranger is not None:
                raise OutputError(
                    f"{stranger} exists already and {self.out} has no {MANIFEST} that accounts for it; expected an"
                    " empty folder, or one of an earlier axs batch: choose another --out"
                )
        self.compact()  # also what an earlier job left in the journal, its torn last line not
        with _disk(self._journal):
            self._descriptor = os.open(self._journal, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o666)

    def append(self, record: Record) -> None:
        """Record a finished item; on return it is on disk.

        Raises:
            OutputError: the disk refuses; the record is then not in the manifest.
        """
        assert self._descriptor is not None, "claim() comes first"
        line = json.dumps(asdict(record), sort_keys=True).encode() + b"\n"
        end = os.fstat(self._descriptor).st_size
        with _disk(self._journal):
            try:
                written = 0
                while written < len(line):
                    written += os.write(self._descriptor, line[written:])
                os.fsync(self._descriptor)
            except BaseException:
                os.ftruncate(self._descriptor, end)
                raise
        self.records[record.id] = record
        self._pending += 1
        if self._pending >= max(COMPACT_FROM, len(self.records) // 4):
            self.compact()

    def compact(self) -> None:
        """Put all records into the parquet file and empty the journal.

        Raises:
            OutputError: the disk refuses; both files are then as they were.
        """
        written = _read_journal(self._journal)  # Ctrl-C may have come between a line and its place in memory
        self.records |= written
        if self._pending or written:
            with atomic_write(self._parquet, overwrite=True) as temporary:
                temporary.write_bytes(_parquet_bytes(self.records.values()))
        if self._journal.exists():
            with _disk(self._journal):
                os.truncate(self._journal, 0)
        self._pending = 0

    def close(self) -> None:
        """Compact, and take the journal away where the parquet file holds everything."""
        if self._descriptor is None:
            return
        os.close(self._descriptor)
        self._descriptor = None
        self.compact()
        if self._parquet.exists():
            self._journal.unlink(missing_ok=True)


@contextlib.contextmanager
def open_manifest(out: Path) -> Iterator[Manifest]:
    """Lock a folder, made if it is not there, and read its manifest; when the block ends everything is in the parquet.

    Raises:
        OutputError: another job works in the folder, or the disk refuses.
        InputError: the manifest there is damaged.
    """
    with _locked(out):
        remove_temporaries(out)
        manifest = Manifest(out)
        try:
            yield manifest
        except BaseException:
            with contextlib.suppress(AxionError):  # the journal keeps what the parquet file could not take
                manifest.close()
            raise
        else:
            manifest.close()
        finally:
            with contextlib.suppress(OSError):
                remove_temporaries(out)


def read_manifest(out: str | os.PathLike[str]) -> list[Record]:
    """The records of a folder, sorted by item, also while a job is running there.

    Raises:
        InputError: there is no manifest, or it is damaged.
    """
    folder = Path(out)
    if not (folder / MANIFEST).exists() and not (folder / JOURNAL).exists():
        raise InputError(f"{folder} has no {MANIFEST}; expected the --out of an axs batch")
    records = Manifest(folder).records
    return [records[name] for name in sorted(records)]


def remove_temporaries(out: Path) -> None:
    """Remove the unfinished files that killed workers left behind; the folder of another batch is left alone."""
    for folder, subfolders, names in os.walk(out):
        if LOCK in names and Path(folder) != out:
            subfolders.clear()
            continue
        for name in [name for name in subfolders if _SCENE_FOLDER.fullmatch(name)]:
            shutil.rmtree(Path(folder, name), ignore_errors=True)
            subfolders.remove(name)
        for name in names:
            if _TEMPORARY.fullmatch(name):
                Path(folder, name).unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system releases when this process ends, however it ends."""
    import fcntl

    with _disk(out):
        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out / LOCK, os.O_CREAT | os.O_RDWR, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 200).decode(errors="replace") or "unknown"
            raise OutputError(
                f"{out} is in use by another axs batch ({owner}); wait until it ends, or choose another --out"
            ) from None
        with contextlib.suppress(OSError):  # the name of the owner is a courtesy that a full disk may refuse
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Say in words that the disk refuses."""
    try:
        yield
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def _read_journal(path: Path) -> dict[str, Record]:
    """Records of the journal; a torn line is none, so its item is done again."""
    records = {}
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return {}
    for line in lines[:-1]:
        with contextlib.suppress(ValueError, TypeError):
            record = Record(**json.loads(line))
            records[record.id] = record
    return records


def _read_parquet(path: Path) -> dict[str, Record]:
    from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]

    try:
        return {row["id"]: Record(**row) for row in parquet.read_table(path).to_pylist()}
    except (ArrowException, OSError, TypeError, KeyError) as error:
        reason = (str(error).splitlines() or [""])[0][:160]
        raise InputError(
            f"{path} cannot be read ({reason}); expected the manifest of this version: choose another --out, or remove"
            " it to compute everything again"
        ) from error


def _parquet_bytes(records: Iterable[Record]) -> bytes:
    """Encoded in memory, so that a full disk is an ordinary write error."""
    import pyarrow
    from pyarrow import parquet

    schema = pyarrow.schema(
        [(f.name, getattr(pyarrow, _KINDS.get(f.name, "string"))()) for f in fields(Record)]
    )
    rows: list[dict[str, Any]] = [asdict(record) for record in sorted(records, key=lambda record: record.id)]
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), buffer, compression="zstd")
    return buffer.getvalue()
