"""Where SAR and optical estimate are inconsistent: a map in [0, 1] from broad backscatter against what colour predicts.

Broad (about 100 m) VV and VH are regressed on the estimate's broad colour; the map is a smooth step of the Mahalanobis
distance between the two. The regression is linear in log-reflectance and two indices, fitted by
``experiments/fit_sar_inconsistency.py`` on clear pairs; it needs no network and serves both correction modes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from axs_lib.bands import DN_PER_REFLECTANCE, OPTICAL_BANDS
from axs_lib.blur import gaussian_blur
from axs_lib.precision import exact_matmul

SIGMA_PX = 5.0
# Rows: 1, ln B02, ln B03, ln B04, ln B08 (reflectance), NDVI, NDWI -> VV, VH in dB; then the residual's inverse
# covariance. Printed by experiments/fit_sar_inconsistency.py.
COEFFICIENTS: tuple[tuple[float, float], ...] = (
    (-15.8808, -22.8447),
    (0.9458, 1.1389),
    (10.4969, 7.3734),
    (-3.8311, -2.0945),
    (-7.5291, -6.2235),
    (-13.367, -3.9368),
    (-41.019, -30.4862),
)
INVERSE_COVARIANCE: tuple[tuple[float, float], ...] = ((0.6566, -0.47126), (-0.47126, 0.52403))
ONSET, FULL = 2.5, 4.5  # Mahalanobis distance where the map begins to rise and is 1; 90 % of clear ground is below 2.2
# Broad backscatter in dB where open water begins to be likely and is plain. The open water of the project's pairs has
# VV -18.2 to -21.0 and VH -26.3 to -32.9; smooth dry fields come down to about -17 and -24. Where VH is at the sensor's
# noise and VV hardly above it, calm water and other smooth ground look alike, and nothing is claimed.
WATER_SIGMA_PX = 2.5
WATER_VV, WATER_VH, WATER_VV_OVER_VH = (-16.0, -18.0), (-24.0, -26.5), (4.5, 6.0)
WATER_NDWI = (-0.15, 0.05)  # of an estimate, where water begins to be likely and is plain


def optical_features(dn: Tensor) -> Tensor:
    """(B, 7, H, W) regressors of a (B, 4, H, W) DN image: 1, log-reflectances, NDVI, NDWI."""
    reflectance = (dn / DN_PER_REFLECTANCE).clamp(1e-3, 2.0)
    red, nir = reflectance[:, 2:3], reflectance[:, 3:]
    return torch.cat([torch.ones_like(nir), reflectance.log(), (nir - red) / (nir + red), ndwi(reflectance)], dim=1)


def mahalanobis_distance(s1_db: Tensor, opt_dn: Tensor) -> Tensor:
    """Mahalanobis distance (B, 1, H, W) between broad backscatter and what the estimate's colour predicts."""
    with torch.autocast(opt_dn.device.type, enabled=False):
        broad = gaussian_blur(torch.cat([opt_dn, s1_db], dim=1), SIGMA_PX)
        features = optical_features(broad[:, :4])
        coefficients = torch.tensor(COEFFICIENTS, dtype=features.dtype, device=features.device)
        expected = exact_matmul(coefficients.mT, features.flatten(2)).unflatten(2, features.shape[2:])
        vv, vh = (broad[:, 4:] - expected).split(1, dim=1)
    (vv_vv, vv_vh), (_, vh_vh) = INVERSE_COVARIANCE  # symmetric
    squared = vv_vv * vv * vv + 2.0 * vv_vh * vv * vh + vh_vh * vh * vh
    return squared.clamp_min(0.0).sqrt()


def sar_inconsistency(s1_db: Tensor, opt_dn: Tensor) -> Tensor:
    """SAR inconsistency map (B, 1, H, W) in [0, 1] of backscatter in dB (B, 2, H, W) and DN (B, 4, H, W)."""
    return smoothstep(mahalanobis_distance(s1_db, opt_dn), ONSET, FULL)


def ndwi(image: Tensor) -> Tensor:
    """(B03 - B08) / (B03 + B08), (..., 1, H, W), of (..., 4, H, W): over 0 on water (McFeeters, 1996), NaN is kept."""
    green, nir = (image.select(-3, OPTICAL_BANDS.index(band)).unsqueeze(-3) for band in ("B03", "B08"))
    return (green - nir) / (green + nir).clamp_min(1e-6)


def shows_water(dn: Tensor) -> Tensor:
    """How much an estimate in DN (B, 4, H, W) shows water: (B, 1, H, W) in [0, 1]."""
    return smoothstep(gaussian_blur(ndwi(dn.clamp_min(1.0)), 1.0), *WATER_NDWI)


def open_water(s1_db: Tensor) -> Tensor:
    """How much backscatter in dB (B, 2, H, W) looks like open water: (B, 1, H, W) in [0, 1]."""
    vv, vh = gaussian_blur(s1_db, WATER_SIGMA_PX).split(1, dim=1)
    return smoothstep(vv, *WATER_VV) * smoothstep(vh, *WATER_VH) * smoothstep(vv - vh, *WATER_VV_OVER_VH)


def smoothstep(x: Tensor, start: float, end: float) -> Tensor:
    """0 up to ``start``, 1 from ``end`` on, smooth between."""
    ramp = ((x - start) / (end - start)).clamp(0.0, 1.0)
    return ramp * ramp * (3.0 - 2.0 * ramp)
