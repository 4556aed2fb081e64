"""Fit the regression behind ``axs_lib/grounding/sar_inconsistency.py``: broad backscatter from broad colour.

Usage: python experiments/fit_sar_inconsistency.py DATA [--exclude GROUP ...]

Ordinary least squares of smoothed VV and VH (dB) on the features of the smoothed truth, over clear tiles of the given
folder without the excluded (test) groups; prints the constants to paste into the module.
"""

from __future__ import annotations

import argparse

import torch

from axs_lib.blur import gaussian_blur
from axs_lib.data.pairs import list_pairs, load_pair
from axs_lib.grounding.sar_inconsistency import SIGMA_PX, optical_features
from axs_lib.nodata import fill_nodata, valid_pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--exclude", nargs="*", default=[])
    arguments = parser.parse_args()
    features, targets = [], []
    for record in list_pairs(arguments.data, quality="all"):
        if record.quality not in ("ok", "open_water") or record.group in arguments.exclude:
            continue
        pair = load_pair(record)
        s1, s2 = torch.as_tensor(pair.s1)[None].float(), torch.as_tensor(pair.s2)[None].float()
        valid = valid_pixels(s1, s2)
        s1, s2 = fill_nodata(s1, valid), fill_nodata(s2, valid)
        features.append(optical_features(gaussian_blur(s2, SIGMA_PX))[0, :, ::8, ::8].flatten(1))
        targets.append(gaussian_blur(s1, SIGMA_PX)[0, :, ::8, ::8].flatten(1))
    x, y = torch.cat(features, 1).double().T, torch.cat(targets, 1).double().T
    solution = torch.linalg.lstsq(x, y).solution
    residual = y - x @ solution
    inverse = torch.linalg.inv(residual.T.cov())
    r2 = 1 - residual.var(0) / y.var(0)
    print(f"{len(x)} samples, R2 VV {r2[0]:.2f} VH {r2[1]:.2f}, residual std {residual.std(0).tolist()} dB")
    print("COEFFICIENTS =", [[round(v, 4) for v in row] for row in solution.tolist()])
    print("INVERSE_COVARIANCE =", [[round(v, 5) for v in row] for row in inverse.tolist()])
    distance = torch.einsum("ns,st,nt->n", residual, inverse, residual).sqrt()
    print(
        "mahalanobis_distance quantiles 50/90/99 %:", [round(float(distance.quantile(q)), 2) for q in (0.5, 0.9, 0.99)]
    )


if __name__ == "__main__":
    main()
