"""``axs demo``: run nano on the packaged real tiles and show what it is good for.

In: the sample tiles of BigEarthNet (SAR and clear optical truth). Three parts: a cloud gap of the real image filled,
clear pixels bit for bit; a simulated Stage 2 estimate grounded in the SAR; and, last, the three stages from the SAR and
what is known of day and place, which is an estimate and no observation. Out: a folder with GeoTIFFs and an NPZ a tile
and part, the figures as JSON, one page to look at, and three tables on the terminal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from axs_lib.cli import options

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from axs_lib.io.raster import Raster
    from axs_lib.pipeline import Pipeline

VARIANT = "nano"
ENSEMBLE = 4  # of the grounded estimate, whose uncertainty is shown
PRESET: Final = "test"
RECORD = "demo.json"
PAGE = "report.html"
CREATED_BY = "axs demo"
NOTICE = "estimate, not observation"

# key of axs_lib.metrics, heading, digits; all of it fits a terminal of 80 columns
COLUMNS = (
    ("mse", "MSE\nx1000", 3),
    ("mae", "MAE\n", 4),
    ("ssim", "SSIM\n", 3),
    ("sam", "SAM\ndeg", 2),
    ("ndvi", "NDVI\nerror", 4),
)

Figures = dict[str, dict[str, float]]  # by name of the image


@dataclass(frozen=True)
class DemoTile:
    """A packaged tile.

    Attributes:
        name: of the tile.
        sar: VV and VH in dB, as read.
        optical: the clear truth in DN, as read.
        s1: (1,2,H,W) dB.
        truth: (1,4,H,W) DN.
        metadata: date and place.
    """

    name: str
    sar: Raster
    optical: Raster
    s1: Tensor
    truth: Tensor
    metadata: Mapping[str, str | float]


@dataclass(frozen=True)
class Shown:
    """What came of one part for one tile.

    Attributes:
        images: by name (``opt_v2``, ``opt_v3``, ``uncertainty``, ...) arrays without a batch, as written.
        figures: of the images that are compared.
        tags: what made them.
    """

    images: dict[str, NDArray[Any]]
    figures: Figures
    tags: dict[str, str]


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the results.")] = Path("demo_output"),
    timesteps: options.TimestepsOption = None,
    seed: Annotated[int, typer.Option(help="Seed of the simulated errors and of the noise.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Use a folder that holds other files, too.")] = False,
) -> None:
    """Fill a gap, ground an estimate and run the three stages with nano on real tiles, and show the results."""
    from rich.console import Console

    from axs_lib.data.samples import sample_names
    from axs_lib.evaluate.html.page import write_report
    from axs_lib.progress import track

    check_folder(out, overwrite)
    steps = options.recommended_timesteps(VARIANT) if timesteps is None else timesteps
    console = Console(highlight=False)
    with Console(stderr=True).status(f"loading {VARIANT}"):
        from axs_lib import pipeline as stages

        pipeline = stages.build_pipeline(variant=VARIANT, stage1_timesteps=steps, stage3_timesteps=steps)
    settings = {"timesteps": steps, "seed": seed}
    record: dict[str, Any] = {
        "created_by": CREATED_BY,
        "model": pipeline.provenance,
        "settings": settings,
        "parts": {part: {} for part in PARTS},
    }
    _write_record(out / RECORD, record)  # from now on the folder is known as a demo's
    for part, (_, _, make) in PARTS.items():
        for name in track(sample_names(), part, enabled=console.is_terminal):
            sample = _load(name)
            shown = make(sample, pipeline, settings)
            _write(out / part / name, sample, shown)
            record["parts"][part][name] = shown.figures
    _write_record(out / RECORD, record)
    write_report(
        out / PAGE, [out / part for part in PARTS], title=f"What {VARIANT} makes of real tiles", overwrite=True
    )

    for part, (title, note, _) in PARTS.items():
        _show_table(console, title, record["parts"][part])
        console.print(f"{note}\n")
    console.print(
        f"Look at them: {out / PAGE}\nResults: {out}/PART/TILE/, with GeoTIFFs and an NPZ; figures: {out / RECORD}",
        soft_wrap=True,
    )


def check_folder(out: Path, overwrite: bool) -> None:
    """Refuse a folder that holds anything but an earlier demo.

    Raises:
        OutputError: it does, and ``overwrite`` is false; or it is a file.
    """
    from axs_lib.errors import OutputError

    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; expected the name of a folder: choose another --out")
    if overwrite or not out.is_dir() or not any(out.iterdir()):
        return
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
        ours = record["created_by"] == CREATED_BY
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise OutputError(
            f"{out} holds files that are not of an earlier demo; expected an empty or new folder: choose another"
            " --out, or pass --overwrite"
        )


# -- the parts ----------------------------------------------------------------------------------------------------


def fill_gap(sample: DemoTile, pipeline: Pipeline, settings: Mapping[str, Any]) -> Shown:
    """The real image with a simulated cloud, filled by Stage 3; figures are inside the gap."""
    import torch

    from axs_lib.evaluate.gaps import simulated_trust
    from axs_lib.metrics import compute_metrics
    from axs_lib.nodata import fill_nodata, valid_pixels

    trust = simulated_trust(sample.truth[0], sample.name)[None]
    clouded = sample.truth.masked_fill(trust == 0, torch.nan)
    output = pipeline.stage3.ground(sample.s1, clouded, trust=trust, **settings)
    colour = clouded.nanmean((2, 3), keepdim=True).expand_as(clouded)
    images = {"mean colour": colour, "smooth fill": fill_nodata(clouded, valid_pixels(clouded)), "opt_v3": output.image}
    figures = {key: compute_metrics(image, sample.truth, mask=trust == 0) for key, image in images.items()}
    clear = (trust == 1).expand_as(clouded)
    changed = (output.image - sample.truth)[clear].abs().max()
    figures["opt_v3"]["changed_where_clear"] = float(changed)
    tags = {"AXS_OPT_V2_SOURCE": "observed, with a simulated cloud"}
    return _shown(pipeline.stage3, settings, tags, figures, opt_v2=clouded, trust=trust, output=output)


def ground_estimate(sample: DemoTile, pipeline: Pipeline, settings: Mapping[str, Any]) -> Shown:
    """A Stage 2 estimate, simulated from the truth, grounded by Stage 3."""
    from axs_lib.data.degrade import degrade
    from axs_lib.metrics import compute_metrics

    opt_v2 = degrade(sample.truth, seed=settings["seed"], preset=PRESET)
    output = pipeline.stage3.ground(sample.s1, opt_v2, ensemble_size=ENSEMBLE, **settings)
    images = {"opt_v2": opt_v2, "opt_v3": output.image}
    figures = {key: compute_metrics(image, sample.truth) for key, image in images.items()}
    tags = {"AXS_OPT_V2_SOURCE": f"degraded ({PRESET})", "AXS_ENSEMBLE_SIZE": str(ENSEMBLE)}
    return _shown(pipeline.stage3, settings, tags, figures, opt_v2=opt_v2, output=output)


def draw_from_sar(sample: DemoTile, pipeline: Pipeline, settings: Mapping[str, Any]) -> Shown:
    """The three stages, from the SAR and what is known of day and place."""
    from axs_lib.metrics import compute_metrics

    output = pipeline(sample.s1, sample.metadata, ensemble_size=1, **settings)
    images = {"opt_v1": output.opt_v1, "opt_v2": output.opt_v2, "opt_v3": output.opt_v3}
    compared = images | {"mean colour": sample.truth.nanmean((2, 3), keepdim=True).expand_as(sample.truth)}
    figures = {key: compute_metrics(image, sample.truth) for key, image in compared.items()}
    tags = {"AXS_OPT_V2_SOURCE": "stage2", "AXS_NOTICE": NOTICE}
    tags |= {f"AXS_METADATA_{key.upper()}": str(value) for key, value in sample.metadata.items()}
    return _shown(pipeline, settings, tags, figures, **images)


PARTS: dict[str, tuple[str, str, Callable[[DemoTile, Pipeline, Mapping[str, Any]], Shown]]] = {
    "gap": (
        "1. A cloud gap filled: figures inside the gap",
        "The image is real and its cloud simulated; clear pixels come back bit for bit.",
        fill_gap,
    ),
    "estimate": (
        "2. An estimate grounded in the SAR",
        f"opt_v2 is simulated: the truth with the errors of preset {PRESET!r} of axs_lib.data.degrade.",
        ground_estimate,
    ),
    "from_sar": (
        f"3. The three stages from the SAR: {NOTICE}",
        "SAR does not determine colour, and nano is small: this shows that the stages work together. The mean colour is"
        " that of\nthe tile's own truth, which the stages do not know; an image with a larger error is no better than"
        " one flat colour.",
        draw_from_sar,
    ),
}


def _shown(
    model: Any,
    settings: Mapping[str, Any],
    tags: Mapping[str, str],
    figures: Figures,
    *,
    output: Any = None,
    **images: Tensor,
) -> Shown:
    if output is not None:
        images |= {"opt_v3": output.image, "gate": output.gate}
        images |= {} if output.uncertainty is None else {"uncertainty": output.uncertainty}
    made = dict(model.provenance) | {f"AXS_{key.upper()}": str(value) for key, value in settings.items()}
    return Shown({key: image[0].numpy() for key, image in images.items()}, figures, made | dict(tags))


# -- reading and writing ------------------------------------------------------------------------------------------


def _load(name: str) -> DemoTile:
    import torch

    from axs_lib.data.samples import load_sample, sample_metadata

    sar, optical = load_sample(name)
    s1, truth = torch.from_numpy(sar.batch), torch.from_numpy(optical.batch)
    return DemoTile(name, sar, optical, s1, truth, sample_metadata(name))


def _write(folder: Path, sample: DemoTile, shown: Shown) -> None:
    """GeoTIFFs of the optical images and an NPZ of everything; files of an earlier run are replaced."""
    from axs_lib.io.results import optical_layer, write_arrays, write_layer

    tags = shown.tags | {"AXS_SAMPLE": sample.name}
    optical = {key: image for key, image in shown.images.items() if key.startswith("opt_")}
    for name, image in (optical | {"truth": sample.optical.data}).items():
        made = {} if name == "truth" else tags
        write_layer(folder / f"{name}.tif", optical_layer(name), image, sample.optical.grid, made, overwrite=True)
    arrays = dict(zip(("s1_vv", "s1_vh"), sample.sar.data, strict=True)) | shown.images
    write_arrays(
        folder / "tile.npz", arrays | {"s2_real": sample.optical.data}, sample.optical.grid, tags, overwrite=True
    )


def _write_record(path: Path, record: Mapping[str, Any]) -> None:
    from axs_lib.io.atomic import atomic_write

    with atomic_write(path, overwrite=True) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _show_table(console: Any, title: str, tiles: Mapping[str, Figures]) -> None:
    from axs_lib.evaluate.tables import over_tiles, rich_table

    images = list(next(iter(tiles.values())))
    mean = {image: over_tiles([figures[image] for figures in tiles.values()]) for image in images}
    rows: list[Sequence[str]] = []
    for name, figures in (dict(tiles) | {"mean": mean}).items():
        for number, image in enumerate(images):
            cells = (f"{figures[image][key] * (1000 if key == 'mse' else 1):.{digits}f}" for key, _, digits in COLUMNS)
            rows.append(["" if number else name, image, *cells])
    table = rich_table(title, ("tile", "image", *(heading for _, heading, _ in COLUMNS)), rows)
    table.title_justify, table.columns[1].justify = "left", "left"
    console.print(table)
    rivals = [image for image in images if image not in ("opt_v1", "opt_v3")]
    for rival in rivals:
        better = sum(figures["opt_v3"]["mse"] < figures[rival]["mse"] for figures in tiles.values())
        console.print(f"MSE is lower in opt_v3 than in {rival} on {better} of {len(tiles)} tiles.")
