"""Saved results are found under the names people know, and read whole, reduced, or with a clear refusal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from axs_lib.bands import OPTICAL_BANDS
from axs_lib.data.samples import load_sample
from axs_lib.errors import InputError
from axs_lib.io.raster import Raster, TilePair
from axs_lib.io.results import write_image, write_tiff, write_uncertainty
from axs_lib.io.saved import find_results, read_results


def arrays(**others: Any) -> dict[str, Any]:
    images = np.random.default_rng(0).uniform(100, 3000, (4, 12, 10)).astype(np.float32)
    return {"opt_v2": images, "opt_v3": images + 10, "s1_vv": images[0], "s1_vh": images[1]} | others


def scene(folder: Path, times: int = 3) -> tuple[Path, Raster]:
    """``evora_opt_v3.tif`` and its companions, a sample tile repeated."""
    sar, optical = load_sample("portugal_hills")
    data = np.tile(optical.data, (1, times, 2 * times))
    optical = replace(optical, data=data, tags={"AXS_VARIANT": "nano"})
    sar = replace(sar, data=np.tile(sar.data, (1, times, 2 * times)))
    write_tiff(folder / "evora_opt_v3.tif", data, optical)
    write_tiff(folder / "evora_opt_v2.tif", data + 100, optical)
    write_tiff(folder / "evora_s1.tif", sar.data, sar)
    write_uncertainty(folder / "evora_uncertainty.tif", np.ones_like(data)[None], TilePair(sar, optical))
    return folder / "evora_opt_v3.tif", optical


def test_results_of_a_tree_have_short_names(tmp_path: Path) -> None:
    for name in ("a/tile.npz", "a/pipeline/result.npz", "batch/one.npz", "batch/two.npz", ".hidden/x.npz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        np.savez(tmp_path / name, **arrays())
    np.savez(tmp_path / "batch" / "pair.npz", s1=np.zeros((2, 4, 4)), s2=np.zeros((4, 4, 4)))
    (tmp_path / "batch" / "broken.npz").write_bytes(b"no archive")
    sar, optical = load_sample("finland_lake")
    write_tiff(tmp_path / "a" / "opt_v3.tif", optical.data, optical)  # the same as tile.npz
    write_tiff(tmp_path / "alone" / "opt_v3.tif", optical.data, optical)
    write_tiff(tmp_path / "alone" / "s1.tif", sar.data, sar)
    scene(tmp_path / "scene", 1)
    found = dict(find_results([tmp_path]))
    assert set(found) == {"a", "a/pipeline", "alone", "batch/one", "batch/two", "scene/evora"}
    assert found["a"].name == "tile.npz"
    names = [name for name, _ in find_results([tmp_path / "a", tmp_path / "batch", tmp_path / "a" / "tile.npz"])]
    assert names == ["a", "a/pipeline", "batch/one", "batch/two"]
    (result,) = read_results(found["alone"])
    assert set(result.layers) == {"s1", "opt_v3"} and result.name == "alone"


def test_a_tile_is_read_as_it_was_written(tmp_path: Path) -> None:
    sar, optical = load_sample("finland_lake")
    image = optical.data + 5
    image[:, :3, :3] = np.nan
    tile = TilePair(sar, optical, truth=optical)
    write_image(tmp_path / "t" / "tile.npz", image[None], tile, tags={"AXS_SEED": "3"})
    write_uncertainty(tmp_path / "t" / "uncertainty.tif", np.full_like(image, 7)[None], tile)
    (result,) = read_results(tmp_path / "t" / "tile.npz")
    assert list(result.layers) == ["s1", "opt_v2", "opt_v3", "truth", "uncertainty"]
    np.testing.assert_array_equal(result.layers["opt_v3"], image)
    np.testing.assert_array_equal(result.layers["s1"], sar.data)
    assert (result.layers["uncertainty"] == 7).all()
    assert result.tags["AXS_SEED"] == "3" and result.size == (120, 120) and result.reduction == 1
    assert result.crs == optical.crs and result.transform == optical.transform


def test_tiles_of_a_batch_and_one_map_for_all_bands(tmp_path: Path) -> None:
    images = np.random.default_rng(0).uniform(1, 9, (3, 4, 6, 5))
    sigma = np.arange(90.0).reshape(3, 6, 5)
    np.savez(tmp_path / "many.npz", opt_v3=images, s1=images[:, :2], uncertainty=sigma)
    results = list(read_results(tmp_path / "many.npz"))
    assert [result.name for result in results] == ["many #1", "many #2", "many #3"]
    np.testing.assert_allclose(results[1].layers["s1"], images[1, :2], rtol=1e-6)
    for band in results[2].layers["uncertainty"]:
        np.testing.assert_array_equal(band, sigma[2])


def test_a_scene_is_averaged_and_stays_where_it_is(tmp_path: Path) -> None:
    path, optical = scene(tmp_path)
    (result,) = read_results(path, longest=180)
    assert result.size == (360, 720) and result.reduction == 4
    assert {name: layer.shape[1:] for name, layer in result.layers.items()} == dict.fromkeys(
        ("s1", "opt_v2", "opt_v3", "uncertainty"), (90, 180)
    )
    mean = optical.data.reshape(4, 90, 4, 180, 4).mean((2, 4))
    np.testing.assert_allclose(result.layers["opt_v3"], mean, atol=1)
    np.testing.assert_allclose(result.layers["opt_v2"], mean + 100, atol=1)
    assert optical.transform is not None and result.transform is not None
    assert result.transform[0] == 4 * optical.transform[0] and result.transform[2] == optical.transform[2]
    assert result.tags["AXS_VARIANT"] == "nano"


def test_nodata_stays_nodata_when_averaged(tmp_path: Path) -> None:
    path, optical = scene(tmp_path, 1)
    data = optical.data.copy()
    data[:, :40, :40] = np.nan
    write_tiff(path, data, optical, overwrite=True)
    (result,) = read_results(path, longest=60)
    image = result.layers["opt_v3"]
    assert np.isnan(image[:, :10, :10]).all() and np.isfinite(image[:, 10:, 10:]).all()


def test_a_layer_on_another_grid_is_brought_over(tmp_path: Path) -> None:
    path, optical = scene(tmp_path, 1)
    assert optical.transform is not None
    a, b, c, d, e, f = optical.transform
    wide = np.pad(optical.data, ((0, 0), (20, 20), (20, 20)), constant_values=9000)
    moved = replace(optical, data=wide, transform=(a, b, c - 20 * a, d, e, f - 20 * e))
    write_tiff(tmp_path / "wide.tif", wide, moved)
    (result,) = read_results(path, companions={"truth": tmp_path / "wide.tif"})
    np.testing.assert_allclose(result.layers["truth"], result.layers["opt_v3"], atol=1)
    far = replace(moved, transform=(a, b, c + 1e6, d, e, f))
    write_tiff(tmp_path / "far.tif", wide, far)
    with pytest.raises(InputError, match="do not overlap"):
        list(read_results(path, companions={"truth": tmp_path / "far.tif"}))


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    def read(**content: Any) -> None:
        np.savez(tmp_path / "x.npz", **content)
        list(read_results(tmp_path / "x.npz"))

    with pytest.raises(InputError, match="expected opt_v3"):
        read(s1=np.zeros((2, 4, 4)))
    with pytest.raises(InputError, match=r"opt_v3 has shape \(3, 4, 4\)"):
        read(opt_v3=np.zeros((3, 4, 4)))
    with pytest.raises(InputError, match=r"gate has shape \(1, 5, 5\)"):
        read(**arrays(gate=np.zeros((1, 5, 5))))
    with pytest.raises(InputError, match="pickled"):
        read(opt_v3=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="no layer of a result"):
        list(read_results(tmp_path / "x.npz", companions={"colour": tmp_path / "x.tif"}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no results"):
        find_results([tmp_path / "empty"])
    with pytest.raises(InputError, match="does not exist"):
        find_results([tmp_path / "nowhere"])


def test_tags_that_are_no_json_object_are_left_out(tmp_path: Path) -> None:
    for text, tags in (("{", {}), ("[1]", {}), (json.dumps({"a": 1}), {"a": "1"})):
        np.savez(tmp_path / "x.npz", **arrays(provenance=np.array(text)))
        (result,) = read_results(tmp_path / "x.npz")
        assert result.tags == tags
    assert result.raster.bands == OPTICAL_BANDS
