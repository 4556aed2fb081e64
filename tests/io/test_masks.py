"""Masks of every kind and format become the same trust map, and what cannot be is refused in words."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.crs import CRS
from rasterio.transform import Affine, from_origin

from axs_lib.bands import OPTICAL_BANDS
from axs_lib.errors import InputError
from axs_lib.io import masks
from axs_lib.io.grid import SceneGrid
from axs_lib.io.masks import SCL_CLASSES, SCL_DROPPED, MaskFile, MaskSource, scl_numbers, scl_trust
from axs_lib.io.raster import Raster
from axs_lib.io.tiles import read_raster
from axs_lib.scenes.api import ground_scene
from axs_lib.tilegrid import Tile

from .conftest import CORNER, BoxGrounder, SceneFiles, write_scene
from .conftest import GRID as TILES

H, W = 24, 30
UTM33 = CRS.from_epsg(32633)
GRID = from_origin(500_000, 6_000_000, 10, 10)
CLEAR = np.ones((H, W), "uint8")
CLEAR[4:12, 5:20] = 0


def image(batch: int | None = None, crs: CRS | None = UTM33, transform: Affine | None = GRID) -> Raster:
    lead = () if batch is None else (batch,)
    data = np.full((*lead, 4, H, W), 1000, "float32")
    return Raster(
        data,
        OPTICAL_BANDS,
        None if crs is None else crs.to_wkt(),
        None if transform is None else tuple(transform)[:6],
        source="image.tif",
    )


def read_mask(path: Path, like: Raster, **options: Any) -> SimpleNamespace:
    """The whole mask of an image: trust (N,1,H,W), kind, and the share that is unknown."""
    count, (height, width) = len(like.batch), like.size
    grid = SceneGrid(count * height, width, like.crs, like.transform)
    with ExitStack() as stack:
        source = MaskSource(MaskFile(path, **options), grid, stack, tiles=count)
        rows = [Tile(i * height, 0, (i + 1) * height, width) for i in range(count)]
        trust = np.stack([source.read(tile) for tile in rows])
        if not trust.any():
            raise InputError(source.nothing_clear())
    return SimpleNamespace(trust=trust, kind=source.kind, unknown=float((trust == 0).mean()))


def write_tiff(
    path: Path, values: np.ndarray, *, crs: CRS | None = UTM33, transform: Affine | None = GRID, **profile: Any
) -> Path:
    stack = values if values.ndim == 3 else values[None]
    profile = {"driver": "GTiff", "dtype": values.dtype, "crs": crs, "transform": transform} | profile
    with rasterio.open(path, "w", count=len(stack), height=stack.shape[1], width=stack.shape[2], **profile) as dataset:
        dataset.write(stack)
    return path


def scl() -> np.ndarray:
    """(H/2,W/2) at 20 m with every class."""
    classes = np.full((H // 2, W // 2), 4, "uint8")
    classes[2, :12] = np.arange(12)
    return classes


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("m.tif", CLEAR),
        ("m.tiff", CLEAR * 255),
        ("m.png", CLEAR * 255),
        ("m.png", CLEAR),
        ("m.npz", CLEAR),
        ("m.npz", CLEAR.astype(bool)),
        ("m.tif", CLEAR.astype("float32")),
    ],
)
def test_a_boolean_mask_in_every_format(tmp_path: Path, name: str, values: np.ndarray) -> None:
    path = tmp_path / name
    if path.suffix == ".png":
        Image.fromarray(values).save(path)
    elif path.suffix == ".npz":
        np.savez(path, mask=values)
    else:
        write_tiff(path, values)
    mask = read_mask(path, image())
    assert mask.kind == "boolean" and mask.trust.dtype == np.float32
    np.testing.assert_array_equal(mask.trust, CLEAR[None, None])
    assert mask.unknown == pytest.approx(120 / (H * W))


def test_invert_turns_a_cloud_mask_around(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "clouds.tif", 1 - CLEAR)
    np.testing.assert_array_equal(read_mask(path, image(), invert=True).trust, CLEAR[None, None])


def test_nodata_of_the_mask_is_unknown_inverted_or_not(tmp_path: Path) -> None:
    values = CLEAR.copy()
    values[20:] = 255
    path = write_tiff(tmp_path / "m.tif", values, nodata=255)
    for invert in (False, True):
        trust = read_mask(path, image(), invert=invert).trust[0, 0]
        assert (trust[20:] == 0).all()
        np.testing.assert_array_equal(trust[:20], 1 - CLEAR[:20] if invert else CLEAR[:20])


def test_zero_declared_as_nodata_is_still_the_zero_of_the_mask(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "clouds.tif", 1 - CLEAR, nodata=0)
    np.testing.assert_array_equal(read_mask(path, image(), invert=True).trust, CLEAR[None, None])


def test_a_trust_map_keeps_its_fractions(tmp_path: Path) -> None:
    values = np.linspace(0, 1, H * W, dtype="float32").reshape(H, W)
    path = write_tiff(tmp_path / "t.tif", values)
    mask = read_mask(path, image())
    assert mask.kind == "trust"
    np.testing.assert_array_equal(mask.trust[0, 0], values)
    np.testing.assert_allclose(read_mask(path, image(), invert=True).trust[0, 0], 1 - values)
    boolean = read_mask(path, image(), kind="boolean")
    np.testing.assert_array_equal(boolean.trust[0, 0], values > 0)


def test_nan_in_a_trust_map_is_unknown(tmp_path: Path) -> None:
    values = np.full((H, W), 0.5, "float32")
    values[:3] = np.nan
    trust = read_mask(write_tiff(tmp_path / "t.tif", values), image()).trust[0, 0]
    assert (trust[:3] == 0).all() and (trust[3:] == 0.5).all()


def test_a_batch_has_a_mask_for_each_tile(tmp_path: Path) -> None:
    stack = np.stack([CLEAR, 1 - CLEAR])
    np.savez(tmp_path / "m.npz", mask=stack)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.npz", image(2)).trust[:, 0], stack)
    np.savez(tmp_path / "t.npz", trust=stack[:, None])
    np.testing.assert_array_equal(read_mask(tmp_path / "t.npz", image(2)).trust[:, 0], stack)
    np.savez(tmp_path / "one.npz", mask=CLEAR)
    with pytest.raises(InputError, match=r"has shape \(24, 30\); expected .*\(2,24,30\) for a batch"):
        read_mask(tmp_path / "one.npz", image(2))


def test_scl_at_20_m_is_brought_to_the_images_grid(tmp_path: Path) -> None:
    coarse = from_origin(500_000, 6_000_000, 20, 20)
    path = write_tiff(tmp_path / "T33_20210714_SCL_20m.tif", scl(), transform=coarse, nodata=0)
    mask = read_mask(path, image())
    assert mask.kind == "scl"
    expected = scl_trust(scl()).repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(mask.trust[0, 0], expected)
    unknown = {SCL_CLASSES[number] for number in range(12) if mask.trust[0, 0, 4, 2 * number] == 0}
    assert unknown == set(SCL_DROPPED)


def test_scl_is_told_by_its_values_too(tmp_path: Path) -> None:
    coarse = from_origin(500_000, 6_000_000, 20, 20)
    assert read_mask(write_tiff(tmp_path / "m.tif", scl(), transform=coarse), image()).kind == "scl"
    only_clouds = np.where(scl() == 4, 8, 9).astype("uint8")
    path = write_tiff(tmp_path / "c.tif", only_clouds, transform=coarse)
    with pytest.raises(InputError, match=r"leaves nothing clear.* drop fewer classes"):
        read_mask(path, image())
    assert read_mask(path, image(), drop=["cloud_high"]).trust.any()


def test_a_scene_of_which_scl_knows_only_nodata_and_saturated_is_no_boolean_mask(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing clear"):
        read_mask(write_tiff(tmp_path / "tile_SCL.tif", CLEAR), image())


def test_classes_to_drop_by_name_and_number(tmp_path: Path) -> None:
    classes = np.tile(np.arange(12, dtype="uint8"), 60).reshape(H, W)
    path = write_tiff(tmp_path / "scl.tif", classes)
    trust = read_mask(path, image(), drop=["snow", "6", "Cloud High"]).trust[0, 0]
    np.testing.assert_array_equal(trust == 0, np.isin(classes, [6, 9, 11]))
    assert scl_numbers(SCL_DROPPED) == [0, 1, 3, 8, 9, 10]


@pytest.mark.parametrize("drop", [["fog"], ["12"], ["-1"], []])
def test_an_unknown_class_is_refused_with_the_table(drop: list[str]) -> None:
    with pytest.raises(InputError, match=r"--drop names .*0 no_data, 1 saturated_or_defective.*11 snow"):
        scl_numbers(drop)


def test_values_that_are_no_classes_are_refused() -> None:
    with pytest.raises(InputError, match="holds 12, 200; expected the classes 0 to 11"):
        scl_trust(np.array([[4, 12], [200, 5]]))


def test_the_modules_table_is_the_code() -> None:
    lines = (masks.__doc__ or "").splitlines()
    rows = [line.split() for line in lines if re.match(r"\d+ {5,}", line)]
    assert [row[1] for row in rows] == list(SCL_CLASSES)
    assert tuple(row[1] for row in rows if row[2] == "yes") == SCL_DROPPED


def test_the_buffer_grows_what_is_unknown(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "m.tif", CLEAR)
    trust = read_mask(path, image(), buffer=2).trust[0, 0]
    expected = np.ones((H, W))
    expected[2:14, 3:22] = 0
    np.testing.assert_array_equal(trust, expected)
    with pytest.raises(InputError, match="nothing clear after a buffer of 40 px"):
        read_mask(path, image(), buffer=40)
    with pytest.raises(InputError, match="expected 0 or more"):
        read_mask(path, image(), buffer=-1)


def test_the_buffer_takes_the_least_trust_around(tmp_path: Path) -> None:
    values = np.ones((H, W), "float32")
    values[10, 10], values[10, 12] = 0.25, 0.75
    trust = read_mask(write_tiff(tmp_path / "t.tif", values), image(), buffer=1).trust[0, 0]
    assert (trust[9:12, 9:12] == 0.25).all() and (trust[9:12, 12:14] == 0.75).all()


def test_a_mask_in_another_projection_is_warped(tmp_path: Path) -> None:
    """Clear west of the tile's middle, told in degrees."""
    from rasterio.warp import transform_bounds

    west, south, east, north = transform_bounds(
        UTM33, "EPSG:4326", 500_000, 6_000_000 - 10 * H, 500_000 + 10 * W, 6_000_000
    )
    width, height = (east - west) / 100, (north - south) / 100
    grid = from_origin(west - 10 * width, north + 10 * height, width, height)
    values = np.zeros((120, 120), "uint8")
    values[:, :60] = 1
    path = write_tiff(tmp_path / "m.tif", values, crs=CRS.from_epsg(4326), transform=grid)
    trust = read_mask(path, image()).trust[0, 0]
    assert (trust[:, : W // 2 - 1] == 1).all() and (trust[:, W // 2 + 1 :] == 0).all()


def test_a_mask_that_does_not_cover_the_image_is_refused(tmp_path: Path) -> None:
    shifted = GRID * Affine.translation(W // 2, 0)
    with pytest.raises(InputError, match="does not cover the scene"):
        read_mask(write_tiff(tmp_path / "half.tif", CLEAR, transform=shifted), image())


def test_without_georeference_the_size_must_be_the_same(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", mask=CLEAR[1:])
    with pytest.raises(InputError, match=r"\(23, 30\); expected \(24,30\)"):
        read_mask(tmp_path / "m.npz", image())
    path = write_tiff(tmp_path / "m.tif", scl(), transform=from_origin(500_000, 6_000_000, 20, 20))
    with pytest.raises(InputError, match=r"12x15 px .* 24x30 px .* georeference on both"):
        read_mask(path, image(crs=None, transform=None))
    located = write_tiff(tmp_path / "same.tif", CLEAR)
    assert read_mask(located, image(crs=None, transform=None)).unknown > 0


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.zeros((H, W), "uint8"), {}, "leaves nothing clear.* --mask-invert"),
        (np.ones((H, W), "uint8"), {"invert": True}, "leaves nothing clear"),
        (CLEAR * 2 + 50, {}, "holds 2 values from 50 to 52.*--mask-kind"),
        (CLEAR * 100, {"kind": "trust"}, "runs from 0 to 100; expected trust in 0..1"),
        (CLEAR, {"kind": "cloud"}, "its kind 'cloud'; expected"),
        (CLEAR, {"drop": ["snow"]}, "taken for a boolean mask, which has no classes"),
        (CLEAR + 3, {"invert": True}, "scene classification, which has no inverse"),
        (CLEAR * 0.5 - 1.0, {}, "look neither like"),
        (np.stack([CLEAR, CLEAR]), {}, "has 2 bands; expected one"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, values: np.ndarray, options: dict[str, Any], message: str) -> None:
    path = write_tiff(tmp_path / "m.tif", values)
    with pytest.raises(InputError, match=message):
        read_mask(path, image(), **options)


def test_a_file_that_cannot_be_read_is_said_in_words(tmp_path: Path) -> None:
    for name in ("broken.tif", "broken.png", "broken.npz", "broken.jp2"):
        (tmp_path / name).write_bytes(b"not an image")
        with pytest.raises(InputError, match=r"is no GeoTIFF|not an \.npz"):
            read_mask(tmp_path / name, image())
    with pytest.raises(InputError, match="does not exist"):
        read_mask(tmp_path / "missing.tif", image())
    with pytest.raises(InputError, match=r"ends in \.jpg"):
        read_mask(tmp_path / "m.jpg", image())
    np.savez(tmp_path / "many.npz", a=CLEAR, b=CLEAR)
    with pytest.raises(InputError, match="holds a, b; expected one of trust, mask"):
        read_mask(tmp_path / "many.npz", image())
    np.savez(tmp_path / "objects.npz", mask=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="not loaded because it can run code"):
        read_mask(tmp_path / "objects.npz", image())
    np.save(tmp_path / "plain.npy", CLEAR)
    (tmp_path / "plain.npy").rename(tmp_path / "plain.npz")
    with pytest.raises(InputError, match="not an"):
        read_mask(tmp_path / "plain.npz", image())


# Windows of a scene


@pytest.fixture
def scene_scl(tmp_path: Path) -> Path:
    """A scene classification at 20 m with clouds."""
    classes = np.full((1, 100, 75), 4)
    classes[:, 30:45, 10:40] = 9
    classes[:, 80, 70] = 3
    place = Affine(20, 0, CORNER[0], 0, -20, CORNER[1])
    return write_scene(tmp_path / "T33_SCL_20m.tif", classes, ("SCL",), dtype="uint8", nodata=0, transform=place)


@pytest.mark.parametrize("buffer", [0, 3])
def test_windows_of_a_classification(scene: SceneFiles, scene_scl: Path, buffer: int) -> None:
    whole = read_mask(scene_scl, read_raster(scene.opt_v2, OPTICAL_BANDS), buffer=buffer).trust[0]
    with ExitStack() as stack:
        source = MaskSource(MaskFile(scene_scl, buffer=buffer), SceneGrid.like(scene.opt_v2), stack)
        assert source.kind == "scl" and 0 < whole.mean() < 1
        for window in (source.grid.whole, Tile(55, 15, 95, 90), Tile(0, 0, 7, 150), Tile(159, 130, 200, 150)):
            part = whole[:, window.top : window.bottom, window.left : window.right]
            np.testing.assert_array_equal(source.read(window), part)


def test_boolean_masks_and_their_nodata(scene: SceneFiles, tmp_path: Path) -> None:
    clouds = np.zeros((1, 200, 150))
    clouds[:, 5:9] = 1
    clouds[:, 20:30] = 7
    path = write_scene(tmp_path / "clouds.tif", clouds, ("cloud",), dtype="uint8", nodata=7)
    grid = SceneGrid.like(scene.opt_v2)
    with ExitStack() as stack:
        source = MaskSource(MaskFile(path, invert=True), grid, stack)
        assert source.kind == "boolean"
        np.testing.assert_array_equal(source.read(grid.whole), clouds == 0)


def test_gaps_of_a_scene_are_filled(grounder: BoxGrounder, scene: SceneFiles, scene_scl: Path, tmp_path: Path) -> None:
    ground_scene(grounder, scene.s1, scene.opt_v2, tmp_path / "o.tif", trust=MaskFile(scene_scl), grid=TILES)
    with rasterio.open(tmp_path / "o.tif") as file:
        result = file.read()
    kept = ~np.isnan(scene.optical) & ~np.isnan(scene.sar).any(axis=0)
    kept[:, 60:90, 20:80] = False
    kept[:, 160:162, 140:142] = False
    np.testing.assert_array_equal(result[kept], scene.optical[kept])
    assert (result[:, 60:90, 30:80] != scene.optical[:, 60:90, 30:80]).mean() > 0.9


def test_what_is_no_mask(scene: SceneFiles, scene_scl: Path, tmp_path: Path) -> None:
    grid = SceneGrid.like(scene.opt_v2)
    far = write_scene(
        tmp_path / "far.tif",
        np.ones((1, 9, 9)),
        ("m",),
        dtype="uint8",
        nodata=255,
        transform=Affine(10, 0, 0, 0, -10, 0),
    )
    part = write_scene(tmp_path / "part.tif", np.ones((1, 190, 150)), ("m",), dtype="uint8", nodata=255)
    bare = write_scene(tmp_path / "bare.tif", np.ones((1, 9, 9)), ("m",), dtype="uint8", nodata=255, crs=None)
    for mask, match in (
        (MaskFile(scene_scl, invert=True), "no inverse"),
        (MaskFile(scene_scl, kind="trust"), "expected trust in 0..1"),
        (MaskFile(far), "does not cover the scene"),
        (MaskFile(part), "does not cover the scene"),
        (MaskFile(bare), "a georeference on both"),
        (MaskFile(scene.opt_v2), "has 4 bands"),
    ):
        with ExitStack() as stack, pytest.raises(InputError, match=match):
            MaskSource(mask, grid, stack).read(grid.whole)
