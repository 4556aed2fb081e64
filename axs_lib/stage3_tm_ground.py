"""Stage 3: ground an optical estimate in the SAR with TerraMind's conditional generator.

In go Sentinel-1 backscatter (VV, VH in dB) and the Stage 2 estimate opt_v2 (B02, B03, B04, B08 in DN); out comes
opt_v3, the estimate corrected where the SAR gives reason to, with a proposal, a gate and an uncertainty map. Read
``Stage3GroundingModel.ground`` from top to bottom: its numbered steps are the method.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from axs_lib import checks
from axs_lib.bands import VALID_DN
from axs_lib.errors import InputError, UntrainedHeadWarning
from axs_lib.grounding.corrector import GroundingCorrector, GroundingTiles
from axs_lib.grounding.large import NO_CONTROLS, GroundingControls, changed, in_tiles
from axs_lib.grounding.load import load_corrector
from axs_lib.grounding.sar_inconsistency import sar_inconsistency
from axs_lib.hub import HubMixin
from axs_lib.io.files import PathLike
from axs_lib.metrics import stage3_metrics as compute_stage3_metrics
from axs_lib.nodata import fill_nodata, pad_square, valid_pixels
from axs_lib.progress import logger, track
from axs_lib.stage1_tm_s2o import Stage1Model
from axs_lib.terramind.build import load_generator
from axs_lib.terramind.generator import TerraMindGenerator
from axs_lib.terramind.noise import Seed, ensemble_seeds, gaussian_field, sample_seeds, scene_origins
from axs_lib.terramind.sampler import build_schedule, check_strength, check_timesteps
from axs_lib.terramind.stage import GeneratorStage
from axs_lib.terramind.tiles import (
    check_sampling,
    check_training_size,
    network_side,
    to_network,
    training_start,
    unbatch,
)
from axs_lib.terramind.weights import DEFAULT_VARIANT, NANO

__all__ = [
    "GroundingControls",
    "GroundingMap",
    "Stage3GroundingModel",
    "Stage3Output",
    "build_stage3_model",
    "compute_stage3_metrics",
    "stage3_batch_inference",
    "stage3_inference",
]

CORRECTION_MODES = ("learned", "difference")
UNTRAINED = (
    "the grounding head is untrained, so opt_v3 equals opt_v2: load trained weights (variant='nano'), train with"
    " `axs train stage3`, or use correction_mode='difference'"
)


@dataclass(frozen=True)
class Stage3Output:
    """The result of Stage 3 for a batch; NaN = nodata, but for the gate.

    Attributes:
        image: opt_v3, (B, 4, H, W), B02 B03 B04 B08 in DN (z-units with ``standardize=False``).
        proposal: TerraMind's own image, (B, 4, H, W), same unit; the mean over the ensemble.
        gate: how much of the correction was used, (B, 1, H, W) in [0, 1].
        uncertainty: standard deviation of the error to expect, (B, 4, H, W), same unit as the image: the predicted
            error and the ensemble's spread together, 0 where opt_v2 was observed; ``None`` where there is neither
            (``correction_mode="difference"`` without an ensemble).
        nfe: network evaluations of each denoising run; exactly ``timesteps`` (0 where ``strength`` is 0, or a proposal
            was given).
    """

    image: Tensor
    proposal: Tensor
    gate: Tensor
    uncertainty: Tensor | None
    nfe: int


@dataclass(frozen=True)
class GroundingMap:
    """What Stage 3 changed, and what the SAR contributed; (B, 4, H, W) each, in the image's unit, NaN = nodata.

    Attributes:
        change: opt_v3 - opt_v2; NaN also where opt_v2 is.
        sar_contribution: opt_v3 - what it would be without the SAR's content, from the same noise.
    """

    change: Tensor
    sar_contribution: Tensor


class Stage3GroundingModel(GeneratorStage, HubMixin):
    """TerraMind's generator with a grounding corrector: (s1, opt_v2) -> opt_v3.

    ``timesteps``, ``correction_mode``, ``scheduler`` and ``hold_colour`` are the defaults of ``ground``'s keywords;
    ``standardize=False`` means z-units in and out instead of dB and DN.
    """

    def __init__(
        self,
        terramind_generator: TerraMindGenerator,
        corrector: GroundingCorrector,
        *,
        timesteps: int = 10,
        standardize: bool = True,
        correction_mode: str = "learned",
        scheduler: str = "ddim",
        hold_colour: bool = False,
    ) -> None:
        super().__init__(terramind_generator, timesteps=timesteps, standardize=standardize, scheduler=scheduler)
        self.corrector = checks.check_type("corrector", corrector, GroundingCorrector, "a GroundingCorrector")
        self.correction_mode = checks.check_choice("correction_mode", correction_mode, CORRECTION_MODES)
        self.hold_colour = checks.check_flag("hold_colour", hold_colour)

    @property
    def provenance(self) -> dict[str, str]:
        """What made an output, for file tags: version, variant, weights and their hash, defaults."""
        tags = super().provenance | self.corrector.provenance | {"AXS_CORRECTION_MODE": self.correction_mode}
        return tags | ({"AXS_HOLD_COLOUR": "True"} if self.hold_colour else {})

    @torch.no_grad()
    @in_tiles
    def ground(
        self,
        s1: Tensor,
        opt_v2: Tensor,
        timesteps: int | None = None,
        *,
        strength: float = 1.0,
        seed: Seed = 0,
        tokens: str = "soft",
        temperature: float = 1.0,
        ensemble_size: int = 1,
        trust: Tensor | None = None,
        hold_colour: bool | None = None,
        correction_mode: str | None = None,
        scheduler: str | None = None,
        batch_size: int = 8,
        controls: GroundingControls = NO_CONTROLS,
    ) -> Stage3Output:
        """Ground a batch of estimates in their SAR images.

        A tile's result depends on its own pixels, its seed and its origin, not on its batch mates (within 1 DN).
        Images larger than the network's tile are cut on a grid anchored to their upper left pixel and blended.

        Args:
            s1: (B, 2, H, W) or (2, H, W), VV and VH in dB, NaN = nodata; H, W from 8 px.
            opt_v2: (B, 4, H, W) or (4, H, W), B02 B03 B04 B08 in DN, NaN = nodata.
            timesteps: network evaluations, 1 to 1000; default the model's.
            strength: 1 starts from pure noise; less starts from the partly noised estimate; 0 returns it unchanged.
            seed: of the noise field, one for all samples or one a sample; or ``torch.Generator`` objects.
            tokens: ``"soft"`` (deterministic), ``"argmax"`` or ``"sample"``.
            temperature: of soft and sampled tokens.
            ensemble_size: members averaged, with noise of their own and the tile turned or mirrored for the grounding
                head; from 2 on their spread is part of the uncertainty map.
            trust: (B, 1, H, W), values of ``axs_lib.checks.Trust``. Where it is 1 opt_v2 was observed and comes back
                bit for bit; where it is 0 it is unknown, its value is not looked at, and the result comes from SAR and
                context. Where it is 0.25 it is estimated from the SAR alone, and its broad colour may change. Default
                0.5: an estimate.
            hold_colour: keep the broad colour of opt_v2 whatever the SAR shows: no flood comes through, and no smooth
                dark field is taken for one. Gaps are filled and (learned) blocks levelled still. Default the model's.
            correction_mode: ``"learned"`` or ``"difference"`` (experimental, needs no training); default the model's.
            scheduler: ``"ddim"`` or ``"dpmsolver++"``; default the model's.
            batch_size: tiles the network is given at once.
            controls: what scenes, tests and controls set.

        Raises InputError: shapes, bands, sizes, devices or trust values that do not fit, or an option out of its range.
        """
        generator, optical = self.terramind_generator, self.terramind_generator.optical

        # 1. Check what came in.
        hold_colour = checks.check_flag("hold_colour", self.hold_colour if hold_colour is None else hold_colour)
        pair = checks.check_pair(s1, opt_v2, trust=trust, standardize=self.standardize, force=controls.ranges_checked)
        checks.check_model(pair.s1, self)
        check_sampling(temperature, ensemble_size, batch_size)
        mode = self.correction_mode if correction_mode is None else correction_mode
        checks.check_choice("correction_mode", mode, CORRECTION_MODES)
        timesteps = check_timesteps(self.timesteps if timesteps is None else timesteps)
        given = self._given_proposal(controls.proposal_for(pair), mode)  # None or (B, 4, H, W) in DN
        orientation = checks.check_count("orientation", controls.orientation, 0)
        batch, _, height, width = pair.opt_v2.shape
        seeds = sample_seeds(seed, batch, device=pair.s1.device)  # (B,)
        origins = scene_origins(controls.origin, batch, pair.s1.device)  # (B, 2)
        if mode == "learned" and self.corrector.head.untrained:
            warnings.warn(UNTRAINED, UntrainedHeadWarning, stacklevel=4)
        if check_strength(strength) == 0.0:
            return self._unchanged(pair, uncertain=ensemble_size > 1)
        schedule = build_schedule(self.scheduler if scheduler is None else scheduler, timesteps, strength)

        # 2. Prepare: fill nodata and gaps from neighbours, pad to the network's side S, z-score. The noise is a
        #    function of seed and scene coordinate. The M members of an ensemble lie along the batch.
        #    A tile of which nothing is known begins with what TerraMind draws of its SAR alone.
        if controls.use_sar:
            how = {"timesteps": timesteps, "scheduler": scheduler or self.scheduler, "batch_size": batch_size}
            pair = self._begun_from_sar(pair, given, seeds, origins, **how)
        tiles = self.prepare(pair.s1, pair.opt_v2.float(), pair.trust, use_sar=controls.use_sar)
        conditions = {"s1": generator.sar.to_z(tiles.s1)} if controls.use_sar else {}  # (B, 2, S, S)
        conditions["optical"] = optical.to_z(tiles.estimate)  # (B, 4, S, S)
        size = (tiles.estimate.shape[-2], tiles.estimate.shape[-1])  # (S, S)
        seeds = ensemble_seeds(seeds, ensemble_size)  # (M*B,)
        origins = origins.repeat(ensemble_size, 1)  # (M*B, 2)
        noise = gaussian_field(seeds, (optical.channels, *size), origins=origins)  # (M*B, C, S, S)
        start = optical.expand_bands(conditions["optical"]).repeat(ensemble_size, 1, 1, 1)  # (M*B, C, S, S)
        drawing: dict[str, Any] = {"tokens": tokens, "temperature": temperature, "seeds": seeds, "origins": origins}
        denoising: dict[str, Any] = {"schedule": schedule, "start": start, "batch_size": batch_size}

        if given is None:
            # 3. Encode: TerraMind reads SAR and estimate once and predicts the optical tokens.
            logits = generator.logits(conditions)  # (B, h*w, V)

            # 4. Codes: the expected, the likeliest or a drawn code of every token.
            codes = generator.codes(logits.repeat(ensemble_size, 1, 1), size, **drawing)  # (M*B, D, h, w)

            # 5. Denoise: exactly `timesteps` evaluations of the diffusion decoder draw the proposal.
            channels = generator.decode(codes, noise, **denoising)  # (M*B, C, S, S)
            proposals = optical.from_z(optical.select(channels))  # (M*B, 4, S, S) in DN
            proposals = proposals.unflatten(0, (ensemble_size, batch))  # (M, B, 4, S, S)
        else:
            proposals = pad_square(given, size[0]).expand(ensemble_size, -1, -1, -1, -1)  # (M, B, 4, S, S)

        # 6. Correct: a residual, how much of it is used, and where broad colour may change.
        if mode == "learned":
            corrections = [
                self.corrector(tiles, each, hold_colour=hold_colour, orientation=orientation + member)
                for member, each in enumerate(proposals)
            ]  # M corrections of (B, 4, S, S)
        else:  # "difference", never of a given proposal: the same noise decoded again, from the estimate alone
            logits_alone = generator.logits({"optical": conditions["optical"]})  # (B, h*w, V)
            codes = generator.codes(logits_alone.repeat(ensemble_size, 1, 1), size, **drawing)  # (M*B, D, h, w)
            channels = generator.decode(codes, noise, **denoising)  # (M*B, C, S, S)
            without_sar = optical.from_z(optical.select(channels)).view_as(proposals)  # (M, B, 4, S, S)
            confidence = generator.confidence(logits, size)  # (B, 1, h, w)
            corrections = [
                self.corrector.difference(tiles, *both, confidence=confidence, hold_colour=hold_colour)
                for both in zip(proposals, without_sar, strict=True)
            ]  # M corrections of (B, 4, S, S)
        change = torch.stack([each.change for each in corrections]).mean(0)  # (B, 4, S, S) in DN
        deviation = self.corrector.deviation(corrections, schedule.nfe)  # (B, 4, S, S) in DN, or None

        # 7. Apply the change to the caller's own pixels, in their unit; they stay bit for bit where nothing changes.
        unknown = pair.trust == 0  # (B, 1, H, W)
        filled = self._image_from_dn(tiles.estimate)[..., :height, :width].to(pair.opt_v2.dtype)  # (B, 4, H, W)
        base = torch.where(unknown, filled, pair.opt_v2)  # (B, 4, H, W)
        change = self._difference_from_dn(change)[..., :height, :width].to(base.dtype)  # (B, 4, H, W)
        image = changed(base, change, self.standardize)  # (B, 4, H, W)

        # 8. The result, with nodata where either image has none.
        nodata = _nodata(pair)  # (B, 1, H, W)
        checks.check_result("opt_v3", image, nodata)
        if deviation is not None:
            deviation = self._difference_from_dn(deviation)[..., :height, :width].masked_fill(nodata, torch.nan)
        proposal = self._image_from_dn(proposals.mean(0))[..., :height, :width]  # (B, 4, H, W)
        gate = torch.stack([each.gate for each in corrections]).mean(0)[..., :height, :width]  # (B, 1, H, W)
        image, proposal = (each.masked_fill(nodata, torch.nan) for each in (image, proposal))
        output = Stage3Output(image, proposal, gate, deviation, nfe=schedule.nfe if given is None else 0)
        return unbatch(output) if pair.unbatched else output

    @torch.no_grad()
    def grounding_map(
        self, s1: Tensor, opt_v2: Tensor, timesteps: int | None = None, *, seed: Seed = 0, **options: Any
    ) -> GroundingMap:
        """Where Stage 3 moves opt_v2, and what the SAR contributed: two runs of ``ground`` with these arguments."""
        controls = options.pop("controls", NO_CONTROLS)
        if not isinstance(seed, int):  # generators would go on between the two runs
            seed = sample_seeds(seed, len(opt_v2) if checks.check_tensor("opt_v2", opt_v2).ndim == 4 else 1)
        with_sar, without = (
            self.ground(s1, opt_v2, timesteps, seed=seed, controls=replace(controls, use_sar=use_sar), **options).image
            for use_sar in (True, False)
        )
        return GroundingMap(change=with_sar - opt_v2, sar_contribution=with_sar - without)

    def prepare(self, s1: Tensor, opt_v2: Tensor, trust: Tensor, *, use_sar: bool = True) -> GroundingTiles:
        """Tiles without nodata, padded to the network's side, in dB and DN, with the map of SAR inconsistency.

        From s1 (B, 2, H, W) and opt_v2 (B, 4, H, W) in the model's unit, with NaN for nodata, and trust (B, 1, H, W).
        Without ``use_sar`` mean backscatter takes the SAR's place.
        """
        generator = self.terramind_generator
        s1_valid, opt_valid = valid_pixels(s1), valid_pixels(opt_v2) & (trust > 0)
        valid = s1_valid & (opt_valid | (trust == 0))  # what is nodata in either image is unknown in both
        size = (opt_v2.shape[-2], opt_v2.shape[-1])
        side = network_side(generator.layout, *size)
        sar = to_network(s1, s1_valid & valid, side, generator.sar, standardize=self.standardize)
        optical = to_network(opt_v2, opt_valid & valid, side, generator.optical, standardize=self.standardize)
        tiles = GroundingTiles(sar, optical, pad_square(trust * valid, side), sar_inconsistency(sar, optical), size)
        return tiles if use_sar else tiles.without_sar(generator.sar.mean)

    def _begun_from_sar(
        self, pair: checks.CheckedPair, given: Tensor | None, seeds: Tensor, origins: Tensor, **options: Any
    ) -> checks.CheckedPair:
        """The pair; where no pixel of a tile is known, with the given proposal, or an image as of Stage 1."""
        unknown = pair.trust == 0  # (B, 1, H, W)
        empty = unknown.flatten(1).any(1) & ~valid_pixels(pair.s1, pair.opt_v2).flatten(1).any(1)  # (B,)
        if not bool(empty.any()):
            return pair
        if given is None:
            generator, (height, width) = self.terramind_generator, unknown.shape[-2:]
            sar = self.prepare(pair.s1[empty], pair.opt_v2[empty].float(), pair.trust[empty]).s1  # (E, 2, S, S) in dB
            stage1 = Stage1Model(generator, standardize=False).eval()
            z = stage1.generate(generator.sar.to_z(sar), seed=seeds[empty], origin=origins[empty], **options).image
            drawn = generator.optical.from_z(z)[..., :height, :width]  # (E, 4, H, W) in DN
        else:
            drawn = given[empty]
        drawn = self._image_from_dn(drawn.clamp(*VALID_DN)).to(pair.opt_v2.dtype)
        opt_v2, trust = pair.opt_v2.clone(), pair.trust.clone()
        opt_v2[empty] = torch.where(unknown[empty], drawn, opt_v2[empty])
        trust[empty] = trust[empty].masked_fill(unknown[empty], checks.Trust.SAR_ONLY)
        return replace(pair, opt_v2=opt_v2, trust=trust)

    def _given_proposal(self, proposal: Tensor | None, mode: str) -> Tensor | None:
        """The proposal that was given, filled, in DN."""
        if proposal is None:
            return None
        if mode == "difference":
            raise InputError(
                "a proposal was given, and correction_mode='difference' draws two of its own; use 'learned'"
            )
        filled = fill_nodata(proposal.float(), valid_pixels(proposal)).to(self.device)
        return filled if self.standardize else self.terramind_generator.optical.from_z(filled)

    def _difference_from_dn(self, dn: Tensor) -> Tensor:
        """A difference or deviation in DN in the model's unit."""
        return dn if self.standardize else dn / self.terramind_generator.optical.std

    def _image_from_dn(self, dn: Tensor) -> Tensor:
        """An image in DN in the model's unit."""
        return dn if self.standardize else self.terramind_generator.optical.to_z(dn)

    def _unchanged(self, pair: checks.CheckedPair, *, uncertain: bool) -> Stage3Output:
        """The result of strength 0."""
        nodata = ~valid_pixels(pair.s1, pair.opt_v2)
        image = pair.opt_v2.masked_fill(nodata, torch.nan)
        deviation = torch.zeros_like(image).masked_fill(nodata, torch.nan) if uncertain else None
        output = Stage3Output(image, image.clone(), torch.zeros_like(image[:, :1]), deviation, 0)
        return unbatch(output) if pair.unbatched else output

    def forward(self, s1: Tensor, opt_v2: Tensor, trust: Tensor | None = None) -> Tensor:
        """opt_v3 (B, 4, H, W): differentiable in training, ``ground(...).image`` in inference.

        With gradients on and something trainable, the denoiser is evaluated once per call: in ``train()`` mode at a
        random time step of the noised estimate (drawn from torch's global generator, as dropout is), in ``eval()``
        mode at the pure-noise end; tiles have at most 256 px a side. Otherwise this is inference with the model's
        default timesteps.
        """
        if torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters()):
            return self.training_pass(s1, opt_v2, trust)[0]
        return self.ground(s1, opt_v2, trust=trust).image

    def training_pass(self, s1: Tensor, opt_v2: Tensor, trust: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Differentiable pass with one evaluation of the denoiser: opt_v3 in the caller's unit, and token logits.

        Raises InputError: tiles larger than the network's tile, or shapes, bands or devices that do not fit.
        """
        generator, optical = self.terramind_generator, self.terramind_generator.optical
        pair = checks.check_pair(s1, opt_v2, trust=trust, standardize=self.standardize)
        checks.check_model(pair.s1, self)
        height, width = check_training_size(generator.layout, pair.opt_v2)
        tiles = self.prepare(pair.s1, pair.opt_v2.float(), pair.trust)
        z_s1, z_estimate = generator.sar.to_z(tiles.s1), optical.to_z(tiles.estimate)
        x_t, t = training_start(optical.expand_bands(z_estimate), training=self.training)
        logits = generator.logits({"s1": z_s1, "optical": z_estimate})  # (B, h*w, V)
        proposal = self._propose_once(logits, x_t, t)  # (B, 4, S, S) in DN
        if self.correction_mode == "learned":
            correction = self.corrector(tiles, proposal, hold_colour=self.hold_colour)
        else:
            without_sar = self._propose_once(generator.logits({"optical": z_estimate}), x_t, t)  # (B, 4, S, S) in DN
            confidence = generator.confidence(logits, (x_t.shape[-2], x_t.shape[-1]))
            correction = self.corrector.difference(
                tiles, proposal, without_sar, confidence=confidence, hold_colour=self.hold_colour
            )
        change = self._difference_from_dn(correction.change)[..., :height, :width]
        filled = fill_nodata(pair.opt_v2, valid_pixels(pair.s1, pair.opt_v2))
        image = (filled + change.to(filled.dtype)).masked_fill(_nodata(pair), torch.nan)
        return (image[0] if pair.unbatched else image), logits

    def _propose_once(self, logits: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The proposal (B, 4, S, S) in DN after one evaluation of the denoiser."""
        generator = self.terramind_generator
        codes = generator.codes(logits, (x_t.shape[-2], x_t.shape[-1]))
        channels = generator.denoise_once(x_t, t, codes).float()  # (B, C, S, S)
        return generator.optical.from_z(generator.optical.select(channels))


def build_stage3_model(
    timesteps: int = 10,
    standardize: bool = True,
    pretrained: bool = True,
    *,
    variant: str = DEFAULT_VARIANT,
    checkpoint: PathLike | None = None,
    device: torch.device | str | None = None,
    s1_product: str = "S1GRD",
    revision: str | None = None,
    correction_mode: str | None = None,
    scheduler: str = "ddim",
) -> Stage3GroundingModel:
    """Build Stage 3, in ``eval()`` mode.

    Args:
        timesteps: default number of network evaluations, 1 to 1000.
        standardize: inputs are dB and DN (recommended); False means z-units in and out.
        pretrained: load weights, frozen; False gives a random, trainable model.
        variant: ``"nano"`` (packaged, runs on a laptop) or ``"terramind_v1_tiny|small|base|large"`` (IBM/ESA weights
            from the Hugging Face Hub, ``AXS_WEIGHTS`` or ``checkpoint``).
        checkpoint: local weights file or folder.
        device: where to put the model; default CPU.
        s1_product: ``"S1GRD"`` or ``"S1RTC"``; its statistics follow.
        revision: Hub revision (commit, tag or branch) of the weights.
        correction_mode: ``"learned"`` or ``"difference"``; default learned, or with a fresh head difference.
        scheduler: ``"ddim"`` or ``"dpmsolver++"``.

    Raises InputError: unknown variant, product, scheduler, or timesteps out of range; or WeightsError: weights that
    cannot be had, read or matched.
    """
    build_schedule(scheduler, timesteps)  # what cannot be fails before weights are loaded
    place = checks.find_device(device)
    if correction_mode is not None:
        checks.check_choice("correction_mode", correction_mode, CORRECTION_MODES)
    generator = load_generator(
        variant, pretrained=pretrained, checkpoint=checkpoint, revision=revision, s1_product=s1_product
    )
    corrector = load_corrector(generator.weights, s1_product=s1_product)
    mode = correction_mode or ("difference" if corrector.head.untrained else "learned")
    defaults: dict[str, Any] = {"timesteps": timesteps, "correction_mode": mode, "scheduler": scheduler}
    model = Stage3GroundingModel(generator, corrector, standardize=standardize, **defaults)
    if pretrained and variant != NANO:
        _notice_unmeasured(variant)
    return model.requires_grad_(not pretrained).eval().to(place)


@torch.no_grad()
def stage3_inference(
    model: Stage3GroundingModel, s1: Tensor, opt_v2: Tensor, timesteps: int | None = None, **options: Any
) -> Tensor:
    """Ground opt_v2 (B02 B03 B04 B08 in DN) in s1 (VV, VH in dB): ``model.ground(...).image`` on any device.

    The inputs are moved to the model's device; ``options`` are any keywords of ``ground``, and ``timesteps`` is the
    model's where it is left out. opt_v3 has opt_v2's shape and device: float64 for float64 input, else float32.
    """
    return _ground_there(model, s1, opt_v2, timesteps, options).image.to(opt_v2.device)


@torch.no_grad()
def stage3_batch_inference(
    model: Stage3GroundingModel,
    dataloader: Iterable[Any],
    timesteps: int | None = None,
    verbose: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Ground every batch of a loader.

    The loader yields mappings with ``s1`` and ``opt_v2`` (and optionally ``trust``), or (s1, opt_v2) pairs; otherwise
    as ``stage3_inference``, with a progress bar where ``verbose``. Returns ``opt_v3`` (N, 4, H, W) on the CPU, ``nfe``,
    and ``uncertainty`` where the model gives one.
    """
    images: list[Tensor] = []
    deviations: list[Tensor] = []
    for batch in track(dataloader, "Stage 3", enabled=verbose):
        s1, opt_v2, trust = _batch_parts(batch)
        output = _ground_there(model, s1, opt_v2, timesteps, options if trust is None else options | {"trust": trust})
        if images and output.image.shape[-3:] != images[0].shape[-3:]:
            raise InputError(
                f"a batch holds tiles of {tuple(output.image.shape[-3:])} after tiles of {tuple(images[0].shape[1:])};"
                " expected one size: group the tiles by size or call stage3_inference"
            )
        for part, collected in ((output.image, images), (output.uncertainty, deviations)):
            if part is not None:
                collected.append(part.cpu() if part.ndim == 4 else part.cpu()[None])
    if not images:
        raise InputError("the loader yielded no batch; expected at least one with 's1' and 'opt_v2'")
    results: dict[str, Any] = {"opt_v3": torch.cat(images), "nfe": output.nfe}
    return results | ({"uncertainty": torch.cat(deviations)} if deviations else {})


def _nodata(pair: checks.CheckedPair) -> Tensor:
    """Where the result has none, (B, 1, H, W) bool: where either image has none and is not unknown."""
    return ~(valid_pixels(pair.s1) & (valid_pixels(pair.opt_v2) | (pair.trust == 0)))


@functools.cache
def _notice_unmeasured(variant: str) -> None:
    """Say once what is not known of a published variant."""
    logger.warning(
        "%s: the grounding head was trained and measured with nano's proposals and simulated ones; with these"
        " weights it is not measured. `axs evaluate --variant %s --data DIR` measures it on pairs of yours.",
        variant,
        variant,
    )


def _ground_there(
    model: Stage3GroundingModel, s1: Any, opt_v2: Any, timesteps: int | None, options: Mapping[str, Any]
) -> Stage3Output:
    """``ground`` on the model's device; what is no tensor is left for it to name."""
    if not isinstance(getattr(model, "device", None), torch.device) or not hasattr(model, "ground"):
        raise InputError(f"the model is a {type(model).__name__}; expected one of build_stage3_model")
    s1, opt_v2, trust = (
        checks.check_tensor("an image", image).to(model.device) if isinstance(image, Tensor) else image
        for image in (s1, opt_v2, options.get("trust"))
    )
    return model.ground(s1, opt_v2, timesteps, **{**options, "trust": trust})


def _batch_parts(batch: Any) -> tuple[Any, Any, Any]:
    """s1, opt_v2 and, where there is one, the trust map of a batch."""
    if isinstance(batch, Mapping):
        if missing := {"s1", "opt_v2"} - set(batch):
            raise InputError(
                f"a batch has the keys {sorted(batch)}; expected 's1' and 'opt_v2' (missing {sorted(missing)})"
            )
        return batch["s1"], batch["opt_v2"], batch.get("trust")
    if isinstance(batch, Sequence) and len(batch) == 2:
        return batch[0], batch[1], None
    raise InputError(
        f"a batch is a {type(batch).__name__}; expected a mapping with 's1' and 'opt_v2', or a pair (s1, opt_v2)"
    )


if __name__ == "__main__":
    import sys
    from pathlib import Path

    # Run as a file, this folder comes first on the path, where our data or metrics would pass for a top-level module.
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
    from axs_lib.cli.stage3_script import main

    sys.exit(main())
