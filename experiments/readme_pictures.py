"""Draw the README's pictures from what ``axs demo`` wrote: one tile filled, and one estimate corrected.

In: the demo's folder. Out: ``gap.png`` and ``estimate.png``, each a row of SAR, opt_v2, opt_v3 and truth in true
colour.

Usage: python experiments/readme_pictures.py demo_output --out docs/images
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from axs_lib.evaluate.colour import TRUE_COLOUR, optical_colour, sar_colour, stretch_of

SIDE, GAP = 240, 8  # px of a view, and between two


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tile", default="ireland_fields")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for part in ("gap", "estimate"):
        tile = np.load(arguments.demo / part / arguments.tile / "tile.npz")
        stretch = stretch_of(tile["s2_real"].astype(float), TRUE_COLOUR)
        views = [sar_colour(np.stack([tile["s1_vv"], tile["s1_vh"]]).astype(float))]
        views += [
            optical_colour(tile[name].astype(float), TRUE_COLOUR, stretch) for name in ("opt_v2", "opt_v3", "s2_real")
        ]
        row = Image.new("RGB", (len(views) * (SIDE + GAP) - GAP, SIDE), "white")
        for index, view in enumerate(views):
            image = Image.fromarray((255 * view).round().astype(np.uint8))
            row.paste(image.resize((SIDE, SIDE), Image.Resampling.NEAREST), (index * (SIDE + GAP), 0))
        row.quantize(256).save(arguments.out / f"{part}.png", optimize=True)


if __name__ == "__main__":
    main()
