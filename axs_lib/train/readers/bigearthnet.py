"""BigEarthNet v1 and v2 (reBEN) in the layouts in which they are distributed: one GeoTIFF a band, 120 x 120 px.

v1 is ``BigEarthNet-S1-v1.0/<s1 patch>/<s1 patch>_VV.tif`` beside ``BigEarthNet-v1.0/<s2 patch>/<s2 patch>_B02.tif``;
pairs and split are in ``bigearthnet-train.csv``, ``-val.csv`` and ``-test.csv`` (lines of S2 patch, S1 patch), or else
the pairs in the JSON of the S1 patches. v2 has a folder of the scene above each patch, and ``metadata.parquet`` holds
pairs and split. Both store backscatter in dB and reflectance x 10000 without BOA offset.
"""

from __future__ import annotations

import csv
import json
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from axs_lib.bands import OPTICAL_BANDS, SAR_BANDS, VALID_DN
from axs_lib.errors import InputError
from axs_lib.io.files import open_regular
from axs_lib.io.pixels import Reading
from axs_lib.io.products import open_source
from axs_lib.tilegrid import Tile
from axs_lib.train.readers.sample import Crop, Listing, TrainingSample, when_and_where

SIDE = 120  # pixels of a patch
SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
METADATA = "metadata.parquet"
READING = Reading(s1_unit="db", boa_offset="0", force=True, addresses=False)  # whatever the patches' names say


@dataclass(frozen=True, kw_only=True)
class PatchSample(TrainingSample):
    """One BigEarthNet pair: two folders with one file a band."""

    s1: Path
    s2: Path

    def read(self, window: Tile | None = None) -> Crop:
        with ExitStack() as stack:
            sar, optical = (
                open_source(_band_files(patch, bands), bands, stack, replace(READING, bands=bands))
                for patch, bands in ((self.s1, SAR_BANDS), (self.s2, OPTICAL_BANDS))
            )
            if not sar.grid.same_as(optical.grid):
                raise InputError(f"{sar.label} is {sar.grid} and {optical.label} is {optical.grid}; expected one grid")
            for source in (sar, optical):
                source.look()
            s1, s2 = sar.read(sar.grid.whole), optical.read(optical.grid.whole)
        truth = np.maximum(s2, VALID_DN[0])  # NaN stays NaN
        return Crop(s1, truth, metadata=when_and_where(self.s2.name, optical.grid)).window(window)


def list_bigearthnet_v1(folder: Path) -> Listing:
    """Pairs of BigEarthNet v1; a group is a Sentinel-2 tile. A missing archive or broken split file is refused."""
    s1_root = _root(folder, "BigEarthNet-S1-v1.0", "BigEarthNet-S1")
    s2_root = _root(folder, "BigEarthNet-v1.0", "BigEarthNet-S2-v1.0", "BigEarthNet-S2")
    listing = Listing()
    pairs = _pairs_of_splits(folder)
    if not pairs:
        pairs = _pairs_of_json(s1_root, listing.problems)
        paired = {s2_name for s2_name, _, _ in pairs}
        unpaired = (p for p in sorted(s2_root.iterdir()) if p.is_dir() and p.name not in paired)
        listing.problems += [f"{patch}: no Sentinel-1 patch names it as its pair" for patch in unpaired]
    for s2_name, s1_name, split in pairs:
        _add(listing, "bigearthnet_v1", s1_root / s1_name, s2_root / s2_name, split)
    return listing


def list_bigearthnet_v2(folder: Path) -> Listing:
    """Pairs of BigEarthNet v2 by Sentinel-2 tile; InputError: an archive, the metadata or a column of it is missing."""
    from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]

    s1_root, s2_root = _root(folder, "BigEarthNet-S1"), _root(folder, "BigEarthNet-S2")
    table_file = folder / METADATA
    if not table_file.is_file():
        raise InputError(
            f"{folder} has no {METADATA}; it comes with BigEarthNet v2 and holds pairs and split: put it beside"
            " BigEarthNet-S1 and BigEarthNet-S2"
        )
    wanted = ["patch_id", "s1_name", "split"]
    try:
        columns = parquet.read_schema(table_file).names
        if missing := [column for column in wanted if column not in columns]:
            raise InputError(f"{table_file} has the columns {', '.join(columns)}; {', '.join(missing)} missing")
        rows = zip(*parquet.read_table(table_file, columns=wanted).to_pydict().values(), strict=True)
    except (OSError, ArrowException) as error:
        raise InputError(f"{table_file} is no readable parquet file ({str(error)[:100]}); fetch it again") from error
    listing = Listing()
    for s2_name, s1_name, split in rows:
        if split not in SPLITS:
            raise InputError(f"{table_file} says split {split!r} of {s2_name}; expected train, validation or test")
        s1 = s1_root / "_".join(s1_name.split("_")[:-3]) / s1_name
        s2 = s2_root / "_".join(s2_name.split("_")[:-2]) / s2_name
        _add(listing, "bigearthnet_v2", s1, s2, SPLITS[split])
    return listing


def _band_files(patch: Path, bands: tuple[str, ...]) -> list[Path]:
    return [patch / f"{patch.name}_{band}.tif" for band in bands]


def _add(listing: Listing, source: str, s1: Path, s2: Path, split: str) -> None:
    """A pair whose files are all there and not empty, or what is wrong with it."""
    for file in _band_files(s1, SAR_BANDS) + _band_files(s2, OPTICAL_BANDS):
        try:
            if file.stat().st_size:
                continue
            problem = f"{file} is empty"
        except OSError:
            there = file.parent.is_dir()
            problem = f"{file} is missing" if there else f"{file.parent} is missing, the pair of which is listed"
        listing.problems.append(problem)
        return
    tile = s1.name.split("_")[-3].removeprefix("T")
    sample = PatchSample(source=source, id=s2.name, group=tile, height=SIDE, width=SIDE, split=split, s1=s1, s2=s2)
    listing.samples.append(sample)


def _pairs_of_json(root: Path, problems: list[str]) -> list[tuple[str, str, str]]:
    """S2 patch, S1 patch and no split, from the JSON of every S1 patch."""
    pairs = []
    for patch in sorted(p for p in root.iterdir() if p.is_dir()):
        file = patch / f"{patch.name}_labels_metadata.json"
        try:
            with open_regular(file) as stream:
                s2_name = json.load(stream)["corresponding_s2_patch"]
            pairs.append((str(s2_name), patch.name, ""))
        except (InputError, OSError, ValueError, RecursionError, KeyError, TypeError) as error:
            problems.append(f"{file} does not say the patch's Sentinel-2 pair ({type(error).__name__})")
    return pairs


def _pairs_of_splits(folder: Path) -> list[tuple[str, str, str]]:
    """S2 patch, S1 patch and split, from the files of the three splits as far as they are there."""
    pairs = []
    for split in ("train", "val", "test"):
        names = (folder / f"bigearthnet-{split}.csv", folder / f"{split}.csv")
        for file in [name for name in names if name.is_file()][:1]:
            with file.open(newline="", encoding="utf-8") as stream:
                for number, row in enumerate(csv.reader(stream), 1):
                    if len(row) != 2:
                        raise InputError(f"{file}, line {number} has {len(row)} columns; expected S2 patch, S1 patch")
                    pairs.append((row[0].strip(), row[1].strip(), SPLITS[split]))
    return pairs


def _root(folder: Path, *names: str) -> Path:
    """The first of the named folders that is there."""
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    there = sorted(p.name for p in folder.iterdir())[:5] if folder.is_dir() else []
    raise InputError(
        f"{folder} holds {', '.join(there) or 'nothing'}; expected the unpacked archive {' or '.join(names)} in it"
    )
