"""What every reader yields: a co-registered pair in dB and DN on one grid, NaN = nodata, read whole or by window."""

from __future__ import annotations

import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from axs_lib.data.pairs import ListedPair
from axs_lib.errors import InputError
from axs_lib.io.formats import FloatArray
from axs_lib.io.grid import SceneGrid
from axs_lib.tilegrid import Tile

WhenAndWhere = Mapping[str, str | float]
Item = TypeVar("Item")
ESTIMATES = ("opt_v1", "opt_v2")


class BadDataWarning(UserWarning):
    """Files of a data folder are left out."""


@dataclass(frozen=True)
class Crop:
    """Pixels of one pair; NaN is nodata."""

    s1: FloatArray  # (2, h, w) VV, VH in dB
    s2: FloatArray  # (4, h, w) B02, B03, B04, B08 in DN (1..65535), the truth
    estimates: Mapping[str, FloatArray] = field(default_factory=dict)  # opt_v1, opt_v2, as far as the files carry them
    metadata: WhenAndWhere = field(default_factory=dict)  # date (ISO), lat, lon, as far as they are known

    def map(self, change: Callable[[FloatArray], FloatArray]) -> Crop:
        """The same with every image changed."""
        estimates = {key: change(image) for key, image in self.estimates.items()}
        return Crop(change(self.s1), change(self.s2), estimates, self.metadata)

    def window(self, window: Tile | None) -> Crop:
        """The same, cut to a window."""
        return self if window is None else self.map(window.of)


@dataclass(frozen=True, kw_only=True)
class TrainingSample(ListedPair, ABC):
    """One pair, and how its pixels are read."""

    estimates: tuple[str, ...] = ()  # which of opt_v1 and opt_v2 the files carry

    @abstractmethod
    def read(self, window: Tile | None = None) -> Crop:
        """The pixels of a window, or all of them; an InputError names a file that is missing or damaged."""

    def read_or_skip(self, window: Tile, skip: bool) -> Crop | None:
        """The pixels; where the sample cannot be read an error, or with ``skip`` a warning and ``None``."""
        try:
            return self.read(window)
        except InputError as error:
            if not skip:
                raise
            warnings.warn(f"left out: {error}", BadDataWarning, stacklevel=3)
            return None

    def centre(self, side: int) -> Tile:
        """The middle of the image, at most ``side`` pixels a side."""
        height, width = min(side, self.height), min(side, self.width)
        top, left = (self.height - height) // 2, (self.width - width) // 2
        return Tile(top, left, top + height, left + width)


@dataclass
class Listing:
    """What a folder holds: the pairs, and one line for each file that is missing, unpaired, empty or broken."""

    samples: list[TrainingSample] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def when_and_where(name: str, grid: SceneGrid, window: Tile | None = None) -> WhenAndWhere:
    """The date in a file's name and the middle of its grid, or of a window of it, as far as they are known."""
    date = re.search(r"(?<!\d)((?:19|20)\d\d)-?([01]\d)-?([0-3]\d)(?!\d)", name)
    place = grid.centre_lat_lon(window)
    known: dict[str, str | float] = {"date": "-".join(date.groups())} if date else {}
    return known | ({} if place is None else {"lat": round(place[0], 4), "lon": round(place[1], 4)})


def evenly_spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most ``count`` of the items."""
    chosen = min(count, len(items))
    return [items[number * len(items) // chosen] for number in range(chosen)]
