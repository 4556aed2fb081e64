"""Stage 1: draw opt_v1 from SAR alone with TerraMind's conditional generator.

SAR does not determine colour, so one time step gives the mean of what is possible, the most accurate image, and more
steps give a sharper sample of it. ``Stage1Model.generate`` is the method.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from axs_lib.bands import VALID_DN
from axs_lib.checks import check_model, check_optical, check_result, check_sar
from axs_lib.errors import InputError
from axs_lib.nodata import valid_pixels
from axs_lib.terramind.adapters import Adapter
from axs_lib.terramind.noise import Seed, ensemble_seeds, gaussian_field, sample_seeds, scene_origins, stage_seeds
from axs_lib.terramind.sampler import build_schedule, check_timesteps
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
from axs_lib.tilegrid import Mosaic, TileGrid

STAGE = 1


@dataclass(frozen=True)
class Stage1Output:
    """The result of Stage 1 for a batch; NaN = nodata, z-units in place of DN with ``standardize=False``."""

    image: Tensor  # opt_v1, (B, 4, H, W), B02 B03 B04 B08 in DN; the mean over the ensemble
    uncertainty: Tensor | None  # standard deviation over the ensemble, likewise; None for an ensemble of one
    nfe: int  # network evaluations of each denoising run; exactly ``timesteps``


class Stage1Model(GeneratorStage):
    """TerraMind's generator as SAR-to-optical translator: s1 -> opt_v1. Stage 3 may hold the same generator."""

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

        ``s1`` is (B, 2, H, W) or (2, H, W), VV and VH in dB, NaN = nodata; ``origin`` the scene's (row, column) of the
        upper left pixel, one for all or (B, 2). The other arguments, how large images are cut, and what raises
        InputError, are as for ``Stage3GroundingModel.ground``; Stage 3 draws other noise from the same seed.
        """
        generator = self.terramind_generator

        # 1. Check what came in.
        sar = check_sar(s1, standardize=self.standardize)
        check_model(sar.image, self)
        check_sampling(temperature, ensemble_size, batch_size)
        timesteps = check_timesteps(self.timesteps if timesteps is None else timesteps)
        schedule = build_schedule(self.scheduler if scheduler is None else scheduler, timesteps)
        batch, device = len(sar.image), sar.image.device
        seeds = stage_seeds(sample_seeds(seed, batch, device=device), STAGE)  # (B,)
        corners = scene_origins(origin, batch, device)  # (B, 2)

        # An image is a single tile, or cut into tiles of a grid that are blended.
        mosaic = Mosaic(sar.image, TileGrid(generator.layout.max_side), batch_size)
        for tiles in mosaic.batches():
            # 2. Prepare: fill nodata from neighbours, pad to the network's side S, z-score. The M members of an
            #    ensemble lie along the batch of n tiles.
            z_s1 = self._to_z(tiles.of(sar.image), generator.sar)  # (n, 2, S, S)
            size = (z_s1.shape[-2], z_s1.shape[-1])
            members = ensemble_seeds(seeds[tiles.samples], ensemble_size)  # (M*n,)
            origins = tiles.origins(corners).repeat(ensemble_size, 1)  # (M*n, 2)
            noise = gaussian_field(members, (generator.optical.channels, *size), origins=origins)  # (M*n, C, S, S)

            # 3. Encode: TerraMind reads the SAR and predicts the optical tokens; codes: what stands for each token.
            logits = generator.logits({"s1": z_s1}).repeat(ensemble_size, 1, 1)  # (M*n, h*w, V)
            codes = generator.codes(
                logits, size, tokens=tokens, temperature=temperature, seeds=members, origins=origins
            )  # (M*n, D, h, w)

            # 4. Denoise: exactly `timesteps` evaluations; mean and spread over the ensemble, cropped to the tile.
            decoded = generator.decode(codes, noise, schedule, batch_size=batch_size)  # (M*n, C, S, S)
            images = self._to_unit(decoded).unflatten(0, (ensemble_size, -1))  # (M, n, 4, S, S)
            height, width = tiles.tiles[0].shape
            image, spread = mean_and_spread(images[..., :height, :width])  # (n, 4, h, w) each
            mosaic.add(tiles, image=image, variance=spread.square())
        blended = mosaic.result()  # (B, 4, H, W) each

        # 5. Nodata out where the SAR has nodata; valid pixels are valid DN.
        nodata = ~valid_pixels(sar.image)
        check_result("opt_v1", blended["image"], nodata)
        image = blended["image"].clamp(*VALID_DN) if self.standardize else blended["image"]
        image = image.masked_fill(nodata, torch.nan)
        uncertainty = blended["variance"].sqrt().masked_fill(nodata, torch.nan) if ensemble_size > 1 else None
        output = Stage1Output(image, uncertainty, schedule.nfe)
        return unbatch(output) if sar.unbatched else output

    def _to_z(self, image: Tensor, adapter: Adapter) -> Tensor:
        """Tiles without nodata, padded to the network's side, in z-units."""
        side = network_side(self.terramind_generator.layout, *image.shape[-2:])
        return adapter.to_z(to_network(image, valid_pixels(image), side, adapter, standardize=self.standardize))

    def _to_unit(self, channels: Tensor) -> Tensor:
        """The four bands of a decoded image in the model's unit."""
        optical = self.terramind_generator.optical
        z = optical.select(channels)
        return optical.from_z(z) if self.standardize else z

    def forward(self, s1: Tensor) -> Tensor:
        """opt_v1 (B, 4, H, W): ``training_pass`` without a truth where gradients are on and something is trainable,
        otherwise ``generate(...).image`` with the model's default timesteps.
        """
        if torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters()):
            return self.training_pass(s1)[0]
        return self.generate(s1).image

    def training_pass(self, s1: Tensor, truth: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Differentiable pass with one evaluation of the denoiser: opt_v1 in the caller's unit, and token logits.

        In ``train()`` mode the denoiser sees the truth noised to a random time step; without a truth, and in ``eval()``
        mode, it starts from pure noise. Images are as for ``generate``, the truth (B, 4, H, W) in DN. Raises
        InputError: tiles larger than the network's tile, or shapes, bands or devices that do not fit.
        """
        generator = self.terramind_generator
        sar = check_sar(s1, standardize=self.standardize)
        check_model(sar.image, self)
        height, width = check_training_size(generator.layout, sar.image)
        z_s1 = self._to_z(sar.image, generator.sar)  # (B, 2, S, S)
        size = (z_s1.shape[-2], z_s1.shape[-1])
        if truth is None:
            clean = z_s1.new_zeros(len(z_s1), generator.optical.channels, *size)
        else:
            known = check_optical(truth, "truth", standardize=self.standardize).image.float()
            if (len(known), known.shape[-2:]) != (len(sar.image), sar.image.shape[-2:]):
                raise InputError(
                    f"truth is {tuple(known.shape)} and s1 {tuple(sar.image.shape)}; expected one truth of the same"
                    " height and width for every SAR tile"
                )
            clean = generator.optical.expand_bands(self._to_z(known, generator.optical))  # (B, C, S, S)
        x_t, t = training_start(clean, training=self.training, noised=truth is not None)
        logits = generator.logits({"s1": z_s1})
        x0 = generator.denoise_once(x_t, t, generator.codes(logits, size)).float()
        image = self._to_unit(x0)[..., :height, :width].masked_fill(~valid_pixels(sar.image), torch.nan)
        return (image[0] if sar.unbatched else image), logits


@torch.no_grad()
def tm_sar2opt(generator: Stage1Model, s1: Tensor, timesteps: int | None = None, **options: Any) -> Tensor:
    """opt_v1 drawn from s1, float32 (B, 4, H, W) or (4, H, W), B02 B03 B04 B08 in DN.

    Args:
        generator: from ``axs_lib.models.build_terramind_generator``; another model is an InputError.
        s1: (B, 2, H, W) or (2, H, W), VV and VH in dB.
        timesteps: network evaluations; default the model's.
        **options: any keyword of ``Stage1Model.generate``.
    """
    if not isinstance(generator, Stage1Model):
        raise InputError(
            f"generator is a {type(generator).__name__}; expected a Stage 1 model:"
            " axs_lib.models.build_terramind_generator(...), or Stage1Model(stage3_model.terramind_generator)"
        )
    return generator.generate(s1, timesteps, **options).image
