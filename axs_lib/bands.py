"""Bands, units and statistics: the one table that names every band the library touches.

Optical images are surface reflectance x 10000 (DN) with any BOA offset already removed; SAR images are backscatter
in dB. Channels are always in the order of ``OPTICAL_BANDS`` and ``SAR_BANDS``. TerraMind's statistics are the
pretraining values published with terratorch, of DN that still carried the +1000 offset of processing baseline 04.00.
"""

from __future__ import annotations

from axs_lib.errors import InputError

SAR_BANDS: tuple[str, ...] = ("VV", "VH")
OPTICAL_BANDS: tuple[str, ...] = ("B02", "B03", "B04", "B08")
S1_PRODUCTS: tuple[str, ...] = ("S1GRD", "S1RTC")

DN_PER_REFLECTANCE = 10_000.0
# Statistics of the four bands over land in DN, without offset, of the pairs this project was trained on: what nano, the
# Stage 2 beside it and the grounding head are z-scored with.
OPTICAL_MEAN: tuple[float, ...] = (470.0, 585.0, 555.0, 2135.0)
OPTICAL_STD: tuple[float, ...] = (380.0, 370.0, 475.0, 1125.0)
VALID_DN = (1.0, 65_535.0)  # 0 is nodata in every Sentinel-2 product, so a valid pixel never becomes 0

# Order of the twelve channels of TerraMind's S2L2A modality.
TERRAMIND_S2_BANDS: tuple[str, ...] = (
    "B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12",
)  # fmt: skip
TERRAMIND_OPTICAL_INDEX: tuple[int, ...] = tuple(TERRAMIND_S2_BANDS.index(b) for b in OPTICAL_BANDS)
TERRAMIND_BOA_OFFSET = 1000.0
MOST_REFLECTANCE = 2.0  # an image without a higher value is reflectance in 0-1, not DN

TERRAMIND_S2_MEAN: tuple[float, ...] = (
    1390.458, 1503.317, 1718.197, 1853.91, 2199.1, 2779.975, 2987.011, 3083.234, 3132.22, 3162.988, 2424.884, 1857.648,
)  # fmt: skip
TERRAMIND_S2_STD: tuple[float, ...] = (
    2106.761, 2141.107, 2038.973, 2134.138, 2085.321, 1889.926, 1820.257, 1871.918, 1753.829, 1797.379, 1434.261,
    1334.311,
)  # fmt: skip

# Fixed least-squares lift from the four bands to TerraMind's twelve, DN without offset (rows as TERRAMIND_S2_BANDS,
# columns as OPTICAL_BANDS); fitted by experiments/fit_spectral_lift.py on clear 12-band BigEarthNet patches.
SPECTRAL_LIFT_MATRIX: tuple[tuple[float, float, float, float], ...] = (
    (0.82213, 0.11109, -0.07706, -0.01005),  # B01
    (1.0, 0.0, 0.0, 0.0),  # B02
    (0.0, 1.0, 0.0, 0.0),  # B03
    (0.0, 0.0, 1.0, 0.0),  # B04
    (-0.71372, 0.77964, 0.79983, 0.13597),  # B05
    (-0.5059, 0.9389, -0.15537, 0.70569),  # B06
    (-0.17614, 0.38983, -0.15951, 0.91862),  # B07
    (0.0, 0.0, 0.0, 1.0),  # B08
    (-0.25912, -0.08246, 0.22622, 1.0225),  # B8A
    (-0.36768, -0.16886, 0.34239, 1.01171),  # B09
    (-2.53009, -0.80886, 3.14419, 0.44615),  # B11
    (-1.82819, -0.46045, 2.42221, 0.17313),  # B12
)
SPECTRAL_LIFT_BIAS: tuple[float, ...] = (-33.64, 0.0, 0.0, 0.0, 3.17, -31.26, -18.26, 0.0, 35.93, 60.35, 316.11, 216.98)

_SAR_STATS: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "S1GRD": ((-12.599, -20.293), (5.195, 5.890)),
    "S1RTC": ((-10.93, -17.329), (4.391, 4.459)),
}


def sar_stats(product: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """Mean and standard deviation of (VV, VH) in dB for an S1 product, as TerraMind was pretrained.

    >>> mean, std = sar_stats("S1RTC")
    >>> mean
    (-10.93, -17.329)

    Raises InputError: ``product`` is not one of ``S1_PRODUCTS``.
    """
    if product not in _SAR_STATS:
        raise InputError(
            f"s1_product is {product!r}; expected one of {', '.join(S1_PRODUCTS)}: 'S1GRD' for ground-range detected"
            " sigma0 (the default), 'S1RTC' for radiometrically terrain-corrected gamma0"
        )
    return _SAR_STATS[product]
