"""``axs ground``: ground one optical tile, one batch of tiles, or a scene of any size in its SAR image.

In: GeoTIFF, COG, JPEG 2000, .npz or .pt files, or a Sentinel-2 product. Out: the grounded image (and its maps) in the
format that its name asks for, with the georeference, band names and nodata of the input and the provenance of the
model. With a mask, only what it calls unknown is filled and the rest comes back as it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from axs_lib.cli import options
from axs_lib.cli.options import BoaOffset, MaskKind, Precision, Product, S1Unit


def ground(
    s1: options.S1Option,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Grounded image: .tif (a COG), .npz or .pt.")],
    opt_v2: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE [FILE ...]",
            help="B02, B03, B04, B08 in DN (reflectance x 10000): one stack, one file a band, or a Sentinel-2 L2A"
            " product (.SAFE, .zip or R10m). Left out where the .npz given as --s1 holds opt_v2 too.",
        ),
    ] = None,
    mask: options.MaskOption = None,
    mask_kind: options.MaskKindOption = MaskKind.auto,
    mask_invert: options.MaskInvertOption = False,
    drop: options.DropOption = None,
    mask_buffer: options.MaskBufferOption = 0,
    timesteps: options.TimestepsOption = None,
    strength: options.StrengthOption = 1.0,
    seed: options.SeedOption = 0,
    variant: options.VariantOption = None,
    checkpoint: options.CheckpointOption = None,
    adapter: options.AdapterOption = None,
    s1_product: options.S1ProductOption = Product.S1GRD,
    s1_unit: options.S1UnitOption = S1Unit.auto,
    boa_offset: options.BoaOffsetOption = BoaOffset.auto,
    bands: options.BandsOption = None,
    same_grid: options.SameGridOption = False,
    correction_mode: options.CorrectionModeOption = None,
    hold_colour: options.HoldColourOption = False,
    device: options.DeviceOption = None,
    dtype: options.DtypeOption = Precision.float32,
    ensemble_size: options.EnsembleOption = None,
    uncertainty: options.UncertaintyOption = None,
    gate: options.GateOption = None,
    sar_contribution: options.SarContributionOption = None,
    stac: options.StacOption = None,
    date: options.DateOption = None,
    deterministic: options.DeterministicOption = False,
    overwrite: options.OverwriteOption = False,
    force: options.ForceOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Ground an optical estimate in its SAR image, or fill the gaps of an optical image from SAR and context."""
    from axs_lib.io.atomic import check_output
    from axs_lib.io.raster import parse_bands
    from axs_lib.io.results import check_suffix
    from axs_lib.terramind.sampler import check_strength, check_timesteps
    from axs_lib.terramind.weights import find_variant

    # 1. What can be refused without reading anything.
    if variant is not None:
        find_variant(variant)
    steps = check_timesteps(options.recommended_timesteps(variant) if timesteps is None else timesteps)
    check_strength(strength)
    order = parse_bands(bands)
    trust = options.mask_file(mask, mask_kind, mask_invert, drop, mask_buffer)
    for path in (out, uncertainty, gate, sar_contribution):
        if path is not None:
            check_suffix(path)
            check_output(path, overwrite)

    # 2. How the model is built, once the inputs were found good.
    import torch

    from axs_lib import stage3_tm_ground
    from axs_lib.adapters import load_adapter
    from axs_lib.scenes.api import ground_scene

    target = options.torch_device(device)
    build: dict[str, Any] = {"variant": variant, "checkpoint": checkpoint and str(checkpoint)}
    build["correction_mode"] = correction_mode and correction_mode.value
    given = {key: value for key, value in build.items() if value is not None}
    models: list[Any] = []

    def build_model() -> Any:
        model = stage3_tm_ground.build_stage3_model(steps, device=str(target), s1_product=s1_product.value, **given)
        if adapter is not None:
            load_adapter(model, adapter)
        if dtype != Precision.float32:
            model.use_precision(getattr(torch, dtype))
        models.append(model)
        return model

    # 3. Run it.
    settings: dict[str, Any] = {"strength": strength, "hold_colour": True} if hold_colour else {"strength": strength}
    with options.memory_errors(str(target)):
        result = ground_scene(
            build_model,
            s1,
            opt_v2,
            out,
            timesteps=steps,
            seed=seed,
            ensemble_size=ensemble_size or (options.DEFAULT_ENSEMBLE if uncertainty else 1),
            trust=trust,
            uncertainty=uncertainty or False,
            gate=gate or False,
            sar_contribution=sar_contribution or False,
            stac=stac,
            date=date,
            bands=order,
            s1_unit=s1_unit.value,
            boa_offset=boa_offset.value,
            same_grid=same_grid,
            deterministic=deterministic,
            tags={"AXS_S1_PRODUCT": s1_product.value, "AXS_DTYPE": dtype.value},
            overwrite=overwrite,
            force=force,
            progress=not quiet,
            **settings,
        )
    if not quiet:
        options.report(result, models[0].variant)
