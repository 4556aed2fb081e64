"""What an input is taken for: units, offsets, nodata, band order, products; what is refused, by its name."""

from __future__ import annotations

import functools
import os
import shutil
import struct
import time
import warnings
import zipfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.control import GroundControlPoint
from rasterio.transform import Affine

from axs_lib.bands import OPTICAL_BANDS, SAR_BANDS
from axs_lib.checks import check_pair
from axs_lib.errors import AxionError, InputError
from axs_lib.io.formats import open_raster
from axs_lib.io.pixels import Reading
from axs_lib.io.products import Source, open_source
from axs_lib.io.results import optical_layer, write_layer
from axs_lib.io.safe import ReadingWarning
from axs_lib.terramind.weights import read_metadata, read_state
from tests.products import METADATA, PRODUCT, write_safe

from ..scenes.conftest import PLACE
from ..scenes.conftest import write_tiff as write

H, W = 60, 50


@pytest.fixture
def sar() -> np.ndarray:
    rng = np.random.default_rng(1)
    return (np.array([-11.0, -18.0])[:, None, None] + rng.normal(0, 2, (2, H, W))).astype("float32")


@pytest.fixture
def optical() -> np.ndarray:
    rng = np.random.default_rng(2)
    level = np.array([400, 700, 600, 2500])[:, None, None]
    return (level * (1 + 0.2 * rng.standard_normal((4, H, W)))).clip(60, 9000).astype("uint16")


def opened(what: Any, wanted: tuple[str, ...], **how: Any) -> tuple[Source, np.ndarray]:
    with ExitStack() as stack:
        source = open_source(what, wanted, stack, Reading(**how))
        source.look()
        data = source.read(source.grid.whole)
        source.check_counts()
        return source, data


read_sar = functools.partial(opened, wanted=SAR_BANDS)
read_optical = functools.partial(opened, wanted=OPTICAL_BANDS)


@pytest.mark.parametrize("given", ["auto", "power"])
def test_power_becomes_db_and_a_border_of_zeros_nodata(tmp_path: Path, sar: np.ndarray, given: str) -> None:
    power = 10 ** (sar / 10)
    power[:, :, :10], power[:, 30, 30] = 0, -1e-4
    source, data = read_sar(write(tmp_path / "s1.tif", power, SAR_BANDS), s1_unit=given)
    hole = np.zeros((H, W), bool)
    hole[:, :10] = hole[30, 30] = True
    np.testing.assert_array_equal(np.isnan(data).all(axis=0), hole)
    np.testing.assert_allclose(data[:, ~hole], sar[:, ~hole], atol=1e-4)
    assert source.facts == {"AXS_S1_UNIT": "power"} and "linear power" in source.report()[0]
    assert any("power 0 or less" in note for note in source.report())


@pytest.mark.parametrize(("name", "how"), [("s1", {"s1_unit": "amplitude"}), ("s1_amplitude", {})])
def test_amplitude_is_converted_where_its_name_or_the_user_says_so(
    tmp_path: Path, sar: np.ndarray, name: str, how: dict[str, str]
) -> None:
    _, data = read_sar(write(tmp_path / f"{name}.tif", 10 ** (sar / 20), SAR_BANDS), **how)
    np.testing.assert_allclose(data, sar, atol=1e-4)


def test_products_of_hyp3_planetary_computer_snap_and_earth_engine(tmp_path: Path, sar: np.ndarray) -> None:
    def bands(name: str, values: np.ndarray, nodata: float) -> list[Path]:
        names = zip(SAR_BANDS, values, strict=True)
        return [write(tmp_path / name.format(band), image[None], nodata=nodata) for band, image in names]

    for code, values in (("p", 10 ** (sar / 10)), ("d", sar), ("a", 10 ** (sar / 20))):
        files = bands(f"{code}/S1A_IW_20210714T175000_DVP_RTC10_G_g{code}unem_1A2B_{{}}.tif", values, 0)
        np.testing.assert_allclose(read_sar(files)[1], sar, atol=1e-4)
    planetary = 10 ** (sar / 10)
    planetary[:, :5] = -32768
    data = read_sar(bands("iw-{}.rtc.tiff", planetary, -32768))[1]
    assert np.isnan(data[:, :5]).all() and np.isfinite(data[:, 5:]).all()
    snap = write(tmp_path / "snap.tif", sar[::-1], ("Sigma0_VH_db", "Sigma0_VV_db"))
    np.testing.assert_array_equal(read_sar(snap)[1], sar)
    np.testing.assert_array_equal(read_sar(write(tmp_path / "gee.tif", sar.astype("f8"), SAR_BANDS))[1], sar)


@pytest.mark.parametrize(
    ("change", "how", "message"),
    [
        (lambda s: 10 ** (s / 10), {"s1_unit": "db"}, "--s1-unit power"),
        (lambda s: s, {"s1_unit": "power"}, "--s1-unit db"),
        (lambda s: 10 ** (s / 10) - 0.08, {"s1_unit": "db"}, "linear power with negative pixels"),
        (lambda s: np.round(3000 * 10 ** (s / 20)), {}, "uncalibrated digital numbers"),
        (lambda s: s - 60, {}, "backscatter in dB has one between"),
    ],
)
def test_sar_of_another_unit_is_refused_by_its_name(
    tmp_path: Path, sar: np.ndarray, change: Any, how: Any, message: str
) -> None:
    path = write(tmp_path / "s1.tif", change(sar).astype("float32"), SAR_BANDS)
    with pytest.raises(InputError, match=message):
        read_sar(path, **how)
    read_sar(path, force=True, **how)


@pytest.mark.parametrize("value", [0.0, -60.0, -100.0, -30.0, -9999.0])
def test_a_border_of_one_number_is_nodata(tmp_path: Path, sar: np.ndarray, value: float) -> None:
    sar[:, np.tri(H, W, -20, dtype=bool)] = value  # a corner, as of a swath
    source, data = read_sar(write(tmp_path / "s1.tif", sar, SAR_BANDS))
    np.testing.assert_array_equal(np.isnan(data).all(axis=0), np.tri(H, W, -20, dtype=bool))
    assert any("taken for nodata" in note for note in source.report())


@pytest.mark.parametrize("fill", [-9999.0, -999.0, -3.4028235e38, 200.0, 0.0, -np.inf])
def test_a_few_fill_numbers_of_sar_are_nodata_and_counted(tmp_path: Path, sar: np.ndarray, fill: float) -> None:
    expected = sar.copy()
    sar[:, 10, 10:14], expected[:, 10, 10:14] = fill, np.nan
    source, data = read_sar(write(tmp_path / "s1.tif", sar, SAR_BANDS))
    np.testing.assert_array_equal(data, expected)
    assert any(": 4 " in note for note in source.report())


def test_many_fill_numbers_are_refused(tmp_path: Path, sar: np.ndarray, optical: np.ndarray) -> None:
    sar[:, 10:30:2, 10:30:2] = -9999
    with pytest.raises(InputError, match=r"3\.3 % of the pixels.*gdal_edit"):
        read_sar(write(tmp_path / "s1.tif", sar, SAR_BANDS))
    optical[:, 10:30:2, 10:30:2] = 65535
    with pytest.raises(InputError, match=r"outside of|wrapped around"):
        read_optical(write(tmp_path / "s2.tif", optical, OPTICAL_BANDS))


@pytest.mark.parametrize(
    ("change", "dtype", "message"),
    [
        (lambda x: x / 1e4, "float32", "reflectance in 0-1; multiply by 10000"),
        (lambda x: x / 100, "float32", "reflectance in percent; multiply by 100"),
        (lambda x: (x / 3000 * 255).clip(1, 255), "uint8", "8 bits"),
        (lambda x: (x / 3000 * 127).clip(1, 127), "int8", "8 bits"),
        (lambda x: 64000 + x % 1000, "uint16", "damaged or otherwise scaled"),
        (lambda x: (x - 400.0) % 65536, "uint16", "wrapped around 65536"),
        (lambda x: x * 10.0, "float32", "too much of it is above 20,000|too many"),
        (lambda x: x - 500.0, "float32", "taken off twice"),
        (lambda x: (x - 1500.0) / 1900, "float32", "z-scores"),
    ],
)
def test_an_image_of_another_unit_is_refused_by_its_name(
    tmp_path: Path, optical: np.ndarray, change: Any, dtype: str, message: str
) -> None:
    image = change(optical.astype("f8")).astype(dtype)
    path = write(tmp_path / "s2.tif", image, OPTICAL_BANDS, photometric="MINISBLACK")
    with pytest.raises(InputError, match=message):
        read_optical(path)
    read_optical(path, force=True)


@pytest.mark.parametrize(
    ("tops", "dtype"),
    [((12, 48, 21, 2), "uint16"), ((68, 70, 5, 1), "int16"), ((102, 110, 79, 79), "f4"), ((202, 146, 83, 51), "f4")],
)
def test_dark_water_is_no_picture(tmp_path: Path, tops: tuple[float, ...], dtype: str) -> None:
    """By the brightest DN of real tiles of open water, band by band."""
    water = np.ceil(np.random.default_rng(3).uniform(0.4, 1, (4, H, W)) * np.array(tops)[:, None, None])
    path = write(tmp_path / "s2.tif", water.astype(dtype), OPTICAL_BANDS)
    with pytest.warns(ReadingWarning, match=r"nearly no value is above \d+ DN, as of dark water"):
        source, data = read_optical(path)
    np.testing.assert_array_equal(data, water)
    assert "dark water" in source.provenance["AXS_OPT_V2_DARK"]
    check_pair(torch.full((2, H, W), -20.0), torch.from_numpy(data), source="file")


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32", "float64"])
@pytest.mark.parametrize("declared", [None, 9999])
def test_zero_in_all_bands_is_nodata_for_every_type(
    tmp_path: Path, optical: np.ndarray, dtype: str, declared: float | None
) -> None:
    optical[:, :, :10], optical[1, 30, 30] = 0, 0
    image = optical.astype(dtype)
    path = write(tmp_path / "s2.tif", image, OPTICAL_BANDS, nodata=declared)
    files = [write(tmp_path / f"T_{b}.tif", image[i : i + 1], nodata=declared) for i, b in enumerate(OPTICAL_BANDS)]
    for what in (path, files):
        _, data = read_optical(what)
        assert np.isnan(data[:, :, :10]).all() and np.isfinite(data[:, :, 10:]).all() and data[1, 30, 30] == 0


def test_raw_zero_of_scaled_backscatter_is_nodata_counted_and_tagged(tmp_path: Path, sar: np.ndarray) -> None:
    raw = ((sar + 50) * 100).astype("uint16")
    raw[:, 30, 30], raw[0, 20, 20] = 0, 0
    place = Affine(30, 0, 500_000, 0, -30, 6_000_000)
    source, data = read_sar(write(tmp_path / "s1.tif", raw, SAR_BANDS, scale=(0.01, -50.0), transform=place))
    assert np.argwhere(np.isnan(data).any(axis=0)).tolist() == [[30, 30]] and data[0, 20, 20] == -50
    np.testing.assert_allclose(data[:, :20], raw[:, :20] / 100 - 50.0, rtol=1e-6)
    hundredths = write(tmp_path / "h.tif", (sar * 100).astype("int16"), SAR_BANDS, scale=(0.01, 0.0))
    np.testing.assert_allclose(read_sar(hundredths)[1], sar, atol=0.011)
    said = source.provenance["AXS_S1_NOTES"]
    assert "1 pixels of exactly 0 dB, or stored as 0, are taken" in said and "its pixels are of 30 m" in said
    assert str(tmp_path) not in said


@pytest.mark.parametrize(
    ("fill", "dtype"), [(-9999, "int16"), (-3.4e38, "float32"), (65535, "uint16"), (1e30, "float32")]
)
def test_a_few_fill_numbers_of_an_image_are_nodata_and_counted(
    tmp_path: Path, optical: np.ndarray, fill: float, dtype: str
) -> None:
    image = optical.astype(dtype)
    image[:, 20, 20:25] = fill
    source, data = read_optical(write(tmp_path / "s2.tif", image, OPTICAL_BANDS))
    assert np.isnan(data[:, 20, 20:25]).all() and np.isnan(data).sum() == 20
    assert source.counts["impossible"] == 5 and any(": 5 pixels" in note for note in source.report())


def test_slightly_negative_reflectance_is_clipped_and_counted(tmp_path: Path, optical: np.ndarray) -> None:
    image = optical.astype("int16")
    image[0, :12] = -30
    source, data = read_optical(write(tmp_path / "s2.tif", image, OPTICAL_BANDS))
    assert (data[0, :12] == 1).all() and source.counts["negative"] == 12 * W
    np.testing.assert_array_equal(data[1:], optical[1:])


def test_a_fifth_band_of_alpha_is_a_mask(tmp_path: Path, optical: np.ndarray) -> None:
    alpha = np.full((1, H, W), 255, "uint16")
    alpha[:, 5:9] = 0
    colours = [rasterio.enums.ColorInterp[name] for name in ("blue", "green", "red", "undefined", "alpha")]
    path = write(
        tmp_path / "a.tif", np.concatenate([optical, alpha]), (*OPTICAL_BANDS, ""), colours=colours,
        photometric="MINISBLACK", ALPHA="YES",
    )  # fmt: skip
    assert np.isnan(data := read_optical(path)[1])[:, 5:9].all() and np.isfinite(data[:, 9:]).all()


@pytest.mark.parametrize("fourth", ["alpha", "undefined"])
def test_a_fourth_band_beside_colours_is_what_its_name_says(tmp_path: Path, optical: np.ndarray, fourth: str) -> None:
    """GDAL may colour the fourth band of red, green, blue and near infrared alpha, by which others would be hidden."""
    colours = [rasterio.enums.ColorInterp[name] for name in ("red", "green", "blue", fourth)]
    names, optical[3, 5:9] = ("B04", "B03", "B02", "B08"), 0
    how = {"colours": colours, "photometric": "RGB", "ALPHA": "YES" if fourth == "alpha" else "NO"}
    path = write(tmp_path / "rgbn.tif", optical[[2, 1, 0, 3]], **how)
    with pytest.raises(InputError, match=r"lacks B08.*--bands B04,B03,B02,B08$"):
        read_optical(path)
    np.testing.assert_array_equal(read_optical(path, bands=names)[1], optical)
    np.testing.assert_array_equal(read_optical(write(path, optical[[2, 1, 0, 3]], names, **how))[1], optical)


@pytest.mark.parametrize("scale", [(1e-4, -0.1), (1.0, -1000.0)])
def test_a_declared_offset_is_in_the_unit_of_the_scale(
    tmp_path: Path, optical: np.ndarray, scale: tuple[float, float]
) -> None:
    path = write(tmp_path / "s2.tif", optical + 1000, OPTICAL_BANDS, scale=scale)
    np.testing.assert_allclose(read_optical(path)[1], optical, atol=0.01)


@pytest.mark.parametrize("names", [("HH", "HV"), ("Sigma0_HH_db", "Sigma0_HV_db"), ("VV", "HH")])
def test_other_polarisations_are_refused_by_name(tmp_path: Path, sar: np.ndarray, names: tuple[str, str]) -> None:
    with pytest.raises(InputError, match=r"HH.*lacks V"):
        read_sar(write(tmp_path / "s1.tif", sar, names))
    files = [write(tmp_path / f"s_{name}.tif", sar[i : i + 1]) for i, name in enumerate(names)]
    with pytest.raises(InputError, match=r"HH.* and lack V"):
        read_sar(files)


def test_an_order_that_is_assumed_is_said_and_a_doubtful_one_warned_of(tmp_path: Path, sar: np.ndarray) -> None:
    with warnings.catch_warnings():
        with open_raster(write(tmp_path / "a.tif", sar)):
            warnings.simplefilter("error")  # stays when the file is closed
        assert "taken for VV, VH in this order" in read_sar(tmp_path / "a.tif")[0].report()[0]
        assert warnings.filters[0][:3] == ("error", None, Warning)
    with pytest.warns(ReadingWarning, match="--bands VH,VV"):
        read_sar(write(tmp_path / "b.tif", sar[::-1]))
    np.testing.assert_array_equal(read_sar(tmp_path / "b.tif", bands=("VH", "VV"))[1], sar)
    source, _ = read_sar(write(tmp_path / "c.tif", sar, ("VV", "VH")), bands=("VH", "VV"), force=True)
    assert "--bands takes VV for VH, VH for VV, against the names in the file" in source.report()[0]
    with pytest.raises(InputError, match=r"holds one band; .*: --s1 a_VV_g0\.tif a_VH_g0\.tif$"):
        read_sar(write(tmp_path / "a_VH_g0.tif", sar[:1]))


def test_a_tile_cut_short_by_one_byte_is_an_error(tmp_path: Path, optical: np.ndarray) -> None:
    path = write(tmp_path / "s2.tif", optical[[2, 1, 0, 3]], ("B04", "B03", "B02", "B08"))
    whole = path.read_bytes()
    for cut in (1, 100, len(whole) // 2):
        path.write_bytes(whole[:-cut])
        with pytest.raises(InputError, match=r"cut short|descriptions|cannot be read"):
            read_optical(path)


def test_pixels_of_another_size_are_said(tmp_path: Path, optical: np.ndarray) -> None:
    path = write(tmp_path / "s2.tif", optical, OPTICAL_BANDS, transform=PLACE * Affine.scale(2))
    assert any("pixels are of 20 m" in note for note in read_optical(path)[0].notes)
    assert not any("pixels are of" in note for note in read_optical(optical)[0].notes)
    degrees = write(
        tmp_path / "d.tif", optical, OPTICAL_BANDS, crs="EPSG:4326", transform=Affine(4e-4, 0, 9, 0, -3e-4, 50)
    )
    assert any("pixels are of 33.396 m" in note for note in read_optical(degrees)[0].notes)


@pytest.fixture
def safe(tmp_path: Path, optical: np.ndarray) -> Path:
    return write_safe(tmp_path, optical)


def test_a_sentinel_2_product_in_every_form(tmp_path: Path, safe: Path, optical: np.ndarray) -> None:
    archive = shutil.make_archive(str(tmp_path / "product"), "zip", tmp_path, PRODUCT)
    stack = write(safe / "stack.tif", optical + 1000, OPTICAL_BANDS)
    for what in (safe, archive, next(safe.glob("GRANULE/*/IMG_DATA/R10m")), stack):
        source, data = read_optical(what)
        np.testing.assert_array_equal(data, optical)
        assert source.facts == {"AXS_BOA_OFFSET_REMOVED": "1000"} and "MTD_MSIL2A.xml" in source.notes[-1]
    (safe / "MTD_MSIL2A.xml").unlink()
    source, data = read_optical(safe)
    np.testing.assert_array_equal(data, optical)
    assert "N0500" in source.notes[-1]
    np.testing.assert_array_equal(read_optical(safe, boa_offset="0")[1], optical + 1000.0)


def test_an_offset_that_was_taken_off_already_is_not_taken_off_twice(safe: Path, optical: np.ndarray) -> None:
    with pytest.raises(InputError, match="--boa-offset 0"):
        read_optical(write(safe / "done.tif", optical, OPTICAL_BANDS))
    np.testing.assert_array_equal(read_optical(safe / "done.tif", boa_offset="0")[1], optical)
    own = write(safe / "own.tif", optical, OPTICAL_BANDS, tags={"AXS_VERSION": "1"})
    np.testing.assert_array_equal(read_optical(own)[1], optical)
    declared = write(safe / "declared.tif", optical + 1000, OPTICAL_BANDS, scale=(1e-4, -0.1))
    np.testing.assert_allclose(read_optical(declared)[1], optical, atol=1e-3)


def test_a_dark_end_near_1000_is_warned_of(tmp_path: Path, optical: np.ndarray) -> None:
    path = write(tmp_path / "s2.tif", optical + 1000, OPTICAL_BANDS)
    with pytest.warns(ReadingWarning, match="--boa-offset 1000"):
        read_optical(path)
    np.testing.assert_array_equal(read_optical(path, boa_offset="1000")[1], optical)
    latitude = write(tmp_path / "N5310_W0730" / "bright_N4510.tif", optical + 2000, OPTICAL_BANDS)
    np.testing.assert_array_equal(read_optical(latitude)[1], optical + 2000)


def test_what_is_no_level_2a_product_is_refused(tmp_path: Path, safe: Path) -> None:
    for path in (safe / "GRANULE/L2A_T29UPU_A031/IMG_DATA/R20m", tmp_path / "S2A_MSIL1C_x.SAFE"):
        path.mkdir(exist_ok=True)
        with pytest.raises(InputError, match=r"no 10 m image.*Expected a Sentinel-2 L2A"):
            read_optical(path)
    bomb = '<!DOCTYPE x [<!ENTITY a "b">]>' + METADATA
    (safe / "MTD_MSIL2A.xml").write_text(bomb)
    with pytest.raises(InputError, match="document type"):
        read_optical(safe)


def test_radar_geometry_is_refused_with_the_ways_to_geocode_it(
    tmp_path: Path, sar: np.ndarray, optical: np.ndarray
) -> None:
    points = [GroundControlPoint(r, c, 15 + c / 1e4, 54 - r / 1e4) for r, c in ((0, 0), (0, W), (H, 0), (H, W))]
    gcps = points, rasterio.CRS.from_epsg(4326)
    raw = write(tmp_path / "grd.tif", sar, SAR_BANDS, gcps=gcps)
    product = tmp_path / "S1A_IW_GRDH_1SDV_20210714T175000.SAFE"
    (product / "measurement").mkdir(parents=True)
    shutil.copy(raw, product / "measurement" / "vv.tiff")
    for path in (raw, product, product / "measurement" / "vv.tiff"):
        with pytest.raises(InputError, match=r"radar geometry.*SNAP.*HyP3.*Planetary"):
            read_sar(path)
    assert "none of its ground control points" in read_sar(raw, same_grid=True)[0].notes[0]
    with pytest.raises(InputError, match="gdalwarp it to a map"):
        read_optical(write(tmp_path / "s2.tif", optical, OPTICAL_BANDS, gcps=gcps))
    with pytest.raises(InputError, match="is complex; expected backscatter"):
        read_sar(write(tmp_path / "slc.tif", sar.astype("complex64"), SAR_BANDS, dtype="complex_int16"))


def test_only_allowed_drivers_and_regular_files_are_opened(tmp_path: Path, sar: np.ndarray) -> None:
    good = write(tmp_path / "good.tif", sar, SAR_BANDS)
    vrt = tmp_path / "v.tif"
    vrt.write_text(
        f'<VRTDataset rasterXSize="{W}" rasterYSize="{H}"><VRTRasterBand dataType="Float32" band="1"><SimpleSource>'
        f"<SourceFilename>{good}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    shutil.copy(vrt, tmp_path / "v.vrt")
    shutil.copy(vrt, tmp_path / "v.jp2")
    for path in ("v.tif", "v.vrt", "v.jp2"):
        with pytest.raises(InputError, match="is no GeoTIFF, COG, JPEG 2000 or PNG"):
            read_sar(tmp_path / path)
    shutil.copy(vrt, f"{good}.ovr")
    with pytest.raises(InputError, match="is no TIFF"):
        read_sar(good)
    os.mkfifo(tmp_path / "pipe.tif")
    for path in (tmp_path / "pipe.tif", Path("/dev/zero"), tmp_path):
        with pytest.raises(InputError):
            read_sar(path)
    for address in ("/vsicurl/http://127.0.0.1:9/a.tif", "http://127.0.0.1:9/a.tif", "s3://bucket/a.tif"):
        with pytest.raises(InputError, match="is an address"):
            read_sar(address, addresses=False)


MASK_OF_ANOTHER_FILE = (
    '<VRTDataset rasterXSize="{w}" rasterYSize="{h}"><Metadata><MDI key="INTERNAL_MASK_FLAGS_1">2</MDI></Metadata>'
    '<VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename>{path}</SourceFilename></SimpleSource>'
    "</VRTRasterBand></VRTDataset>"
)


def test_a_path_that_is_no_utf8_is_said_to_be_so(tmp_path: Path, sar: np.ndarray) -> None:
    """By what reads images and weights, and by what writes GeoTIFFs, which need UTF-8; arrays do not."""
    folder = shutil.copytree(write(tmp_path / "x" / "s1.tif", sar).parent, tmp_path / "\udcff")
    np.savez(folder / "s1.npz", s1=sar)
    for name in ("w.pt", "w.safetensors"):
        (folder / name).touch()
    grid, layer = read_sar(folder / "s1.npz")[0].grid, optical_layer("o")
    for act in (
        lambda: read_sar(folder / "s1.tif"),
        lambda: read_state(folder / "w.pt"),
        lambda: read_metadata(folder / "w.safetensors"),
        lambda: write_layer(folder / "o.tif", layer, np.ones((4, H, W)), grid, {}),
    ):
        with pytest.raises(AxionError, match=r"udcff/.*, which is no UTF-8; rename the file or its folder"):
            act()


@pytest.mark.parametrize("suffix", [".msk", ".MSK", ".OVR", ".msk.ovr"])
def test_no_file_beside_an_image_brings_in_another(tmp_path: Path, sar: np.ndarray, suffix: str) -> None:
    other = write(tmp_path / "other.tif", np.zeros((1, H, W), "uint8"))
    good = write(tmp_path / "good.tif", sar, SAR_BANDS)
    if suffix == ".msk.ovr":
        shutil.copy(other, f"{good}.msk")
    beside = Path(f"{good}{suffix}")
    beside.write_text(MASK_OF_ANOTHER_FILE.format(h=H, w=W, path=other))
    with pytest.raises(InputError, match="is no TIFF"):
        read_sar(good)
    mixed = beside.rename(f"{good}{suffix[:-3]}{suffix[-3:].title()}")  # is not looked for, later neither
    with open_raster(good) as dataset:
        dataset.read_masks(1, out_shape=(H // 4, W // 4))
        assert dataset.read(1, out_shape=(H // 4, W // 4)).any() and str(mixed) not in dataset.files


@pytest.mark.parametrize("name", ["good.aux", "good.tif.AUX", "good.tif.aux.xml", "good.xml"])
def test_overviews_of_other_drivers_and_pipes_beside_an_image(tmp_path: Path, sar: np.ndarray, name: str) -> None:
    os.mkfifo(tmp_path / name) if "xml" in name else (tmp_path / name).write_bytes(b"EHFA_HEADER_TAG")
    with pytest.raises(InputError, match="named pipe" if "xml" in name else "overviews of another image"):
        read_sar(write(tmp_path / "good.tif", sar, SAR_BANDS))


def test_no_file_in_a_zip_brings_in_another(tmp_path: Path, safe: Path) -> None:
    other = write(tmp_path / "other.tif", np.zeros((1, H, W), "uint8"))
    for band in safe.rglob("*_B02_10m.jp2"):
        for suffix in (".msk", ".MSK"):
            Path(f"{band}{suffix}").write_text(MASK_OF_ANOTHER_FILE.format(h=H, w=W, path=other))
    zipped = Path(shutil.make_archive(str(tmp_path / "product"), "zip", safe))
    assert np.isfinite(read_optical(zipped)[1]).all()


@pytest.mark.parametrize("part", ["name", "metadata"])
def test_a_damaged_zip_of_a_product(tmp_path: Path, safe: Path, part: str) -> None:
    zipped = Path(shutil.make_archive(str(tmp_path / "product"), "zip", safe))
    content = bytearray(zipped.read_bytes())
    if part == "name":  # one that says it is UTF-8 and is not
        entry = content.index(b"PK\1\2")
        content[entry + 8 : entry + 10], content[entry + 46] = b"\0\x08", 0xFF
    else:
        data = content.index(b"MTD_MSIL2A.xml") + len("MTD_MSIL2A.xml")
        content[data : data + 10] = b"\xff" * 10
    zipped.write_bytes(content)
    with pytest.raises(InputError, match=r"product.zip cannot be read as a .zip"):
        read_optical(zipped)


def test_directories_of_a_tiff_that_have_no_end(tmp_path: Path) -> None:
    entry = struct.pack("<HHII", 254, 4, 1, 0)
    loop = tmp_path / "loop.tif"
    loop.write_bytes(b"II*\0" + struct.pack("<IH", 8, 60_000) + entry * 60_000 + struct.pack("<I", 8))
    start = time.monotonic()
    with pytest.raises(InputError, match="have no end"):
        read_sar(loop)
    assert time.monotonic() - start < 20  # 1000 rounds took minutes


def test_a_name_that_gdal_would_take_for_another_file(
    tmp_path: Path, sar: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.tif", sar - 5, SAR_BANDS)
    for name in ("file:a.tif", "GTIFF_DIR:1:a.tif"):
        write(tmp_path / name, sar, SAR_BANDS)
        assert np.array_equal(read_sar(name)[1], sar)


def test_claims_of_size_are_checked_before_pixels_are_read(tmp_path: Path) -> None:
    header = tmp_path / "opt_v2.npy"
    np.save(header, np.zeros(3))
    claim = header.read_bytes().replace(b"(3,), }   ", b"(4, 60000, 60000), }")[:128]
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
        archive.writestr("opt_v2.npy", claim)
    with pytest.raises(InputError, match=r"expected at most|cannot be read"):
        read_optical(tmp_path / "bomb.npz")
    torch.save(torch.zeros(1).expand(1, 4, 30_000, 30_000), tmp_path / "bomb.pt")
    with pytest.raises(InputError, match="claims"):
        read_optical(tmp_path / "bomb.pt")
    with zipfile.ZipFile(tmp_path / "text.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "opt_v2.npy", header.read_bytes().replace(b"(3,), }      ", b"(4, 1, 8), }  ")[:128] + bytes(256)
        )
        archive.writestr("crs.npy", header.read_bytes().replace(b"<f8", b"<U%d" % 10**8).replace(b"(3,)", b"()  "))
    with pytest.raises(InputError, match=r"text.npz: crs is a text of 400,000,000 bytes|text.npz cannot be read"):
        read_optical(tmp_path / "text.npz")
