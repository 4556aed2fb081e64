"""Fit the fixed spectral lift: from B02, B03, B04, B08 to the twelve S2L2A bands that TerraMind's S2 encoder takes.

Input are the 54 twelve-band BigEarthNet patches (L2A, surface reflectance x 10000 without BOA offset) inside the wheel
``configilm==0.7.1``; output are the coefficients and biases in DN of ``axs_lib/bands.py``, and the error of every band
on sensing dates that the fit had not seen::

    pip install lmdb
    pip download --no-deps configilm==0.7.1
    python experiments/fit_spectral_lift.py configilm-0.7.1-py3-none-any.whl

Each band is fitted at its own resolution (20 m, or 60 m for B01 and B09) on block means of the 10 m bands. Every
sensing date weighs the same, however many patches it has. Left out are patches that share an acquisition with one of
the project's demo tiles, and patches under cloud or snow: those whose median B02 reflectance is above 0.12 or whose
brightest twentieth is above 0.25.
"""

from __future__ import annotations

import argparse
import pickletools
import re
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import lmdb
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from axs_lib.bands import OPTICAL_BANDS, TERRAMIND_S2_BANDS

MOCK_DATA = "configilm/extra/mock_data"
LMDB_FOLDERS = (f"{MOCK_DATA}/BENv1/BigEarthNetEncoded.lmdb", f"{MOCK_DATA}/BENv2/BigEarthNet-V2-LMDB")
CLOUD_MEDIAN_DN, CLOUD_BRIGHT_DN = 1200.0, 2500.0

# Acquisitions of the six tiles of bigearthnet_common, which the demo shows: never fitted on.
DEMO_ACQUISITIONS = frozenset(
    {"20170613T101031", "20170617T113321", "20170924T93020", "20171221T112501", "20180204T94161"}
)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Patch:
    """One 1.2 km patch: sensing start, such as ``20170613T101031``, and its bands in DN, (side, side) each."""

    acquisition: str
    bands: dict[str, Array]

    @property
    def date(self) -> str:
        """Sensing day, the group of the cross-validation."""
        return self.acquisition[:8]

    def cloudy(self) -> bool:
        """Whether the patch is under cloud or snow by the rule of this script."""
        blue = self.bands["B02"]
        return bool(np.median(blue) > CLOUD_MEDIAN_DN or np.quantile(blue, 0.95) > CLOUD_BRIGHT_DN)


def read_v1(record: bytes) -> dict[str, Array]:
    """Bands of one BigEarthNet v1 record, read off the pickle's opcodes: nothing in it is executed."""
    bands: dict[str, Array] = {}
    band = None
    for _opcode, value, _position in pickletools.genops(record):
        if isinstance(value, str) and (match := re.fullmatch(r"band(\d\d|8A)", value)):
            band = f"B{match[1]}"
        elif isinstance(value, bytes) and len(value) > 1 and band is not None:
            flat = np.frombuffer(value, "<u2")
            side = int(len(flat) ** 0.5)
            bands[band] = flat.reshape(side, side).astype(np.float64)
            band = None
    return bands


def read_patches(wheel: Path) -> list[Patch]:
    """All Sentinel-2 patches in the wheel's two LMDB folders; v2 records are safetensors buffers."""
    patches = []
    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(wheel) as archive:
        for folder in LMDB_FOLDERS:
            archive.extract(f"{folder}/data.mdb", scratch)
            with lmdb.open(f"{scratch}/{folder}", readonly=True, lock=False) as env, env.begin() as transaction:
                for key, record in transaction.cursor():
                    name = key.decode()
                    if name.startswith("S2"):
                        raw = load(record) if "V2" in folder else read_v1(record)
                        bands = {band: values.astype(np.float64) for band, values in raw.items()}
                        patches.append(Patch(name.split("_")[2], bands))
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
    _, member, counts = np.unique(np.concatenate(dates), return_inverse=True, return_counts=True)
    weight = 1.0 / counts[member]
    return np.concatenate(inputs), np.concatenate(target), weight / weight.sum()


def fit(patches: list[Patch], band: str) -> Array:
    """Weighted least squares of one band: four coefficients and a bias in DN."""
    x, y, weight = samples(patches, band)
    design = np.column_stack([x, np.ones(len(x))])
    root = np.sqrt(weight)
    return np.asarray(np.linalg.lstsq(design * root[:, None], y * root, rcond=None)[0])


def held_out_error(patches: list[Patch], band: str) -> tuple[float, float]:
    """RMSE in DN and R2 of a band when each date is predicted by a fit on all the others."""
    _, everything, weight = samples(patches, band)
    centre = float((everything * weight).sum())
    squared, spread = [], []
    for date in sorted({p.date for p in patches}):
        coefficients = fit([p for p in patches if p.date != date], band)
        x, y, _ = samples([p for p in patches if p.date == date], band)
        squared.append(np.mean((x @ coefficients[:4] + coefficients[4] - y) ** 2))
        spread.append(np.mean((y - centre) ** 2))
    return float(np.sqrt(np.mean(squared))), float(1.0 - np.sum(squared) / np.sum(spread))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    found = read_patches(parser.parse_args().wheel)
    patches = [p for p in found if p.acquisition not in DEMO_ACQUISITIONS and not p.cloudy()]
    shared = sum(p.acquisition in DEMO_ACQUISITIONS for p in found)
    print(f"{len(found)} patches; {shared} share an acquisition with the demo and")
    print(f"{len(found) - shared - len(patches)} more are under cloud or snow: left out.")
    print(f"{len(patches)} patches of {len({p.date for p in patches})} dates are fitted.\n")
    print(f"band {'  '.join(f'{b:>8}' for b in OPTICAL_BANDS)}      bias   RMSE (DN)     R2   (dates not fitted on)")
    for band in TERRAMIND_S2_BANDS:
        if band not in OPTICAL_BANDS:
            *row, constant = fit(patches, band)
            error, r2 = held_out_error(patches, band)
            print(f"{band:4} {'  '.join(f'{c:8.5f}' for c in row)}  {constant:8.2f}  {error:10.1f}  {r2:5.3f}")


if __name__ == "__main__":
    main()
