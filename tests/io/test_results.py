"""Results keep georeference, names and nodata in every format, and are read back as they were written."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from axs_lib.bands import OPTICAL_BANDS, SAR_BANDS
from axs_lib.errors import InputError, OutputError
from axs_lib.io.raster import Raster, TilePair
from axs_lib.io.results import check_suffix, to_uint16, write_arrays, write_image, write_tiff, write_uncertainty
from axs_lib.io.tiles import read_raster, read_tile

H, W = 40, 21
CRS = rasterio.crs.CRS.from_epsg(32633).to_wkt()
TRANSFORM = (10.0, 0.0, 500_000.0, 0.0, -10.0, 6_000_000.0)


def make_tile(batch: int | None = None) -> TilePair:
    rng = np.random.default_rng(0)
    lead = () if batch is None else (batch,)
    s1 = rng.uniform(-25, -5, (*lead, 2, H, W)).astype("float32")
    opt = rng.uniform(200, 5000, (*lead, 4, H, W)).astype("float32")
    return TilePair(
        Raster(s1, SAR_BANDS, CRS, TRANSFORM),
        Raster(opt, OPTICAL_BANDS, CRS, TRANSFORM, tags={"SCENE": "T33UUP"}),
        truth=Raster(opt + 1, OPTICAL_BANDS),
    )


@pytest.fixture
def image() -> np.ndarray:
    """(1,4,H,W) DN with dark and bright pixels and a nodata corner."""
    image = np.random.default_rng(1).uniform(1, 8000, (1, 4, H, W)).astype("float32")
    image[..., 0, 0], image[..., 0, 1], image[..., 0, 2] = np.nan, -30.0, 90_000.0
    return image


def test_a_geotiff_says_everything_about_itself(tmp_path: Path, image: np.ndarray) -> None:
    write_image(tmp_path / "o.tif", image, make_tile(), tags={"AXS_VARIANT": "nano"})
    with rasterio.open(tmp_path / "o.tif") as dataset:
        assert dataset.dtypes == ("uint16",) * 4 and dataset.nodata == 0
        assert dataset.descriptions == OPTICAL_BANDS
        assert [c.name for c in dataset.colorinterp][:3] == ["blue", "green", "red"]
        assert dataset.scales == (1e-4,) * 4 and dataset.offsets == (0.0,) * 4 and dataset.units == ("DN",) * 4
        assert dataset.crs.to_epsg() == 32633 and tuple(dataset.transform)[:6] == TRANSFORM
        assert dataset.profile["tiled"] and dataset.profile["compress"] == "deflate"
        tags = dataset.tags()
        assert tags["AXS_VARIANT"] == "nano" and tags["SCENE"] == "T33UUP"
        data = dataset.read()
    assert data[:, 0, :3].T.tolist() == [[0] * 4, [1] * 4, [65535] * 4]
    assert [p.name for p in tmp_path.iterdir()] == ["o.tif"]


def test_a_geotiff_is_read_back_in_whole_dn(tmp_path: Path, image: np.ndarray) -> None:
    write_image(tmp_path / "o.tif", image, make_tile())
    back = read_raster(tmp_path / "o.tif", OPTICAL_BANDS)
    np.testing.assert_array_equal(np.isnan(back.data), np.isnan(image[0]))
    np.testing.assert_allclose(back.data, np.clip(image[0], 1, 65535), atol=0.5)
    assert back.crs is not None and back.transform == TRANSFORM


def test_rounding_never_makes_nodata_of_dark_water() -> None:
    assert to_uint16(np.array([0.2, -5.0, 0.0, 1.5, 70_000.0, np.nan])).tolist() == [1, 1, 1, 2, 65535, 0]


def test_an_npz_holds_the_documents_keys_and_reads_back(tmp_path: Path, image: np.ndarray) -> None:
    tile = make_tile()
    write_image(tmp_path / "o.npz", image, tile, tags={"AXS_VARIANT": "nano"})
    with np.load(tmp_path / "o.npz", allow_pickle=False) as data:
        assert set(data.files) == {
            "opt_v3", "opt_v2", "s1_vv", "s1_vh", "s2_real", "crs", "transform", "provenance",
        }  # fmt: skip
        np.testing.assert_array_equal(data["opt_v3"], image[0])
        assert data["opt_v3"].dtype == np.float32
        assert json.loads(str(data["provenance"])) == {"AXS_VARIANT": "nano"}
    again = read_tile([tmp_path / "o.npz"])
    np.testing.assert_array_equal(again.s1.data, tile.s1.data)
    np.testing.assert_array_equal(again.opt_v2.data, tile.opt_v2.data)
    assert again.opt_v2.crs == CRS and again.opt_v2.transform == TRANSFORM
    assert again.truth is not None


def test_a_batch_stays_a_batch(tmp_path: Path) -> None:
    tile, image = make_tile(3), np.ones((3, 4, H, W), "float32")
    write_image(tmp_path / "o.npz", image, tile)
    with np.load(tmp_path / "o.npz", allow_pickle=False) as data:
        assert data["opt_v3"].shape == (3, 4, H, W) and data["s1"].shape == (3, 2, H, W)
    write_image(tmp_path / "o.pt", image, tile)
    assert torch.load(tmp_path / "o.pt", weights_only=True).shape == (3, 4, H, W)
    with pytest.raises(InputError, match=r"holds one tile and the input holds 3; name it \.npz or \.pt"):
        write_image(tmp_path / "o.tif", image, tile)


def test_a_pt_holds_the_tensor_of_one_tile(tmp_path: Path, image: np.ndarray) -> None:
    write_image(tmp_path / "o.pt", image, make_tile())
    loaded = torch.load(tmp_path / "o.pt", weights_only=True)
    np.testing.assert_array_equal(loaded.numpy(), image[0])


def test_uncertainty_is_float_with_nan_nodata(tmp_path: Path) -> None:
    spread = np.full((1, 4, H, W), 0.25, "float32")
    spread[..., 0, 0] = np.nan
    write_uncertainty(tmp_path / "u.tif", spread, make_tile())
    with rasterio.open(tmp_path / "u.tif") as dataset:
        assert dataset.dtypes == ("float32",) * 4 and np.isnan(dataset.nodata)
        assert dataset.descriptions == OPTICAL_BANDS and dataset.crs.to_epsg() == 32633
        np.testing.assert_array_equal(dataset.read(), spread[0])


@pytest.mark.parametrize(("bands", "side"), [(2, 120), (4, 300), (2, 8)])
def test_single_tiles_of_any_size_are_written(tmp_path: Path, bands: int, side: int) -> None:
    names = SAR_BANDS if bands == 2 else OPTICAL_BANDS
    data = np.random.default_rng(0).uniform(1, 99, (bands, side, side)).astype("float32")
    if bands == 4:
        data = np.rint(data)
    write_tiff(tmp_path / "t.tif", data, Raster(data, names))
    np.testing.assert_array_equal(read_raster(tmp_path / "t.tif", names).data, data)


def test_outputs_of_unknown_kind_and_existing_ones_are_refused(tmp_path: Path, image: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"ends in \.jpg; expected an output named \.npz"):
        check_suffix(tmp_path / "o.jpg")
    (tmp_path / "o.npz").write_bytes(b"old")
    with pytest.raises(OutputError, match="--overwrite"):
        write_image(tmp_path / "o.npz", image, make_tile())
    assert (tmp_path / "o.npz").read_bytes() == b"old"
    write_image(tmp_path / "o.npz", image, make_tile(), overwrite=True)
    assert (tmp_path / "o.npz").stat().st_size > 1000


def test_a_full_disk_is_reported_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: np.ndarray
) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    for name in ("o.npz", "o.pt"):
        with pytest.raises(OutputError, match="disk is full"):
            write_image(tmp_path / name, image, make_tile())
    assert list(tmp_path.iterdir()) == []


def test_named_arrays_with_a_georeference(tmp_path: Path) -> None:
    tile = make_tile()
    arrays = {"opt_v1": tile.opt_v2.data, "s1_vv": tile.s1.data[0], "s1_vh": tile.s1.data[1]}
    write_arrays(tmp_path / "run.npz", arrays, tile.s1, tags={"AXS_SEED": "3"})
    with np.load(tmp_path / "run.npz") as written:
        assert set(written.files) == {*arrays, "crs", "transform", "provenance"}
        np.testing.assert_array_equal(written["opt_v1"], tile.opt_v2.data)
        assert json.loads(str(written["provenance"])) == {"AXS_SEED": "3"}
    sar = read_raster(tmp_path / "run.npz", SAR_BANDS)
    assert (sar.crs, sar.transform) == (CRS, TRANSFORM)
    with pytest.raises(OutputError, match="exists already"):
        write_arrays(tmp_path / "run.npz", arrays, tile.s1)
