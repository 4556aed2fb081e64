"""The builder of Stage 1, TerraMind from SAR to optical, by the names of TerraMind's modalities."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

import torch

from axs_lib.bands import S1_PRODUCTS
from axs_lib.errors import InputError
from axs_lib.stage1_tm_s2o import Stage1Model

OUTPUT_MODALITY = "S2L2A"


def build_terramind_generator(
    input_modalities: Sequence[str] = ("S1GRD",),
    output_modalities: Sequence[str] = (OUTPUT_MODALITY,),
    timesteps: int = 12,
    standardize: bool = True,
    pretrained: bool = True,
    *,
    variant: str = "terramind_v1_base",
    checkpoint: str | PathLike[str] | None = None,
    revision: str | None = None,
    device: torch.device | str | None = None,
    scheduler: str = "ddim",
) -> Stage1Model:
    """Build Stage 1; Stage 3 is built by ``axs_lib.stage3_tm_ground.build_stage3_model``.

    Args:
        input_modalities: ``("S1GRD",)`` or ``("S1RTC",)``; the SAR statistics follow.
        output_modalities: ``("S2L2A",)``.
        timesteps, standardize, pretrained, variant, checkpoint, revision, device, scheduler: as there, and so is what
            it raises.
    """
    from axs_lib.terramind.build import load_generator
    from axs_lib.terramind.sampler import build_schedule

    inputs = _names("input_modalities", input_modalities)
    outputs = _names("output_modalities", output_modalities)
    if len(inputs) != 1 or inputs[0] not in S1_PRODUCTS:
        stage3 = ": SAR and optical together are Stage 3, axs_lib.stage3_tm_ground.build_stage3_model"
        products = ", ".join(str((product,)) for product in S1_PRODUCTS)
        raise InputError(
            f"input_modalities is {inputs}; expected one of {products}{stage3 if OUTPUT_MODALITY in inputs else ''}"
        )
    if outputs != (OUTPUT_MODALITY,):
        raise InputError(f"output_modalities is {outputs}; expected ('{OUTPUT_MODALITY}',)")
    build_schedule(scheduler, timesteps)  # what cannot be fails before weights are loaded
    generator = load_generator(
        variant,
        pretrained=pretrained,
        checkpoint=None if checkpoint is None else str(checkpoint),
        revision=revision,
        s1_product=inputs[0],
    )
    model = Stage1Model(generator, timesteps=timesteps, standardize=standardize, scheduler=scheduler)
    return model.requires_grad_(not pretrained).eval().to("cpu" if device is None else device)


def _names(argument: str, value: Sequence[str]) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else tuple(value)
    if not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"{argument} is {value!r}; expected names of modalities, such as ('S1GRD',)")
    return names
