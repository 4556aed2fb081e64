"""Make the packaged sample tiles from the PyPI package ``bigearthnet-common``.

In: the package's wheel, which carries six BigEarthNet example patches. Out: two small GeoTIFFs a chosen patch in
``axs_lib/data/samples/``, Sentinel-1 in dB and Sentinel-2 in DN, on the patch's own UTM grid.

    pip download --no-deps bigearthnet-common==2.8.0
    python experiments/make_samples.py bigearthnet_common-2.8.0-py3-none-any.whl [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import tarfile
import tempfile
import zipfile
from pathlib import Path

from axs_lib.bands import OPTICAL_BANDS, SAR_BANDS
from axs_lib.data.samples import FOLDER
from axs_lib.io.products import read_raster
from axs_lib.io.results import SAR, optical_layer, write_layer

ARCHIVES = ("BigEarthNet-S1-Example.tar.bz2", "BigEarthNet-S2-Example.tar.bz2")

# Cloud-free land of three kinds. The other three patches: a second one of Ireland, a snow scene, and one of
# Austria whose granule is in the training data.
CHOSEN = {
    "finland_lake": "S1A_IW_GRDH_1SDV_20170925T043256_35VPK_69_24",
    "ireland_fields": "S1A_IW_GRDH_1SDV_20170617T064724_29UPU_36_85",
    "portugal_hills": "S1A_IW_GRDH_1SDV_20171221T064238_29SND_56_35",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for the GeoTIFFs")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        unpack(arguments.wheel, Path(folder))
        for name, patch in CHOSEN.items():
            make(name, patch, Path(folder), arguments.out)


def unpack(wheel: Path, work: Path) -> None:
    """Unpack the two example archives inside the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        for name in ARCHIVES:
            with (
                archive.open(f"bigearthnet_common/{name}") as packed,
                tarfile.open(fileobj=packed, mode="r|bz2") as tar,
            ):
                tar.extractall(work, filter="data")


def make(name: str, patch: str, work: Path, out: Path) -> None:
    """Write one tile's two GeoTIFFs."""
    s1_folder = work / "BigEarthNet-S1-Example" / patch
    labels = json.loads((s1_folder / f"{patch}_labels_metadata.json").read_text())
    s2_patch = labels["corresponding_s2_patch"]
    s2_folder = work / "BigEarthNet-S2-Example" / s2_patch
    s1 = read_raster([s1_folder / f"{patch}_{band}.tif" for band in SAR_BANDS], SAR_BANDS)
    s2 = read_raster([s2_folder / f"{s2_patch}_{band}.tif" for band in OPTICAL_BANDS], OPTICAL_BANDS)
    if not s1.grid.same_as(s2.grid):
        raise SystemExit(f"the grids of {s1.source} and {s2.source} differ: {s1.grid} against {s2.grid}")
    for kind, layer, raster in (("s1", SAR, s1), ("s2", optical_layer("opt_v3"), s2)):
        path = out / f"{name}_{kind}.tif"
        write_layer(path, layer, raster.data, raster.grid, raster.tags, overwrite=True)
        print(f"{path}  {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
