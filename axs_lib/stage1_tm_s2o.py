"""Stage 1: draw an optical image from SAR alone with TerraMind's conditional generator.

In goes Sentinel-1 backscatter (VV, VH in dB); out comes opt_v1 (B02, B03, B04, B08 in DN), TerraMind's estimate from
the SAR alone. SAR does not determine colour, so one time step gives the mean of what is possible, the most
accurate image, and more steps give a sharper sample of it. ``axs_lib.models.build_terramind_generator`` builds the
model; ``Stage1Model.generate`` is the method, in its numbered order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from axs_lib.bands import VALID_DN
from axs_lib.checks import check_device, check_optical, check_sar
from axs_lib.errors import InputError
from axs_lib.nodata import valid_pixels
from axs_lib.terramind.noise import Seed, ensemble_seeds, gaussian_field, sample_seeds, stage_seeds
from axs_lib.terramind.sampler import Schedule, build_schedule, check_timesteps
from axs_lib.terramind.stage import GeneratorStage
from axs_lib.terramind.tiles import (
    check_sampling,
    check_training_size,
    mean_and_spread,
    network_side,
    to_network,
    training_start,
    unbatch,
)
from axs_lib.tilegrid import Mosaic

if TYPE_CHECKING:
    from axs_lib.terramind.generator import TerraMindGenerator

STAGE = 1


@dataclass(frozen=True)
class Stage1Output:
    """The result of Stage 1 for a batch.

    Attributes:
        image: opt_v1, (B, 4, H, W), B02 B03 B04 B08 in DN (z-units with ``standardize=False``), NaN = nodata; the mean
            over the ensemble.
        uncertainty: standard deviation over the ensemble, (B, 4, H, W), same unit; ``None`` for an ensemble of one.
        nfe: network evaluations of each denoising run; exactly ``timesteps``.
    """

    image: Tensor
    uncertainty: Tensor | None
    nfe: int


@dataclass(frozen=True)
class Drawing:
    """How the images of a call are drawn; the fields are the keywords of ``Stage1Model.generate``."""

    schedule: Schedule
    tokens: str
    temperature: float
    ensemble_size: int
    batch_size: int


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
        super().__init__(terramind_generator, timesteps=timesteps, standardize=standardize, scheduler=scheduler)

    # -- the method -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        s1: Tensor,
        timesteps: int | None = None,
        *,
        seed: Seed = 0,
        tokens: str = "soft",
        temperature: float = 1.0,
        ensemble_size: int = 1,
        scheduler: str | None = None,
        origin: tuple[int, int] | Tensor = (0, 0),
        batch_size: int = 8,
    ) -> Stage1Output:
        """Draw the optical images of a batch of SAR images.

        A tile's result depends on its own pixels, its seed and its origin, not on its batch mates (within 1 DN).
        Images larger than the network's tile are cut on a grid anchored to their upper left pixel and blended.

        Args:
            s1: (B, 2, H, W) or (2, H, W), VV and VH in dB, NaN = nodata; H, W from 8 px.
            timesteps: network evaluations, 1 to 1000; default the model's.
            seed: of the noise field, one for all samples or one a sample, or ``torch.Generator`` objects to draw it
                from. Stage 3 draws other noise from the same seed.
            tokens: ``"soft"`` (deterministic), ``"argmax"`` or ``"sample"``.
            temperature: of soft and sampled tokens.
            ensemble_size: members averaged; from 2 on their spread is the uncertainty map.
            scheduler: default the model's.
            origin: scene (row, column) of the image's upper left pixel, one for all or (B, 2), which fixes the noise.
            batch_size: tiles the network is given at once.

        Raises:
            InputError: shapes, bands, sizes or devices that do not fit, or an option out of its range.
        """
        # 1. Check what came in.
        sar = check_sar(s1, standardize=self.standardize)
        check_device(sar.s1, self.device)
        check_sampling(temperature, ensemble_size, batch_size)
        timesteps = check_timesteps(self.timesteps if timesteps is None else timesteps)
        schedule = build_schedule(scheduler or self.scheduler, timesteps)
        batch, _, height, width = sar.s1.shape
        seeds = stage_seeds(sample_seeds(seed, batch, device=sar.s1.device), STAGE)  # (B,)
        draw = Drawing(schedule, tokens, temperature, ensemble_size, batch_size)

        # 2. An image is a single tile, or cut into tiles of a grid that are blended.
        mosaic = Mosaic(
            batch,
            height,
            width,
            side=self.terramind_generator.layout.max_side,
            batch_size=batch_size,
            device=sar.s1.device,
        )
        for tiles in mosaic.batches():
            image, spread = self._generate_tiles(
                tiles.of(sar.s1), seeds[tiles.samples], tiles.origins(origin), draw
            )  # (n, 4, h, w) each
            mosaic.add(tiles, image=image, spread=spread)
        blended = mosaic.result()  # (B, 4, H, W) each

        # 3. Nodata out where the SAR has nodata; valid pixels are valid DN.
        nodata = ~valid_pixels(sar.s1)
        image = blended["image"].clamp(*VALID_DN) if self.standardize else blended["image"]
        image = image.masked_fill(nodata, torch.nan)
        uncertainty = blended["spread"].masked_fill(nodata, torch.nan) if ensemble_size > 1 else None
        output = Stage1Output(image, uncertainty, schedule.nfe)
        return unbatch(output) if sar.unbatched else output

    def _generate_tiles(self, s1: Tensor, seeds: Tensor, origins: Tensor, draw: Drawing) -> tuple[Tensor, Tensor]:
        """Image and spread (n, 4, h, w) of tiles (n, 2, h, w) of one shape, in the caller's unit."""
        generator, optical = self.terramind_generator, self.terramind_generator.optical
        count, _, height, width = s1.shape
        members = draw.ensemble_size

        # 2a. Prepare: fill nodata from neighbours, pad to the network's side S, z-score.
        z_s1 = self._z_s1(s1)  # (n, 2, S, S)
        size = (z_s1.shape[-2], z_s1.shape[-1])
        seeds = ensemble_seeds(seeds, members)  # (M*n,)
        origins = origins.repeat(members, 1)  # (M*n, 2)
        noise = gaussian_field(seeds, (generator.image_channels, *size), origins=origins)  # (M*n, C, S, S)

        # 2b. Encode: TerraMind reads the SAR and predicts the optical tokens; codes: what stands for each token.
        logits = generator.logits({"s1": z_s1})  # (n, N, V)
        codes = generator.codes(
            logits.repeat(members, 1, 1),
            size,
            tokens=draw.tokens,
            temperature=draw.temperature,
            seeds=seeds,
            origins=origins,
        )  # (M*n, D, S/16, S/16)

        # 2c. Denoise: exactly `timesteps` evaluations; mean and spread over the ensemble, cropped to the tile.
        decoded = generator.decode(codes, noise, draw.schedule, batch_size=draw.batch_size)  # (M*n, C, S, S)
        images = self._to_unit(optical.select(decoded)).unflatten(0, (members, count))  # (M, n, 4, S, S)
        image, spread = mean_and_spread(images[..., :height, :width])
        return image, spread

    def _z_s1(self, s1: Tensor) -> Tensor:
        """SAR tiles without nodata, padded to the network's side, in z-units."""
        generator = self.terramind_generator
        side = network_side(generator.layout, s1.shape[-2], s1.shape[-1])
        filled = to_network(s1, valid_pixels(s1), side, generator.sar, standardize=self.standardize)
        return generator.sar.to_z(filled)

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
            InputError: tiles larger than the network's tile, or shapes, bands or devices that do not fit.
        """
        generator = self.terramind_generator
        sar = check_sar(s1, standardize=self.standardize)
        check_device(sar.s1, self.device)
        height, width = check_training_size(generator.layout, sar.s1)
        z = self._z_s1(sar.s1)
        size = (z.shape[-2], z.shape[-1])
        if truth is None:
            clean = z.new_zeros(len(z), generator.image_channels, *size)
        else:
            clean = generator.optical.expand_bands(self._z_truth(truth, sar.s1, size[0]))
        x_t, t = training_start(clean, training=self.training, noised=truth is not None)
        logits = generator.logits({"s1": z})
        x0 = generator.denoise_once(x_t, t, generator.codes(logits, size)).float()
        image = self._to_unit(generator.optical.select(x0))[..., :height, :width]
        return (image[0] if sar.unbatched else image), logits

    def _z_truth(self, truth: Tensor, s1: Tensor, side: int) -> Tensor:
        checked = check_optical(truth, "truth", standardize=self.standardize).image.float()
        if (len(checked), checked.shape[-2:]) != (len(s1), s1.shape[-2:]):
            raise InputError(
                f"truth is {tuple(checked.shape)} and s1 {tuple(s1.shape)}; expected one truth of the same height and"
                " width for every SAR tile"
            )
        optical = self.terramind_generator.optical
        filled = to_network(checked, valid_pixels(checked), side, optical, standardize=self.standardize)
        return optical.to_z(filled)


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
        InputError: ``generator`` is not a Stage 1 model, or what ``Stage1Model.generate`` raises.
    """
    if not isinstance(generator, Stage1Model):
        raise InputError(
            f"generator is a {type(generator).__name__}; expected a Stage 1 model:"
            " axs_lib.models.build_terramind_generator(...), or Stage1Model(stage3_model.terramind_generator)"
        )
    return generator.generate(s1, timesteps, **options).image
