"""What every reader yields: one co-registered pair that can be read whole or by window.

In: nothing but what a subclass knows of its files. Out: ``Crop``, SAR in dB and optical in DN on one grid, NaN where
there is no data, with the date and place that Stage 2 uses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
ESTIMATES = ("opt_v1", "opt_v2")


class Window(NamedTuple):
    """A rectangle of pixels of the optical grid."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Crop:
    """Pixels of one pair.

    Attributes:
        s1: (2, h, w) VV, VH in dB, NaN = nodata.
        s2: (4, h, w) B02, B03, B04, B08 in DN (1..65535), NaN = nodata; the truth.
        estimates: ``opt_v1`` and ``opt_v2`` (4, h, w) in DN, where the files carry them.
        metadata: date (ISO), lat, lon, as far as they are known.
    """

    s1: Array
    s2: Array
    estimates: Mapping[str, Array] = field(default_factory=dict)
    metadata: Mapping[str, str | float] = field(default_factory=dict)

    def window(self, window: Window | None) -> Crop:
        """The same, cut to a window."""
        if window is None:
            return self
        rows = slice(window.top, window.top + window.height)
        columns = slice(window.left, window.left + window.width)
        cut = {key: image[:, rows, columns] for key, image in self.estimates.items()}
        return Crop(self.s1[:, rows, columns], self.s2[:, rows, columns], cut, self.metadata)


@dataclass(frozen=True, kw_only=True)
class TrainingSample(ABC):
    """One pair, not yet read.

    Attributes:
        source: data set, ``id`` the name in it.
        group: what shares a place (or date): never on both sides of a split.
        height: rows, and ``width`` columns, of the optical grid.
        split: ``train``, ``validation`` or ``test`` where the data set says so, else empty.
        quality: ``ok``, or why not; ``ok`` where nobody judged it.
        estimates: which of ``opt_v1`` and ``opt_v2`` the files carry.
    """

    source: str
    id: str
    group: str
    height: int
    width: int
    split: str = ""
    quality: str = "ok"
    estimates: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """``source/id``, unique in a folder."""
        return f"{self.source}/{self.id}"

    @property
    def pixels(self) -> int:
        """Size in pixels, nodata included."""
        return self.height * self.width

    @abstractmethod
    def read(self, window: Window | None = None) -> Crop:
        """The pixels of a window, or all of them.

        Raises:
            InputError: a file is missing, damaged or not what it should be; the message names it.
        """

    def centre(self, side: int) -> Window:
        """The middle of the image, at most ``side`` pixels a side."""
        height, width = min(side, self.height), min(side, self.width)
        return Window((self.height - height) // 2, (self.width - width) // 2, height, width)


@dataclass
class Listing:
    """What a folder holds: the pairs, and one line for each file that is missing, unpaired, empty or broken."""

    samples: list[TrainingSample] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
