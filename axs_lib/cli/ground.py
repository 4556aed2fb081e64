"""``axs ground``: ground one optical tile, one batch of tiles, or a scene of any size in its SAR image.

In: .npz, .pt or .tif files, and for scenes anything that GDAL opens. Out: the grounded image (and its uncertainty) in
the format that its name asks for, with the georeference, band names and nodata of the input and the provenance of the
model. With a mask, only what it calls unknown is drawn and the rest comes back as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from axs_lib.cli.scene import (
    DateOption,
    DeterministicOption,
    GateOption,
    StacOption,
    ground_files,
    refuse_for_tiles,
)

if TYPE_CHECKING:
    from torch import Tensor

    from axs_lib.io.masks import Mask
    from axs_lib.io.raster import Raster, Tile
    from axs_lib.io.scene_masks import MaskFile
    from axs_lib.stage3_tm_ground import Stage3GroundingModel, Stage3Output

DEFAULT_ENSEMBLE = 4  # members, where an uncertainty map is asked for and no size


class Precision(StrEnum):
    """Arithmetic of the network."""

    float32 = "float32"
    bfloat16 = "bfloat16"


DtypeOption = Annotated[
    Precision,
    typer.Option(help="Arithmetic; bfloat16 is faster on a GPU and on a CPU with instructions for it."),
]


class Product(StrEnum):
    """Kind of Sentinel-1 image."""

    S1GRD = "S1GRD"
    S1RTC = "S1RTC"


class MaskKind(StrEnum):
    """What the values of a mask mean."""

    auto = "auto"
    boolean = "boolean"
    trust = "trust"
    scl = "scl"


class CorrectionMode(StrEnum):
    """Way to correct the estimate."""

    learned = "learned"
    difference = "difference"


def ground(
    s1: Annotated[
        list[str],
        typer.Option(
            metavar="FILE [FILE]",
            help="VV and VH in dB: one stack, or one file a band; on another grid it is warped to that of --opt-v2.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Grounded image: .tif, .npz or .pt.")],
    opt_v2: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE [FILE ...]",
            help="B02, B03, B04, B08 in DN (reflectance x 10000): one stack, or one file a band. Left out where the"
            " .npz given as --s1 holds opt_v2 too.",
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where --opt-v2 was observed: 1 is clear and kept as it is, 0 is unknown and drawn from SAR and"
            " context. A boolean mask, a trust map in 0..1, or a Sentinel-2 scene classification (SCL).",
        ),
    ] = None,
    mask_kind: Annotated[MaskKind, typer.Option(help="What the values of --mask mean.")] = MaskKind.auto,
    mask_invert: Annotated[
        bool, typer.Option("--mask-invert", help="1 is unknown in --mask, as in a cloud mask.")
    ] = False,
    drop: Annotated[
        str | None,
        typer.Option(
            metavar="CLASSES",
            help="SCL classes that count as unknown, by name or number; by default no_data,saturated_or_defective,"
            "cloud_shadow,cloud_medium,cloud_high,thin_cirrus.",
        ),
    ] = None,
    mask_buffer: Annotated[
        int, typer.Option(metavar="PX", min=0, help="Pixels by which what is unknown grows.")
    ] = 0,
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
    correction_mode: Annotated[
        CorrectionMode | None,
        typer.Option(help="how a correction is made; by default what the weights were trained for."),
    ] = None,
    hold_colour: Annotated[
        bool,
        typer.Option("--hold-colour", help="Change detail only: no flood comes through, none is invented."),
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 ...; the GPU where there is one.")
    ] = None,
    dtype: DtypeOption = Precision.float32,
    ensemble_size: Annotated[
        int | None, typer.Option(min=1, help="Members averaged: 1, or 4 where --uncertainty is given.")
    ] = None,
    uncertainty: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the error to expect (1 std), in DN.")
    ] = None,
    sar_contribution: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Also write the change that the SAR asked for, in DN (a second run)."
        ),
    ] = None,
    gate: GateOption = None,
    stac: StacOption = None,
    date: DateOption = None,
    deterministic: DeterministicOption = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Accept values that do not look like dB and DN.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Ground an optical estimate in its SAR image, or fill the gaps of an optical image from SAR and context."""
    from axs_lib.errors import InputError
    from axs_lib.io.grid import is_scene
    from axs_lib.io.raster import parse_bands
    from axs_lib.io.tiles import read_tile
    from axs_lib.terramind.sampler import check_strength, check_timesteps
    from axs_lib.terramind.weights import find_variant

    # 1. What can be refused without reading anything.
    members = ensemble_size or (DEFAULT_ENSEMBLE if uncertainty else 1)
    if variant is not None:
        find_variant(variant)
    _check_outputs(out, {"--uncertainty": uncertainty, "--sar-contribution": sar_contribution}, overwrite)
    check_timesteps(timesteps)
    check_strength(strength)
    mask_settings = _mask_settings(mask, mask_kind, mask_invert, drop, mask_buffer)

    settings = {"timesteps": timesteps, "strength": strength, "seed": seed, "ensemble_size": members}
    if hold_colour:
        settings["hold_colour"] = True
    build = {
        "variant": variant,
        "checkpoint": checkpoint and str(checkpoint),
        "correction_mode": correction_mode and correction_mode.value,
    }

    # Larger than a tile, or on two grids: the scene way streams it.
    if is_scene(s1, opt_v2 or (), out):
        if sar_contribution is not None:
            raise InputError(
                "--sar-contribution is for tiles, not for scenes; cut out the tile that you want to look at"
            )
        ground_files(
            s1,
            opt_v2 or (),
            out,
            mask=_scene_mask(mask, mask_settings),
            settings=settings,
            build=build,
            s1_product=s1_product.value,
            device=device,
            dtype=dtype.value,
            bands=parse_bands(bands),
            uncertainty=uncertainty,
            gate=gate,
            stac=stac,
            date=date,
            deterministic=deterministic,
            overwrite=overwrite,
            force=force,
            quiet=quiet,
        )
        return
    refuse_for_tiles({"--gate": gate, "--stac": stac, "--date": date, "--deterministic": deterministic})

    # 2. Read the tile and its mask.
    tile = read_tile(s1, opt_v2 or (), parse_bands(bands))
    _check_batch(tile, out, uncertainty, sar_contribution)
    gaps = None if mask is None else _read_mask(mask, tile.opt_v2, mask_settings)
    if gaps is not None:
        tile = replace(tile, trust=gaps.trust)

    # 3. Run the model.
    model, output, asked = _run(
        tile,
        settings,
        sar_contribution=sar_contribution is not None,
        build=build,
        s1_product=s1_product.value,
        device=device,
        dtype=dtype.value,
        force=force,
    )

    if uncertainty is not None and output.uncertainty is None:
        raise InputError(
            "this way to correct says nothing of its error, so that --uncertainty is the spread of an ensemble, and"
            f" --ensemble-size is {members}; expected 2 or more, for example --ensemble-size {DEFAULT_ENSEMBLE}"
        )

    # 4. Write.
    from axs_lib.io.results import write_image, write_sar_contribution, write_uncertainty

    tags = model.provenance | {f"AXS_{key.upper()}": str(value) for key, value in settings.items()}
    tags |= {"AXS_S1_PRODUCT": s1_product.value, "AXS_DTYPE": dtype.value, "AXS_NFE": str(output.nfe)}
    if mask is not None and gaps is not None:
        tags |= _mask_tags(mask, gaps, mask_settings)
    image = output.image.float().cpu().numpy()
    write_image(out, image, tile, tags=tags, overwrite=overwrite)
    if uncertainty is not None and output.uncertainty is not None:
        write_uncertainty(
            uncertainty, output.uncertainty.float().cpu().numpy(), tile, tags=tags, overwrite=overwrite
        )
    if sar_contribution is not None and asked is not None:
        write_sar_contribution(
            sar_contribution, asked.float().cpu().numpy(), tile, tags=tags, overwrite=overwrite
        )
    if not quiet:
        count, _, height, width = image.shape
        tiles = f"{count} tiles of " if tile.opt_v2.batched else ""
        typer.echo(f"{out}: {tiles}{height}x{width} px, {model.variant}, {output.nfe} network evaluations")
        if gaps is not None:
            typer.echo(
                f"{100 * gaps.unknown:.1f} % of the pixels were unknown ({mask}, {gaps.kind}) and are drawn"
            )
        if uncertainty is not None:
            typer.echo(f"{uncertainty}: standard deviation of the error to expect, {members} members, in DN")


def _check_outputs(out: Path, maps: Mapping[str, Path | None], overwrite: bool) -> None:
    from axs_lib.errors import InputError
    from axs_lib.io.atomic import check_output
    from axs_lib.io.results import check_suffix

    named = {"--out": out} | {option: path for option, path in maps.items() if path is not None}
    taken: dict[Path, str] = {}
    for option, path in named.items():
        check_suffix(path)
        check_output(path, overwrite)
        other = taken.setdefault(path.resolve(), option)
        if other != option:
            raise InputError(f"{other} and {option} both name {path}; give them different names")


def _check_batch(tile: Tile, *outputs: Path | None) -> None:
    from axs_lib.io.results import check_suffix

    for path in outputs:
        if path is not None:
            check_suffix(path, len(tile.opt_v2.batch))


def _mask_settings(
    mask: Path | None, kind: MaskKind, invert: bool, drop: str | None, buffer: int
) -> dict[str, Any]:
    """The options of ``read_mask``; options without a mask, and classes that there are not, are refused."""
    from axs_lib.errors import InputError
    from axs_lib.io.masks import scl_numbers

    settings = {
        "kind": kind.value,
        "invert": invert,
        "drop": None if drop is None else scl_numbers(word for word in drop.split(",") if word.strip()),
        "buffer": buffer,
    }
    if mask is None and (kind != MaskKind.auto or invert or drop is not None or buffer):
        raise InputError(
            "--mask-kind, --mask-invert, --drop and --mask-buffer say how to read a mask and none is given; add"
            " --mask FILE"
        )
    return settings


def _scene_mask(path: Path | None, settings: dict[str, Any]) -> MaskFile | None:
    from axs_lib.io.scene_masks import MaskFile

    return None if path is None else MaskFile(path, **settings)


def _read_mask(path: Path, opt_v2: Raster, settings: dict[str, Any]) -> Mask:
    from axs_lib.io.masks import read_mask

    return read_mask(path, opt_v2, **settings)


def _mask_tags(path: Path, mask: Mask, settings: dict[str, Any]) -> dict[str, str]:
    """How the mask was read, for the file."""
    from axs_lib.io.masks import SCL_CLASSES, SCL_DROPPED, scl_numbers

    tags = {
        "AXS_MASK": path.name,
        "AXS_MASK_KIND": mask.kind,
        "AXS_MASK_BUFFER": str(settings["buffer"]),
        "AXS_UNKNOWN_PERCENT": f"{100 * mask.unknown:.2f}",
    }
    if mask.kind == "scl":
        numbers = scl_numbers(SCL_DROPPED if settings["drop"] is None else settings["drop"])
        return tags | {"AXS_MASK_DROP": ",".join(SCL_CLASSES[number] for number in numbers)}
    return tags | {"AXS_MASK_INVERT": str(settings["invert"])}


def _run(
    tile: Tile,
    settings: dict[str, Any],
    *,
    sar_contribution: bool,
    build: dict[str, Any],
    s1_product: str,
    device: str | None,
    dtype: str,
    force: bool,
) -> tuple[Stage3GroundingModel, Stage3Output, Tensor | None]:
    """The model, what it made of the tile, and the change that the SAR asked for, where that is wanted."""
    import torch

    from axs_lib import stage3_tm_ground
    from axs_lib.checks import check_pair
    from axs_lib.errors import AxionError

    target = torch_device(device)
    s1, opt_v2 = torch.from_numpy(tile.s1.batch).to(target), torch.from_numpy(tile.opt_v2.batch).to(target)
    trust = None if tile.trust is None else torch.from_numpy(tile.trust).to(target)
    if trust is not None:  # what lies under a cloud is no optical image: neither checked nor used
        opt_v2 = opt_v2.masked_fill(trust == 0, torch.nan)
    check_pair(s1, opt_v2, trust=trust, source="file", force=force)
    given = {key: value for key, value in build.items() if value is not None}
    model = stage3_tm_ground.build_stage3_model(
        settings["timesteps"], device=str(target), s1_product=s1_product, **given
    )
    if dtype != Precision.float32:
        model.use_precision(getattr(torch, dtype))
    try:
        with torch.no_grad():
            output = model.ground(s1, opt_v2, trust=trust, **settings)
            if not sar_contribution:
                return model, output, None
            without = model.ground(
                s1,
                opt_v2,
                trust=trust,
                controls=stage3_tm_ground.GroundingControls(use_sar=False),
                **settings,
            )
            return model, output, output.image - without.image
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
