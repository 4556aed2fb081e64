"""Files as Sentinel-2 and HyP3 deliver them, with pixels that a test knows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rasterio.transform import Affine

from axs_lib.bands import OPTICAL_BANDS, SAR_BANDS
from tests.scenes.conftest import PLACE, write_tiff

METADATA = (
    '<n1:Level-2A_User_Product xmlns:n1="x"><BOA_ADD_OFFSET_VALUES_LIST>'
    + "".join(f'<BOA_ADD_OFFSET band_id="{i}">-1000</BOA_ADD_OFFSET>' for i in range(13))
    + "</BOA_ADD_OFFSET_VALUES_LIST></n1:Level-2A_User_Product>"
)
PRODUCT = "S2A_MSIL2A_20210714T112121_N0500_R037_T29UPU_20230120T101010.SAFE"


def write_safe(folder: Path, optical: np.ndarray) -> Path:
    """A Level-2A product of JPEG 2000 files with DN + 1000, of which the upper 12 rows are cloud in the SCL."""
    root = folder / PRODUCT
    images = root / "GRANULE" / "L2A_T29UPU_A031" / "IMG_DATA"
    lossless = {"driver": "JP2OpenJPEG", "QUALITY": "100", "REVERSIBLE": "YES"}
    for i, band in enumerate(OPTICAL_BANDS):
        path = images / "R10m" / f"T29UPU_20210714T112121_{band}_10m.jp2"
        write_tiff(path, optical[i : i + 1] + 1000, **lossless)
    classes = np.full((1, optical.shape[1] // 2, optical.shape[2] // 2), 4, "uint8")
    classes[:, :6] = 9
    path = images / "R20m" / "T29UPU_20210714T112121_SCL_20m.jp2"
    write_tiff(path, classes, **lossless, transform=PLACE * Affine.scale(2))
    (root / "MTD_MSIL2A.xml").write_text(METADATA)
    return root


def write_hyp3(folder: Path, sar: np.ndarray) -> list[Path]:
    """VV and VH of an RTC product of HyP3, in power with nodata 0, of an image in dB."""
    stem = "S1A_IW_20210714T175000_DVP_RTC10_G_gpunem_1A2B"
    bands = zip(SAR_BANDS, 10 ** (sar / 10), strict=True)
    return [write_tiff(folder / f"{stem}_{name}.tif", power[None], nodata=0) for name, power in bands]
