"""``axs ground``: ground one optical tile, or one batch of tiles, in its SAR image.

In: .npz, .pt or .tif files. Out: the grounded image (and its uncertainty) in the format that its name asks for,
with the georeference, band names and nodata of the input and the provenance of the model.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from axs_lib.data.raster import Tile
    from axs_lib.stage3_tm_ground import Stage3GroundingModel, Stage3Output

DEFAULT_ENSEMBLE = 4  # members, where an uncertainty map is asked for and no size


class Precision(StrEnum):
    """Floating-point type of the network's arithmetic."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Product(StrEnum):
    """Kind of Sentinel-1 image."""

    S1GRD = "S1GRD"
    S1RTC = "S1RTC"


class Grounding(StrEnum):
    """Way to correct the estimate."""

    learned = "learned"
    difference = "difference"


def ground(
    s1: Annotated[
        list[Path],
        typer.Option(metavar="FILE [FILE]", help="VV and VH in dB: one stack, or one file a band."),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Grounded image: .tif, .npz or .pt.")],
    opt_v2: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE [FILE ...]",
            help="B02, B03, B04, B08 in DN (reflectance x 10000): one stack, or one file a band. Left out where the"
            " .npz given as --s1 holds opt_v2 too.",
        ),
    ] = None,
    timesteps: Annotated[
        int,
        typer.Option(help="Network evaluations, 1 to 1000: 1 is the most accurate, more are sharper."),
    ] = 10,
    strength: Annotated[
        float,
        typer.Option(help="How far from the estimate the denoiser starts, 0 to 1; 0 keeps it."),
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    variant: Annotated[
        str | None, typer.Option(help="nano, or terramind_v1_tiny, _small, _base (default) or _large.")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Weights from this file or folder.")] = None,
    s1_product: Annotated[Product, typer.Option(help="Kind of Sentinel-1 image.")] = Product.S1GRD,
    bands: Annotated[
        str | None,
        typer.Option(
            help="Order of the bands in the files, such as B04,B03,B02,B08, where they do not say it."
        ),
    ] = None,
    grounding: Annotated[
        Grounding | None, typer.Option(help="Way to correct; by default what the weights were trained for.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 ...; the GPU where there is one.")
    ] = None,
    dtype: Annotated[
        Precision, typer.Option(help="Arithmetic; bfloat16 is faster on a GPU.")
    ] = Precision.float32,
    ensemble_size: Annotated[
        int | None, typer.Option(min=1, help="Members averaged: 1, or 4 where --uncertainty is given.")
    ] = None,
    uncertainty: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the spread of the ensemble, in DN.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Accept values that do not look like dB and DN.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Ground an optical estimate in its SAR image."""
    from axs_lib.data.raster import parse_bands
    from axs_lib.data.tiles import read_tile
    from axs_lib.terramind.sampler import check_strength, check_timesteps
    from axs_lib.terramind.weights import find_variant

    # 1. What can be refused without reading anything.
    members = ensemble_size or (DEFAULT_ENSEMBLE if uncertainty else 1)
    if variant is not None:
        find_variant(variant)
    _check_outputs(out, uncertainty, members, overwrite)
    check_timesteps(timesteps)
    check_strength(strength)

    # 2. Read the tile.
    tile = read_tile(s1, opt_v2 or (), parse_bands(bands))
    _check_batch(tile, out, uncertainty)

    # 3. Run the model.
    settings = {"timesteps": timesteps, "strength": strength, "seed": seed, "ensemble_size": members}
    model, output = _run(
        tile,
        settings,
        build={
            "variant": variant,
            "checkpoint": checkpoint and str(checkpoint),
            "grounding": grounding and grounding.value,
        },
        s1_product=s1_product.value,
        device=device,
        dtype=dtype.value,
        force=force,
    )

    # 4. Write.
    from axs_lib.data.results import write_image, write_uncertainty

    tags = model.provenance | {f"AXS_{key.upper()}": str(value) for key, value in settings.items()}
    tags |= {"AXS_S1_PRODUCT": s1_product.value, "AXS_DTYPE": dtype.value, "AXS_NFE": str(output.nfe)}
    image = output.image.float().cpu().numpy()
    write_image(out, image, tile, tags=tags, overwrite=overwrite)
    if uncertainty is not None and output.uncertainty is not None:
        write_uncertainty(
            uncertainty, output.uncertainty.float().cpu().numpy(), tile, tags=tags, overwrite=overwrite
        )
    if not quiet:
        count, _, height, width = image.shape
        tiles = f"{count} tiles of " if tile.opt_v2.batched else ""
        typer.echo(f"{out}: {tiles}{height}x{width} px, {model.variant}, {output.nfe} network evaluations")
        if uncertainty is not None:
            typer.echo(f"{uncertainty}: standard deviation over {members} members, in DN")


def _check_outputs(out: Path, uncertainty: Path | None, members: int, overwrite: bool) -> None:
    from axs_lib.data.atomic import check_output
    from axs_lib.data.results import check_suffix
    from axs_lib.errors import InputError

    for path in (out, uncertainty):
        if path is not None:
            check_suffix(path)
            check_output(path, overwrite)
    if uncertainty is None:
        return
    if uncertainty.resolve() == out.resolve():
        raise InputError(f"--out and --uncertainty both name {out}; give them different names")
    if members < 2:
        raise InputError(
            "--uncertainty is the spread of an ensemble and --ensemble-size is 1; expected 2 or more,"
            f" for example --ensemble-size {DEFAULT_ENSEMBLE}"
        )


def _check_batch(tile: Tile, out: Path, uncertainty: Path | None) -> None:
    from axs_lib.data.results import check_suffix

    for path in (out, uncertainty):
        if path is not None:
            check_suffix(path, len(tile.opt_v2.batch))


def _run(
    tile: Tile,
    settings: dict[str, Any],
    *,
    build: dict[str, Any],
    s1_product: str,
    device: str | None,
    dtype: str,
    force: bool,
) -> tuple[Stage3GroundingModel, Stage3Output]:
    import torch

    from axs_lib import stage3_tm_ground
    from axs_lib.checks import check_pair
    from axs_lib.errors import AxionError

    target = torch_device(device)
    s1, opt_v2 = torch.from_numpy(tile.s1.batch).to(target), torch.from_numpy(tile.opt_v2.batch).to(target)
    trust = None if tile.trust is None else torch.from_numpy(tile.trust).to(target)
    check_pair(s1, opt_v2, trust=trust, source="file", force=force)
    given = {key: value for key, value in build.items() if value is not None}
    model = stage3_tm_ground.build_stage3_model(
        settings["timesteps"], device=str(target), s1_product=s1_product, **given
    )
    try:
        mixed = torch.autocast(target.type, torch.bfloat16, enabled=dtype == Precision.bfloat16)
        with torch.no_grad(), mixed:
            return model, model.ground(s1, opt_v2, trust=trust, **settings)
    except torch.OutOfMemoryError as error:
        raise AxionError(
            f"{target} has too little memory for {len(s1)} tile(s) of {s1.shape[-2]}x{s1.shape[-1]} px with"
            f" {model.variant}; use --dtype bfloat16, --device cpu or a smaller --variant"
        ) from error


def torch_device(name: str | None) -> Any:
    """The torch device of this name, or the best there is.

    Raises:
        InputError: there is no such device here.
    """
    import torch

    from axs_lib.errors import InputError

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        count = torch.cuda.device_count()
        there = "cpu" + (f" and cuda:0 to cuda:{count - 1}" if count else "; there is no CUDA GPU here")
        raise InputError(f"--device {name} cannot be used; expected {there}") from error
    return device
