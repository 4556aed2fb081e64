"""What a batch works on: tiles, as paths; none is opened here, so a damaged one fails later and alone."""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from axs_lib.batch.manifest import EXAMPLES, MANIFEST, RESERVED, ManifestWarning
from axs_lib.errors import InputError, counted, first_line
from axs_lib.io.files import check_kept, check_regular, open_regular, read_csv

Stage = Literal["ground", "pipeline"]

SAR_ENDING, OPTICAL_ENDING = "_s1", "_opt_v2"
PAIRED_SUFFIXES = (".tif", ".tiff", ".pt")
MANIFEST_SUFFIXES = (".parquet", ".csv")
METADATA_COLUMNS = ("date", "lat", "lon", "biome")
COLUMNS = ("id", "path", "s1", "opt_v2", "mask", *METADATA_COLUMNS)
_LAYOUT = (
    "expected tiles as NAME.npz, or NAME_s1.tif with NAME_opt_v2.tif beside it (Stage 3), or NAME_s1.tif (pipeline);"
    " for other names give a CSV or parquet manifest with the columns s1 and opt_v2"
)
MOST_ROWS = 100_000  # of a parquet manifest that has fewer bytes
LONGEST_NAME = 250  # bytes; with the suffix, what a file system allows


@dataclass(frozen=True)
class Item:
    """One tile to work on; its paths are absolute."""

    id: str  # its name among all items, relative and with ``/`` between its parts; the output is named after it
    s1: str  # the SAR image, or an .npz that holds the optical estimate too
    opt_v2: str | None = None  # the optical estimate, where it is a file of its own
    metadata: Mapping[str, Any] = field(default_factory=dict)  # any of date, lat, lon and biome
    mask: str | None = None  # of the optical image

    @property
    def files(self) -> dict[str, str]:
        """The files that are read, by their role."""
        roles = {"s1": self.s1, "opt_v2": self.opt_v2, "mask": self.mask}
        return {role: path for role, path in roles.items() if path is not None}


def list_items(inputs: str | os.PathLike[str], stage: Stage = "ground", outputs: Collection[Path] = ()) -> list[Item]:
    """List the items that a user means, for ``"ground"`` (SAR and optical estimate) or ``"pipeline"`` (SAR alone).

    ``inputs`` is a folder, a glob (``tiles/**/*.npz``), one tile, or a ``.parquet`` or ``.csv`` manifest with columns
    of ``COLUMNS``, whose paths are relative to its folder; nothing is looked for in folders of ``outputs``.

    Raises InputError: nothing is there, the manifest cannot be read or would be replaced, or two items have one name.
    """
    text = os.fspath(inputs)
    if "\0" in text:
        raise InputError(f"{text!r} is no valid path; expected a folder, a glob or a manifest")
    path = Path(text)
    if path.suffix.lower() in MANIFEST_SUFFIXES and not glob.has_magic(text):
        check_kept([folder / MANIFEST for folder in outputs], path)
        items = _from_manifest(path, stage)
    else:
        items = _from_files(text, stage, [folder.resolve() for folder in outputs])
    if not items:
        raise InputError(f"{text} holds no tile; {_LAYOUT}")
    if twice := [name for name, count in Counter(item.id for item in items).items() if count > 1]:
        raise InputError(
            f"{len(twice)} name(s) stand for more than one tile of {text}, for example"
            f" {', '.join(sorted(twice)[:EXAMPLES])}; expected a name of its own for each: rename them, or give a"
            " manifest with a column id"
        )
    return sorted(items, key=lambda item: item.id)


def _from_files(text: str, stage: Stage, outputs: Sequence[Path]) -> list[Item]:
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
        if any("**" in part and part != "**" for part in path.parts):
            raise InputError(f"{text} is no pattern for files: ** stands for whole folders")
        files = (file for file in root.glob(pattern) if file.is_file()) if glob.has_magic(pattern) else ()
    items, passed, images = list[Item](), list[Item](), set[str]()
    for file in files:
        relative = file.relative_to(root)
        if not any(part.startswith(".") for part in relative.parts):
            among = passed if any(map(file.is_relative_to, outputs)) else items
            among += _item_of(file, relative, stage)
            if among is items and stage == "ground" and file.suffix.lower() in PAIRED_SUFFIXES:
                images.add(str(file))
    if passed and not items:
        raise InputError(
            f"all tiles of {text} lie in a folder for outputs, where none is looked for; give a folder beside or inside"
            f" {root} as --out and for maps"
        )
    if items and (left := sorted(images.difference(*(item.files.values() for item in items)))):
        warnings.warn(
            f"{counted(len(left), 'image')} of {text} belong to no tile and are left out, for example {left[0]}; give"
            " masks by --mask or a manifest, other names by a manifest",
            ManifestWarning,
            stacklevel=3,
        )
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
    check_regular(path, "the manifest")
    columns, rows = _parquet_rows(path) if path.suffix.lower() == ".parquet" else _csv_rows(path)
    unknown = [column for column in columns if column not in COLUMNS]
    if columns and (unknown or not {"path", "s1"} & {*columns}):
        fault = f"does not know {', '.join(map(repr, unknown))}" if unknown else "finds neither path nor s1 among them"
        raise InputError(
            f"{path} has the columns {', '.join(columns)}, and axs batch {fault}; expected path (an .npz), or s1 and"
            f" opt_v2, and as far as known {', '.join(c for c in COLUMNS if c not in ('path', 's1', 'opt_v2'))}: remove"
            " or rename the others"
        )
    if len(columns) > len({*columns}):
        raise InputError(f"{path} has the columns {', '.join(columns)}; expected each of them once")
    folder = path.resolve().parent
    return [_item_of_row(row, f"{path}, row {number}", folder, stage) for number, row in enumerate(rows, 1)]


def _item_of_row(row: Mapping[str, Any], where: str, folder: Path, stage: Stage) -> Item:
    # Neither an empty cell nor NaN, which is not itself.
    known = {key: row[key] for key in COLUMNS if row.get(key) not in (None, "") and row[key] == row[key]}
    sar = known.get("s1") or known.get("path")
    optical, mask = (known.get(key) if stage == "ground" else None for key in ("opt_v2", "mask"))
    files = [sar, optical, mask]
    if sar is None or not all(isinstance(each, str | None) and "\0" not in (each or "") for each in files):
        raise InputError(f"{where} names no file; expected a path in the column path, or in s1 and opt_v2")
    name = str(known.get("id", PurePosixPath(sar).stem.removesuffix(SAR_ENDING)))
    parts = name.split("/")
    printable = "".join(character for character in name if not "\udc80" <= character <= "\udcff").isprintable()
    if "\\" in name or not printable or any(part.startswith(".") or not part for part in parts):
        raise InputError(
            f"{where} has the id {name!r}; expected a relative name without hidden parts, such as tile_1 or"
            " region/tile_1"
        )
    if parts[0] in RESERVED or any(len(os.fsencode(part)) > LONGEST_NAME for part in parts):
        raise InputError(
            f"{where} has the id {name[:50]!r}; expected parts of at most {LONGEST_NAME} bytes, the first of which is"
            f" not {' or '.join(sorted(RESERVED))}"
        )
    wanted = METADATA_COLUMNS if stage == "pipeline" else ("date",)
    metadata = {key: known[key] for key in wanted if key in known}
    if "date" in metadata:
        metadata["date"] = str(metadata["date"])
    paths = [None if each is None else os.path.realpath(folder / each) for each in files]
    return Item(name, str(paths[0]), paths[1], metadata, paths[2])


def _csv_rows(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    columns, rows = read_csv(path, "the manifest")
    for number, row in enumerate(rows, 1):
        if None in row:
            raise InputError(f"{path}, row {number} has more cells than the header line; put the cells in quotes")
        for key in ("lat", "lon", "biome"):
            with contextlib.suppress(ValueError):  # a text is for Stage 2 to judge
                row[key] = float(row.get(key) or "")
    return columns, [{k: v for k, v in row.items() if v is not None} for row in rows]


def _parquet_rows(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]

    try:
        with open_regular(path, "the manifest") as file:
            rows = parquet.ParquetFile(file).metadata.num_rows
            if rows > max(MOST_ROWS, path.stat().st_size):  # repeated, they take no place in the file
                raise ValueError(f"it claims {rows:,} rows, more than it has bytes")
            table = parquet.read_table(file)
            return table.column_names, table.to_pylist()
    except (ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
        raise InputError(f"{path} cannot be read as parquet ({first_line(error)}); write it again") from error
