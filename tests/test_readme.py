"""From the README to a filled gap: its commands and its Python run, as they stand, on files made for the purpose."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from rasterio.enums import Resampling
from rasterio.transform import Affine
from rasterio.warp import reproject
from typer.testing import CliRunner

from axs_lib.cli.app import app
from axs_lib.data.samples import load_sample
from tests.scenes.conftest import read_tiff, write_tiff

CENTRE, RADIUS = 60, 22  # px of the cloud
CLOUD_DN, CLOUD_HIGH, VEGETATION = 9000, 9, 4


@pytest.fixture(scope="module")
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return load_sample("ireland_fields")[1].data


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, truth: np.ndarray) -> Path:
    """What a user has: a clouded GeoTIFF without band names, SCL at 20 m, and VV and VH in power on another grid."""
    folder = tmp_path_factory.mktemp("place")
    sar, optical = load_sample("ireland_fields")
    transform = optical.grid.affine
    clouded = truth.copy()
    clouded[:, cloud()] = CLOUD_DN
    write_tiff(folder / "s2.tif", clouded.astype("uint16"), crs=optical.grid.crs, transform=transform)
    scl = np.where(cloud(), CLOUD_HIGH, VEGETATION)[None, ::2, ::2].astype("uint8")
    write_tiff(folder / "scl.tif", scl, crs=optical.grid.crs, transform=transform * Affine.scale(2))
    grid = transform * Affine.translation(-5.5, -5.5)
    for band, values in zip(("VV", "VH"), sar.data, strict=True):
        power = np.zeros((130, 130), dtype="float32")
        reproject(
            (10 ** (np.pad(values, 8, mode="reflect") / 10)).astype("float32"),
            power,
            src_transform=transform * Affine.translation(-8, -8),
            src_crs=optical.grid.crs,
            dst_transform=grid,
            dst_crs=optical.grid.crs,
            resampling=Resampling.bilinear,
        )
        write_tiff(folder / f"{band}.tif", power[None], crs=optical.grid.crs, transform=grid)
    return folder


def cloud() -> np.ndarray:
    y, x = np.mgrid[:120, :120]
    return np.hypot(y - CENTRE, x - CENTRE) < RADIUS


def commands(text: str) -> list[list[str]]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.S | re.M)
    lines = [line for language, block in blocks if not language for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("axs ")]


def test_the_quick_start_runs_as_it_stands(
    readme: str, place: Path, truth: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    start = readme.split("[start:start]")[1].split("[end:start]")[0]
    for words in commands(start):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
    assert (place / "report.html").stat().st_size > 10_000
    (code,) = re.findall(r"```python\n(.*?)```", start, re.S)
    exec(code, {})

    filled = read_tiff(place / "filled.tif")
    assert np.array_equal(filled, read_tiff(place / "filled_py.tif"))
    far = np.hypot(*(np.mgrid[:120, :120] - CENTRE)) > RADIUS + 9  # further than the buffer reaches
    assert np.array_equal(filled[:, far], truth[:, far])
    hidden = np.abs(filled.astype(float) - truth)[:, cloud()].mean()
    assert hidden < 0.5 * np.abs(CLOUD_DN - truth)[:, cloud()].mean() and hidden < 700


def test_the_options_it_names_exist(readme: str) -> None:
    text = CliRunner().invoke(app, ["ground", "--help"], terminal_width=200).output
    assert all(option in text for option in re.findall(r"`(--[\w-]+)", readme))


def test_it_is_short_and_its_pictures_are_light(readme: str, repository: Path) -> None:
    assert len(readme.splitlines()) <= 120
    pictures = re.findall(r"!\[[^]]*\]\(([^)]*)\)", readme)
    assert len(pictures) == 2
    assert all(10_000 < (repository / picture).stat().st_size < 300_000 for picture in pictures)
