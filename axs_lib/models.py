"""The builder of Stage 1, TerraMind from SAR to optical, by the names of TerraMind's modalities."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from axs_lib.bands import S1_PRODUCTS
from axs_lib.checks import find_device
from axs_lib.errors import InputError
from axs_lib.io.files import PathLike
from axs_lib.stage1_tm_s2o import Stage1Model
from axs_lib.terramind.build import load_generator
from axs_lib.terramind.sampler import build_schedule
from axs_lib.terramind.weights import DEFAULT_VARIANT

OUTPUT_MODALITY = "S2L2A"


def build_terramind_generator(
    input_modalities: Sequence[str] = ("S1GRD",),
    output_modalities: Sequence[str] = (OUTPUT_MODALITY,),
    timesteps: int = 12,
    standardize: bool = True,
    pretrained: bool = True,
    *,
    variant: str = DEFAULT_VARIANT,
    checkpoint: PathLike | None = None,
    revision: str | None = None,
    device: torch.device | str | None = None,
    scheduler: str = "ddim",
) -> Stage1Model:
    """Build Stage 1; Stage 3 is built by ``axs_lib.stage3_tm_ground.build_stage3_model``.

    ``input_modalities`` are ``("S1GRD",)`` or ``("S1RTC",)``, by whose statistics the SAR is scaled;
    ``output_modalities`` ``("S2L2A",)``. The other arguments are as there, and so is what it raises.
    """
    given = (input_modalities, output_modalities)
    inputs, outputs = ((each,) if isinstance(each, str) else tuple(map(str, each)) for each in given)
    if len(inputs) != 1 or inputs[0] not in S1_PRODUCTS:
        stage3 = ": SAR and optical together are Stage 3, axs_lib.stage3_tm_ground.build_stage3_model"
        products = ", ".join(str((product,)) for product in S1_PRODUCTS)
        raise InputError(
            f"input_modalities is {inputs}; expected one of {products}{stage3 if OUTPUT_MODALITY in inputs else ''}"
        )
    if outputs != (OUTPUT_MODALITY,):
        raise InputError(f"output_modalities is {outputs}; expected ('{OUTPUT_MODALITY}',)")
    build_schedule(scheduler, timesteps)  # what cannot be fails before weights are loaded
    place = find_device(device)
    generator = load_generator(
        variant, pretrained=pretrained, checkpoint=checkpoint, revision=revision, s1_product=inputs[0]
    )
    model = Stage1Model(generator, timesteps=timesteps, standardize=standardize, scheduler=scheduler)
    return model.requires_grad_(not pretrained).eval().to(place)
