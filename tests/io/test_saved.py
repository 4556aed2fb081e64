"""Saved results say what they are, are found by the names people know, and read whole, reduced, or refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

from axs_lib.bands import OPTICAL_BANDS, SAR_BANDS
from axs_lib.errors import InputError
from axs_lib.io.grid import SceneGrid
from axs_lib.io.products import read_raster
from axs_lib.io.results import optical_layer, write_arrays, write_layer
from axs_lib.io.saved import NOT_SHOWN, find_results, read_results

from ..scenes.conftest import PLACE, scene_arrays, write_scene

S1, OPTICAL = scene_arrays(120, 120)


def arrays(**others: Any) -> dict[str, Any]:
    images = np.random.default_rng(0).uniform(100, 3000, (4, 12, 10)).astype(np.float32)
    return {"opt_v2": images, "opt_v3": images + 10, "s1_vv": images[0], "s1_vh": images[1]} | others


def scene(folder: Path, times: int = 3) -> tuple[Path, np.ndarray]:
    """``evora_opt_v3.tif`` and its companions, a tile repeated."""
    sar, optical = (np.tile(image, (1, times, 2 * times)) for image in (S1, OPTICAL))
    path = write_scene(folder / "evora_opt_v3.tif", optical, tags={"AXS_VARIANT": "nano"})
    write_scene(folder / "evora_opt_v2.tif", optical + 100)
    write_scene(folder / "evora_s1.tif", sar)
    write_scene(folder / "evora_uncertainty.tif", np.ones_like(optical), dtype="float32")
    return path, optical


def test_results_of_a_tree_have_short_names(tmp_path: Path) -> None:
    for name in ("a/tile.npz", "a/pipeline/result.npz", "batch/one.npz", "batch/two.npz", ".hidden/x.npz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        np.savez(tmp_path / name, **arrays())
    np.savez(tmp_path / "batch" / "pair.npz", s1=np.zeros((2, 4, 4)), s2=np.zeros((4, 4, 4)))
    (tmp_path / "batch" / "broken.npz").write_bytes(b"no archive")
    os.mkfifo(tmp_path / "batch" / "pipe.npz")
    write_scene(tmp_path / "a" / "opt_v3.tif", OPTICAL)  # the same as tile.npz
    write_scene(tmp_path / "alone" / "opt_v3.tif", OPTICAL)
    write_scene(tmp_path / "alone" / "s1.tif", S1)
    scene(tmp_path / "scene", 1)
    for name in ("batch/three", "batch/three_opt_v2", "batch/opt_v1"):  # as axs batch --format tif and axs run write it
        write_scene(tmp_path / f"{name}.tif", OPTICAL, tags={"AXS_VERSION": "0"})
    write_scene(tmp_path / "maps" / "three.tif", OPTICAL, dtype="float32", tags={"AXS_VERSION": "0"})
    write_scene(tmp_path / "maps" / "input.tif", OPTICAL)
    found = dict(find_results([tmp_path]))
    assert set(found) == {"a", "a/pipeline", "alone", "batch/one", "batch/two", "batch/three", "scene/evora"}
    assert found["a"].name == "tile.npz"
    (tmp_path / "link.npz").symlink_to(tmp_path / "a" / "tile.npz")
    given = (tmp_path / each for each in ("a", "batch", "batch/../a/tile.npz", "link.npz"))
    names = [name for name, _ in find_results([*given])]
    assert names == ["a", "a/pipeline", "batch/one", "batch/two", "batch/three"]
    many = [write_scene(tmp_path / f"many/{n}", OPTICAL, tags={"AXS_VERSION": "0"}) for n in ("x.tif", "opt_v3.tif")]
    many += [tmp_path / "many" / n for n in ("x.npz", "opt_v3.npz")]
    np.savez(many[2], **arrays())
    np.savez(many[3], **arrays())
    assert {*find_results([tmp_path / "many"])} == {(path.as_posix(), path) for path in many}
    (result,) = read_results(found["alone"])
    assert set(result.layers) == {"s1", "opt_v3"} and result.name == "alone"


def test_a_tile_is_read_as_it_was_written(tmp_path: Path) -> None:
    image = OPTICAL + 5
    image[:, :3, :3] = np.nan
    write_scene(tmp_path / "t" / "uncertainty.tif", np.full_like(image, 7), dtype="float32")
    grid = SceneGrid.like(tmp_path / "t" / "uncertainty.tif")
    stored = {"opt_v3": image, "opt_v2": OPTICAL, "s1_vv": S1[0], "s1_vh": S1[1], "s2_real": OPTICAL}
    write_arrays(tmp_path / "t" / "tile.npz", stored, grid, {"AXS_SEED": "3"})
    (result,) = read_results(tmp_path / "t" / "tile.npz")
    assert list(result.layers) == ["s1", "opt_v2", "opt_v3", "truth", "uncertainty"]
    np.testing.assert_array_equal(result.layers["opt_v3"], image)
    np.testing.assert_array_equal(result.layers["s1"], S1)
    assert (result.layers["uncertainty"] == 7).all()
    assert result.tags["AXS_SEED"] == "3" and result.size == (120, 120) and result.reduction == 1
    assert result.grid == grid
    write_scene(tmp_path / "t" / "s1.tif", S1 - 1)
    write_arrays(tmp_path / "t" / "tile.npz", stored | {"s1_vh": S1[1, 1:]}, grid, {})
    (result,) = read_results(tmp_path / "t" / "tile.npz")  # whose own SAR is none, but that beside it is shown
    np.testing.assert_array_equal(result.layers["s1"], S1 - 1)
    assert NOT_SHOWN not in result.tags


def test_tiles_of_a_batch_and_one_map_for_all_bands(tmp_path: Path) -> None:
    images = np.random.default_rng(0).uniform(1, 9, (3, 4, 6, 5))
    sigma = np.arange(90.0).reshape(3, 6, 5)
    np.savez(tmp_path / "many.npz", opt_v3=images, s1=images[:, :2], uncertainty=sigma)
    results = list(read_results(tmp_path / "many.npz"))
    assert [result.name for result in results] == ["many #1", "many #2", "many #3"]
    np.testing.assert_allclose(results[1].layers["s1"], images[1, :2], rtol=1e-6)
    for band in results[2].layers["uncertainty"]:
        np.testing.assert_array_equal(band, sigma[2])


def test_a_scene_is_averaged_and_stays_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, optical = scene(tmp_path)
    monkeypatch.setattr("axs_lib.io.saved.LONGEST", 180)
    (result,) = read_results(path)
    assert result.size == (360, 720) and result.reduction == 4
    assert {name: layer.shape[1:] for name, layer in result.layers.items()} == dict.fromkeys(
        ("s1", "opt_v2", "opt_v3", "uncertainty"), (90, 180)
    )
    mean = optical.reshape(4, 90, 4, 180, 4).mean((2, 4))
    np.testing.assert_allclose(result.layers["opt_v3"], mean, atol=1)
    np.testing.assert_allclose(result.layers["opt_v2"], mean + 100, atol=1)
    assert result.grid.affine == PLACE * Affine.scale(4)
    assert result.tags["AXS_VARIANT"] == "nano"


def test_nodata_stays_nodata_when_averaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, optical = scene(tmp_path, 1)
    optical[:, :40, :40] = np.nan
    write_scene(path, optical)
    monkeypatch.setattr("axs_lib.io.saved.LONGEST", 60)
    (result,) = read_results(path)
    image = result.layers["opt_v3"]
    assert np.isnan(image[:, :10, :10]).all() and np.isfinite(image[:, 10:, 10:]).all()


def test_a_layer_on_another_grid_is_brought_over(tmp_path: Path) -> None:
    path, optical = scene(tmp_path, 1)
    wide = np.pad(optical, ((0, 0), (20, 20), (20, 20)), constant_values=9000)
    write_scene(tmp_path / "wide.tif", wide, transform=PLACE * Affine.translation(-20, -20))
    sar = [write_scene(tmp_path / f"sar_{band}.tif", S1[at : at + 1], (band,)) for at, band in enumerate(SAR_BANDS)]
    (result,) = read_results(path, companions={"truth": tmp_path / "wide.tif", "s1": sar[::-1]})
    np.testing.assert_allclose(result.layers["truth"], result.layers["opt_v3"], atol=1)
    np.testing.assert_array_equal(result.layers["s1"][..., :120], S1)
    with pytest.raises(InputError, match="expected one stack, or files named VV, VH"):
        list(read_results(path, companions={"s1": [sar[0], path]}))
    for name, where, message in (
        ("far", {"transform": PLACE * Affine.translation(1e5, 0)}, "do not overlap"),
        ("bare", {"crs": None, "transform": None}, "the grids of .*bare.tif and .* differ"),
    ):
        write_scene(tmp_path / f"{name}.tif", wide, **where)
        with pytest.raises(InputError, match=message):
            list(read_results(path, companions={"truth": tmp_path / f"{name}.tif"}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"s1": np.zeros((2, 4, 4))}, "expected opt_v3"),
        ({"opt_v3": np.zeros((3, 4, 4))}, r"opt_v3 has shape \(3, 4, 4\)"),
        (arrays(gate=np.zeros((1, 5, 5))), r"gate has shape \(1, 5, 5\)"),
        ({"opt_v3": np.array([{}], dtype=object)}, "pickled"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "x.npz", **content)
    with pytest.raises(InputError, match=message):
        list(read_results(tmp_path / "x.npz"))


def test_a_geotiff_says_everything_about_itself(tmp_path: Path) -> None:
    image = np.random.default_rng(1).uniform(1, 8000, (4, 40, 21)).astype("float32")
    image[..., 0, 0], image[..., 0, 1], image[..., 0, 2] = np.nan, -30.0, 90_000.0
    grid = SceneGrid(40, 21, rasterio.CRS.from_epsg(32633).to_wkt(), tuple(PLACE)[:6])
    write_layer(tmp_path / "o.tif", optical_layer("opt_v3"), image, grid, {"AXS_VARIANT": "nano"})
    with rasterio.open(tmp_path / "o.tif") as dataset:
        assert dataset.dtypes == ("uint16",) * 4 and dataset.nodata == 0
        assert dataset.descriptions == OPTICAL_BANDS
        assert [c.name for c in dataset.colorinterp][:3] == ["blue", "green", "red"]
        assert dataset.scales == (1e-4,) * 4 and dataset.offsets == (0.0,) * 4 and dataset.units == ("DN",) * 4
        assert dataset.crs.to_epsg() == 32633 and tuple(dataset.transform)[:6] == grid.transform
        assert dataset.profile["tiled"] and dataset.profile["compress"] == "deflate"
        assert dataset.tags()["AXS_VARIANT"] == "nano"
        data = dataset.read()
    assert data[:, 0, :3].T.tolist() == [[0] * 4, [1] * 4, [65535] * 4]
    assert [p.name for p in tmp_path.iterdir()] == ["o.tif"]
    back = read_raster(tmp_path / "o.tif", OPTICAL_BANDS)
    np.testing.assert_array_equal(np.isnan(back.data), np.isnan(image))
    np.testing.assert_allclose(back.data, np.clip(image, 1, 65535), atol=0.5)
    assert back.grid.same_as(grid)
