"""What the date is worth to one plain U-Net from SAR to optical: the control of the pipeline, given the same calendar.

Usage: python -m experiments.nano.season_of_plain DATA --plain-checkpoint F --groups A [...] --exclude B [...]

The season's colour (``axs_lib.prithvi.colour``) is fitted in closed form, as Stage 2's is, to what the U-Net makes of
the tiles of quality ok outside both lists of groups, and measured on the test groups beside the U-Net by itself: mean
squared error in reflectance squared, and how it changes.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from axs_lib.bands import OPTICAL_MEAN, OPTICAL_STD
from axs_lib.data.pairs import PairRecord, list_pairs, load_pair
from axs_lib.evaluate.plain import PlainModel, load_plain
from axs_lib.nodata import fill_nodata, valid_pixels
from axs_lib.prithvi.colour import SeasonalColour
from axs_lib.prithvi.metadata import encode_metadata
from axs_lib.terramind.adapters import OpticalAdapter
from axs_lib.train.colour import normal_equations, solve


def images(model: PlainModel, record: PairRecord) -> tuple[Tensor, Tensor]:
    """The U-Net's image and the truth (1, 4, H, W) in DN, NaN where either input is."""
    pair = load_pair(record)
    s1, truth = torch.as_tensor(pair.s1)[None].float(), torch.as_tensor(pair.s2)[None].float()
    valid = valid_pixels(s1, truth)
    drawn = model.predict(fill_nodata(s1, valid))
    return drawn.masked_fill(~valid, torch.nan), truth.masked_fill(~valid, torch.nan)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--plain-checkpoint", required=True)
    parser.add_argument("--groups", nargs="+", required=True, help="measured on")
    parser.add_argument("--exclude", nargs="*", default=[], help="neither fitted to nor measured on")
    arguments = parser.parse_args()
    model = load_plain(arguments.plain_checkpoint)
    optical = OpticalAdapter(OPTICAL_MEAN, OPTICAL_STD)
    records = list_pairs(arguments.data)
    fitted = [r for r in records if r.group not in {*arguments.groups, *arguments.exclude}]
    tiles = []
    for record in fitted:
        drawn, truth = (optical.to_z(image) for image in images(model, record))
        tiles.append((record.group, *normal_equations(drawn, truth, record.metadata)))
    colour = SeasonalColour()
    colour.weight.copy_(solve([tile for tile in tiles if bool(tile[1].any())]))

    errors = []
    for record in (r for r in records if r.group in arguments.groups):
        drawn, truth = images(model, record)
        shift = colour(optical.to_z(drawn), encode_metadata([record.metadata], 1)) * optical.std
        errors.append([float(((image - truth) / 1e4).square().nanmean()) for image in (drawn, drawn + shift)])
    before, after = torch.tensor(errors).mean(0).tolist()
    print(f"{len(fitted)} tiles fitted to, {len(errors)} measured on")
    print(f"MSE {before:.3e} without the date, {after:.3e} with it ({100 * (after / before - 1):+.1f} %)")


if __name__ == "__main__":
    main()
