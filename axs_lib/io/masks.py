"""Masks, read by windows: boolean, trust in 0..1 or Sentinel-2's scene classification (SCL), as trust 0 to 1."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from axs_lib.checks import check_choice, check_count, check_flag
from axs_lib.errors import InputError, listed
from axs_lib.io.files import PathLike
from axs_lib.io.formats import LARGEST_SIDE, FloatArray, open_npz, open_raster, unreadable
from axs_lib.io.grid import SceneGrid, checked_grid, grid_of
from axs_lib.io.pixels import TRUST
from axs_lib.io.warp import warped_view
from axs_lib.nodata import spread
from axs_lib.tilegrid import Tile

# By number. Unclassified (7) is often thin cloud at the rim of a cloud; snow (11) is what was there to be seen.
SCL_CLASSES = (
    "no_data", "saturated_or_defective", "dark_area", "cloud_shadow", "vegetation", "not_vegetated", "water",
    "unclassified", "cloud_medium", "cloud_high", "thin_cirrus", "snow",
)  # fmt: skip
SCL_DROPPED = (
    "no_data", "saturated_or_defective", "cloud_shadow", "cloud_medium", "cloud_high", "thin_cirrus",
)  # fmt: skip
SCL_BUFFER = 5  # px, advised: SCL misses the rims of clouds
MASK_SUFFIXES = (".tif", ".tiff", ".jp2", ".png", ".npz")
MASK_KEYS = ("trust", "mask", "scl")
MASK_KINDS = ("auto", "boolean", "trust", "scl")


@dataclass(frozen=True)
class MaskFile:
    """A mask and how to read it; InputError where there is no such kind or class, or the buffer is negative.

    Of the kinds, ``boolean`` is 0 where unknown and everything else clear, ``trust`` numbers in 0..1. ``auto`` is SCL
    where name or band description say so, boolean where all values are 0 and 1 or 0 and 255, SCL where they are whole
    numbers in 0..11 and some above 4, trust where they lie in 0..1.
    """

    # GeoTIFF, JPEG 2000 or PNG of one band, or .npz with ``trust``, ``mask`` or ``scl`` (or one array), (H,W) or for a
    # batch (N,H,W). ``"scl"`` is the scene classification of the Sentinel-2 product given as the image.
    path: PathLike
    kind: str = "auto"  # of ``MASK_KINDS``
    invert: bool = False  # 1 means unknown, as in a cloud mask; for boolean masks and trust maps
    drop: Iterable[str | int] | None = None  # SCL classes that are unknown, by name or number; None: ``SCL_DROPPED``
    buffer: int = 0  # pixels by which what is unknown grows in every direction, diagonals included
    may_be_clear: bool = False  # a mask without a gap is no mistake, as among many

    def __post_init__(self) -> None:
        check_count("the buffer of the mask, in pixels,", self.buffer, 0, LARGEST_SIDE)
        check_flag("invert", self.invert)
        check_choice("the mask's kind", self.kind, MASK_KINDS)
        if self.drop is not None:  # kept, since a generator is used up by the check
            object.__setattr__(self, "drop", tuple(self.drop))
            scl_numbers(self.drop)


class MaskSource:
    """The trust map that a mask gives on the grid of an image, brought there by nearest neighbour where it has its own.

    ``tiles`` of the image lie one under another. Raises InputError: the mask cannot be read, does not cover the image,
    does not fit its kind or options, or leaves nothing clear or nothing to fill.
    """

    def __init__(
        self, mask: MaskFile, grid: SceneGrid, stack: ExitStack, *, tiles: int = 1, addresses: bool = True
    ) -> None:
        self.grid, self.label, self._place_note = grid, f"mask {mask.path}", ""
        self.bands: tuple[str, ...] = TRUST
        self._mask, self._tiles = mask, tiles
        self._values: FloatArray | None = None
        suffix, self._masked = Path(mask.path).suffix.lower(), False
        if suffix == ".npz":
            self._values, named = _read_npz(Path(mask.path), grid, tiles)
        elif suffix in MASK_SUFFIXES:
            dataset = stack.enter_context(open_raster(mask.path, addresses=addresses))
            if dataset.count != 1 or dataset.dtypes[0].startswith("complex"):
                seen = f"{dataset.count} band(s) of {dataset.dtypes[0]}"
                raise InputError(f"the {self.label} has {seen}; expected one of real numbers, without alpha")
            self._nodata = dataset.nodata or None  # 0 is unknown already, or clear in an inverted mask
            named = f"{Path(mask.path).stem} {dataset.descriptions[0] or ''}"
            self._dataset = _on_grid(dataset, grid, self._nodata, self.label, stack)
            self._place_note = grid_of(dataset).missing_place_note(grid)
            own_mask = any(flag.name == "per_dataset" for flag in dataset.mask_flag_enums[0])
            self._masked = own_mask and self._dataset is dataset  # a view on another grid has it in its nodata
        else:
            raise InputError(f"the {self.label} ends in {suffix or 'no suffix'}; give one of {listed(MASK_SUFFIXES)}")
        values = self._values_found()
        self.kind = mask.kind if mask.kind != "auto" else _kind(values[~np.isnan(values)], named, self.label)
        if self.kind == "scl" and mask.invert:
            raise InputError(f"the {self.label} is a scene classification, which has no inverse; give --drop CLASSES")
        if self.kind != "scl" and mask.drop is not None:
            raise InputError(
                f"the {self.label} was taken for a {self.kind} mask, which has no classes to drop; leave --drop out,"
                " or say --mask-kind scl"
            )
        self._dropped = scl_numbers(SCL_DROPPED if mask.drop is None else mask.drop)
        trust = self._trust(values)
        if not trust.any():
            raise InputError(self.nothing_clear())
        if trust.min() == 1 and not mask.may_be_clear:
            raise InputError(
                f"the {self.label} leaves nothing to fill: {self._meaning}, and no pixel is a gap. Without --mask the"
                " whole image is taken for an estimate and corrected"
            )

    def nothing_clear(self) -> str:
        """What to say of a mask that leaves nothing clear."""
        hint = "drop fewer classes" if self.kind == "scl" else "if 1 means cloud in it, give --mask-invert"
        hint = "leave --mask-invert out" if self._mask.invert else hint
        after = f" after a buffer of {self._mask.buffer} px" if self._mask.buffer else ""
        return (
            f"the {self.label} leaves nothing clear{after}; expected 1 where the image was observed: {hint}. To draw an"
            " image from SAR alone use axs run"
        )

    @property
    def _meaning(self) -> str:
        """Which values are a gap."""
        if self.kind == "scl":
            return f"gaps are {listed(SCL_CLASSES[number] for number in self._dropped)}"
        zero, other = ("clear", "a gap") if self._mask.invert else ("a gap", "clear")
        return f"0 is {zero} and {'1' if self.kind == 'trust' else 'all else'} {other}"

    def notes(self, unknown: int) -> list[str]:
        """What to say of a mask by which this many pixels are unknown."""
        assumed = self.kind != "scl" and self._mask.kind == "auto" and not self._mask.invert
        notes = [
            f"{self.label}: taken for {self.kind}, {self._meaning}: {gap_share(unknown, self.grid)}"
            + self._place_note
            + ("; if 1 is cloud in it, give --mask-invert" if assumed else "")
        ]
        if self.kind == "scl" and not self._mask.buffer:
            notes.append(f"{self.label}: SCL misses the rims of clouds; --mask-buffer {SCL_BUFFER} is advised")
        return notes

    @property
    def provenance(self) -> dict[str, str]:
        """How the mask was read, for file tags."""
        mask = self._mask
        tags = {"AXS_MASK": Path(mask.path).name, "AXS_MASK_KIND": self.kind, "AXS_MASK_BUFFER": str(mask.buffer)}
        return tags | {"AXS_MASK_MEANING": self._meaning}

    def read(self, window: Tile) -> FloatArray:
        """(1, h, w) in [0, 1] of a window; what is unknown does not grow from one tile of a batch into the next."""
        side, reach = self.grid.height // self._tiles, self._mask.buffer
        parts = []
        for first in range(window.top // side * side, window.bottom, side):
            tile = Tile(first, 0, first + side, self.grid.width)
            part = window.grown(0, tile)
            wide = part.grown(reach, tile)
            grown = -spread(-torch.from_numpy(self._trust(self._read(wide)))[None], reach)[0]  # the least trust around
            parts.append(part.moved(-wide.top, -wide.left).of(grown).abs().numpy())  # no -0
        return np.concatenate(parts)[None]

    def _trust(self, values: FloatArray) -> FloatArray:
        """NaN is unknown, inverted or not."""
        if self.kind == "scl":
            return scl_trust(values, self._dropped, source=f"the {self.label}")
        trust = (values != 0).astype(np.float32) if self.kind == "boolean" else values
        low, high = float(np.nanmin(trust, initial=0)), float(np.nanmax(trust, initial=0))
        if low < 0 or high > 1:
            raise InputError(
                f"the {self.label} runs from {low:g} to {high:g}; expected trust in 0..1, 1 where the image was"
                " observed and 0 where it is unknown: divide percentages by 100"
            )
        return np.where(np.isnan(values), 0, 1 - trust if self._mask.invert else trust).astype(np.float32)

    def _read(self, window: Tile) -> FloatArray:
        if self._values is not None:
            return window.of(self._values)
        part = ((window.top, window.bottom), (window.left, window.right))
        try:
            values: FloatArray = self._dataset.read(1, window=part).astype(np.float32)
            if self._masked:
                values[self._dataset.read_masks(1, window=part) == 0] = np.nan
        except Exception as error:  # GDAL's own errors have no public class
            raise InputError(unreadable(self._mask.path, "a complete mask", error)) from error
        if self._nodata is not None:
            values[values == self._nodata] = np.nan
        return values

    def _values_found(self) -> FloatArray:
        """Every value of the mask, once, with NaN."""
        found: FloatArray = np.empty(0, dtype=np.float32)
        for rows in self.grid.strips():
            found = np.union1d(found, self._read(rows))
        if np.isnan(found).all():
            raise InputError(f"the {self.label} has no data on the image's grid ({self.grid}); give one that covers it")
        return found


def scl_numbers(classes: Iterable[str | int]) -> list[int]:
    """The numbers of SCL classes given by name or number, sorted; InputError for no class, or one that there is not."""
    numbers, unknown = set(), []
    for each in classes:
        word = re.sub(r"[ -]+", "_", str(each).strip().lower())
        number = int(word) if word.isdecimal() else SCL_CLASSES.index(word) if word in SCL_CLASSES else -1
        if 0 <= number < len(SCL_CLASSES):
            numbers.add(number)
        else:
            unknown.append(str(each))
    if unknown or not numbers:
        table = ", ".join(f"{number} {name}" for number, name in enumerate(SCL_CLASSES))
        fault = f"--drop names {listed(unknown)}" if unknown else "drop is empty"
        raise InputError(f"{fault}; expected SCL class names or numbers: {table}")
    return sorted(numbers)


def scl_trust(values: NDArray[Any], drop: Iterable[str | int] = SCL_DROPPED, *, source: str = "the mask") -> FloatArray:
    """The trust map of an SCL of any shape: 0 where a dropped class is, or NaN, 1 elsewhere; InputError for no SCL."""
    classes = np.nan_to_num(values, nan=0)
    wrong = np.unique(classes[~np.isin(classes, range(len(SCL_CLASSES)))])
    if wrong.size:
        raise InputError(
            f"{source} holds {listed(f'{value:g}' for value in wrong[:5])}; expected the classes 0 to"
            f" {len(SCL_CLASSES) - 1} of a Sentinel-2 scene classification (SCL)"
        )
    return (~np.isin(classes, scl_numbers(drop)) & ~np.isnan(values)).astype(np.float32)


def gap_share(unknown: int, grid: SceneGrid) -> str:
    """How many pixels of an image are a gap, in words."""
    total = grid.height * grid.width
    end = {0: ", so that nothing is filled", total: ", so that nothing is kept"}.get(unknown, "")
    return f"{unknown:,} of {total:,} pixels ({100 * unknown / total:.1f} %) are a gap{end}"


def _kind(values: FloatArray, named: str, source: str) -> str:
    """What the values, each once, look like, helped by the name of file, key or band."""
    known = set(values.tolist())
    classes = known <= set(range(len(SCL_CLASSES)))
    if classes and "scl" in re.findall(r"[a-z]+", named.lower()):
        return "scl"
    if known <= {0.0, 1.0} or known <= {0.0, 255.0}:
        return "boolean"
    if classes and max(known) > 4:  # other classifications, of cloud and shadow alone, end there
        return "scl"
    if min(known) >= 0 and max(known) <= 1:
        return "trust"
    raise InputError(
        f"the {source} holds {len(known)} values from {min(known):g} to {max(known):g}, which look neither like a"
        " boolean mask (0 and 1, or 0 and 255), a trust map (0..1) nor a scene classification (0 to 11); say which it"
        " is: --mask-kind boolean, trust or scl"
    )


def _read_npz(path: Path, grid: SceneGrid, tiles: int) -> tuple[FloatArray, str]:
    """Values (N*H, W) of an .npz, and the name of the array."""
    with open_npz(path) as arrays:
        alone = arrays.names[0] if len(arrays.names) == 1 else None
        key = next((key for key in MASK_KEYS if key in arrays), alone)
        if key is None:
            raise InputError(
                f"{path} holds {listed(arrays.names) or 'no arrays'}; expected one of {listed(MASK_KEYS)}:"
                " np.savez(path, mask=array)"
            )
        data, (height, width) = arrays.numbers(key, boolean=True), (grid.height // tiles, grid.width)
        if data.size != grid.height * width or data.shape[-2:] != (height, width) or data.ndim > 4:
            raise InputError(
                f"{path}: {key} has shape {data.shape}; expected ({height},{width}), or ({tiles},{height},{width}) for"
                " a batch, as the image has"
            )
        own = checked_grid(str(path), *grid.size, *arrays.georeference())
    if not own.same_as(grid):
        raise InputError(f"the mask {path} is {own} and the scene {grid}; expected one grid: resample it")
    return data.reshape(grid.size), key


def _on_grid(dataset: Any, grid: SceneGrid, nodata: float | None, label: str, stack: ExitStack) -> Any:
    """The dataset, or a view of it on the grid, NaN outside."""
    own = grid_of(dataset)
    if own.same_as(grid):
        return dataset
    if not (own.located and grid.located):
        raise InputError(
            f"the {label} is {own} and the scene {grid}; expected one size and transform, or a georeference on both so"
            " that the mask can be brought onto the scene's grid: name the CRS with gdal_edit.py -a_srs EPSG:..."
        )
    # The middles of the grid's outermost pixels, at 21 places a side, have to lie in the mask.
    down, across = (np.linspace(0.5, length - 0.5, 21) for length in grid.size)
    rim = [(x, y) for y in down for x in across if y in (down[0], down[-1]) or x in (across[0], across[-1])]
    at = grid.points_in(own, rim)
    if at is None or not all(((at[0] >= 0) & (at[0] <= own.width)) & ((at[1] >= 0) & (at[1] <= own.height))):
        raise InputError(f"the {label} ({own}) does not cover the scene ({grid}); expected one that covers it all")
    return stack.enter_context(warped_view(dataset, grid, "nearest", src_nodata=nodata, dtype="float32"))
