"""Folders of NPZ pairs, as ``axs_lib.data.pairs`` describes them and ``axs precompute`` writes them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from axs_lib.data.pairs import ListedPair, PairRecord, list_pairs, load_pair
from axs_lib.errors import InputError
from axs_lib.io.formats import open_npz
from axs_lib.tilegrid import Tile
from axs_lib.train.readers.sample import ESTIMATES, Crop, Listing, TrainingSample


@dataclass(frozen=True, kw_only=True)
class NpzSample(TrainingSample):
    """One NPZ pair."""

    record: PairRecord

    def read(self, window: Tile | None = None) -> Crop:
        pair = load_pair(self.record)
        estimates = {key: getattr(pair, key) for key in ESTIMATES if getattr(pair, key) is not None}
        return Crop(pair.s1, pair.s2, estimates, self.record.metadata).window(window)


def list_npz(folder: Path) -> Listing:
    """Pairs of a folder of NPZ files. Raises InputError: no such folder, no pair in it, or a broken index."""
    listing = Listing()
    for record in list_pairs(folder, "all", bad=listing.problems):
        try:
            with open_npz(record.path) as stored:
                arrays = stored.names
        except InputError as error:
            listing.problems.append(f"{record.path} is no readable NPZ ({error})")
            continue
        shared = {each.name: getattr(record, each.name) for each in fields(ListedPair)}
        estimates = tuple(key for key in ESTIMATES if key in arrays)
        listing.samples.append(NpzSample(**shared, estimates=estimates, record=record))
    return listing
