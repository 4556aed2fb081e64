"""Stage 1: draw an optical image from SAR alone with TerraMind's conditional generator.

In goes Sentinel-1 backscatter (VV, VH in dB); out comes opt_v1 (B02, B03, B04, B08 in DN), TerraMind's guess of what
the ground looks like. SAR does not determine colour, so one time step gives the mean of what is possible, the most
accurate image, and more steps give a sharper sample of it. ``axs_lib.models.build_terramind_generator`` builds the
model; ``Stage1Model.generate`` is the method, in its numbered order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from axs_lib.bands import VALID_DN
from axs_lib.checks import check_device, check_optical, check_sar
from axs_lib.errors import InputError
from axs_lib.nodata import valid_pixels
from axs_lib.terramind.noise import sample_seeds, stage_seeds
from axs_lib.terramind.sampler import Schedule, build_schedule, check_timesteps
from axs_lib.terramind.stage import GeneratorStage
from axs_lib.terramind.tiles import (
    Sampling,
    check_training_size,
    draw_proposals,
    mean_and_spread,
    network_side,
    run_tiled,
    to_network,
    training_start,
)

if TYPE_CHECKING:
    from axs_lib.terramind.generator import TerraMindGenerator

STAGE = 1


@dataclass(frozen=True)
class Stage1Output:
    """What Stage 1 says about a batch.

    Attributes:
        image: opt_v1, (B, 4, H, W), B02 B03 B04 B08 in DN (z-units with ``standardize=False``), NaN = nodata; the mean
            over the ensemble.
        uncertainty: standard deviation over the ensemble, (B, 4, H, W), same unit; ``None`` for an ensemble of one.
        nfe: network evaluations of each denoising run; exactly ``timesteps``.
    """

    image: Tensor
    uncertainty: Tensor | None
    nfe: int


class Stage1Model(GeneratorStage):
    """TerraMind's generator as SAR-to-optical translator: s1 -> opt_v1.

    Args:
        terramind_generator: the conditional generator; Stage 3 may hold the same one.
        timesteps: default number of network evaluations.
        standardize: input is dB and output DN; False means z-units in and out.
        scheduler: default scheduler, ``"ddim"`` or ``"dpmsolver++"``.
    """

    def __init__(
        self,
        terramind_generator: TerraMindGenerator,
        *,
        timesteps: int = 12,
        standardize: bool = True,
        scheduler: str = "ddim",
    ) -> None:
        super().__init__(
            terramind_generator, timesteps=timesteps, standardize=standardize, scheduler=scheduler
        )

    # -- the method -----------------------------------------------------------------------------------------------

    def generate(
        self,
        s1: Tensor,
        timesteps: int | None = None,
        *,
        seed: int | Sequence[int] | Tensor = 0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        tokens: str = "soft",
        temperature: float = 1.0,
        ensemble_size: int = 1,
        scheduler: str | None = None,
        origin: tuple[int, int] = (0, 0),
        batch_size: int = 8,
    ) -> Stage1Output:
        """Draw the optical images of a batch of SAR images.

        A tile's result depends on its own pixels, its seed and its origin, not on its batch mates (within 1 DN).
        Images larger than the network's tile are cut on a grid anchored to their upper left pixel and blended.

        Args:
            s1: (B, 2, H, W) or (2, H, W), VV and VH in dB, NaN = nodata; H, W from 8 px.
            timesteps: network evaluations, 1 to 1000; default the model's.
            seed: of the noise field, one for all samples or one a sample. Stage 3 draws other noise from the same seed.
            generator: draw the seeds from a ``torch.Generator`` (or one a sample) instead.
            tokens: ``"soft"`` (deterministic), ``"argmax"`` or ``"sample"``.
            temperature: of soft and sampled tokens.
            ensemble_size: members averaged; from 2 on their spread is the uncertainty map.
            scheduler: default the model's.
            origin: scene (row, column) of the image's upper left pixel, which fixes the noise.
            batch_size: tiles the network sees at once.

        Raises:
            InputError: anything that cannot be right, saying how to fix it.
        """
        # 1. Check what came in.
        sar = check_sar(s1, standardize=self.standardize)
        check_device(sar.s1, self.device)
        timesteps = check_timesteps(self.timesteps if timesteps is None else timesteps)
        sampling = Sampling(tokens, temperature, ensemble_size, batch_size)
        schedule = build_schedule(scheduler or self.scheduler, timesteps)
        seeds = sample_seeds(seed, len(sar.s1), generator=generator, device=sar.s1.device)

        # 2. Cut every image into tiles of the grid (most are a single one), draw them, blend.
        def draw(images: list[Tensor], tile_seeds: Tensor, origins: Tensor) -> Tensor:
            return self._generate_tiles(images[0], tile_seeds, origins, schedule, sampling)

        layers = run_tiled(
            draw,
            [sar.s1],
            stage_seeds(seeds, STAGE),
            side=self.terramind_generator.layout.max_side,
            origin=origin,
            batch_size=batch_size,
        )
        image, spread = layers.split([4, 4], dim=1)

        # 3. Nodata out where the SAR has nodata; valid pixels are valid DN.
        if self.standardize:
            image = image.clamp(*VALID_DN)
        valid = valid_pixels(sar.s1)
        image = image.masked_fill(~valid, torch.nan)
        uncertainty = spread.masked_fill(~valid, torch.nan) if ensemble_size > 1 else None
        if sar.unbatched:
            image, uncertainty = image[0], None if uncertainty is None else uncertainty[0]
        return Stage1Output(image, uncertainty, schedule.nfe)

    def _generate_tiles(
        self, s1: Tensor, seeds: Tensor, origins: Tensor, schedule: Schedule, sampling: Sampling
    ) -> Tensor:
        """Steps 2a to 2c for tiles of one shape: (n, 8, h, w) of image and spread."""
        generator = self.terramind_generator
        height, width = s1.shape[-2:]

        # 2a. Fill nodata from neighbours, pad to the network's size, z-score; TerraMind reads the SAR.
        z = self._prepare(s1)
        size = (z.shape[-2], z.shape[-1])
        logits = generator.logits({"s1": z})

        # 2b. Tokens become codes, and the denoiser draws the image in exactly `timesteps` evaluations.
        members = [
            image
            for (image,) in draw_proposals(generator, [logits], size, schedule, sampling, seeds, origins)
        ]

        # 2c. Mean and spread over the ensemble, cropped to the tile, in the caller's unit.
        image, spread = mean_and_spread([self._to_unit(member) for member in members])
        return torch.cat([image, spread], dim=1)[..., :height, :width]

    def _prepare(self, s1: Tensor) -> Tensor:
        generator = self.terramind_generator
        side = network_side(generator.layout, s1.shape[-2], s1.shape[-1])
        return to_network(s1, valid_pixels(s1), side, generator.sar, standardize=self.standardize)

    def _to_unit(self, z: Tensor) -> Tensor:
        return self.terramind_generator.optical.from_z(z) if self.standardize else z

    # -- training -------------------------------------------------------------------------------------------------

    def forward(self, s1: Tensor) -> Tensor:
        """opt_v1 (B, 4, H, W): differentiable in training, ``generate(...).image`` in inference.

        With gradients on and something trainable this is ``training_pass`` without a truth; otherwise it is inference
        with the model's default timesteps.

        Args:
            s1: (B, 2, H, W) in dB; at most 256 px a side in training.
        """
        if not (torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())):
            return self.generate(s1).image
        return self.training_pass(s1)[0]

    def training_pass(self, s1: Tensor, truth: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Differentiable pass with one evaluation of the denoiser: opt_v1 in the caller's unit, and token logits.

        Args:
            s1: (B, 2, H, W) in dB.
            truth: (B, 4, H, W) in DN; in ``train()`` mode the denoiser sees it noised to a random time step. Without
                it, and in ``eval()`` mode, the denoiser starts from pure noise.

        Raises:
            InputError: tiles larger than the network's tile, or anything that cannot be right.
        """
        generator = self.terramind_generator
        sar = check_sar(s1, standardize=self.standardize)
        check_device(sar.s1, self.device)
        height, width = check_training_size(generator.layout, sar.s1)
        z = self._prepare(sar.s1)
        size = (z.shape[-2], z.shape[-1])
        if truth is None:
            clean = z.new_zeros(len(z), generator.image_channels, *size)
        else:
            clean = generator.optical.expand_bands(self._prepare_truth(truth, sar.s1, size[0]))
        x_t, t = training_start(clean, training=self.training, noised=truth is not None)
        logits = generator.logits({"s1": z})
        x0 = generator.denoise_once(x_t, t, generator.codes(logits, size)).float()
        image = self._to_unit(generator.optical.select(x0))[..., :height, :width]
        return (image[0] if sar.unbatched else image), logits

    def _prepare_truth(self, truth: Tensor, s1: Tensor, side: int) -> Tensor:
        checked = check_optical(truth, "truth", standardize=self.standardize).image.float()
        if (len(checked), checked.shape[-2:]) != (len(s1), s1.shape[-2:]):
            raise InputError(
                f"truth is {tuple(checked.shape)} and s1 {tuple(s1.shape)}; expected one truth of the same height and"
                " width for every SAR tile"
            )
        optical, valid = self.terramind_generator.optical, valid_pixels(checked)
        return to_network(checked, valid, side, optical, standardize=self.standardize)


@torch.no_grad()
def tm_sar2opt(generator: Stage1Model, s1: Tensor, timesteps: int | None = None, **options: Any) -> Tensor:
    """Draw opt_v1 from s1.

    Args:
        generator: from ``axs_lib.models.build_terramind_generator``.
        s1: (B, 2, H, W) or (2, H, W), VV and VH in dB.
        timesteps: network evaluations; default the model's.
        **options: any keyword of ``Stage1Model.generate``.

    Returns:
        opt_v1, float32 (B, 4, H, W) or (4, H, W), B02 B03 B04 B08 in DN.

    Raises:
        InputError: ``generator`` is not a Stage 1 model, or anything that cannot be right.
    """
    if not isinstance(generator, Stage1Model):
        raise InputError(
            f"generator is a {type(generator).__name__}; expected a Stage 1 model:"
            " axs_lib.models.build_terramind_generator(...), or Stage1Model(stage3_model.terramind_generator)"
        )
    return generator.generate(s1, timesteps, **options).image
