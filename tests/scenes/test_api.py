"""A grounded scene is what blending in memory gives, wherever it is cut and however it is run, and is a whole file."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
import torch
from rasterio.transform import Affine
from rio_cogeo import cog_validate

from axs_lib.bands import OPTICAL_BANDS, SAR_BANDS
from axs_lib.errors import InputError, OutputError
from axs_lib.io.grid import SceneGrid
from axs_lib.io.masks import MaskFile
from axs_lib.io.results import to_uint16
from axs_lib.io.stac import stac_item
from axs_lib.pipeline import PipelineOutput
from axs_lib.scenes.api import ground_scene, run_scene
from axs_lib.tilegrid import Tile

from .conftest import CRS, GRID, PLACE, BoxGrounder, SceneFiles, blend, read_tiff, scene_arrays, write_scene, write_tiff

ORIGIN = (-600_000, 50_000)  # of PLACE, in pixels of 10 m


def ground(grounder: BoxGrounder, scene: SceneFiles, out: Path, name: str = "out.tif", **settings: Any) -> np.ndarray:
    options = {"seed": 5, "grid": GRID, "batch_size": 4} | settings
    ground_scene(grounder, scene.s1, scene.opt_v2, out / name, **options)
    return read_tiff(out / name)


def in_memory(scene: SceneFiles, origin: tuple[int, int] = ORIGIN, *, uncertainty: bool = False) -> np.ndarray:
    """The scene's changes, blended with everything in memory, as stored."""
    s1, optical = torch.from_numpy(scene.sar)[None], torch.from_numpy(scene.optical)[None]

    def layer(tile: Tile) -> torch.Tensor:
        place = torch.tensor([[origin[0] + tile.top, origin[1] + tile.left]])
        parts = tile.of(s1).contiguous(), tile.of(optical).contiguous()
        made = BoxGrounder().ground(*parts, seed=5, trust=None, origin=place, ensemble_size=2)
        return (made.uncertainty.square() if uncertainty else made.image - parts[1].nan_to_num())[0]

    whole = blend(GRID, scene.sar.shape[-2:], layer)
    return whole.sqrt().numpy() if uncertainty else to_uint16((whole + optical[0].nan_to_num()).numpy())


@pytest.mark.parametrize("batch_size", [4, 1, 7])
def test_the_same_pixels_as_in_memory(
    grounder: BoxGrounder, scene: SceneFiles, tmp_path: Path, batch_size: int
) -> None:
    result = ground(grounder, scene, tmp_path, batch_size=batch_size)
    np.testing.assert_array_equal(result, in_memory(scene))
    ground(grounder, scene, tmp_path, "o2.tif", uncertainty=tmp_path / "u.tif", ensemble_size=2, batch_size=batch_size)
    np.testing.assert_allclose(read_tiff(tmp_path / "u.tif"), in_memory(scene, uncertainty=True), rtol=1e-4)
    assert (result != scene.optical).mean() > 0.9  # something was done
    assert (max(grounder.calls) > 1) == (batch_size > 1)
    grounder.calls.clear()
    ground(grounder, scene, tmp_path, "b.tif", batch_size=batch_size, deterministic=True)
    assert set(grounder.calls) == {1}  # the network sees one tile at a time


def test_a_cut_along_the_grid_has_the_same_pixels(grounder: BoxGrounder, scene: SceneFiles, tmp_path: Path) -> None:
    whole = ground(grounder, scene, tmp_path)
    top, left = 2 * GRID.stride, GRID.stride
    place = PLACE * Affine.translation(left, top)
    part = write_scene(tmp_path / "cut.tif", scene.optical[:, top:, left:], transform=place)
    # The SAR stays whole: it lies on the same lattice.
    cut = ground(grounder, replace(scene, opt_v2=part), tmp_path, "cut_out.tif")
    edge = GRID.overlap  # where the whole scene blends in tiles that the cut does not have
    np.testing.assert_array_equal(cut[:, edge:, edge:], whole[:, top + edge :, left + edge :])
    assert (cut[:, :edge] != whole[:, top : top + edge, left:]).any()


def test_nodata_of_either_input_is_nodata_and_does_not_bleed(
    grounder: BoxGrounder, scene: SceneFiles, tmp_path: Path
) -> None:
    result = ground(grounder, scene, tmp_path)
    missing = np.isnan(scene.sar).any(axis=0) | np.isnan(scene.optical).any(axis=0)
    assert missing.any()
    np.testing.assert_array_equal(result == 0, np.broadcast_to(missing, result.shape))

    with rasterio.open(scene.opt_v2, "r+") as file:  # another nodata value must not matter
        values = file.read()
        file.nodata = 65_000
        file.write(np.where(np.isnan(scene.optical), 65_000, values).astype("uint16"))
    np.testing.assert_array_equal(ground(grounder, scene, tmp_path, "other.tif"), result)


def test_what_is_trusted_stays_bit_for_bit(grounder: BoxGrounder, scene: SceneFiles, tmp_path: Path) -> None:
    trust = np.ones((1, 200, 150), dtype="float32")
    trust[:, 60:90, 20:100] = 0
    garbage = np.where(trust == 0, 60_000, scene.optical)
    write_scene(scene.opt_v2, garbage)
    mask = write_scene(tmp_path / "trust.tif", trust, ("trust",), dtype="uint8", nodata=255)
    result = ground(grounder, scene, tmp_path, trust=mask)
    kept = (trust == 1) & ~np.isnan(scene.sar).any(axis=0) & ~np.isnan(scene.optical)
    np.testing.assert_array_equal(result[kept], scene.optical[kept])
    drawn = result[np.broadcast_to((trust == 0) & ~np.isnan(scene.sar).any(axis=0), result.shape)]
    assert drawn.max() < 20_000 and drawn.min() > 0

    write_scene(tmp_path / "percent.tif", 100 * trust, ("trust",), dtype="uint8", nodata=255)
    with pytest.raises(InputError, match="holds 0 to 100; expected 1 where opt_v2 was observed"):
        ground(grounder, scene, tmp_path, "x.tif", trust=tmp_path / "percent.tif")


def test_files_say_how_they_were_made(grounder: BoxGrounder, scene: SceneFiles, tmp_path: Path) -> None:
    with rasterio.open(scene.opt_v2, "r+") as file:
        file.update_tags(SCENE="T33UUP", AXS_HOLD_COLOUR="True", AXS_MASK_KIND="scl", AXS_SEED="7")
    maps = {name: tmp_path / f"{name}.tif" for name in ("uncertainty", "gate")}
    result = ground(grounder, scene, tmp_path, ensemble_size=2, timesteps=3, **maps)
    with rasterio.open(tmp_path / "out.tif") as file:
        assert file.crs == rasterio.crs.CRS.from_string(CRS) and file.transform == PLACE
        tags = file.tags()
    assert tags["SCENE"] == "T33UUP" and tags["AXS_WEIGHTS_SHA256"] == "abc"
    assert tags["AXS_OPT_V2_MASK_KIND"] == "scl" and not {"AXS_HOLD_COLOUR", "AXS_MASK_KIND"} & tags.keys()
    assert (tags["AXS_TIMESTEPS"], tags["AXS_SEED"], tags["AXS_NFE"]) == ("3", "5", "3")
    assert (tags["AXS_TILE_SIDE"], tags["AXS_TILE_OVERLAP"]) == ("64", "16")
    assert tags["AXS_NOISE_ORIGIN"] == "-600000 50000"
    for path, count in zip(maps.values(), (4, 1), strict=True):
        with rasterio.open(path) as file:
            assert file.dtypes == ("float32",) * count and file.tags()["AXS_SEED"] == "5"
            np.testing.assert_array_equal(np.isnan(file.read()), (result == 0)[:count])


def test_it_is_a_valid_cog(grounder: BoxGrounder, tmp_path: Path) -> None:
    sar, optical = scene_arrays(600, 700)
    files = SceneFiles(write_scene(tmp_path / "s1.tif", sar), write_scene(tmp_path / "o.tif", optical), sar, optical)
    ground(grounder, files, tmp_path, gate=tmp_path / "gate.tif", deterministic=True)
    for name in ("out.tif", "gate.tif"):
        assert cog_validate(tmp_path / name, strict=True) == (True, [], [])
    with rasterio.open(tmp_path / "out.tif") as file:
        assert file.overviews(1) == [2] and file.compression.name == "deflate"


def test_what_cannot_be_is_refused(grounder: BoxGrounder, scene: SceneFiles, tmp_path: Path) -> None:
    def refused(match: str, model: Any = grounder, **settings: Any) -> None:
        with pytest.raises((InputError, OutputError), match=match):
            ground(model, scene, tmp_path, **settings)

    refused("expected 2 or more", uncertainty=tmp_path / "u.tif")
    grounder.provenance["AXS_CORRECTION_MODE"] = "learned"  # whose head predicts its error, as a rule
    for options in ({"correction_mode": "difference"}, {"strength": 0}):
        refused("expected 2 or more", uncertainty=tmp_path / "u.tif", **options)
    refused("name one file twice", gate=tmp_path / "out.tif")
    refused("expected an output named", name="out.png")
    refused("integer of at least 1", batch_size=0)
    refused("seed is .*; expected an integer", seed=torch.Generator())
    refused(r"grid is 'x'; expected an axs_lib\.tilegrid\.TileGrid", grid="x")
    refused("tags is 'x'; expected a mapping", tags="x")
    refused("bands is 'B04,B03'; expected a list of names, as", bands="B04,B03")
    refused("force is 1; expected True or False", force=1)
    refused("needs the day", stac=tmp_path / "i.json")
    refused("expected a file for both", gate=True)
    with pytest.raises(TypeError, match="unknown option"):
        ground(grounder, scene, tmp_path, generator=torch.Generator())
    for given, match in (((tmp_path / "none.tif", tmp_path / "o.tif"), "not exist"), ((scene.opt_v2,), "as an array")):
        with pytest.raises(InputError, match=match):
            ground_scene(grounder, scene.s1, *given)
    for model in ("nano", 3, lambda: None, torch.nn.Linear(2, 2)):
        for run, given in ((ground_scene, (scene.s1, scene.opt_v2)), (run_scene, (scene.s1,))):
            with pytest.raises(InputError, match=r"the model is of type \w+; expected one of build_"):
                run(model, *given, tmp_path / "o.tif")
            with pytest.raises(InputError, match=r"would replace the input .*s1\.tif"):
                run(model, *given, scene.s1, overwrite=True)
    (tmp_path / "out.tif").write_bytes(b"mine")
    refused("exists already")
    refused("would replace the input", gate=scene.opt_v2, overwrite=True)
    refused("would replace the input", trust=MaskFile(tmp_path / "out.tif"), overwrite=True)
    assert (tmp_path / "out.tif").read_bytes() == b"mine" and not grounder.calls
    ground(grounder, scene, tmp_path, "in/opt.tif", overwrite=True)  # the estimate may be grounded in its place


@pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt, OutputError])
def test_a_stop_in_the_middle_leaves_nothing(
    grounder: BoxGrounder, scene: SceneFiles, tmp_path: Path, kind: type[BaseException]
) -> None:
    def stop() -> None:
        if len(grounder.calls) == 5:
            (tmp_path / "items").touch()  # so that the Item, written last, cannot be
            if kind is not OutputError:
                raise kind

    grounder.before = stop
    out, item = tmp_path / "out", tmp_path / "items" / "i.json"
    with pytest.raises(kind):
        ground(grounder, scene, out, gate=out / "gate.tif", batch_size=1, stac=item, date="2021-07-14")
    assert list(out.iterdir()) == []
    assert not [t for t in threading.enumerate() if t.name.startswith("axs-")]

    grounder.before = lambda: None
    np.testing.assert_array_equal(ground(grounder, scene, out), in_memory(scene))


SMALL_DISK = """
import resource, signal, sys
from axs_lib.scenes.api import ground_scene
from tests.scenes.conftest import GRID, BoxGrounder
s1, opt, out, limit = sys.argv[1:]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
ground_scene(BoxGrounder(), s1, opt, out, grid=GRID, batch_size=1)
"""


@pytest.mark.parametrize("limit", [50_000, 150_000])
def test_a_full_disk_is_an_error_and_leaves_nothing(
    repository: Path, scene: SceneFiles, tmp_path: Path, limit: int
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", SMALL_DISK, *map(str, (scene.s1, scene.opt_v2, out / "o.tif", limit))]
    ended = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode != 0 and "the disk is full or refuses" in ended.stderr
    assert list(out.iterdir()) == []


def test_a_stac_item_beside_it(grounder: BoxGrounder, scene: SceneFiles, tmp_path: Path) -> None:
    item, folder = tmp_path / "item.json", tmp_path / "data"
    ground(grounder, scene, folder, gate=folder / "gate.tif", stac=item, date="2021-07-14")
    made = pystac.Item.from_file(str(item))
    assert made.id == "item" and made.properties["datetime"] == "2021-07-14T00:00:00Z"
    assert made.properties["proj:code"] == CRS and made.properties["proj:shape"] == [200, 150]
    assert made.properties["axs:weights_sha256"] == "abc"
    west, south, east, north = made.bbox or ()
    assert 14.9 < west < east < 15.1 and 54 < south < north < 55
    written = json.loads(item.read_text())["assets"]
    links = {name: asset["href"] for name, asset in written.items()}
    assert links == {"opt_v3": "data/out.tif", "gate": "data/gate.tif"}
    assert [band["name"] for band in written["opt_v3"]["bands"]] == list(OPTICAL_BANDS)
    assert written["opt_v3"]["raster:scale"] == 1e-4


@pytest.mark.parametrize(("crs", "pixel", "corner"), [(4326, 1e-4, (179.996, 54.0)), (3857, 10, (20_037_108, 7e6))])
def test_an_item_across_180_degrees(crs: int, pixel: float, corner: tuple[float, float]) -> None:
    grid = SceneGrid(80, 80, rasterio.CRS.from_epsg(crs).to_wkt(), (pixel, 0, corner[0], 0, -pixel, corner[1]))
    item = json.loads(stac_item(Path("i.json"), grid, {}, "2021-07-14", {}))
    assert 179.9 < item["bbox"][0] < 180 and -180 < item["bbox"][2] < -179.9
    assert item["geometry"]["type"] == "MultiPolygon"


def test_the_bar_counts_tiles(
    grounder: BoxGrounder, scene: SceneFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ground(grounder, scene, tmp_path, progress=True)
    assert "12/12" in capsys.readouterr().err
    ground(grounder, scene, tmp_path, "quiet.tif")
    assert capsys.readouterr().err == ""


class BoxPipeline:
    """Stands in for the three stages; remembers the metadata of its tiles."""

    def __init__(self) -> None:
        self.metadata: list[dict[str, Any]] = []
        self.device = torch.device("cpu")
        self.provenance = {"AXS_VARIANT": "box"}

    def __call__(self, s1: torch.Tensor, metadata: Any, **settings: Any) -> Any:
        self.metadata.extend(metadata)
        flat = torch.full_like(s1[:, :1], 1500.0).repeat(1, 4, 1, 1)
        image = BoxGrounder().ground(s1, flat, trust=None, **settings).image
        spread = image * 0 + 3 if settings["ensemble_size"] > 1 else None
        return PipelineOutput(image, image + 1, image + 2, spread, (12, 10))


def test_the_pipeline_on_a_scene(scene: SceneFiles, tmp_path: Path) -> None:
    pipeline, out = BoxPipeline(), tmp_path / "out"
    result = run_scene(
        pipeline, scene.s1, out, metadata={"date": "2021-07-14"}, ensemble_size=2, stac=out / "item.json", grid=GRID
    )
    names = ("opt_v1", "opt_v2", "opt_v3", "uncertainty")
    assert {path.name: what for path, what in result.files.items()} == {f"{name}.tif": name for name in names}
    first, second, third = (read_tiff(out / f"opt_v{stage}.tif").astype(int) for stage in (1, 2, 3))
    missing = np.isnan(scene.sar).any(axis=0)
    np.testing.assert_array_equal(first == 0, np.broadcast_to(missing, first.shape))
    assert (np.abs(second - first - 1)[:, ~missing] <= 1).all()
    assert (np.abs(third - first - 2)[:, ~missing] <= 1).all()
    np.testing.assert_allclose(read_tiff(out / "uncertainty.tif")[:, ~missing], 3, rtol=1e-6)
    with rasterio.open(out / "opt_v3.tif") as file:
        assert file.tags()["AXS_METADATA_DATE"] == "2021-07-14" and file.tags()["AXS_NFE"] == "12 10"
        assert "taken for dB" in file.tags()["AXS_S1_NOTES"]
    assert all(known["date"] == "2021-07-14" for known in pipeline.metadata)
    places = {(known["lat"], known["lon"]) for known in pipeline.metadata}
    assert len(places) == 12  # each tile has its own
    grid = SceneGrid.like(scene.s1)
    assert grid.centre_lat_lon(Tile(0, 0, 64, 64)) in places


STRIP = """
import json, re, sys
from pathlib import Path
from axs_lib.scenes.api import ground_scene
from tests.models import random_nano
s1, opt_v2, out = sys.argv[1:]
result = ground_scene(random_nano(), s1, opt_v2, out, timesteps=1, deterministic=True)
# The largest since this process began; getrusage's would also be that of the process that started it.
peak = int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
print(json.dumps({"tiles": result.tiles, "peak": 1024 * peak}))
"""


@pytest.mark.slow
def test_a_strip_of_a_granule(repository: Path, tmp_path: Path) -> None:
    """As wide as a Sentinel-2 granule, through nano in bounded memory."""
    height, width = 2048, 10_980
    sar, optical = scene_arrays(512, 512)
    files = [tmp_path / name for name in ("s1.tif", "opt.tif", "out.tif")]
    for path, block in zip(files, (sar, optical.astype("uint16")), strict=False):
        wide = np.tile(block, (1, height // 512, -(-width // 512)))[:, :, :width]
        write_tiff(path, wide, SAR_BANDS if len(block) == 2 else OPTICAL_BANDS, tiled=True, compress="deflate")
    command = [sys.executable, "-c", STRIP, *map(str, files)]
    output = subprocess.run(command, cwd=repository, check=True, capture_output=True, text=True).stdout
    measured = json.loads(output.splitlines()[-1])
    print(measured)
    assert measured["peak"] < 3e9
    assert measured["tiles"] == 57 * 11
    with rasterio.open(files[2]) as file:
        assert (file.height, file.width) == (height, width)
        assert file.read(1, window=((1800, 2048), (0, width))).min() >= 1
