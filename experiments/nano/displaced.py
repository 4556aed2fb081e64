"""How much of the preset's error lies where it displaced patches, and what the head makes of it there and elsewhere.

Usage: python -m experiments.nano.displaced DATA --groups GROUP [GROUP ...] [--checkpoint FOLDER]

In: pairs of quality ok of the groups, and nano, one evaluation; the simulated estimates are those of ``axs evaluate``.
Out: a line for each group and one for all: the share of the pixels in which a patch lies off or comes from elsewhere,
their share of the squared error, and by how much the squared error falls in them, outside them, and in all.
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import torch

from axs_lib.data.degrade import PRESETS, Draw, displace_patches
from axs_lib.data.pairs import list_pairs
from axs_lib.evaluate.sources import generator_of, read_tile, simulated_estimate
from axs_lib.nodata import fill_nodata, valid_pixels
from axs_lib.stage3_tm_ground import build_stage3_model

LEAST_CHANGE = 1.0  # DN in a band, from which on a pixel counts as displaced


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--groups", nargs="+", required=True)
    parser.add_argument("--checkpoint")
    arguments = parser.parse_args()
    model = build_stage3_model(timesteps=1, variant="nano", checkpoint=arguments.checkpoint)
    sums: dict[str, list[torch.Tensor]] = defaultdict(list)
    for record in list_pairs(arguments.data, quality="ok"):
        if record.group not in arguments.groups:
            continue
        tile = read_tile(record)
        s1, truth = tile.s1[None], tile.truth[None]
        truth = fill_nodata(truth, valid_pixels(s1, truth))
        opt_v2 = simulated_estimate(truth[0], record.name)[None]
        # The patches are what the preset draws first.
        draw = Draw(generator_of(record.name), 1, truth.device)
        moved = (displace_patches(truth, PRESETS["test"], draw) - truth).abs().amax(1, keepdim=True) > LEAST_CHANGE
        before, after = (
            (image - truth).square().mean(1, keepdim=True) for image in (opt_v2, model.ground(s1, opt_v2).image)
        )  # (1, 1, H, W)
        parts = [moved.float(), before * moved, after * moved, before * ~moved, after * ~moved]
        sums[record.group].append(torch.stack([part.nanmean() for part in parts]))
    for name, tiles in [*sums.items(), ("all", [tile for group in sums.values() for tile in group])]:
        area, before_in, after_in, before_out, after_out = torch.stack(tiles).mean(0).tolist()
        before_all, after_all = before_in + before_out, after_in + after_out
        shares = (area, before_in / before_all)
        falls = (1 - after_in / max(before_in, 1e-9), 1 - after_out / before_out, 1 - after_all / before_all)
        print(
            f"{name:14s} {len(tiles):3d} tiles, displaced {shares[0]:3.0%} of pixels, {shares[1]:3.0%} of the error:"
            f" better there {falls[0]:+.1%}, elsewhere {falls[1]:+.1%}, in all {falls[2]:+.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
