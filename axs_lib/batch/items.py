"""What a batch works on: the tiles of a folder, of a glob, or of a parquet or CSV manifest, as paths.

In: the words of a user. Out: a list of ``Item``, each with a name of its own, sorted by name. No tile is opened here,
so a damaged one fails later and alone.
"""

from __future__ import annotations

import csv
import glob
import io
import itertools
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from axs_lib.errors import InputError

Stage = Literal["ground", "pipeline"]

SAR_ENDING, OPTICAL_ENDING = "_s1", "_opt_v2"
PAIRED_SUFFIXES = (".tif", ".tiff", ".pt")
MANIFEST_SUFFIXES = (".parquet", ".csv")
METADATA_COLUMNS = ("date", "lat", "lon", "biome")
COLUMNS = ("id", "path", "s1", "opt_v2", *METADATA_COLUMNS)
_LAYOUT = (
    "expected tiles as NAME.npz, or NAME_s1.tif with NAME_opt_v2.tif beside it (Stage 3), or NAME_s1.tif (pipeline);"
    " for other names give a CSV or parquet manifest with the columns s1 and opt_v2"
)
_EXAMPLES = 3


@dataclass(frozen=True)
class Item:
    """One tile to work on.

    Attributes:
        id: its name among all items, relative and with ``/`` between its parts; the output is named after it.
        s1: absolute path of the SAR image, or of an .npz that holds the optical estimate too.
        opt_v2: absolute path of the optical estimate, where it is a file of its own.
        metadata: any of date, lat, lon and biome, for Stage 2.
    """

    id: str
    s1: str
    opt_v2: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def paths(self) -> tuple[str, ...]:
        """The files that are read."""
        return (self.s1,) if self.opt_v2 is None else (self.s1, self.opt_v2)


def list_items(
    inputs: str | os.PathLike[str], stage: Stage = "ground", out: Path | None = None
) -> list[Item]:
    """List the items that a user means.

    Args:
        inputs: a folder, a glob (``tiles/**/*.npz``), one tile, or a ``.parquet`` or ``.csv`` manifest with the columns
            ``path`` (an .npz), or ``s1`` and (Stage 3) ``opt_v2``, and as far as known ``id``, ``date``, ``lat``,
            ``lon``, ``biome``. Paths in a manifest are relative to its folder.
        stage: ``"ground"`` needs SAR and optical estimate, ``"pipeline"`` SAR alone.
        out: the folder of the outputs, in which nothing is looked for.

    Raises:
        InputError: nothing is there, the manifest cannot be read, or two items have one name.
    """
    text = os.fspath(inputs)
    path = Path(text)
    if path.suffix.lower() in MANIFEST_SUFFIXES and not glob.has_magic(text):
        items = _from_manifest(path, stage)
    else:
        items = _from_files(text, stage, None if out is None else out.resolve())
    if not items:
        raise InputError(f"{text} holds no tile; {_LAYOUT}")
    twice = [name for name, count in Counter(item.id for item in items).items() if count > 1]
    if twice:
        raise InputError(
            f"{len(twice)} name(s) stand for more than one tile of {text}, for example"
            f" {', '.join(sorted(twice)[:_EXAMPLES])}; expected a name of its own for each: rename them, or give a"
            " manifest with a column id"
        )
    return sorted(items, key=lambda item: item.id)


def _from_files(text: str, stage: Stage, out: Path | None) -> list[Item]:
    """Items of a folder, of a glob or of one file, named by their place below its fixed part."""
    path = Path(text)
    if path.is_dir():
        root = path.resolve()
        files: Iterable[Path] = (Path(folder, name) for folder, _, names in os.walk(root) for name in names)
    elif path.is_file():
        root = path.parent.resolve()
        files = [root / path.name]
    else:
        fixed = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
        root = fixed.resolve()
        pattern = path.relative_to(fixed).as_posix()
        files = (file for file in root.glob(pattern) if file.is_file()) if glob.has_magic(pattern) else ()
    items = []
    for file in files:
        relative = file.relative_to(root)
        hidden = any(part.startswith(".") for part in relative.parts)
        if not hidden and not (out is not None and file.is_relative_to(out)):
            items += _item_of(file, relative, stage)
    return items


def _item_of(file: Path, relative: Path, stage: Stage) -> list[Item]:
    """The item that a file stands for; none where it is not named like one."""
    suffix = file.suffix.lower()
    if suffix == ".npz":
        return [Item(relative.with_suffix("").as_posix(), str(file))]
    if suffix not in PAIRED_SUFFIXES or not file.stem.endswith(SAR_ENDING):
        return []
    name = file.stem.removesuffix(SAR_ENDING)
    optical = str(file.with_name(f"{name}{OPTICAL_ENDING}{file.suffix}")) if stage == "ground" else None
    return [Item(relative.with_name(name or file.stem).as_posix(), str(file), optical)]


def _from_manifest(path: Path, stage: Stage) -> list[Item]:
    if not path.is_file():
        raise InputError(f"{path} does not exist; expected a manifest: check the path")
    rows = _parquet_rows(path) if path.suffix.lower() == ".parquet" else _csv_rows(path)
    columns = list(rows[0]) if rows else []
    if rows and "path" not in columns and "s1" not in columns:
        raise InputError(
            f"{path} has the columns {', '.join(columns)}; expected path (an .npz), or s1 and opt_v2, and as far as"
            f" known {', '.join(c for c in COLUMNS if c not in ('path', 's1', 'opt_v2'))}"
        )
    folder = path.resolve().parent
    return [_item_of_row(row, f"{path}, row {number}", folder, stage) for number, row in enumerate(rows, 1)]


def _item_of_row(row: Mapping[str, Any], where: str, folder: Path, stage: Stage) -> Item:
    known = {key: row[key] for key in COLUMNS if not _missing(row.get(key))}
    sar = known.get("s1") or known.get("path")
    if not isinstance(sar, str) or not isinstance(known.get("opt_v2", ""), str):
        raise InputError(f"{where} names no file; expected a path in the column path, or in s1 and opt_v2")
    optical = known.get("opt_v2") if stage == "ground" else None
    name = str(known.get("id", PurePosixPath(Path(sar).as_posix()).stem.removesuffix(SAR_ENDING)))
    parts = name.split("/")
    if "\\" in name or not name.isprintable() or any(part.startswith(".") or not part for part in parts):
        raise InputError(
            f"{where} has the id {name!r}; expected a relative name without hidden parts, such as tile_1 or"
            " region/tile_1"
        )
    metadata = {key: known[key] for key in METADATA_COLUMNS if key in known} if stage == "pipeline" else {}
    if "date" in metadata:
        metadata["date"] = str(metadata["date"])
    return Item(name, str((folder / sar).resolve()), optical and str((folder / optical).resolve()), metadata)


def _missing(value: object) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{path} cannot be read as CSV ({error}); expected UTF-8 with a header line"
        ) from error
    for row in rows:
        for key in ("lat", "lon", "biome"):
            row[key] = _number(row.get(key))
    return [{key: value for key, value in row.items() if value is not None} for row in rows]


def _number(text: str | None) -> float | str | None:
    """The number that a cell of a CSV holds, else its text, which Stage 2 judges."""
    try:
        return float(text or "")
    except ValueError:
        return text


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]

    try:
        names = parquet.read_schema(path).names
        rows: list[dict[str, Any]] = parquet.read_table(
            path, columns=[name for name in COLUMNS if name in names] or names
        ).to_pylist()
    except (ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [""])[0][:160]
        raise InputError(f"{path} cannot be read as parquet ({reason}); write it again") from error
    return rows
