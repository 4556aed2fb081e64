"""Tiles are read from every format in named bands, and everything bad is an error that says how to fix it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from axs_lib.bands import OPTICAL_BANDS, SAR_BANDS
from axs_lib.errors import InputError
from axs_lib.io.grid import SceneGrid
from axs_lib.io.products import pair_file, read_raster, read_truth
from axs_lib.io.raster import Raster, band_name, parse_bands

from ..scenes.conftest import write_tiff

H, W = 12, 10
S2_NAMES = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
ORDER = ("B04", "B03", "B02", "B08")

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture
def s1() -> np.ndarray:
    return np.random.default_rng(1).uniform(-25, -5, (2, H, W)).astype("float32")


@pytest.fixture
def optical() -> np.ndarray:
    return np.random.default_rng(2).integers(100, 5000, (4, H, W)).astype("uint16")


def read_optical(path: Path, order: tuple[str, ...] | None = None) -> np.ndarray:
    return read_raster(path, OPTICAL_BANDS, order=order).data


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


@pytest.mark.parametrize(
    ("names", "order"),
    [(("red", "green", "blue", "nir"), None), (("B4", "B3", "B2", "B8"), None), (OPTICAL_BANDS, ORDER)],
)
def test_names_in_the_file_decide_unless_the_user_says_otherwise(
    tmp_path: Path, optical: np.ndarray, names: tuple[str, ...], order: tuple[str, ...] | None
) -> None:
    path = write_tiff(tmp_path / "o.tif", optical[[2, 1, 0, 3]], names)
    np.testing.assert_array_equal(read_optical(path, order), optical)


@pytest.mark.parametrize(("names", "order"), [(S2_NAMES, None), (None, S2_NAMES)])
def test_four_of_twelve_bands_are_picked_by_name(tmp_path: Path, names: Any, order: Any) -> None:
    data = np.stack([np.full((H, W), 100 + i, "uint16") for i in range(12)])
    image = read_optical(write_tiff(tmp_path / "o.tif", data, names), order)
    assert image[:, 0, 0].tolist() == [101, 102, 103, 107]


def test_one_file_a_band_by_file_name_description_or_order(tmp_path: Path, optical: np.ndarray) -> None:
    files = [write_tiff(tmp_path / f"tile_{b}.tif", optical[i : i + 1]) for i, b in enumerate(OPTICAL_BANDS)]
    np.testing.assert_array_equal(read_raster(files[::-1], OPTICAL_BANDS).data, optical)
    described = [write_tiff(tmp_path / f"{i}.tif", optical[i : i + 1], [b]) for i, b in enumerate(OPTICAL_BANDS)]
    np.testing.assert_array_equal(read_raster(described[::-1], OPTICAL_BANDS).data, optical)
    plain = [write_tiff(tmp_path / f"part{i}.tif", optical[i : i + 1]) for i in (2, 1, 0, 3)]
    np.testing.assert_array_equal(read_raster(plain, OPTICAL_BANDS, order=ORDER).data, optical)


ONES = np.ones((4, H, W), "float32")
NAMED = ("B02", "B03", "B04")

# Files that are no tiles: how they are written, and what is said of them.
BAD: dict[str, tuple[Any, str]] = {
    "missing.npz": (None, "does not exist"),
    "suffix.png": (b"x", "is no GeoTIFF, COG, JPEG 2000 or PNG"),
    "empty.tif": (b"", "empty"),
    "noise.tif": (b"no image at all" * 20, "is no GeoTIFF"),
    "pickle.npz": (b"\x80\x04N.", "pickled file is not loaded"),
    "keys.npz": ({"image": ONES}, r"holds image; expected opt_v2 \(4,H,W\)"),
    "pickled.npz": ({"opt_v2": np.array([{}], dtype=object)}, "pickled object array.*np.savez"),
    "complex.npz": ({"opt_v2": ONES.astype("complex64")}, "expected real numbers"),
    "bool.npz": ({"opt_v2": ONES > 0}, "opt_v2 holds bool; expected real numbers"),
    "bands.npz": ({"opt_v2": np.ones((5, H, W))}, r"shape \(5, 12, 10\); expected \(4,H,W\).*--bands"),
    "no_pixels.npz": ({"opt_v2": np.ones((4, 0, W))}, "empty"),
    "dict.pt": ({"opt_v2": torch.ones(4, H, W)}, "holds a dict; expected one tensor"),
    "bool.pt": (torch.ones(4, H, W, dtype=torch.bool), "torch.bool"),
    "quantized.pt": (torch.quantize_per_tensor(torch.ones(4, H, W), 1.0, 0, torch.qint8), "torch.qint8"),
    "nested.pt": (torch.nested.nested_tensor([torch.ones(4, H, W)]), "expected dense real numbers"),
    "bits.pt": (torch.empty(4, H, W, dtype=torch.bits8), "torch.bits8"),
    "bands.pt": (torch.ones(3, H, W), "3 band"),
    "module.pt": (torch.nn.Linear(2, 2), "pickled Python objects"),
    "count.tif": ((np.ones((5, H, W), "uint16"), None), "5 band.*--bands"),
    "numbers.tif": ((np.ones((10, H, W)), [f"b{n}" for n in range(1, 11)]), "has 10 band.* without names; .* --bands"),
    "names.tif": ((ONES, (*NAMED, "B11")), "holds the bands B02, B03, B04, B11 and lacks B08"),
    "twice.tif": ((ONES, ("B02", *NAMED)), "more than one band B02"),
    "complex.tif": ((ONES.astype("complex64"), None), "complex"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_input_errors_that_name_the_file(tmp_path: Path, name: str) -> None:
    path, (content, message) = tmp_path / name, BAD[name]
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, tuple):
        write_tiff(path, *content)
    elif path.suffix == ".pt":
        torch.save(content, path)
    elif content is not None:
        np.savez(path, **content)
    with pytest.raises(InputError, match=f"(?s){message}") as caught:
        read_optical(path)
    assert str(path) in str(caught.value)


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


def test_wrong_numbers_and_kinds_of_files(tmp_path: Path, s1: np.ndarray) -> None:
    vv = write_tiff(tmp_path / "a_VV.tif", s1[:1])
    vh = write_tiff(tmp_path / "a_VH.tif", s1[1:], crs="EPSG:32632")
    stack = write_tiff(tmp_path / "stack.tif", s1, SAR_BANDS)
    torch.save(torch.from_numpy(s1), tmp_path / "s1.pt")
    unnamed = write_tiff(tmp_path / "plain.tif", s1[1:])
    for files, order, message in (
        ([vv, stack], None, "has 2 bands; expected one band in each file"),
        ([vv, tmp_path / "s1.pt"], None, "expected GeoTIFFs"),
        ([vv, vh], None, r"grids of .*a_VV.tif and .*a_VH.tif differ"),
        ([vv, unnamed], None, "says which band it is.*--bands VV,VH"),
        ([vv, unnamed], ("VV",), "2 files are given and --bands names 1"),
        ([stack], ("VV",), r"has 2 band\(s\) and --bands names 1"),
    ):
        with pytest.raises(InputError, match=message):
            read_raster(files, SAR_BANDS, order=order)
    for bands, lack in ((("B02", "B05"), "B03, B04, B08"), ((*NAMED, "B8A"), ".*B8A is the band of 20 m")):
        with pytest.raises(InputError, match=f"lack {lack}"):
            read_raster([write_tiff(tmp_path / f"x_{b}.tif", s1[:1]) for b in bands], OPTICAL_BANDS)
    with pytest.raises(InputError, match="expected --opt-v2 FILE"):
        pair_file([stack])
    np.savez(tmp_path / "t.npz", s2_real=s1, s1_vv=s1[0], s1_vh=s1[0, 1:])
    with pytest.raises(InputError, match="s2_real has shape"):
        read_truth(tmp_path / "t.npz", Raster(ONES, OPTICAL_BANDS, SceneGrid(H, W)))
    with pytest.raises(InputError, match="s1_vv has shape"):
        read_raster(tmp_path / "t.npz", SAR_BANDS)
