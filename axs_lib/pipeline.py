"""The whole pipeline, built by ``build_pipeline``: SAR, date and place in, opt_v1, opt_v2, opt_v3, uncertainty out.

s1 -- Stage 1 (TerraMind) -- opt_v1 -- Stage 2 (Prithvi, metadata) -- opt_v2 -- Stage 3 (TerraMind, s1) -- opt_v3
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from axs_lib.checks import Trust, check_flag, check_model, check_sar, check_type
from axs_lib.errors import InputError
from axs_lib.io.files import PathLike
from axs_lib.models import build_terramind_generator
from axs_lib.prithvi.metadata import MetadataLike
from axs_lib.stage1_tm_s2o import Stage1Model
from axs_lib.stage2_prithvi_refine import PrithviRefiner, build_prithvi_refiner
from axs_lib.stage3_tm_ground import GroundingControls, Stage3GroundingModel, build_stage3_model
from axs_lib.terramind.noise import Seed, member_seeds, sample_seeds
from axs_lib.terramind.tiles import check_sampling, mean_and_spread, unbatch
from axs_lib.terramind.weights import DEFAULT_PRITHVI, DEFAULT_VARIANT, NANO


@dataclass(frozen=True)
class PipelineOutput:
    """The result for a batch; bands B02 B03 B04 B08 in DN, NaN = nodata; with an ensemble the mean over it.

    Attributes:
        opt_v1, opt_v2, opt_v3: (B, 4, H, W), from the SAR alone, refined with time and place, grounded in the SAR.
        uncertainty: (B, 4, H, W), standard deviation of the error of opt_v3 to expect, in DN: the spread over runs of
            the whole pipeline together with the error Stage 3 predicts; ``None`` for an ensemble of one.
        nfe: network evaluations of the denoisers of Stage 1 and Stage 3, for each member.
        gate: (B, 1, H, W), how much of Stage 3's correction was let through, 0 to 1.
        sar_contribution: (B, 4, H, W), the change that the SAR makes in Stage 3, in DN, where it was asked for.
    """

    opt_v1: Tensor
    opt_v2: Tensor
    opt_v3: Tensor
    uncertainty: Tensor | None
    nfe: tuple[int, int]
    gate: Tensor | None = None
    sar_contribution: Tensor | None = None


class Pipeline(nn.Module):
    """The three stages, for inference, as their builders return them; see ``build_pipeline``.

    Raises InputError: a stage works in z-units, which differ from stage to stage.
    """

    def __init__(self, stage1: Stage1Model, stage2: PrithviRefiner, stage3: Stage3GroundingModel) -> None:
        super().__init__()
        kinds: tuple[Any, ...] = (Stage1Model, PrithviRefiner, Stage3GroundingModel)
        for name, stage, kind in zip(("stage1", "stage2", "stage3"), (stage1, stage2, stage3), kinds, strict=True):
            if not check_type(name, stage, kind, f"a {kind.__name__}").standardize:
                raise InputError(
                    f"{name} was built with standardize=False; expected stages that exchange dB and DN: build them with"
                    " standardize=True"
                )
        self.stage1, self.stage2, self.stage3 = stage1, stage2, stage3

    @property
    def shares_generator(self) -> bool:
        """Whether Stage 1 and Stage 3 share one generator."""
        return self.stage1.terramind_generator is self.stage3.terramind_generator

    @property
    def variant(self) -> str:
        """Name of Stage 3's architecture."""
        return self.stage3.variant

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return self.stage3.device

    def use_precision(self, dtype: torch.dtype) -> None:
        """Let both generators compute in a lower precision: see ``TerraMindGenerator.use_precision``."""
        self.stage3.use_precision(dtype)
        if not self.shares_generator:
            self.stage1.use_precision(dtype)

    @property
    def provenance(self) -> dict[str, str]:
        """What made an output, for file tags; Stage 1's own where its generator is not Stage 3's."""
        tags = self.stage3.provenance | self.stage2.provenance
        if not self.shares_generator:
            tags |= {f"AXS_STAGE1_{key.removeprefix('AXS_')}": value for key, value in self.stage1.provenance.items()}
        return tags

    @torch.no_grad()
    def forward(
        self,
        s1: Tensor,
        metadata: MetadataLike = None,
        timesteps: int | None = None,
        *,
        seed: Seed = 0,
        tokens: str = "soft",
        temperature: float = 1.0,
        ensemble_size: int = 1,
        hold_colour: bool | None = None,
        sar_contribution: bool = False,
        origin: tuple[int, int] = (0, 0),
        batch_size: int = 8,
    ) -> PipelineOutput:
        """Run the three stages.

        Args:
            s1, seed, tokens, temperature, hold_colour, origin, batch_size: as for ``Stage3GroundingModel.ground``; each
                stage draws other noise from the seed.
            metadata: as for ``PrithviRefiner.forward``.
            timesteps: of Stage 1 and of Stage 3, 1 to 1000; default each model's own.
            ensemble_size: runs of the whole pipeline with noise of their own, so that the uncertainty of an early stage
                reaches the last, and the tile turned or mirrored for the grounding head; images are their mean.
            sar_contribution: run Stage 3 once more without the SAR, for the change that it makes.

        Raises InputError: what does not fit, or an option out of its range.
        """
        # 1. Check what came in; one seed a sample, from which every member and stage derives its own.
        sar = check_sar(s1)
        check_model(sar.image, self)
        check_sampling(temperature, ensemble_size, batch_size)
        check_flag("sar_contribution", sar_contribution)
        seeds = sample_seeds(seed, len(sar.image), device=sar.image.device)
        options: dict[str, Any] = {"tokens": tokens, "temperature": temperature, "batch_size": batch_size}

        # 2. The stages in their order, as often as the ensemble has members.
        images, variances, gates, contributions = [], [], [], []  # one of each a member
        for member in range(ensemble_size):
            options["seed"] = member_seeds(seeds, member)
            first = self.stage1.generate(sar.image, timesteps, origin=origin, **options)
            refined = self.stage2(first.image, metadata, batch_size=batch_size)
            trust = torch.full_like(refined[:, :1], Trust.SAR_ONLY)
            controls = GroundingControls(origin=origin, orientation=member)
            grounding = {"trust": trust, "hold_colour": hold_colour, **options}
            last = self.stage3.ground(sar.image, refined, timesteps, controls=controls, **grounding)
            images.append(torch.stack([first.image, refined, last.image]))  # (3, B, 4, H, W)
            gates.append(last.gate)  # (B, 1, H, W)
            if sar_contribution:
                plain = replace(controls, use_sar=False)
                without = self.stage3.ground(sar.image, refined, timesteps, controls=plain, **grounding)
                contributions.append(last.image - without.image)  # (B, 4, H, W)
            if last.uncertainty is not None:
                variances.append(last.uncertainty.square())  # (B, 4, H, W)

        # 3. Mean of each stage's image; the uncertainty is the spread of the last and the error it predicts.
        mean, spread = mean_and_spread(torch.stack(images))  # (3, B, 4, H, W)
        opt_v1, opt_v2, opt_v3 = mean
        uncertainty = None
        if ensemble_size > 1:
            predicted = torch.stack(variances).mean(0) if variances else torch.zeros_like(spread[2])
            uncertainty = (spread[2].square() + predicted).sqrt()
        gate = torch.stack(gates).mean(0)
        contribution = torch.stack(contributions).mean(0) if contributions else None
        output = PipelineOutput(opt_v1, opt_v2, opt_v3, uncertainty, (first.nfe, last.nfe), gate, contribution)
        return unbatch(output) if sar.unbatched else output


def build_pipeline(
    variant: str = DEFAULT_VARIANT,
    *,
    pretrained: bool = True,
    stage1_timesteps: int = 12,
    stage3_timesteps: int = 10,
    checkpoint: PathLike | None = None,
    stage1_checkpoint: PathLike | None = None,
    stage2_variant: str | None = None,
    stage2_checkpoint: PathLike | None = None,
    revision: str | None = None,
    s1_product: str = "S1GRD",
    scheduler: str = "ddim",
    device: torch.device | str | None = None,
) -> Pipeline:
    """Build the three stages, in ``eval()`` mode, on the CPU or ``device``; without ``pretrained`` with random weights.

    ``variant``, ``revision``, ``s1_product`` and ``scheduler`` are as for ``build_stage3_model``; ``stage2_variant`` of
    Prithvi is by default ``"nano"`` beside nano and ``"prithvi_eo_v2_300_tl"`` beside the others. ``checkpoint`` is the
    file or folder of TerraMind's weights, ``stage1_checkpoint`` of Stage 1's, where they differ, and
    ``stage2_checkpoint`` of Stage 2's.

    Raises InputError: unknown variant, product or scheduler, or timesteps out of range; or WeightsError: weights that
    cannot be had, read or matched.
    """
    common: dict[str, Any] = {"pretrained": pretrained, "variant": variant, "scheduler": scheduler, "device": device}
    stage3 = build_stage3_model(
        stage3_timesteps, checkpoint=checkpoint, revision=revision, s1_product=s1_product, **common
    )
    if stage1_checkpoint is None:
        stage1 = Stage1Model(stage3.terramind_generator, timesteps=stage1_timesteps, scheduler=scheduler).eval()
    else:
        stage1 = build_terramind_generator(
            (s1_product,), timesteps=stage1_timesteps, checkpoint=stage1_checkpoint, **common
        )
    if stage2_variant is None:
        stage2_variant = NANO if variant == NANO else DEFAULT_PRITHVI
    stage2 = build_prithvi_refiner(stage2_variant, pretrained=pretrained, checkpoint=stage2_checkpoint, device=device)
    return Pipeline(stage1, stage2, stage3)


def full_pipeline(
    s1: Tensor,
    metadata: MetadataLike = None,
    timesteps: int | None = None,
    *,
    pipeline: Pipeline | None = None,
    variant: str = DEFAULT_VARIANT,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """SAR in, the images of the three stages out: opt_v1, opt_v2, opt_v3, each (B, 4, H, W) or (4, H, W) in DN.

    Without ``pipeline``, ``build_pipeline(variant)`` is built on the device of ``s1`` at the first call and kept for
    the next. The other arguments are those of ``Pipeline.forward``.
    """
    if pipeline is None:
        pipeline = _default_pipeline(variant, str(check_sar(s1).image.device))
    output = pipeline(s1, metadata, timesteps, **options)
    return output.opt_v1, output.opt_v2, output.opt_v3


@functools.lru_cache(maxsize=1)
def _default_pipeline(variant: str, device: str) -> Pipeline:
    return build_pipeline(variant, device=device)
