"""Sentinel-1 and -2 are found in a catalogue on disk, scaled as their items declare, and go through a scene."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
import rioxarray  # noqa: F401  # gives arrays their georeference
from pystac_client import Client, ConformanceClasses
from rasterio.transform import Affine, array_bounds
from rasterio.warp import transform_bounds, transform_geom
from shapely import box
from shapely.geometry import mapping

from axs_lib.bands import OPTICAL_BANDS, SAR_BANDS
from axs_lib.errors import AxionError, InputError, OutputError
from axs_lib.io.grid import SceneGrid
from axs_lib.io.masks import MaskFile
from axs_lib.scenes.api import ground_scene
from axs_lib.scenes.search import ScenePair, find_pair, load_pair, save_pair
from axs_lib.tilegrid import Tile
from tests.cli.conftest import run_axs

from .conftest import CRS, GRID, PLACE, BoxGrounder, read_tiff, scene_arrays, write_scene

SIDE = 220
DB, DN = scene_arrays(SIDE, SIDE)
S1 = "sentinel-1-rtc"
COLOURS = dict(zip(OPTICAL_BANDS, ("blue", "green", "red", "nir"), strict=True))


class Catalogue:
    """A static catalogue that grows item by item; pixels lie on the 10 m lattice of ``CORNER``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.catalog = pystac.Catalog("local", "made by a test")
        everywhere = pystac.Extent(
            pystac.SpatialExtent([[-180, -90, 180, 90]]),
            pystac.TemporalExtent([[datetime(2021, 1, 1, tzinfo=UTC), None]]),
        )
        for name in ("sentinel-1-rtc", "sentinel-2-l2a"):
            self.catalog.add_child(pystac.Collection(name, name, everywhere))

    def add(
        self,
        name: str,
        date: str,
        images: dict[str, np.ndarray],
        about: dict[str, Any] | None = None,
        *,
        left: int = 0,
        collection: str = "sentinel-2-l2a",
        **properties: Any,
    ) -> pystac.Item:
        """Add an item whose assets (H,W) begin ``left`` px east of the corner; ``about`` is what each declares."""
        place = PLACE * Affine.translation(left, 0)
        height, width = next(iter(images.values())).shape
        corners = array_bounds(height, width, place)
        item = pystac.Item(
            name,
            transform_geom(CRS, "EPSG:4326", mapping(box(*corners))),
            list(transform_bounds(CRS, "EPSG:4326", *corners)),
            datetime.fromisoformat(date).replace(tzinfo=UTC),
            {"proj:code": CRS, "proj:shape": [height, width], "proj:transform": list(place)[:6], **properties},
            stac_extensions=["https://stac-extensions.github.io/projection/v2.0.0/schema.json"],
        )
        for key, image in images.items():
            kind, nodata = image.dtype.name, np.nan if image.dtype.kind == "f" else 0
            path = self.folder / "pixels" / name / f"{key}.tif"
            write_scene(path, image[None], (key,), dtype=kind, transform=place, nodata=nodata)
            asset = pystac.Asset(str(path), media_type=pystac.MediaType.COG, roles=["data"])
            declared = {"data_type": kind, "nodata": 0 if nodata == 0 else "nan"}
            asset.extra_fields |= declared | ({} if key == "scl" else about or {})
            item.add_asset(key, asset)
        self.catalog.get_child(collection).add_item(item)
        return item

    def save(self) -> Path:
        self.catalog.normalize_and_save(str(self.folder / "stac"), pystac.CatalogType.SELF_CONTAINED)
        return self.folder / "stac" / "catalog.json"


def optical(image: np.ndarray, dtype: str = "uint16") -> dict[str, np.ndarray]:
    return {COLOURS[band]: values.astype(dtype) for band, values in zip(OPTICAL_BANDS, image, strict=True)}


def sar(image: np.ndarray) -> dict[str, np.ndarray]:
    return {name.lower(): values for name, values in zip(SAR_BANDS, image, strict=True)}


def power(db: np.ndarray) -> np.ndarray:
    return (10 ** (db / 10)).astype("float32")


def inside(margin: int = 30) -> tuple[float, float, float, float]:
    """Bounds in degrees of a part of the scene, ``margin`` px from its sides."""
    part = SceneGrid(SIDE, SIDE, CRS, tuple(PLACE)[:6]).part(Tile(margin, margin, SIDE - margin, SIDE - margin))
    return transform_bounds(CRS, "EPSG:4326", *part.bounds())


def window(array: Any, image: np.ndarray) -> np.ndarray:
    """The part of an image that an array on the same lattice lies on."""
    left, top = (round(at) for at in ~PLACE * (array.rio.transform().c, array.rio.transform().f))
    height, width = array.shape[-2:]
    assert left >= 0 and top >= 0 and min(height, width) > 100
    return image[..., top : top + height, left : left + width]


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return Catalogue(tmp_path)


@pytest.fixture
def full(catalogue: Catalogue) -> Iterator[Path]:
    """Two days of Sentinel-2 and three passes of Sentinel-1, of the values that the tests know."""
    scl = np.full((SIDE, SIDE), 4, dtype="uint8")
    scl[60:90, 60:100] = 9
    declared = {"raster:scale": 1e-4, "raster:offset": -0.1}
    catalogue.add("cloudy", "2021-07-02T10:00:00", optical(DN + 3000), declared, **{"eo:cloud_cover": 80.0})
    catalogue.add(
        "clear", "2021-07-07T10:00:00", optical(DN + 1000) | {"scl": scl}, declared, **{"eo:cloud_cover": 5.0}
    )
    catalogue.add("later", "2021-08-07T10:00:00", optical(DN), declared, **{"eo:cloud_cover": 0.0})
    for name, date in (("far", "2021-07-01T05:00:00"), ("near", "2021-07-08T17:00:00")):
        catalogue.add(name, date, sar(power(DB if name == "near" else DB - 3)), collection=S1)
    catalogue.add("half", "2021-07-07T05:00:00", sar(power(DB - 9)), left=SIDE // 2, collection=S1)
    yield catalogue.save()


def test_the_clearest_day_and_the_nearest_pass_that_covers_the_place(full: Path) -> None:
    pair = find_pair(full, inside(), "2021-07-01/2021-07-31")
    assert [item.id for item in pair.s2] == ["clear"] and pair.date == "2021-07-07"
    assert [item.id for item in pair.s1] == ["near"]
    assert pair.clear == pytest.approx(0.95, abs=0.001)
    assert find_pair(full, inside(), "2021-07-01/2021-08-07").date == "2021-08-07"  # the last day is whole
    assert find_pair(full, inside(), "2021-07-01/2021-07-02").clear == pytest.approx(0.2, abs=0.001)


def test_pixels_come_in_the_librarys_units(full: Path) -> None:
    arrays = load_pair(find_pair(full, inside(), "2021-07-07/2021-07-09"))
    assert arrays.s1.chunks is not None and arrays.opt_v2.chunks is not None  # nothing was read yet
    assert list(arrays.s1["band"].values) == list(SAR_BANDS)
    assert list(arrays.opt_v2["band"].values) == list(OPTICAL_BANDS)
    np.testing.assert_array_equal(arrays.opt_v2.values, window(arrays.opt_v2, DN))
    np.testing.assert_allclose(arrays.s1.values, window(arrays.s1, DB), atol=1e-4)
    assert arrays.trust is not None
    expected = np.ones((SIDE, SIDE))
    expected[60:90, 60:100] = 0
    np.testing.assert_array_equal(arrays.trust.values[0], window(arrays.trust, expected))
    assert arrays.opt_v2.rio.crs == rasterio.crs.CRS.from_string(CRS)


@pytest.mark.parametrize("odd", ["nearer_with_VV_alone", "cloud_cover_null", "beyond_180_degrees"])
def test_odd_items_are_passed_over_or_found(catalogue: Catalogue, odd: str) -> None:
    items = [
        catalogue.add("s2", "2021-07-07T10:00:00", optical(DN), **{"eo:cloud_cover": 90.0}),
        catalogue.add("s1", "2021-07-09", sar(power(DB)), collection=S1),
    ]
    place = inside()
    if odd == "nearer_with_VV_alone":
        catalogue.add("odd", "2021-07-07T11:00:00", {"vv": power(DB[0])}, collection=S1)
    elif odd == "cloud_cover_null":  # unknown: it may be all cloud
        catalogue.add("odd", "2021-07-08", optical(DN), **{"eo:cloud_cover": None})
    else:  # footprints from -180.05 on of a place at 180
        for item in items:
            item.geometry = mapping(box(-180.05, 10, -179.9, 10.1))
            item.bbox = [-180.05, 10.0, -179.9, 10.1]
        place = (179.96, 10.02, 179.99, 10.08)
    pair = find_pair(catalogue.save(), place, "2021-07-01/2021-07-31")
    assert ([item.id for item in pair.s1], [item.id for item in pair.s2]) == (["s1"], ["s2"])


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_zero_in_all_bands_is_nodata_declared_or_not(catalogue: Catalogue, dtype: str) -> None:
    dn = DN.copy()
    dn[:, :100], dn[0, 120] = 0, 0
    for asset in catalogue.add("s2", "2021-07-07", optical(dn, dtype)).assets.values():
        del asset.extra_fields["nodata"]
    catalogue.add("s1", "2021-07-07", sar(power(DB)), collection=S1)
    found = load_pair(find_pair(catalogue.save(), inside(), "2021-07-07")).opt_v2
    blank = window(found, (dn == 0).all(axis=0))
    np.testing.assert_array_equal(np.isnan(found.values).all(axis=0), blank)
    assert 0 < blank.mean() < 1


BAND = {"bands": [{"name": "b", "raster:scale": 2e-4, "raster:offset": 0.01}]}
OLD = {"raster:bands": [{"scale": 2e-4, "offset": 0.01, "nodata": 0}]}


@pytest.mark.parametrize(
    ("about", "properties", "factor", "shift"),
    [
        (BAND, {}, 2.0, 100.0),
        (OLD, {}, 2.0, 100.0),
        ({"raster:scale": 1e-4, "raster:offset": -0.1}, {"earthsearch:boa_offset_applied": True}, 1.0, 0.0),
        ({"raster:scale": 1e-4, "raster:offset": -0.1}, {"earthsearch:boa_offset_applied": False}, 1.0, -1000.0),
        ({}, {}, 1.0, 0.0),
        ({}, {"s2:processing_baseline": "02.14"}, 1.0, 0.0),
        ({}, {"s2:processing_baseline": "05.10"}, 1.0, -1000.0),
        ({"raster:scale": 1e-4}, {"s2:processing_baseline": "05.10"}, 1.0, 0.0),
    ],
)
def test_scale_and_offset_are_those_that_an_item_declares(
    catalogue: Catalogue, about: dict[str, Any], properties: dict[str, Any], factor: float, shift: float
) -> None:
    dn = DN.copy()
    dn[:, 40:50, 40:60] = 0  # nodata
    catalogue.add("s2", "2021-07-07", optical(dn), about, **properties)
    catalogue.add("s1", "2021-07-07", sar(power(DB)), collection=S1)
    found = load_pair(find_pair(catalogue.save(), inside(), "2021-07-07")).opt_v2
    expected = window(found, np.where(dn == 0, np.nan, dn * factor + shift))
    np.testing.assert_allclose(found.values, expected, rtol=1e-6)


def test_items_of_a_day_are_joined_each_with_its_own_offset(catalogue: Catalogue) -> None:
    half = SIDE // 2
    catalogue.add(
        "west", "2021-07-07T10:00:00", optical(DN[..., :half] + 1000), {"raster:scale": 1e-4, "raster:offset": -0.1}
    )
    catalogue.add("east", "2021-07-07T10:00:20", optical(DN[..., half - 20 :]), left=half - 20)
    catalogue.add("s1", "2021-07-07", sar(power(DB)), collection=S1)
    pair = find_pair(catalogue.save(), inside(), "2021-07-07")
    assert len(pair.s2) == 2
    arrays = load_pair(pair)
    np.testing.assert_array_equal(arrays.opt_v2.values, window(arrays.opt_v2, DN))
    assert arrays.trust is None


def test_sar_in_db_is_told_by_its_items_or_by_the_user(catalogue: Catalogue) -> None:
    catalogue.add("s2", "2021-07-07", optical(DN))
    catalogue.add("told", "2021-07-07", sar(DB), {"unit": "dB"}, collection=S1)
    catalogue.add("quiet", "2021-06-07", sar(DB), collection=S1)
    catalogue.add("s2_june", "2021-06-07", optical(DN))
    path = catalogue.save()
    told = load_pair(find_pair(path, inside(), "2021-07-07")).s1
    np.testing.assert_array_equal(told.values, window(told, DB))
    quiet = find_pair(path, inside(), "2021-06-07")
    with pytest.raises(InputError, match="s1_unit='db'"):
        load_pair(quiet).s1.load(scheduler="synchronous")
    np.testing.assert_array_equal(load_pair(quiet, s1_unit="db").s1.values, told.values)
    with pytest.raises(InputError, match="s1_unit is 'linear'; expected one of auto, db, power, amplitude"):
        load_pair(quiet, s1_unit="linear")


def test_another_grid_on_request(full: Path) -> None:
    arrays = load_pair(find_pair(full, inside(), "2021-07-07/2021-07-09"), crs="EPSG:3035", resolution=20)
    assert arrays.opt_v2.rio.crs.to_epsg() == 3035 and arrays.opt_v2.rio.transform().a == 20
    assert arrays.s1.rio.crs.to_epsg() == 32633
    result = ground_scene(BoxGrounder(), arrays.s1, arrays.opt_v2, grid=GRID).arrays["opt_v3"]
    seen = arrays.opt_v2.notnull().all("band").values
    assert seen.mean() > 0.9 and result.notnull().all("band").values[seen].all()  # no corner lacks SAR


@pytest.mark.parametrize(
    ("bounds", "dates", "options", "message"),
    [
        (inside(), "2021-07-01", {}, "no item of sentinel-2-l2a with"),
        (inside(), "2021-07-07", {"sar_collection": "sentinel-1-grd"}, "no item of sentinel-1-grd with"),
        ((15.1, 54.0, 15.0, 54.1), "2021-07-07", {}, "west, south, east, north"),
        (inside(), "2021-07-07/2021-07-01", {}, "the first before the last"),
        (inside(), "July", {}, "expected for example 2021-07-14"),
    ],
)
def test_what_cannot_be_is_said(full: Path, bounds: Any, dates: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_pair(full, bounds, dates, **options)


def test_what_is_no_catalogue_or_lacks_bands(full: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    for name in ("none.json", "broken.json"):
        with pytest.raises(AxionError, match="cannot be read as STAC"):
            find_pair(tmp_path / name, inside(), "2021-07-07")
    pair = find_pair(full, inside(), "2021-07-07/2021-07-09")
    with pytest.raises(InputError, match="none for VV, VH"):
        load_pair(ScenePair(pair.s2, pair.s2, pair.bounds, 1.0))
    item = full.parent / "sentinel-2-l2a" / "clear" / "clear.json"
    text = item.read_text()
    for odd in (text.replace(": 5.0,", ': "no",'), text.replace(": 0.0001", ": null")):
        item.write_text(odd)
        with pytest.raises(AxionError, match="an item of the catalogue cannot be read"):
            load_pair(find_pair(full, inside(), "2021-07-07/2021-07-09"))


def test_an_api_searches_for_itself(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = list(pystac.Catalog.from_file(str(full)).get_items(recursive=True))
    asked = []

    def search(client: Client, *, collections: list[str], **where: Any) -> Any:
        asked.append((collections, where))
        return SimpleNamespace(items=lambda: [i for i in items if i.collection_id in collections and i.id != "later"])

    monkeypatch.setattr(Client, "search", search)
    client = Client("api", "an API")
    client.add_conforms_to(ConformanceClasses.ITEM_SEARCH.name)
    pair = find_pair(client, inside(), "2021-07-01/2021-07-31")
    assert pair.tags == {"AXS_S1_ITEMS": "near", "AXS_S2_ITEMS": "clear"}
    assert [collections for collections, _ in asked] == [["sentinel-1-rtc"], ["sentinel-2-l2a"]]
    start, end = asked[0][1]["datetime"]
    assert (start.isoformat(), end.isoformat()) == ("2021-07-01T00:00:00+00:00", "2021-07-31T23:59:59.999999+00:00")
    assert asked[0][1]["bbox"] == pytest.approx(inside())


def test_a_pair_is_saved_as_files_that_a_scene_takes(full: Path, tmp_path: Path) -> None:
    arrays = load_pair(pair := find_pair(full, inside(), "2021-07-07/2021-07-09"))
    folder = tmp_path / "pair"
    files = save_pair(arrays, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["s1.tif", "s2.tif", "trust.tif"]
    with rasterio.open(folder / "s2.tif") as file:
        assert file.descriptions == OPTICAL_BANDS and file.tags()["AXS_S2_ITEMS"] == "clear"
        np.testing.assert_array_equal(file.read(), window(arrays.opt_v2, DN))
    direct = ground_scene(BoxGrounder(), arrays.s1, arrays.opt_v2, trust=arrays.trust, grid=GRID).arrays["opt_v3"]
    ground_scene(BoxGrounder(), *files[:2], tmp_path / "o.tif", trust=MaskFile(files[2]), grid=GRID)
    np.testing.assert_array_equal(read_tiff(tmp_path / "o.tif"), np.rint(direct.values))
    with pytest.raises(OutputError, match="exists already"):
        save_pair(arrays, folder)
    gone = Path(full).parents[1] / "pixels" / "near" / "vv.tif"
    (gone.parent / "s1.tif").hardlink_to(gone)
    with pytest.raises(InputError, match=r"would replace the input .*vv\.tif"):
        save_pair(arrays, gone.parent, overwrite=True)
    gone.write_bytes(b"gone")
    with pytest.raises(AxionError, match="cannot be read"):
        save_pair(arrays, tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == []
    pair.s1[0].assets["vv"].href = "/no/\udcff.tif"
    with pytest.raises(InputError, match="no UTF-8"):
        load_pair(pair)


def test_the_command_fetches_a_pair(full: Path, tmp_path: Path) -> None:
    where = ",".join(map(str, inside()))
    dates = "2021-07-01/2021-07-31"
    result = run_axs("fetch", full, "--bounds", where, "--dates", dates, "--out", tmp_path / "pair")
    assert "2021-07-07, 95 % clear: clear" in result.stdout and "2021-07-08: near" in result.stdout
    next_step = next(line for line in result.stdout.splitlines() if "axs ground" in line)
    assert f"--s1-product S1RTC --opt-v2 {tmp_path / 'pair' / 's2.tif'}" in next_step
    assert f"--mask {tmp_path / 'pair' / 'trust.tif'} --mask-buffer 5" in next_step and "--variant nano" in next_step
    result = run_axs("fetch", full, "--bounds", "1,2", "--dates", "2021", "--out", "x", code=2)
    assert "LEFT,BOTTOM,RIGHT,TOP" in result.output
