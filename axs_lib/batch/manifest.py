"""The manifest of a batch: one row an item, durable from the moment an item is finished.

``manifest.jsonl``, to which every record is appended and flushed to disk, so that a process killed at any moment
loses no finished item; and ``manifest.parquet``, the last record of each item as a table, written when the job ends.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from axs_lib.errors import AxionError, InputError, OutputError, counted, first_line
from axs_lib.io.atomic import atomic_write, locked_folder, refusals, remove_leftovers
from axs_lib.io.files import open_regular

MANIFEST, JOURNAL, LOCK = "manifest.parquet", "manifest.jsonl", ".axs-batch.lock"
RESERVED = {MANIFEST, JOURNAL, LOCK, "manifest.damaged"}  # no output has such a name
OVERWRITE = "--overwrite"
EXAMPLES = 3  # names in a message

Status = Literal["started", "done", "failed", "crashed"]


class ManifestWarning(UserWarning):
    """Records of a batch could not be read, or images belong to no tile, and are left out."""


@dataclass(frozen=True)
class Record:
    """One row of the manifest: an item, what was made of it, and from what exactly. Hashes are SHA-256."""

    id: str  # name of the item
    s1: str  # path of its SAR image, or of the .npz with everything
    opt_v2: str | None  # path of its optical estimate, where it is a file of its own
    mask: str | None  # path of its mask, where it has one
    metadata: str  # date, place and biome that Stage 2 was given, JSON
    s1_sha256: str  # of the bytes of ``s1``; empty where it could not be read
    opt_v2_sha256: str
    mask_sha256: str
    weights: str  # hash of each weights file, JSON
    settings: str  # everything else that decides the pixels, JSON
    key: str  # hash of inputs, metadata, weights and settings; an item is done again where it differs
    status: Status  # failed: by the item or the disk; crashed: its worker ended twice; started: the job was killed
    error: str  # why it is not done, else empty
    notes: str  # what was assumed of its files, such as the unit of the SAR
    seconds: float  # hashing, reading and writing included
    worker: str  # host and process id
    device: str  # "cpu" or "cuda"
    output: str  # relative path; empty where the batch never made one: a file that no record names is not replaced
    output_sha256: str
    output_bytes: int
    maps: str  # path and hash of each further output by its name, JSON
    version: str  # of this library
    finished: str  # ISO 8601 in UTC

    def outputs(self, out: str | os.PathLike[str]) -> dict[str, str]:
        """SHA-256 of each output by its absolute path; empty where it is not known."""
        try:
            maps = {str(each["path"]): str(each["sha256"]) for each in json.loads(self.maps).values()}
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError):  # damaged: then it names none
            maps = {}
        return maps | ({str(Path(out, self.output)): self.output_sha256} if self.output else {})


_TYPES: dict[str, Any] = get_type_hints(Record) | {"status": str}
_COLUMNS = {float: "float64", int: "int64"}


@dataclass
class Manifest:
    """The records of a folder, by item; open it with ``open_manifest``."""

    out: Path
    records: dict[str, Record]
    journal: int  # descriptor of the file
    lock: int  # inode

    def append(self, record: Record, *, durable: bool = True) -> None:
        """Add a record, which is on disk on return if ``durable``, in place of the one before it of this item.

        Raises OutputError: the disk refuses, or the folder is no longer this job's; the record is then not there.
        """
        self.check_lock()
        line = _line(record)
        end = os.fstat(self.journal).st_size
        with refusals(self.out / JOURNAL):
            try:
                written = 0
                while written < len(line):
                    written += os.write(self.journal, line[written:])
                if durable:
                    os.fsync(self.journal)
            except BaseException:
                os.ftruncate(self.journal, end)
                raise
        self.records[record.id] = record

    def check_lock(self) -> None:
        """Raise ``OutputError`` where the folder is no longer the one that was locked."""
        if lock_inode(self.out) != self.lock:
            raise OutputError(
                f"{self.out} was removed, replaced or taken over by another job while this one ran, and what it had"
                " done may be gone; leave the folder alone while a job runs, and run the same command again"
            )

    def write_table(self) -> None:
        """Write ``manifest.parquet``; ``OutputError`` where the disk refuses or the folder is no longer this job's."""
        self.check_lock()
        records, _ = _read_journal(self.out / JOURNAL)  # Ctrl-C may have come between a line and its place in memory
        self.records |= records
        if self.records:
            with atomic_write(self.out / MANIFEST, overwrite=True) as temporary:
                temporary.write_bytes(_parquet_bytes(self.records.values()))


@contextlib.contextmanager
def open_manifest(out: Path, outputs: Iterable[Path] = (), *, overwrite: bool = False) -> Iterator[Manifest]:
    """Lock a folder, made if it is not there, and read its manifest; when the block ends the table is written.

    Raises OutputError: another job works there, outputs exist that no manifest accounts for (unless ``overwrite``), or
    the disk refuses; InputError: no manifest of the folder can be read.
    """
    with locked_folder(out, LOCK, "axs batch") as lock:
        remove_temporaries(out)
        records, damaged = _read_records(out, overwrite)
        foreign = [] if records or overwrite else [path for path in outputs if os.path.lexists(path)]
        if foreign:
            names = ", ".join(path.relative_to(out).as_posix() for path in foreign[:EXAMPLES])
            raise OutputError(
                f"{len(foreign)} of the outputs exist already ({names}) and {out} has no manifest that accounts for"
                f" them; expected an empty folder, or one of an earlier axs batch: choose another --out, or add"
                f" {OVERWRITE} to make them again"
            )
        journal = out / JOURNAL
        with refusals(journal):
            if damaged:
                journal.replace(journal.with_suffix(".damaged"))
            linked = journal.exists() and journal.stat().st_nlink > 1  # a copy by hard links keeps what it has
            if linked or not journal.exists():
                with atomic_write(journal, overwrite=linked) as temporary:
                    temporary.write_bytes(b"".join(map(_line, records.values())))
            descriptor = os.open(journal, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW)
        manifest = Manifest(out, records, descriptor, lock)
        try:
            yield manifest
        except BaseException:
            with contextlib.suppress(AxionError):  # the journal has everything, and the first error is to be told
                manifest.write_table()
            raise
        else:
            manifest.write_table()
        finally:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                remove_temporaries(out)


def read_manifest(out: str | os.PathLike[str]) -> list[Record]:
    """The records of a folder, sorted by item, also while a job runs there; ``InputError`` where none can be read."""
    folder = Path(out)
    if not (folder / MANIFEST).exists() and not (folder / JOURNAL).exists():
        raise InputError(f"{folder} has no {JOURNAL} and no {MANIFEST}; expected the --out of an axs batch")
    records, _ = _read_records(folder, overwrite=False)
    return [records[name] for name in sorted(records)]


def remove_temporaries(out: Path) -> None:
    """Remove the unfinished files that killed workers left behind; the folder of another batch is left alone."""
    for folder, subfolders, names in os.walk(out):
        if LOCK in names and Path(folder) != out:
            subfolders.clear()
        else:
            remove_leftovers(folder)


def lock_inode(out: str | os.PathLike[str]) -> int:
    """What tells the lock of a folder from one that was made in its place; 0 where there is none."""
    with contextlib.suppress(OSError):
        return Path(out, LOCK).lstat().st_ino
    return 0


def _line(record: Record) -> bytes:
    return json.dumps(asdict(record), sort_keys=True).encode() + b"\n"


def _read_records(out: Path, overwrite: bool) -> tuple[dict[str, Record], int]:
    """The last record of each item, and the number of damaged lines, for which the table stands in where it can."""
    journal, table = out / JOURNAL, out / MANIFEST
    records, damaged = _read_journal(journal)
    stand_in = "their items are done again"
    if table.exists() and (damaged or not records):
        try:
            records, stand_in = _read_parquet(table) | records, f"their items are taken from {MANIFEST}, or done again"
        except InputError as error:
            if not overwrite and not records:
                state = f"no line of {JOURNAL} beside it can" if damaged else f"{JOURNAL} beside it is missing or empty"
                raise InputError(
                    f"{error}, and {state}: choose another --out, or run the same command with {OVERWRITE} to make the"
                    " outputs again"
                ) from error
    if damaged:
        message = f"{journal}: {counted(damaged, 'line')} that cannot be read set aside; {stand_in}"
        warnings.warn(message, ManifestWarning, stacklevel=2)
    return records, damaged


def _read_journal(path: Path) -> tuple[dict[str, Record], int]:
    """Records of the journal and the number of lines that are none, such as one that a killed job had begun."""
    if not os.path.lexists(path):
        return {}, 0
    records, damaged = {}, 0
    with open_regular(path, "the manifest") as file:
        for line in file:
            record = None
            with contextlib.suppress(ValueError, RecursionError):
                record = _record(json.loads(line)) if line.endswith(b"\n") else None
            if record is None:
                damaged += 1
            else:
                records[record.id] = record
    return records, damaged


def _record(value: object) -> Record | None:
    """The record that a line or row holds; ``None`` where it is none."""
    if not isinstance(value, dict) or value.keys() != _TYPES.keys():
        return None
    if not all(isinstance(value[name], kind) and not isinstance(value[name], bool) for name, kind in _TYPES.items()):
        return None
    right = value["status"] in get_args(Status) and 0 <= value["output_bytes"] < 2**63
    return Record(**value) if right else None


def _read_parquet(path: Path) -> dict[str, Record]:
    from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]

    try:
        with open_regular(path, "the manifest") as file:
            rows = parquet.read_table(file, memory_map=False).to_pylist()
        records = [_record({key: _unescaped(value) for key, value in row.items()}) for row in rows]
        if None in records:
            raise ValueError("it has other columns or values than this version writes")
    except (ArrowException, OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({first_line(error)})") from error
    return {record.id: record for record in records if record is not None}


def _parquet_bytes(records: Iterable[Record]) -> bytes:
    """Encoded in memory, so that a full disk is an ordinary write error."""
    import pyarrow
    from pyarrow import parquet

    columns = [(name, getattr(pyarrow, _COLUMNS.get(kind, "string"))()) for name, kind in _TYPES.items()]
    rows = [
        {key: _escaped(value) for key, value in asdict(record).items()}
        for record in sorted(records, key=lambda record: record.id)
    ]
    buffer = io.BytesIO()
    table = pyarrow.Table.from_pylist(rows, schema=pyarrow.schema(columns))
    parquet.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _escaped(value: Any) -> Any:
    """Bytes of a file name that are no UTF-8 as the six characters of Python's escape, since a table holds UTF-8."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _unescaped(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return re.sub(r"\\u(dc[89a-f][0-9a-f])", lambda match: chr(int(match[1], 16)), value)
