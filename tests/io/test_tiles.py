"""Tiles are read from every format in named bands, and everything bad is an error that says how to fix it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given
from hypothesis import strategies as st
from rasterio.enums import ColorInterp

from axs_lib.bands import OPTICAL_BANDS, SAR_BANDS
from axs_lib.errors import InputError
from axs_lib.io.raster import band_name, parse_bands
from axs_lib.io.tiles import read_raster, read_tile

H, W = 12, 10
TRANSFORM = rasterio.Affine(10, 0, 500_000, 0, -10, 6_000_000)
S2_NAMES = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture
def s1() -> np.ndarray:
    return np.random.default_rng(1).uniform(-25, -5, (2, H, W)).astype("float32")


@pytest.fixture
def optical() -> np.ndarray:
    return np.random.default_rng(2).integers(100, 5000, (4, H, W)).astype("uint16")


def write_tif(path: Path, data: np.ndarray, names: Sequence[str | None] | None = None, **options: Any) -> Path:
    colours, scale = options.pop("colours", None), options.pop("scale", None)
    profile = {"crs": "EPSG:32633", "transform": TRANSFORM, "dtype": data.dtype.name} | options
    with rasterio.open(
        path, "w", driver="GTiff", count=len(data), height=data.shape[1], width=data.shape[2], **profile
    ) as dataset:
        dataset.write(data)
        if names:
            dataset.descriptions = tuple(names)
        if colours:
            dataset.colorinterp = colours
        if scale:
            dataset.scales, dataset.offsets = (scale[0],) * len(data), (scale[1],) * len(data)
    return path


def read_optical(path: Path, order: tuple[str, ...] | None = None) -> np.ndarray:
    return read_raster(path, OPTICAL_BANDS, order=order).data


# Names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("B02", "B02"), ("b2", "B02"), ("S2_B08", "B08"), ("blue", "B02"), ("Red", "B04"), ("NIR", "B08"),
        ("B8A", "B8A"), ("NIR_NARROW", "B8A"), ("nir_broad", "B08"), ("red edge 1", None), ("rededge1", "B05"),
        ("Sigma0_VV_db", "VV"), ("vh", "VH"), ("VV/VH", None), ("Band 2", None), ("", None), (None, None),
        ("S2A_MSIL2A_20170613T101031_87_48_B04", "B04"), ("red_field_B02", "B02"), ("s1a-iw-grd-vv-2020", "VV"),
        ("B12", "B12"), ("coastal", "B01"), ("infrared", None),
    ],
)  # fmt: skip
def test_band_names_are_recognised(text: str | None, name: str | None) -> None:
    assert band_name(text) == name


def test_band_orders_are_parsed() -> None:
    assert parse_bands("B04, B3,blue,NIR") == ("B04", "B03", "B02", "B08")
    assert parse_bands(None) is None
    for bad, message in (("B04,B99", "B99"), ("", "nothing"), ("B04,red", "twice")):
        with pytest.raises(InputError, match=message):
            parse_bands(bad)


# NPZ and PT


def test_the_documents_npz_tile(tmp_path: Path, s1: np.ndarray, optical: np.ndarray) -> None:
    path = tmp_path / "sample.npz"
    np.savez(path, s1_vv=s1[0], s1_vh=s1[1], opt_v2=optical, s2_real=optical + 1, trust=np.ones((H, W)))
    tile = read_tile([path])
    np.testing.assert_array_equal(tile.s1.data, s1)
    np.testing.assert_array_equal(tile.opt_v2.data, optical)
    assert tile.s1.bands == SAR_BANDS and tile.opt_v2.bands == OPTICAL_BANDS
    assert tile.truth is not None and tile.trust is not None
    np.testing.assert_array_equal(tile.truth.data, optical + 1)
    assert tile.trust.shape == (1, 1, H, W)
    assert not tile.opt_v2.batched and tile.opt_v2.data.dtype == np.float32


def test_a_whole_batch_as_one_npz(tmp_path: Path, s1: np.ndarray, optical: np.ndarray) -> None:
    path = tmp_path / "batch.npz"
    np.savez(path, s1=np.stack([s1, s1 + 1]), opt_v2=np.stack([optical, optical]))
    tile = read_tile([path])
    assert tile.s1.batched and tile.s1.data.shape == (2, 2, H, W) and len(tile.opt_v2.batch) == 2


def test_pt_tensors_of_any_dtype_and_order(tmp_path: Path, s1: np.ndarray, optical: np.ndarray) -> None:
    torch.save(torch.from_numpy(s1).double()[None], tmp_path / "s1.pt")
    torch.save(torch.from_numpy(optical.astype("int32"))[[2, 1, 0, 3]], tmp_path / "opt.pt")
    tile = read_tile([tmp_path / "s1.pt"], [tmp_path / "opt.pt"], ("B04", "B03", "B02", "B08"))
    np.testing.assert_array_equal(tile.opt_v2.batch[0], optical)
    assert tile.s1.data.shape == (1, 2, H, W) and tile.opt_v2.data.shape == (1, 4, H, W)


def test_sar_bands_may_be_ordered_too(tmp_path: Path, s1: np.ndarray) -> None:
    torch.save(torch.from_numpy(s1[::-1].copy()), tmp_path / "s1.pt")
    np.testing.assert_array_equal(read_raster(tmp_path / "s1.pt", SAR_BANDS, order=("VH", "VV")).data, s1)


# GeoTIFF


def test_a_stack_without_names_is_in_the_librarys_order(tmp_path: Path, optical: np.ndarray) -> None:
    raster = read_raster(write_tif(tmp_path / "o.tif", optical), OPTICAL_BANDS)
    np.testing.assert_array_equal(raster.data, optical)
    assert raster.transform == tuple(TRANSFORM)[:6]
    assert rasterio.crs.CRS.from_wkt(raster.crs).to_epsg() == 32633


@pytest.mark.parametrize("names", [("red", "green", "blue", "nir"), ("B4", "B3", "B2", "B8")])
def test_names_in_the_file_decide(tmp_path: Path, optical: np.ndarray, names: tuple[str, ...]) -> None:
    path = write_tif(tmp_path / "o.tif", optical[[2, 1, 0, 3]], names)
    np.testing.assert_array_equal(read_optical(path), optical)


def test_four_of_twelve_bands_are_picked_by_name(tmp_path: Path) -> None:
    data = np.stack([np.full((H, W), 100 + i, "uint16") for i in range(12)])
    image = read_optical(write_tif(tmp_path / "o.tif", data, S2_NAMES))
    assert image[:, 0, 0].tolist() == [101, 102, 103, 107]
    image = read_optical(write_tif(tmp_path / "p.tif", data), S2_NAMES)
    assert image[:, 0, 0].tolist() == [101, 102, 103, 107]


def test_bands_override_what_the_file_says(tmp_path: Path, optical: np.ndarray) -> None:
    path = write_tif(tmp_path / "o.tif", optical[[2, 1, 0, 3]], OPTICAL_BANDS)
    np.testing.assert_array_equal(read_optical(path, ("B04", "B03", "B02", "B08")), optical)


def test_rgb_colours_without_names_are_not_taken_for_blue_first(tmp_path: Path, optical: np.ndarray) -> None:
    colours = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.undefined)
    path = write_tif(tmp_path / "rgbn.tif", optical[[2, 1, 0, 3]], colours=colours)
    with pytest.raises(InputError, match=r"lacks B08.*--bands B08,B04,B03,B02"):
        read_optical(path)


def test_one_file_a_band_by_file_name_description_or_order(tmp_path: Path, optical: np.ndarray) -> None:
    files = [write_tif(tmp_path / f"tile_{b}.tif", optical[i : i + 1]) for i, b in enumerate(OPTICAL_BANDS)]
    np.testing.assert_array_equal(read_raster(files[::-1], OPTICAL_BANDS).data, optical)
    described = [write_tif(tmp_path / f"{i}.tif", optical[i : i + 1], [b]) for i, b in enumerate(OPTICAL_BANDS)]
    np.testing.assert_array_equal(read_raster(described[::-1], OPTICAL_BANDS).data, optical)
    plain = [write_tif(tmp_path / f"part{i}.tif", optical[i : i + 1]) for i in (2, 1, 0, 3)]
    np.testing.assert_array_equal(read_raster(plain, OPTICAL_BANDS, order=("B04", "B03", "B02", "B08")).data, optical)


def test_nodata_of_every_file_becomes_nan(tmp_path: Path, s1: np.ndarray, optical: np.ndarray) -> None:
    optical[:, 0, 0], optical[1, 3, 3] = 9999, 9999
    image = read_optical(write_tif(tmp_path / "o.tif", optical, nodata=9999))
    assert np.isnan(image[:, 0, 0]).all() and np.isnan(image).sum() == 5
    s1[0, 2, 2], s1[1, 4, 4] = -9999, -1
    files = [
        write_tif(tmp_path / f"s_{band}.tif", s1[i : i + 1], nodata=nodata)
        for i, (band, nodata) in enumerate((("VV", -9999), ("VH", -1)))
    ]
    sar = read_raster(files, SAR_BANDS).data
    assert np.isnan(sar[0, 2, 2]) and np.isnan(sar[1, 4, 4]) and np.isnan(sar).sum() == 2


def test_an_undeclared_zero_is_nodata_only_where_all_bands_are_zero(tmp_path: Path, optical: np.ndarray) -> None:
    optical[:, 0, 0], optical[2, 5, 5] = 0, 0
    stack = write_tif(tmp_path / "o.tif", optical)
    files = [write_tif(tmp_path / f"t_{b}.tif", optical[i : i + 1]) for i, b in enumerate(OPTICAL_BANDS)]
    for image in (read_optical(stack), read_raster(files, OPTICAL_BANDS).data):
        assert np.isnan(image[:, 0, 0]).all()
        assert image[2, 5, 5] == 0 and np.isnan(image).sum() == 4


def test_scale_and_offset_of_the_file_are_applied(tmp_path: Path, optical: np.ndarray) -> None:
    harmonised = write_tif(tmp_path / "o.tif", optical, scale=(1e-4, 0.0))
    np.testing.assert_array_equal(read_optical(harmonised), optical)
    with_offset = write_tif(tmp_path / "p.tif", optical + 1000, scale=(1e-4, -0.1))
    np.testing.assert_allclose(read_optical(with_offset), optical, atol=1e-3)
    hundredths = write_tif(
        tmp_path / "s.tif", np.stack([np.full((H, W), db, "int16") for db in (-1250, -1900)]), scale=(0.01, 0.0)
    )
    np.testing.assert_allclose(read_raster(hundredths, SAR_BANDS).data[0], -12.5, rtol=1e-6)


def test_a_tiff_without_georeference_is_read_quietly(tmp_path: Path, optical: np.ndarray) -> None:
    path = write_tif(tmp_path / "o.tif", optical, crs=None, transform=None)
    raster = read_raster(path, OPTICAL_BANDS)
    assert raster.crs is None and raster.transform is None


# Grids


def test_different_grids_are_refused_with_the_way_to_resample(
    tmp_path: Path, s1: np.ndarray, optical: np.ndarray
) -> None:
    good = write_tif(tmp_path / "o.tif", optical)
    shifted = TRANSFORM * rasterio.Affine.translation(1, 0)
    cases = {
        "size.tif": ({}, s1[:, :-1], "11x10 px against 12x10 px"),
        "crs.tif": ({"crs": "EPSG:32632"}, s1, "EPSG:32632 against EPSG:32633"),
        "shift.tif": ({"transform": shifted}, s1, r"\(500010, 6000000\) against .*\(500000, 6000000\)"),
    }
    for name, (options, data, message) in cases.items():
        path = write_tif(tmp_path / name, data, SAR_BANDS, **options)
        with pytest.raises(InputError, match=message) as caught:
            read_tile([path], [good])
        assert "rio warp" in str(caught.value) and name in str(caught.value)
    nearly = write_tif(tmp_path / "near.tif", s1, SAR_BANDS, transform=TRANSFORM * rasterio.Affine.translation(1e-6, 0))
    assert read_tile([nearly], [good]).s1.size == (H, W)


def test_band_files_must_share_a_grid(tmp_path: Path, s1: np.ndarray) -> None:
    vv = write_tif(tmp_path / "a_VV.tif", s1[:1])
    vh = write_tif(tmp_path / "a_VH.tif", s1[1:], crs="EPSG:32632")
    with pytest.raises(InputError, match=r"grids of .*a_VV.tif and .*a_VH.tif differ"):
        read_raster([vv, vh], SAR_BANDS)


def test_batches_of_different_length_are_refused(tmp_path: Path, s1: np.ndarray, optical: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", s1=np.stack([s1, s1, s1]), opt_v2=np.stack([optical, optical]))
    with pytest.raises(InputError, match=r"3 tile\(s\).*2"):
        read_tile([tmp_path / "a.npz"])


# Bad input


def bad_files(folder: Path) -> dict[str, Path]:
    """Files that are no tiles, by what is wrong with them."""
    ones = np.ones((4, H, W), "float32")
    files = {
        "missing": folder / "missing.npz",
        "suffix": folder / "tile.png",
        "empty": folder / "empty.tif",
        "folder": folder / "folder.npz",
    }
    files["suffix"].write_bytes(b"x")
    files["empty"].touch()
    files["folder"].mkdir()
    for name, arrays in {
        "keys": {"image": ones},
        "pickled": {"opt_v2": np.array([{}], dtype=object)},
        "text": {"opt_v2": np.array(["x"])},
        "complex": {"opt_v2": ones.astype("complex64")},
        "bands": {"opt_v2": np.ones((5, H, W))},
        "flat": {"opt_v2": np.ones((H, W))},
        "no_pixels": {"opt_v2": np.ones((4, 0, W))},
        "no_tiles": {"opt_v2": np.ones((0, 4, H, W))},
    }.items():
        files[name] = folder / f"{name}.npz"
        np.savez(files[name], **arrays)
    np.savez(folder / "good.npz", opt_v2=ones)
    whole = (folder / "good.npz").read_bytes()
    files["cut"] = folder / "cut.npz"
    files["cut"].write_bytes(whole[: len(whole) // 2])
    files["corrupt"] = folder / "corrupt.npz"
    files["corrupt"].write_bytes(whole[:200] + bytes(50) + whole[250:])
    files["pickle_as_npz"] = folder / "pickle.npz"
    files["pickle_as_npz"].write_bytes(b"\x80\x04N.")
    for name, value in {
        "pt_dict": {"opt_v2": torch.ones(4, H, W)},
        "pt_bool": torch.ones(4, H, W, dtype=torch.bool),
        "pt_bands": torch.ones(3, H, W),
        "pt_module": torch.nn.Linear(2, 2),
    }.items():
        files[name] = folder / f"{name}.pt"
        torch.save(value, files[name])
    whole = (folder / "pt_bands.pt").read_bytes()
    files["pt_cut"] = folder / "pt_cut.pt"
    files["pt_cut"].write_bytes(whole[: len(whole) // 2])
    files["pt_noise"] = folder / "pt_noise.pt"
    files["pt_noise"].write_bytes(b"no tensor at all" * 20)
    noise = np.random.default_rng(0).integers(0, 60000, (4, 200, 200)).astype("uint16")
    whole = write_tif(folder / "whole.tif", noise).read_bytes()
    files["tif_cut"] = folder / "tif_cut.tif"
    files["tif_cut"].write_bytes(whole[: len(whole) // 2])
    files["tif_noise"] = folder / "tif_noise.tif"
    files["tif_noise"].write_bytes(b"no image at all" * 20)
    files["tif_count"] = write_tif(folder / "count.tif", np.ones((5, H, W), "uint16"))
    files["tif_names"] = write_tif(folder / "names.tif", np.ones((4, H, W), "uint16"), ("B02", "B03", "B04", "B11"))
    files["tif_twice"] = write_tif(folder / "twice.tif", np.ones((4, H, W), "uint16"), ("B02", "B02", "B04", "B08"))
    files["tif_complex"] = write_tif(folder / "cpx.tif", np.ones((4, H, W), "complex64"))
    return files


MESSAGES = {
    "missing": "does not exist",
    "suffix": "is no GeoTIFF, COG, JPEG 2000 or PNG",
    "empty": "empty",
    "folder": "is a folder",
    "keys": r"holds image; expected opt_v2 \(4,H,W\)",
    "pickled": "pickled object array.*np.savez",
    "text": "expected real numbers",
    "complex": "expected real numbers",
    "bands": r"shape \(5, 12, 10\); expected \(4,H,W\).*--bands",
    "flat": r"shape \(12, 10\); expected \(4,H,W\)",
    "no_pixels": "empty",
    "no_tiles": "empty",
    "cut": "truncated.*np.savez",
    "corrupt": "damaged",
    "pickle_as_npz": "pickled file is not loaded",
    "pt_dict": "holds a dict; expected one tensor",
    "pt_bool": "torch.bool",
    "pt_bands": "3 band",
    "pt_module": "pickled Python objects",
    "pt_cut": "damaged",
    "pt_noise": "damaged",
    "tif_cut": "cut short",
    "tif_noise": "is no GeoTIFF",
    "tif_count": "5 band.*--bands",
    "tif_names": "holds the bands B02, B03, B04, B11 and lacks B08",
    "tif_twice": "more than one band B02",
    "tif_complex": "complex",
}


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return bad_files(tmp_path_factory.mktemp("bad"))


@pytest.mark.parametrize("kind", MESSAGES)
def test_bad_files_are_input_errors_that_name_the_file(bad: dict[str, Path], kind: str) -> None:
    with pytest.raises(InputError, match=f"(?s){MESSAGES[kind]}") as caught:
        read_optical(bad[kind])
    assert str(bad[kind]) in str(caught.value)


def test_the_list_of_bad_files_is_tested_whole(bad: dict[str, Path]) -> None:
    assert set(bad) == set(MESSAGES)


def test_pickles_are_never_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return Path.touch, (tmp_path / "exploded",)

    torch.save(Bomb(), tmp_path / "bomb.pt")
    np.savez(tmp_path / "bomb.npz", opt_v2=np.array([Bomb()], dtype=object))
    for name in ("bomb.pt", "bomb.npz"):
        with pytest.raises(InputError):
            read_optical(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_wrong_numbers_and_kinds_of_files(tmp_path: Path, s1: np.ndarray, optical: np.ndarray) -> None:
    vv = write_tif(tmp_path / "a_VV.tif", s1[:1])
    stack = write_tif(tmp_path / "stack.tif", s1, SAR_BANDS)
    torch.save(torch.from_numpy(s1), tmp_path / "s1.pt")
    unnamed = write_tif(tmp_path / "plain.tif", s1[1:])
    for files, order, message in (
        ([], None, "no file is given"),
        ([vv, stack], None, "has 2 bands; expected one band in each file"),
        ([vv, tmp_path / "s1.pt"], None, "expected GeoTIFFs"),
        ([vv, unnamed], None, "says which band it is.*--bands VV,VH"),
        ([vv, vv], None, "both hold VV"),
        ([vv, unnamed], ("VV",), "2 files are given and --bands names 1"),
        ([stack], ("VV",), r"has 2 band\(s\) and --bands names 1"),
    ):
        with pytest.raises(InputError, match=message):
            read_raster(files, SAR_BANDS, order=order)
    with pytest.raises(InputError, match="lack B03, B04, B08"):
        read_raster([write_tif(tmp_path / f"x_{b}.tif", s1[:1]) for b in ("B02", "B05")], OPTICAL_BANDS)
    with pytest.raises(InputError, match="expected --opt-v2 FILE"):
        read_tile([stack])


def test_companions_of_another_shape_are_refused(tmp_path: Path, s1: np.ndarray, optical: np.ndarray) -> None:
    for key, value in {"s2_real": optical[:, :-1], "trust": np.ones((H, W - 1))}.items():
        np.savez(tmp_path / f"{key}.npz", s1=s1, opt_v2=optical, **{key: value})
        with pytest.raises(InputError, match=f"{key} has shape"):
            read_tile([tmp_path / f"{key}.npz"])


@given(st.permutations(OPTICAL_BANDS), st.integers(1, 9), st.integers(1, 9))
def test_any_order_of_bands_reads_the_same(order: list[str], height: int, width: int) -> None:
    import tempfile

    image = np.arange(4 * height * width, dtype="float32").reshape(4, height, width) + 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "opt.npz"
        np.savez(path, opt_v2=image[[OPTICAL_BANDS.index(b) for b in order]])
        np.testing.assert_array_equal(read_optical(path, tuple(order)), image)
