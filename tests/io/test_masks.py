"""Masks of every kind and format become the same trust map, and what cannot be is refused in words."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import Affine, from_origin
from rasterio.warp import transform_bounds

from axs_lib.errors import InputError
from axs_lib.io.grid import SceneGrid
from axs_lib.io.masks import SCL_CLASSES, SCL_DROPPED, MaskFile, MaskSource, scl_trust
from axs_lib.tilegrid import Tile

from ..scenes.conftest import CORNER, CRS, PLACE, SceneFiles, write_scene, write_tiff

H, W = 24, 30
COARSE = from_origin(*CORNER, 20, 20)
IMAGE = SceneGrid.of(CRS, 10, (CORNER[0], CORNER[1] - 10 * H, CORNER[0] + 10 * W, CORNER[1]))
CLEAR = np.ones((H, W), "uint8")
CLEAR[4:12, 5:20] = 0


def read_mask(path: Path, grid: SceneGrid = IMAGE, tiles: int = 1, **options: Any) -> SimpleNamespace:
    """The whole mask of an image: trust (N*H,W), kind, and what is said of it."""
    with ExitStack() as stack:
        source = MaskSource(MaskFile(path, **options), replace(grid, height=tiles * H), stack, tiles=tiles)
        trust = source.read(source.grid.whole)[0]
        if not trust.any():
            raise InputError(source.nothing_clear())
    return SimpleNamespace(trust=trust, kind=source.kind, notes=source.notes(int((trust == 0).sum())))


def write_mask(path: Path, values: np.ndarray, **profile: Any) -> Path:
    return write_tiff(path, values if values.ndim == 3 else values[None], **profile)


def scl() -> np.ndarray:
    """(H/2,W/2) at 20 m with every class."""
    classes = np.full((H // 2, W // 2), 4, "uint8")
    classes[2, :12] = np.arange(12)
    return classes


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("m.tif", CLEAR), ("m.tiff", CLEAR * 255), ("m.png", CLEAR * 255), ("m.npz", CLEAR),
        ("m.npz", CLEAR.astype(bool)), ("m.tif", CLEAR.astype("float32")),
    ],
)  # fmt: skip
def test_a_boolean_mask_in_every_format(tmp_path: Path, name: str, values: np.ndarray) -> None:
    path = tmp_path / name
    if path.suffix == ".png":
        Image.fromarray(values).save(path)
    elif path.suffix == ".npz":
        np.savez(path, mask=values)
    else:
        write_mask(path, values)
    mask = read_mask(path)
    assert mask.kind == "boolean" and mask.trust.dtype == np.float32 and len(mask.notes) == 1
    assert "(16.7 %) are a gap; " in mask.notes[0] and mask.notes[0].endswith(
        "; if 1 is cloud in it, give --mask-invert"
    )
    np.testing.assert_array_equal(mask.trust, CLEAR)


@pytest.mark.parametrize("nodata", [None, 0])
def test_invert_turns_a_cloud_mask_around(tmp_path: Path, nodata: int | None) -> None:
    """Zero declared as nodata is still the zero of the mask."""
    path = write_mask(tmp_path / "clouds.tif", 1 - CLEAR, nodata=nodata)
    np.testing.assert_array_equal(read_mask(path, invert=True).trust, CLEAR)
    assert read_mask(path, invert=True).notes[0].endswith("all else a gap: 120 of 720 pixels (16.7 %) are a gap")


def test_nodata_of_the_mask_is_unknown_inverted_or_not(tmp_path: Path) -> None:
    values = CLEAR.copy()
    values[20:] = 255
    path = write_mask(tmp_path / "m.tif", values, nodata=255)
    for invert in (False, True):
        trust = read_mask(path, invert=invert).trust
        assert (trust[20:] == 0).all()
        np.testing.assert_array_equal(trust[:20], 1 - CLEAR[:20] if invert else CLEAR[:20])
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(write_mask(path, CLEAR), "r+") as file:
        file.write_mask(np.arange(H)[:, None].repeat(W, 1) < 20)
    np.testing.assert_array_equal(read_mask(path).trust, np.where(np.arange(H)[:, None] < 20, CLEAR, 0))


def test_a_trust_map_keeps_its_fractions_and_nan_is_unknown(tmp_path: Path) -> None:
    values = np.linspace(0, 1, H * W, dtype="float32").reshape(H, W)
    values[:3] = np.nan
    path, known = write_mask(tmp_path / "t.tif", values), np.nan_to_num(values)
    mask = read_mask(path)
    assert mask.kind == "trust"
    np.testing.assert_array_equal(mask.trust, known)
    np.testing.assert_allclose(read_mask(path, invert=True).trust[3:], 1 - known[3:])
    np.testing.assert_array_equal(read_mask(path, kind="boolean").trust, known > 0)


def test_a_batch_has_a_mask_for_each_tile(tmp_path: Path) -> None:
    stack = np.stack([CLEAR, 1 - CLEAR])
    for key, values in {"mask": stack, "trust": stack[:, None]}.items():
        np.savez(tmp_path / "m.npz", **{key: values})
        np.testing.assert_array_equal(read_mask(tmp_path / "m.npz", tiles=2).trust.reshape(stack.shape), stack)
    np.savez(tmp_path / "m.npz", mask=np.stack([CLEAR, CLEAR * 0]))
    buffered = read_mask(tmp_path / "m.npz", tiles=2, buffer=2).trust
    assert buffered[H - 1].all() and not buffered[H:].any()  # no growth from one tile into the next
    np.savez(tmp_path / "one.npz", mask=CLEAR)
    with pytest.raises(InputError, match=r"has shape \(24, 30\); expected .*\(2,24,30\) for a batch"):
        read_mask(tmp_path / "one.npz", tiles=2)


@pytest.mark.parametrize("name", ["T33_20210714_SCL_20m.tif", "m.tif"])
def test_scl_at_20_m_is_told_by_name_or_values_and_brought_to_the_images_grid(tmp_path: Path, name: str) -> None:
    mask = read_mask(write_mask(tmp_path / name, scl(), transform=COARSE, nodata=0))
    assert mask.kind == "scl" and "--mask-buffer 5 is advised" in mask.notes[1]
    assert len(read_mask(tmp_path / name, buffer=1).notes) == 1
    np.testing.assert_array_equal(mask.trust, scl_trust(scl()).repeat(2, 0).repeat(2, 1))
    assert {SCL_CLASSES[number] for number in range(12) if mask.trust[4, 2 * number] == 0} == set(SCL_DROPPED)


def test_scl_that_leaves_nothing_clear(tmp_path: Path) -> None:
    clouds = write_mask(tmp_path / "c.tif", np.where(scl() == 4, 8, 9).astype("uint8"), transform=COARSE)
    with pytest.raises(InputError, match=r"leaves nothing clear.* drop fewer classes"):
        read_mask(clouds)
    assert read_mask(clouds, drop=(name for name in ["cloud_high"])).trust.any()
    with pytest.raises(InputError, match="drop is empty; expected SCL class names or numbers: 0 no_data, 1"):
        MaskFile(clouds, drop=[])


def test_the_buffer_takes_the_least_trust_around(tmp_path: Path) -> None:
    path = write_mask(tmp_path / "m.tif", CLEAR)
    expected = np.ones((H, W))
    expected[2:14, 3:22] = 0
    np.testing.assert_array_equal(read_mask(path, buffer=2).trust, expected)
    with pytest.raises(InputError, match="nothing clear after a buffer of 40 px"):
        read_mask(path, buffer=40)
    values = np.ones((H, W), "float32")
    values[10, 10], values[10, 12] = 0.25, 0.75
    trust = read_mask(write_mask(tmp_path / "t.tif", values), buffer=1).trust
    assert (trust[9:12, 9:12] == 0.25).all() and (trust[9:12, 12:14] == 0.75).all()


def test_a_mask_in_another_projection_is_warped(tmp_path: Path) -> None:
    """Clear west of the tile's middle, told in degrees."""
    west, south, east, north = transform_bounds(CRS, "EPSG:4326", *IMAGE.bounds())
    width, height = (east - west) / 100, (north - south) / 100
    values = np.zeros((120, 120), "uint8")
    values[:, :60] = 1
    grid = from_origin(west - 10 * width, north + 10 * height, width, height)
    trust = read_mask(write_mask(tmp_path / "m.tif", values, crs="EPSG:4326", transform=grid)).trust
    assert (trust[:, : W // 2 - 1] == 1).all() and (trust[:, W // 2 + 1 :] == 0).all()


def test_without_georeference_the_size_must_be_the_same(tmp_path: Path) -> None:
    bare = SceneGrid(H, W)
    np.savez(tmp_path / "m.npz", mask=CLEAR[1:])
    with pytest.raises(InputError, match=r"\(23, 30\); expected \(24,30\)"):
        read_mask(tmp_path / "m.npz")
    with pytest.raises(InputError, match=r"12x15 px .* 24x30 px .* georeference on both"):
        read_mask(write_mask(tmp_path / "m.tif", scl(), transform=COARSE), bare)
    mask = read_mask(write_mask(tmp_path / "same.tif", CLEAR), bare)
    assert (mask.trust == CLEAR).all() and "; the image does not say where it lies" in mask.notes[0]
    for where in ({"crs": None}, {"transform": None}, {"crs": None, "transform": None}):
        assert "; it does not say where" in read_mask(write_mask(tmp_path / "bare.tif", CLEAR, **where)).notes[0]


def test_a_transform_without_a_crs_must_not_contradict_the_images(tmp_path: Path) -> None:
    moved = PLACE * Affine.translation(W, 0)
    np.savez(tmp_path / "m.npz", mask=CLEAR, transform=np.array(moved[:6]))
    for path in (write_mask(tmp_path / "m.tif", CLEAR, crs=None, transform=moved), tmp_path / "m.npz"):
        for image in (IMAGE, replace(IMAGE, crs=None)):
            with pytest.raises(InputError, match=r"no CRS, pixels of 10 x -10 from .*; expected one (size|grid)"):
                read_mask(path, image)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.zeros((H, W), "uint8"), {}, "leaves nothing clear.* --mask-invert"),
        (np.ones((H, W), "uint8"), {"invert": True}, "leaves nothing clear.*: leave --mask-invert out"),
        (np.ones((H, W), "uint8"), {}, "leaves nothing to fill: 0 is a gap and all else clear, and no pixel is a gap"),
        (CLEAR * 2 + 50, {}, "holds 2 values from 50 to 52.*--mask-kind"),
        (CLEAR * 100, {"kind": "trust"}, "runs from 0 to 100; expected trust in 0..1"),
        (CLEAR, {"kind": "cloud"}, "kind is 'cloud'; expected"),
        (CLEAR, {"buffer": -1}, "expected an integer from 0 to 1048576"),
        (CLEAR, {"drop": ["snow"]}, "taken for a boolean mask, which has no classes"),
        (CLEAR + 4, {"invert": True}, "scene classification, which has no inverse"),
        (CLEAR + 1, {}, "holds 2 values from 1 to 2, .* nor a scene classification.*--mask-kind"),
        (CLEAR * 0.5 - 1.0, {}, "look neither like"),
        (np.stack([CLEAR, CLEAR]), {}, "has 2 band.* expected one"),
        (CLEAR * 1j, {}, "of complex128; expected one of real numbers"),
        (CLEAR[1:], {}, "does not cover the scene"),
        (CLEAR * 200 + 4, {"kind": "scl"}, "holds 204; expected the classes 0 to 11"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, values: np.ndarray, options: dict[str, Any], message: str) -> None:
    path = write_mask(tmp_path / "m.tif", values)
    with pytest.raises(InputError, match=message):
        read_mask(path, **options)


def test_a_file_that_is_no_mask_is_said_in_words(tmp_path: Path) -> None:
    np.savez(tmp_path / "many.npz", a=CLEAR, b=CLEAR)
    (tmp_path / "broken.png").write_bytes(b"not an image")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    for name, message in (
        ("broken.png", "is no GeoTIFF"),
        ("cut.png", "is cut short or damaged"),
        ("m.jpg", r"ends in \.jpg"),
        ("many.npz", "holds a, b; expected one of trust, mask"),
    ):
        with pytest.raises(InputError, match=message):
            read_mask(tmp_path / name)


@pytest.mark.parametrize("buffer", [0, 3])
def test_windows_of_a_classification(scene: SceneFiles, tmp_path: Path, buffer: int) -> None:
    classes = np.full((1, 100, 75), 4)
    classes[:, 30:45, 10:40] = 9
    path = write_scene(tmp_path / "SCL_20m.tif", classes, ("SCL",), dtype="uint8", nodata=0, transform=COARSE)
    with ExitStack() as stack:
        source = MaskSource(MaskFile(path, buffer=buffer), SceneGrid.like(scene.opt_v2), stack)
        whole = source.read(source.grid.whole)
        assert (whole[:, 60 - buffer : 90 + buffer, 20 - buffer : 80 + buffer] == 0).all() and 0.8 < whole.mean() < 1
        for window in (Tile(55, 15, 95, 90), Tile(0, 0, 7, 150), Tile(159, 130, 200, 150)):
            part = whole[:, window.top : window.bottom, window.left : window.right]
            np.testing.assert_array_equal(source.read(window), part)
