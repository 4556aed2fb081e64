"""Find Sentinel-1 and Sentinel-2 of one place in a STAC catalogue and bring them into the library's units.

In: a STAC API or static catalogue, a place and dates. Out: a ``ScenePair`` of items, and its pixels as lazily read
``xarray.DataArray`` that ``axs_lib.scenes.api`` takes. Needs the extra ``[stac]``.
"""

from __future__ import annotations

import functools
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray
from rasterio.errors import RasterioError
from xarray import DataArray

from axs_lib.bands import DN_PER_REFLECTANCE, OPTICAL_BANDS, SAR_BANDS
from axs_lib.checks import check_choice
from axs_lib.errors import AxionError, InputError, first_line, listed
from axs_lib.io.atomic import atomic_writes, check_output
from axs_lib.io.files import PathLike, check_kept, check_utf8
from axs_lib.io.formats import FloatArray
from axs_lib.io.masks import scl_trust
from axs_lib.io.pixels import S1_UNITS, TRUST
from axs_lib.io.products import open_source
from axs_lib.io.raster import band_name
from axs_lib.io.results import SAR, CogWriter, Layer, optical_layer
from axs_lib.io.safe import OFFSET_BASELINE, OFFSET_DN
from axs_lib.io.stac import parse_date
from axs_lib.io.warp import MARGIN_PX, to_db
from axs_lib.scenes.stream import WINDOW_ROWS

if TYPE_CHECKING:
    from pystac import Asset, Catalog, Item

Bounds = tuple[float, float, float, float]

SAR_COLLECTION, OPTICAL_COLLECTION = "sentinel-1-rtc", "sentinel-2-l2a"
CHUNK_COLUMNS = 2048
COVERS = 0.99  # of the best coverage: less than that is not worth a nearer day
# Of Earth Search: the offset that an asset declares is in its pixels already.
_OFFSET_GONE = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")


@dataclass(frozen=True)
class ScenePair:
    """Items of one place: Sentinel-2 of one day, and the Sentinel-1 pass nearest to it."""

    s1: tuple[Item, ...]  # of the pass, the nearest frame first
    s2: tuple[Item, ...]  # of the day, the least cloudy first
    bounds: Bounds  # west, south, east, north in degrees
    clear: float  # share of the place that the day shows clear, by footprints and cloud cover, 0 to 1

    @property
    def date(self) -> str:
        """Day of the optical image, in ISO form."""
        return _moment(self.s2[0]).date().isoformat()

    @property
    def sar_date(self) -> str:
        """Day of the SAR image, in ISO form."""
        return _moment(self.s1[0]).date().isoformat()

    @property
    def tags(self) -> dict[str, str]:
        """Which items the pixels come from, for file tags."""
        items = {"AXS_S1_ITEMS": self.s1, "AXS_S2_ITEMS": self.s2}
        return {key: listed(item.id for item in each) for key, each in items.items()}


@dataclass(frozen=True)
class PairArrays:
    """The pixels (band, y, x) of a pair, read when they are asked for; each on a grid of its own products.

    Trust, on the grid of ``opt_v2``, is 1 where the scene classification says clear; None where there is none.
    """

    s1: DataArray  # VV, VH in dB, NaN where there is no data
    opt_v2: DataArray  # B02, B03, B04, B08 in DN, NaN where there is no data
    trust: DataArray | None
    date: str  # day of the optical image
    tags: dict[str, str]  # items the pixels come from
    sources: tuple[str, ...] = ()  # addresses or paths of the items' files


@contextmanager
def _readable(what: str = "an item of the catalogue") -> Iterator[None]:
    """Make an AxionError of a catalogue, or an item's footprint, scale or grid that is none, whoever meets it."""
    try:
        yield
    except AxionError:
        raise
    except Exception as error:  # of half a dozen libraries
        raise AxionError(f"{what} cannot be read as STAC ({type(error).__name__}: {first_line(error)})") from error


@_readable()
def find_pair(
    catalog: PathLike | Catalog,
    bounds: Sequence[float],
    dates: str,
    *,
    sar_collection: str = SAR_COLLECTION,
    optical_collection: str = OPTICAL_COLLECTION,
) -> ScenePair:
    """Find the day that shows most of a place clear, and the Sentinel-1 pass nearest to it.

    The catalogue is the address of a STAC API, address or path of a static one, or one that is open; for a service that
    signs its links, such as Planetary Computer, ``pystac_client.Client.open(url, modifier=...)``. Bounds are west,
    south, east, north in degrees; dates a day, or first and last as ``2021-07-01/2021-07-31``; also moments. The
    collections are of geocoded backscatter and of Sentinel-2 L2A.

    Raises InputError: bounds or dates that cannot be, or nothing was found; or AxionError: the extra is not installed,
    or the catalogue cannot be read.
    """
    if not (len(bounds) == 4 and -180 <= bounds[0] < bounds[2] <= 180 and -90 <= bounds[1] < bounds[3] <= 90):
        raise InputError(f"the bounds are {listed(bounds)}; expected west, south, east, north in degrees")
    west, south, east, north = map(float, bounds)
    place, span = (west, south, east, north), _span(dates)
    bands = {sar_collection: SAR_BANDS, optical_collection: OPTICAL_BANDS}
    found = _search(catalog, bands, place, span)
    for name, items in found.items():
        if not items:
            raise InputError(
                f"{_label(catalog)} has no item of {name} with {listed(bands[name])} within {listed(place)} (west,"
                f" south, east, north) in {dates}; expected some: widen --bounds or --dates, or name another collection"
            )
    days = _groups(found[optical_collection], lambda item: _moment(item).date())
    clear = {day: _coverage(items, place) * (1 - _cloud_cover(items) / 100) for day, items in sorted(days.items())}
    best = max(clear, key=lambda day: clear[day])
    s2 = tuple(sorted(days[best], key=lambda item: (_cloud_cover([item]), item.id)))

    def apart(item: Item) -> timedelta:
        return abs(_moment(item) - _moment(s2[0]))

    passes = _groups(
        found[sar_collection], lambda item: (_moment(item).date(), item.properties.get("sat:orbit_state"))
    ).values()
    share = [_coverage(items, place) for items in passes]
    enough = [items for items, part in zip(passes, share, strict=True) if part >= COVERS * max(share)]
    s1 = min(enough, key=lambda items: min(map(apart, items)))
    return ScenePair(tuple(sorted(s1, key=apart)), s2, place, clear[best])


@_readable()
def load_pair(
    pair: ScenePair, *, crs: str | None = None, resolution: float | None = None, s1_unit: str = "auto"
) -> PairArrays:
    """The pixels of a pair in the library's units; nothing but metadata is read before they are asked for.

    Scale and offset are those that each asset declares. A Sentinel-2 asset that declares none holds DN, from which 1000
    are taken where its item has processing baseline 04.00 or later, unless the item says that this was done.

    An item of ``pair`` that lacks a band, or says nothing of its grid, is an InputError. The optical grid is that of
    the items, or has another ``crs`` and ``resolution`` in its units. ``s1_unit`` is ``"db"``, ``"power"``,
    ``"amplitude"``, or with ``"auto"`` the unit that the items declare, else power.
    """
    check_choice("s1_unit", s1_unit, S1_UNITS)
    optical = [(item, _band_assets(item, OPTICAL_BANDS)) for item in pair.s2]
    sar = [(item, _band_assets(item, SAR_BANDS)) for item in pair.s1]

    # 1. The optical image, mosaicked in DN, and the scene classification of the same items.
    wanted: dict[str, Any] = {k: v for k, v in {"crs": crs, "resolution": resolution}.items() if v is not None}
    place = _grid_of(*optical[0], bbox=pair.bounds, **wanted)
    images = [_to_dn(item, keys, _read(item, keys, place)) for item, keys in optical]
    classes = [_best_asset(item, lambda key, _: "scl" in re.findall("[a-z]+", key.lower())) for item in pair.s2]
    trust = None
    if all(classes):
        given = [_read(item, {TRUST[0]: str(key)}, place) for item, key in zip(pair.s2, classes, strict=True)]
        trust = _mosaic(list(map(_trust, given, images))).fillna(0)

    # 2. The SAR on its own grid: the scene way warps it, in linear power.
    own = _grid_of(*sar[0], geopolygon=place.pad(MARGIN_PX).extent)
    backscatter = [_to_db(item, keys, _read(item, keys, own), s1_unit) for item, keys in sar]
    sources = tuple(map(str, (a.get_absolute_href() for i in (*pair.s1, *pair.s2) for a in i.assets.values())))
    for source in sources:
        check_utf8(source, "the asset")
    return PairArrays(_mosaic(backscatter), _mosaic(images), trust, pair.date, pair.tags, sources)


def save_pair(arrays: PairArrays, folder: PathLike, *, overwrite: bool = False) -> list[Path]:
    """Read a pair to the end, row by row, into COGs in a folder: ``s1.tif``, ``s2.tif`` and ``trust.tif``.

    Raises InputError: another unit of the SAR, or a file of the catalogue would be replaced; AxionError: pixels that
    cannot be read; OutputError: a file exists, or the disk refuses. Nothing is then left under any name.
    """
    kinds = {SAR: arrays.s1, optical_layer("s2"): arrays.opt_v2}
    if arrays.trust is not None:
        kinds[Layer("trust", TRUST, "float32", np.nan, "1")] = arrays.trust
    targets = [check_output(Path(folder, f"{layer.name}.tif"), overwrite) for layer in kinds]
    check_kept(targets, arrays.sources)
    Path(folder).mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        writers = []
        for (layer, array), target in zip(kinds.items(), targets, strict=True):
            source = open_source(array, layer.bands, stack)
            writers.append(CogWriter(layer, source.grid, target, stack))
            for rows in source.grid.strips(WINDOW_ROWS):
                try:
                    data = source.read(rows)
                except (RasterioError, OSError) as error:
                    raise AxionError(f"the pixels of the pair cannot be read ({error}); try again") from error
                writers[-1].write(rows.top, data)
        with atomic_writes(overwrite) as place:
            for writer in writers:
                writer.finish(arrays.tags | {"AXS_DATE": arrays.date}, place(writer.target))
    return targets


def _open(catalog: PathLike | Catalog) -> Catalog:
    import pystac
    from pystac_client import Client
    from pystac_client.warnings import NoConformsTo

    if not isinstance(catalog, str | os.PathLike):
        return catalog
    address = os.fspath(catalog)
    if not re.match(r"https?://", address):
        return pystac.Catalog.from_file(address)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoConformsTo)  # a static catalogue, which is walked
        return Client.open(address)


def _items(catalog: Catalog, collection: str, bounds: Bounds, span: tuple[datetime, datetime]) -> list[Item]:
    """Items of a collection that meet place and dates; an API searches, a static catalogue is walked."""
    from pystac_client import Client, ConformanceClasses

    if isinstance(catalog, Client) and catalog.conforms_to(ConformanceClasses.ITEM_SEARCH):
        return list(catalog.search(collections=[collection], bbox=bounds, datetime=list(span)).items())
    branch = next((child for child in catalog.get_collections() if child.id == collection), catalog)
    return [
        item
        for item in branch.get_items(recursive=True)
        if item.collection_id == collection and span[0] <= _moment(item) <= span[1] and _coverage([item], bounds) > 0
    ]


def _coverage(items: Sequence[Item], bounds: Bounds) -> float:
    """Share of the bounds under the items' footprints."""
    import shapely
    import shapely.affinity

    place = shapely.box(*bounds)
    shapes = [shapely.geometry.shape(item.geometry) for item in items if item.geometry is not None]
    # A footprint across 180 degrees may be written on either side of it.
    seen = [shapely.affinity.translate(shapely.make_valid(each), turn) for each in shapes for turn in (-360, 0, 360)]
    return float(shapely.union_all(seen).intersection(place).area / place.area)


def _groups(items: Sequence[Item], key: Callable[[Item], Any]) -> dict[Any, list[Item]]:
    groups: dict[Any, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def _cloud_cover(items: Sequence[Item]) -> float:
    """Mean cloud cover in percent; an item that says nothing may be all cloud."""
    covers = [item.properties.get("eo:cloud_cover") for item in items]
    return float(np.mean([100.0 if cover is None else float(cover) for cover in covers]))


def _moment(item: Item) -> datetime:
    """When an item was taken, in UTC."""
    moment = item.datetime or item.common_metadata.start_datetime
    if moment is None:
        raise InputError(f"the item {item.id} has no datetime; expected one, as every STAC Item has")
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _span(dates: str) -> tuple[datetime, datetime]:
    """First and last moment; a day as the end is meant whole."""
    first, _, last = (part.strip() for part in dates.partition("/"))
    start, end = parse_date(first), parse_date(last or first)
    if end.time() == time(0) and len(last or first) <= len("2021-07-14"):
        end += timedelta(days=1, microseconds=-1)
    if end < start:
        raise InputError(f"the dates are {dates!r}; expected the first before the last, as 2021-07-01/2021-07-31")
    return start, end


def _label(catalog: PathLike | Catalog) -> str:
    return os.fspath(catalog) if isinstance(catalog, str | os.PathLike) else f"the catalogue {catalog.id}"


def _search(
    catalog: PathLike | Catalog, bands: Mapping[str, tuple[str, ...]], place: Bounds, span: tuple[datetime, datetime]
) -> dict[str, list[Item]]:
    """Items of each collection; AxionError: the extra is missing or the catalogue cannot be read."""
    try:
        import odc.stac  # noqa: F401
        import pystac_client  # noqa: F401
    except ImportError as error:
        raise AxionError(
            "searching a STAC catalogue needs pystac-client and odc-stac, which are not installed:"
            " pip install 'axion-sat[stac]'"
        ) from error
    with _readable(_label(catalog)):
        opened = _open(catalog)
        # An item of one polarisation is none for this purpose.
        return {
            name: [item for item in _items(opened, name, place, span) if all(_assets(item, wanted).values())]
            for name, wanted in bands.items()
        }


def _assets(item: Item, wanted: tuple[str, ...]) -> dict[str, str | None]:
    """The asset key of each band, where there is one."""
    return {band: _best_asset(item, functools.partial(_shows, band)) for band in wanted}


def _band_assets(item: Item, wanted: tuple[str, ...]) -> dict[str, str]:
    """The asset key of each band; all must be there."""
    found = _assets(item, wanted)
    if missing := [band for band, key in found.items() if key is None]:
        raise InputError(
            f"the item {item.id} has the assets {listed(item.assets)} and none for {listed(missing)}; expected assets"
            f" for {listed(wanted)}, named like the bands or their colours"
        )
    return {band: str(key) for band, key in found.items()}


def _best_asset(item: Item, fits: Callable[[str, Asset], bool]) -> str | None:
    """Of the assets that fit, the finest, else the one of the shortest name."""

    def rank(key: str) -> tuple[float, int]:
        sides = [fields.get(name) for fields in _declared(item.assets[key]) for name in ("gsd", "spatial_resolution")]
        return min((float(side) for side in sides if side is not None), default=float("inf")), len(key)

    return min((key for key, asset in item.assets.items() if fits(key, asset)), key=rank, default=None)


def _shows(band: str, key: str, asset: Asset) -> bool:
    """Whether an asset is a band by its key, else by the one band that it declares."""
    names = [key]
    fields = asset.to_dict()
    bands = fields.get("bands") or fields.get("eo:bands") or []
    if len(bands) == 1:
        names += [bands[0].get(name) for name in ("name", "eo:common_name", "common_name")]
    return next((name for text in names if (name := band_name(text))), None) == band


def _declared(asset: Asset) -> list[Mapping[str, Any]]:
    """Where an asset may say what its numbers mean: on itself, on its band, or as extension versions before 2 did."""
    fields = asset.to_dict()
    return [fields, *(fields.get("bands") or [])[:1], *(fields.get("raster:bands") or [])[:1]]


def _scaling(asset: Asset) -> tuple[float, float] | None:
    """Scale and offset that an asset declares, or None."""
    for fields in _declared(asset):
        for scale, offset in (("raster:scale", "raster:offset"), ("scale", "offset")):
            if scale in fields or offset in fields:
                return float(fields.get(scale, 1.0)), float(fields.get(offset, 0.0))
    return None


def _grid_of(item: Item, keys: Mapping[str, str], **where: Any) -> Any:
    """The odc GeoBox of a place on an item's own pixel grid, or on the one that is asked for."""
    import odc.stac

    try:
        return odc.stac.load([item], bands=list(keys.values()), chunks={}, **where).odc.geobox
    except ValueError as error:
        raise InputError(
            f"the item {item.id} says nothing of its grid ({error}); expected the projection extension, or crs and"
            " resolution"
        ) from error


def _read(item: Item, keys: Mapping[str, str], geobox: Any) -> DataArray:
    """Raw values (band, y, x) of an item on a grid as float32, NaN where there is no data, bands by our names."""
    import odc.stac

    chunks: dict[str, Any] = {"y": WINDOW_ROWS, "x": CHUNK_COLUMNS}
    found = odc.stac.load([item], bands=list(keys.values()), geobox=geobox, chunks=chunks, resampling="nearest")
    bands = []
    for key in keys.values():
        raw = found[key].isel(time=0, drop=True)
        nodata = raw.attrs.get("nodata", 0 if raw.dtype.kind in "iu" else None)
        values = raw.astype("float32").drop_attrs(deep=False)
        bands.append(values if nodata is None or np.isnan(nodata) else values.where(raw != nodata))
    names = xarray.Variable("band", list(keys))
    stack: DataArray = xarray.concat(bands, dim=names, coords="minimal", compat="override")
    # 0 in all bands lies outside of the swath, whatever the type and whether declared or not.
    return stack.where((stack != 0).any("band")) if len(bands) > 1 else stack


def _to_dn(item: Item, keys: Mapping[str, str], raw: DataArray) -> DataArray:
    """Reflectance x 10000 of the raw values of a Sentinel-2 item."""
    gone = any(item.properties.get(name) is True for name in _OFFSET_GONE)
    baseline = str(item.properties.get("s2:processing_baseline", item.properties.get("processing:version", "")))
    late = bool(re.fullmatch(r"\d+(\.\d+)?", baseline)) and 100 * float(baseline) >= OFFSET_BASELINE
    of_dn = 1 / DN_PER_REFLECTANCE, (-OFFSET_DN if late else 0.0) / DN_PER_REFLECTANCE  # where nothing is declared
    declared = [_scaling(item.assets[key]) or of_dn for key in keys.values()]
    in_dn = [(scale * DN_PER_REFLECTANCE, 0.0 if gone else offset * DN_PER_REFLECTANCE) for scale, offset in declared]
    return _scaled(raw, in_dn)


def _to_db(item: Item, keys: Mapping[str, str], raw: DataArray, unit: str) -> DataArray:
    """Backscatter in dB of the raw values of a Sentinel-1 item."""
    values = _scaled(raw, [_scaling(item.assets[key]) or (1.0, 0.0) for key in keys.values()])
    units = {str(fields.get("unit", "")).lower() for k in keys.values() for fields in _declared(item.assets[k])}
    if unit == "db" or (unit == "auto" and "db" in units):
        return values

    def convert(power: FloatArray) -> FloatArray:
        seen = power[np.isfinite(power)]
        if seen.size and np.median(seen) < -1:
            raise InputError(
                f"the SAR of {item.id} was taken for linear power and half of it is below {np.median(seen):.4g};"
                " expected --s1-unit db (s1_unit='db')"
            )
        return to_db(power * power if unit == "amplitude" else power)

    return xarray.apply_ufunc(convert, values, dask="parallelized", output_dtypes=[np.float32], keep_attrs=True)


def _scaled(raw: DataArray, scalings: Sequence[tuple[float, float]]) -> DataArray:
    """Each band times its factor plus its shift."""
    factor, shift = np.array(scalings).T[..., None, None]  # (2, band, y, x)
    return (raw * factor + shift).astype("float32")


def _trust(classes: DataArray, image: DataArray) -> DataArray:
    """1 where the classes say clear and 0 where not, NaN where the item has no image."""
    clear = functools.partial(scl_trust, source="the scene classification")
    trust = xarray.apply_ufunc(clear, classes, dask="parallelized", output_dtypes=[np.float32])
    return trust.where(image.notnull().any("band"))


def _mosaic(images: Sequence[DataArray]) -> DataArray:
    """The first image, and where it has no data the next."""
    return functools.reduce(lambda upper, lower: upper.fillna(lower), images)
