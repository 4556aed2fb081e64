"""What the SAR is worth to a degraded estimate, in closed form: one linear filter for all places, cross-validated.

Usage: python -m experiments.nano.linear_ceiling DATA [--exclude GROUP ...] [--folds 5]

The correction is a linear function of the estimate's colour and three bands of its detail, and of four bands of a
second image's difference from it: none, its local mean, the image guided by the SAR (``axs_lib.grounding.guided``), and
the image guided by the same SAR turned by 180 degrees and mirrored, which has all its statistics and nothing of the
place. Least squares over the other folds' groups (preset ``train``, one draw a tile), measured on each fold's tiles of
quality ok (preset ``test``, two draws). There is nothing to tune and no chance in it but the draws: a minute.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from torch.nn import functional

from axs_lib.bands import OPTICAL_MEAN, OPTICAL_STD, sar_stats
from axs_lib.blur import gaussian_blur
from axs_lib.checks import Trust
from axs_lib.data.degrade import degrade
from axs_lib.data.pairs import PairRecord, list_pairs, load_pair, split_groups
from axs_lib.grounding.guided import guided_difference
from axs_lib.nodata import fill_nodata, valid_pixels

SETTINGS = {
    "estimate alone": None,
    "and its local mean": "mean",
    "and guided by a turned SAR": "turned",
    "and guided by the SAR": "guided",
}
DETAIL = ((1.0, 20.0), (2.5, 8.0), (5.0, 3.0))  # px, gain
WINDOW_PX, RIDGE, TEST_DRAWS = 8.0, 1e-3, 2
MEAN, STD = (torch.tensor(values)[:, None, None] for values in (OPTICAL_MEAN, OPTICAL_STD))


def bands(image: Tensor) -> list[Tensor]:
    """Detail between the scales of ``DETAIL``, and what is coarser."""
    parts, finer = [], image
    for sigma, _ in DETAIL:
        coarser = gaussian_blur(image, sigma)
        parts.append(finer - coarser)
        finer = coarser
    return [*parts, finer]


def second_image(s1: Tensor, estimate: Tensor, kind: str) -> Tensor:
    """Difference of the second image from the estimate, both in z-units, at the estimate's resolution."""
    if kind == "mean":
        return gaussian_blur(estimate, WINDOW_PX) - estimate
    mean, std = (torch.tensor(values)[:, None, None] for values in sar_stats("S1GRD"))
    sar = (s1 - mean) / std
    sar = sar.rot90(2, (2, 3)).flip(2) if kind == "turned" else sar
    height, width = estimate.shape[-2:]
    pad = (0, -width % 4, 0, -height % 4)
    sar, padded = (functional.pad(image, pad, mode="replicate") for image in (sar, estimate))
    half, _ = guided_difference(sar, padded, torch.full_like(padded[:, :1], Trust.ESTIMATE))
    half = half + functional.avg_pool2d(padded, 2)
    image = functional.interpolate(half, scale_factor=2.0, mode="bilinear", align_corners=False)
    return image[..., :height, :width] - estimate


def system(record: PairRecord, kind: str | None, preset: str, seed: int) -> tuple[Tensor, Tensor]:
    """Regressors (F, H * W) and the error to be corrected (4, H * W), in z-units."""
    pair = load_pair(record)
    s1, truth = torch.as_tensor(pair.s1)[None].float(), torch.as_tensor(pair.s2)[None].float()
    valid = valid_pixels(s1, truth)
    s1, truth = fill_nodata(s1, valid), fill_nodata(truth, valid)
    estimate = (degrade(truth, seed=seed, preset="test" if preset == "test" else "train") - MEAN) / STD
    parts = [torch.ones_like(estimate[:, :1]), estimate]
    gains = [gain for _, gain in DETAIL]
    parts += [gain * part for gain, part in zip(gains, bands(estimate), strict=False)]
    if kind is not None:
        parts += [3.0 * part for part in bands(second_image(s1, estimate, kind))]
    return torch.cat(parts, 1)[0].flatten(1).double(), ((truth - MEAN) / STD - estimate)[0].flatten(1).double()


def normal_equations(record: PairRecord, kind: str | None, seed: int) -> tuple[Tensor, Tensor]:
    """Of one training tile, weighted so that neither the worst nor the best tiles rule."""
    x, y = system(record, kind, "train", seed)
    error = y.square().mean()
    weight = 1.0 / (error + 0.2 * error.sqrt()) / x.shape[1]
    return weight * x @ x.T, weight * x @ y.T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--exclude", nargs="*", default=[])
    parser.add_argument("--folds", type=int, default=5)
    arguments = parser.parse_args()
    records = [record for record in list_pairs(arguments.data) if record.group not in arguments.exclude]
    folds = split_groups(records, arguments.folds)
    seeds = {record.name: 7 * number for number, record in enumerate(records)}
    scale = STD.flatten()[:, None].double() / 10_000.0
    print(f"| {len(records)} tiles | change of the mean MSE | mean of the tiles' changes | worst tile | better |")
    print("|---|---|---|---|---|")
    for name, kind in SETTINGS.items():
        sums = []
        for fold in folds:
            each = [normal_equations(record, kind, seeds[record.name]) for record in fold]
            sums.append([torch.stack(parts).sum(0) for parts in zip(*each, strict=True)])
        before, after = [], []
        for held_out, fold in enumerate(folds):
            gram, moment = (
                torch.stack([parts[which] for index, parts in enumerate(sums) if index != held_out]).sum(0)
                for which in (0, 1)
            )
            filters = torch.linalg.solve(gram + RIDGE * torch.eye(len(gram), dtype=gram.dtype), moment)
            for record in fold:
                for draw in range(TEST_DRAWS):
                    x, y = system(record, kind, "test", seeds[record.name] + 1 + draw)
                    before.append(float((y * scale).square().mean()))
                    after.append(float(((y - filters.T @ x) * scale).square().mean()))
        changes = [100 * (b / a - 1) for a, b in zip(before, after, strict=True)]
        print(
            f"| {name} | {100 * (sum(after) / sum(before) - 1):+.1f} % | {sum(changes) / len(changes):+.1f} % |"
            f" {max(changes):+.0f} % | {100 * sum(c < 0 for c in changes) / len(changes):.0f} % |",
            flush=True,
        )


if __name__ == "__main__":
    main()
