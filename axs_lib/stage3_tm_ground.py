"""Stage 3: ground an optical estimate in the SAR with TerraMind's conditional generator.

In go Sentinel-1 backscatter (VV, VH in dB) and the Stage 2 estimate opt_v2 (B02, B03, B04, B08 in DN); out comes
opt_v3, the estimate corrected where the SAR gives reason to, with a proposal, a gate and an uncertainty map. Read
``Stage3GroundingModel.ground`` from top to bottom: its numbered steps are the method.

    s1 (dB) --+                                +- codes -- denoiser, `timesteps` evaluations -- proposal --+
              +- check, fill, pad, z-score --- TerraMind encoder-decoder                                    |
    opt_v2 ---+                                                                                             v
      +----------------------------------------------> correction: learned head or difference -> residual, gate
                                                       opt_v3 = opt_v2 + gate * hold(residual)
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from axs_lib.bands import VALID_DN
from axs_lib.checks import CheckedPair, check_device, check_pair
from axs_lib.errors import InputError, UntrainedHeadWarning
from axs_lib.grounding.sar_inconsistency import sar_inconsistency, open_water
from axs_lib.grounding.difference import difference_correction
from axs_lib.grounding.gap import fit_to_observed, unknown_share
from axs_lib.grounding.head import Correction, GroundingHead
from axs_lib.grounding.low_freq import LowFrequencyConstraint
from axs_lib.grounding.orientation import turn
from axs_lib.hub import HubMixin
from axs_lib.metrics import stage3_metrics
from axs_lib.nodata import fill_nodata, pad_square, valid_pixels
from axs_lib.terramind.noise import sample_seeds
from axs_lib.terramind.sampler import Schedule, build_schedule, check_strength, check_timesteps
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
    from axs_lib.grounding.calibration import Calibration
    from axs_lib.terramind.generator import TerraMindGenerator

CORRECTION_MODES = ("learned", "difference")
DEFAULT_VARIANT = "terramind_v1_base"


@dataclass(frozen=True)
class Stage3Output:
    """What Stage 3 says about a batch.

    Attributes:
        image: opt_v3, (B, 4, H, W), B02 B03 B04 B08 in DN (z-units with ``standardize=False``), NaN = nodata.
        proposal: TerraMind's own image, (B, 4, H, W), same unit; the mean over the ensemble.
        gate: how much of the correction was let through, (B, 1, H, W) in [0, 1].
        uncertainty: standard deviation of the error to expect, (B, 4, H, W), same unit as the image: the head's
            own estimate and the ensemble's spread together, 0 where opt_v2 was observed; ``None`` where there is
            neither (``correction_mode="difference"`` without an ensemble).
        nfe: network evaluations of each denoising run; exactly ``timesteps`` (0 where ``strength`` is 0).
    """

    image: Tensor
    proposal: Tensor
    gate: Tensor
    uncertainty: Tensor | None
    nfe: int


@dataclass(frozen=True)
class GroundingMap:
    """What Stage 3 changed, and how much of it the SAR asked for; (B, 4, H, W) each, in the image's unit, NaN = nodata.

    Attributes:
        change: opt_v3 - opt_v2; NaN also where opt_v2 is.
        sar_contribution: opt_v3 - what it would be without the SAR's content, from the same noise. The rest of the change is
            repair that needs no SAR.
    """

    change: Tensor
    sar_contribution: Tensor


class Stage3GroundingModel(GeneratorStage, HubMixin):
    """TerraMind's generator with a grounding head: (s1, opt_v2) -> opt_v3.

    ``calibration``, which comes with trained weights, scales the uncertainty of the learned way to the errors that were
    measured on places kept out of training.

    Args:
        terramind_generator: the conditional generator.
        head: the grounding head; a fresh one changes nothing.
        timesteps: default number of network evaluations.
        standardize: inputs are dB and DN; False means z-units in and out.
        correction_mode: default way to correct, ``"learned"`` or ``"difference"`` (experimental, needs no training).
        scheduler: default scheduler, ``"ddim"`` or ``"dpmsolver++"``.
        hold_colour: default of ``ground``'s keyword.
    """

    def __init__(
        self,
        terramind_generator: TerraMindGenerator,
        head: GroundingHead,
        *,
        timesteps: int = 10,
        standardize: bool = True,
        correction_mode: str = "learned",
        scheduler: str = "ddim",
        hold_colour: bool = False,
    ) -> None:
        super().__init__(
            terramind_generator, timesteps=timesteps, standardize=standardize, scheduler=scheduler
        )
        self.head = head
        self.hold = LowFrequencyConstraint()
        self.correction_mode = _check_correction_mode(correction_mode)
        self.hold_colour = hold_colour
        self.calibration: Calibration | None = None

    @property
    def provenance(self) -> dict[str, str]:
        """What made an output, for file tags: version, variant, weights and their hash, defaults."""
        tags = super().provenance | {"AXS_CORRECTION_MODE": self.correction_mode}
        if self.hold_colour:
            tags["AXS_HOLD_COLOUR"] = "True"
        if self.calibration is not None:
            tags["AXS_CALIBRATION"] = f"nfe {','.join(map(str, sorted(self.calibration.scales)))}"
        return tags

    @property
    def estimates_error(self) -> bool:
        """Whether the default way to correct says what error to expect, without an ensemble."""
        return self.correction_mode == "learned"

    # -- the method -----------------------------------------------------------------------------------------------

    def ground(
        self,
        s1: Tensor,
        opt_v2: Tensor,
        timesteps: int | None = None,
        *,
        strength: float = 1.0,
        seed: int | Sequence[int] | Tensor = 0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        tokens: str = "soft",
        temperature: float = 1.0,
        ensemble_size: int = 1,
        trust: Tensor | None = None,
        proposal: Tensor | None = None,
        use_sar: bool = True,
        hold_colour: bool | None = None,
        correction_mode: str | None = None,
        scheduler: str | None = None,
        orientation: int = 0,
        origin: tuple[int, int] | Tensor = (0, 0),
        batch_size: int = 8,
    ) -> Stage3Output:
        """Ground a batch of estimates in their SAR images.

        A tile's result depends on its own pixels, its seed and its origin, not on its batch mates (within 1 DN).
        Images larger than the network's tile are cut on a grid anchored to their upper left pixel and blended.

        Args:
            s1: (B, 2, H, W) or (2, H, W), VV and VH in dB, NaN = nodata; H, W from 8 px.
            opt_v2: (B, 4, H, W) or (4, H, W), B02 B03 B04 B08 in DN, NaN = nodata.
            timesteps: network evaluations, 1 to 1000; default the model's.
            strength: 1 starts from pure noise; less starts from the partly noised estimate; 0 returns it unchanged.
            seed: of the noise field, one for all samples or one a sample.
            generator: draw the seeds from a ``torch.Generator`` (or one a sample) instead.
            tokens: ``"soft"`` (deterministic), ``"argmax"`` or ``"sample"``.
            temperature: of soft and sampled tokens.
            ensemble_size: members averaged, with noise of their own and the tile turned or mirrored for the grounding
                head; from 2 on their spread is part of the uncertainty map.
            trust: (B, 1, H, W). Where it is 1 opt_v2 was observed and comes back bit for bit; where it is 0 it is
                unknown, its value is not looked at, and the result comes from SAR and context. Where it is 0.25 it is a
                guess from the SAR alone (as in the pipeline), whose broad colour may change. Default 0.5: an estimate.
            proposal: (B, 4, H, W) in opt_v2's unit, in place of TerraMind's own; nothing is then drawn (``nfe`` 0).
            use_sar: False leaves the SAR's content out: what then still changes was not asked for by the SAR.
            hold_colour: True holds the broad colour of opt_v2 whatever the SAR shows: no flood comes through, and no
                smooth dark field is taken for one. Gaps are filled all the same. Default the model's (False).
            correction_mode: way to correct; default the model's.
            scheduler: default the model's.
            orientation: how the tile is turned for the grounding head, 0 to 7; members of an ensemble take it and those
                that follow.
            origin: scene (row, column) of the image's upper left pixel, one for all or (B, 2), which fixes the noise.
            batch_size: tiles the network sees at once.

        Raises:
            InputError: anything that cannot be right, saying how to fix it.
        """
        # 1. Check what came in.
        pair = check_pair(s1, opt_v2, trust=trust, standardize=self.standardize)
        check_device(pair.s1, self.device)
        timesteps = check_timesteps(self.timesteps if timesteps is None else timesteps)
        sampling = Sampling(tokens, temperature, ensemble_size, batch_size)
        mode = _check_correction_mode(self.correction_mode if correction_mode is None else correction_mode)
        if mode == "learned" and self.head.untrained:
            warnings.warn(
                "the grounding head is untrained, so opt_v3 equals opt_v2: load trained weights (variant='nano'), train"
                " with `axs train stage3`, or use correction_mode='difference'",
                UntrainedHeadWarning,
                stacklevel=2,
            )
        if check_strength(strength) == 0.0:
            return self._unchanged(pair, ensemble_size)
        if proposal is not None:
            proposal = _check_proposal(proposal, pair, mode)
        schedule = build_schedule(scheduler or self.scheduler, timesteps, strength)
        seeds = sample_seeds(seed, len(pair.s1), generator=generator, device=pair.s1.device)

        # 2. Cut every image into tiles of the grid (most are a single one), correct them, blend the corrections.
        def correct(images: list[Tensor], tile_seeds: Tensor, origins: Tensor) -> Tensor:
            sar, estimate, tile_trust, *given = images
            return self._ground_tiles(
                sar,
                estimate,
                tile_trust,
                tile_seeds,
                origins,
                schedule,
                sampling,
                mode,
                proposal=given[0] if given else None,
                use_sar=use_sar,
                hold_colour=self.hold_colour if hold_colour is None else hold_colour,
                orientation=orientation,
            )

        layers = run_tiled(
            correct,
            [pair.s1, pair.opt_v2.float(), pair.trust, *([] if proposal is None else [proposal])],
            seeds,
            side=self.terramind_generator.layout.max_side,
            origin=origin,
            batch_size=batch_size,
        )
        change, drawn, gate, variance, filled = layers.split([4, 4, 1, 4, 4], dim=1)

        # 3. Apply the corrections to the caller's own pixels, which stay bit for bit where nothing changes.
        unknown = pair.trust == 0
        start = torch.where(unknown, filled.to(pair.opt_v2.dtype), pair.opt_v2)
        image = start + change.to(start.dtype)
        if self.standardize:
            image = torch.where(change == 0, start, image.clamp(*VALID_DN))
        valid = valid_pixels(pair.s1) & (valid_pixels(pair.opt_v2) | unknown)
        deviation = variance.sqrt() if mode == "learned" or ensemble_size > 1 else None
        if deviation is not None and mode == "learned" and self.calibration is not None:
            deviation = deviation * self.calibration.scale(schedule.nfe).to(deviation)[:, None, None]
        output = Stage3Output(
            image=image.masked_fill(~valid, torch.nan),
            proposal=drawn.masked_fill(~valid, torch.nan),
            gate=gate,
            uncertainty=None if deviation is None else deviation.masked_fill(~valid, torch.nan),
            nfe=schedule.nfe if proposal is None else 0,
        )
        return _unbatch(output) if pair.unbatched else output

    def grounding_map(
        self, s1: Tensor, opt_v2: Tensor, timesteps: int | None = None, *, seed: int = 0, **options: Any
    ) -> GroundingMap:
        """Where and by how much Stage 3 moves opt_v2, and how much of it the SAR asked for: two runs of ``ground``.

        Args:
            s1: as for ``ground``.
            opt_v2: as for ``ground``.
            timesteps: as for ``ground``.
            seed: of the noise of both runs.
            **options: other keywords of ``ground`` but ``generator`` and ``use_sar``.
        """
        with_sar, without = (
            self.ground(s1, opt_v2, timesteps, seed=seed, use_sar=use_sar, **options).image
            for use_sar in (True, False)
        )
        return GroundingMap(change=with_sar - opt_v2, sar_contribution=with_sar - without)

    def _ground_tiles(
        self,
        s1: Tensor,
        opt_v2: Tensor,
        trust: Tensor,
        seeds: Tensor,
        origins: Tensor,
        schedule: Schedule,
        sampling: Sampling,
        correction_mode: str,
        *,
        proposal: Tensor | None,
        use_sar: bool,
        hold_colour: bool,
        orientation: int,
    ) -> Tensor:
        """Steps 2a to 2e for tiles of one shape: (n, 17, h, w) of change, proposal, gate, variance, filled opt_v2."""
        generator = self.terramind_generator
        height, width = opt_v2.shape[-2:]

        # 2a. Fill nodata and gaps from neighbours, pad to the network's size, z-score.
        z = self._prepare(s1, opt_v2, trust, use_sar=use_sar)

        # 2b. TerraMind reads SAR and estimate once; "difference" reads the estimate alone beside it.
        drawn: Iterable[list[Tensor]]
        logits = []
        if proposal is not None:
            valid = torch.ones_like(trust, dtype=torch.bool)
            drawn = [
                [to_network(proposal, valid, z.size[0], generator.optical, standardize=self.standardize)]
            ]
        else:
            logits = [generator.logits(z.conditions if use_sar else {"optical": z.estimate})]
            if correction_mode == "difference":
                logits.append(generator.logits({"optical": z.estimate}))
            start = None if schedule.starts_from_noise else generator.optical.expand_bands(z.estimate)
            drawn = draw_proposals(generator, logits, z.size, schedule, sampling, seeds, origins, start=start)

        # 2c. Tokens become codes, and the denoiser draws the proposals in exactly `timesteps` evaluations.
        changes, proposals, gates, errors = [], [], [], []
        for member, decoded in enumerate(drawn):
            # 2d. The correction: a residual, how much of it to use, and where broad colour may change.
            correction = self._correct(z, decoded, logits, correction_mode, orientation + member)
            if hold_colour:
                correction = correction._replace(release=torch.zeros_like(correction.release))
            changes.append(self._change(correction, z.trust))
            proposals.append(decoded[0])
            gates.append(correction.gate)
            errors.append(self._expected_variance(correction, z.trust))

        # 2e. Mean over the ensemble and variance of the error, cropped to the tile, in the caller's unit.
        change, spread = mean_and_spread(changes)
        variance, _ = mean_and_spread(errors)
        variance = variance + spread.square()
        proposal, _ = mean_and_spread(proposals)
        gate, _ = mean_and_spread(gates)
        if self.standardize:
            proposal = generator.optical.from_z(proposal)
        filled = generator.optical.from_z(z.estimate) if self.standardize else z.estimate
        return torch.cat([change, proposal, gate, variance, filled], dim=1)[..., :height, :width]

    def _correct(
        self,
        z: _Prepared,
        decoded: list[Tensor],
        logits: list[Tensor],
        correction_mode: str,
        orientation: int = 0,
    ) -> Correction:
        if correction_mode == "learned":
            seen = (z.s1, z.estimate, decoded[0], z.trust, z.sar_inconsistency)
            correction = self.head(*(turn(image, orientation) for image in seen)).turned_back(orientation)
            # The only broad change that the head was taught is a flood; without water it keeps to detail.
            water = open_water(self.terramind_generator.sar.from_z(z.s1))
            allowed = torch.maximum(water, unknown_share(z.trust))
            return correction._replace(release=correction.release * allowed)
        confidence = self.terramind_generator.confidence(logits[0], z.size)
        return difference_correction(decoded[0], decoded[1], confidence, z.sar_inconsistency)

    def _change(self, correction: Correction, trust: Tensor) -> Tensor:
        """The held and gated correction in the caller's unit; 0 where residual or gate is 0, or opt_v2 observed."""
        release = torch.maximum(correction.release, unknown_share(trust))
        change = fit_to_observed(correction.gate * self.hold(correction.residual, release), trust)
        return change * self.terramind_generator.optical.std if self.standardize else change

    def _expected_variance(self, correction: Correction, trust: Tensor) -> Tensor:
        """Expected squared error in the caller's unit squared; 0 where opt_v2 was observed."""
        if correction.error is None:
            return torch.zeros_like(correction.residual)
        error = correction.error * (trust < 1)
        return (error * self.terramind_generator.optical.std if self.standardize else error).square()

    def _prepare(self, s1: Tensor, opt_v2: Tensor, trust: Tensor, *, use_sar: bool = True) -> _Prepared:
        generator = self.terramind_generator
        seen, known = valid_pixels(s1), valid_pixels(opt_v2) & (trust > 0)
        nodata = ~(seen & (known | (trust == 0)))  # of either image: unknown to the network in both
        side = network_side(generator.layout, *opt_v2.shape[-2:])
        sar = to_network(s1, seen & ~nodata, side, generator.sar, standardize=self.standardize)
        estimate = to_network(opt_v2, known & ~nodata, side, generator.optical, standardize=self.standardize)
        mahalanobis_distance = sar_inconsistency(generator.sar.from_z(sar), generator.optical.from_z(estimate))
        padded = pad_square(trust * ~nodata, side)
        if not use_sar:
            sar, mahalanobis_distance = torch.zeros_like(sar), torch.zeros_like(mahalanobis_distance)
        return _Prepared(sar, estimate, trust=padded, sar_inconsistency=mahalanobis_distance)

    # -- training -------------------------------------------------------------------------------------------------

    def forward(self, s1: Tensor, opt_v2: Tensor, trust: Tensor | None = None) -> Tensor:
        """opt_v3 (B, 4, H, W): differentiable in training, ``ground(...).image`` in inference.

        With gradients on and something trainable, the denoiser is evaluated once per call: in ``train()`` mode at a
        random time step of the noised estimate (drawn from torch's global generator, as dropout is), in ``eval()``
        mode at the pure-noise end. Otherwise this is inference with the model's default timesteps.

        Args:
            s1: (B, 2, H, W) in dB.
            opt_v2: (B, 4, H, W) in DN; at most 256 px a side in training.
            trust: (B, 1, H, W) in [0, 1].
        """
        if not (torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())):
            return self.ground(s1, opt_v2, trust=trust).image
        return self.training_pass(s1, opt_v2, trust)[0]

    def training_pass(
        self, s1: Tensor, opt_v2: Tensor, trust: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Correction]:
        """Differentiable pass with one evaluation: opt_v3 in the caller's unit, token logits, the correction.

        Raises:
            InputError: tiles larger than the network's tile.
        """
        generator = self.terramind_generator
        pair = check_pair(s1, opt_v2, trust=trust, standardize=self.standardize)
        check_device(pair.s1, self.device)
        height, width = check_training_size(generator.layout, pair.opt_v2)
        z = self._prepare(pair.s1, pair.opt_v2.float(), pair.trust)
        x_t, t = training_start(generator.optical.expand_bands(z.estimate), training=self.training)
        logits = [generator.logits(z.conditions)]
        if self.correction_mode == "difference":
            logits.append(generator.logits({"optical": z.estimate}))
        decoded = [
            generator.optical.select(generator.denoise_once(x_t, t, generator.codes(each, z.size)).float())
            for each in logits
        ]
        correction = self._correct(z, decoded, logits, self.correction_mode)
        change = self._change(correction, z.trust)[..., :height, :width]
        filled = fill_nodata(pair.opt_v2, valid_pixels(pair.s1, pair.opt_v2))
        image = filled + change.to(filled.dtype)
        return (image[0] if pair.unbatched else image), logits[0], correction

    # -- helpers --------------------------------------------------------------------------------------------------

    def _unchanged(self, pair: CheckedPair, ensemble_size: int) -> Stage3Output:
        valid = valid_pixels(pair.s1, pair.opt_v2)
        image = pair.opt_v2.masked_fill(~valid, torch.nan)
        output = Stage3Output(
            image=image,
            proposal=image.clone(),
            gate=torch.zeros_like(image[:, :1]),
            uncertainty=torch.zeros_like(image).masked_fill(~valid, torch.nan) if ensemble_size > 1 else None,
            nfe=0,
        )
        return _unbatch(output) if pair.unbatched else output


@dataclass(frozen=True)
class _Prepared:
    """Filled, padded tiles in z-units, with trust and sar_inconsistency maps."""

    s1: Tensor
    estimate: Tensor
    trust: Tensor
    sar_inconsistency: Tensor

    @property
    def conditions(self) -> dict[str, Tensor]:
        """What TerraMind reads."""
        return {"s1": self.s1, "optical": self.estimate}

    @property
    def size(self) -> tuple[int, int]:
        """Height and width the network sees."""
        return self.estimate.shape[-2], self.estimate.shape[-1]


def build_stage3_model(
    timesteps: int = 10,
    standardize: bool = True,
    pretrained: bool = True,
    *,
    variant: str = DEFAULT_VARIANT,
    checkpoint: str | None = None,
    device: torch.device | str | None = None,
    s1_product: str = "S1GRD",
    revision: str | None = None,
    correction_mode: str | None = None,
    scheduler: str = "ddim",
) -> Stage3GroundingModel:
    """Build Stage 3.

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
        correction_mode: ``"learned"`` or ``"difference"``; default learned where a trained head was loaded, else difference.
        scheduler: ``"ddim"`` or ``"dpmsolver++"``.

    Returns:
        The model in ``eval()`` mode.

    Raises:
        InputError: unknown variant, product, scheduler, or timesteps out of range.
        WeightsError: weights that cannot be had, read or matched.
    """
    from axs_lib.terramind.load import load_calibration, load_grounding

    check_timesteps(timesteps)
    if correction_mode is not None:
        _check_correction_mode(correction_mode)
    build_schedule(scheduler, 1)
    generator, head = load_grounding(
        variant, pretrained=pretrained, checkpoint=checkpoint, revision=revision, s1_product=s1_product
    )
    default = "difference" if head.untrained else "learned"
    model = Stage3GroundingModel(
        generator,
        head,
        timesteps=timesteps,
        standardize=standardize,
        correction_mode=correction_mode or default,
        scheduler=scheduler,
    )
    model.calibration = load_calibration(generator)
    model.requires_grad_(not pretrained)
    model.eval()
    return model.to(device) if device is not None else model


@torch.no_grad()
def stage3_inference(
    model: Stage3GroundingModel, s1: Tensor, opt_v2: Tensor, timesteps: int | None = None, **options: Any
) -> Tensor:
    """Ground opt_v2 in s1.

    Args:
        model: from ``build_stage3_model``; the inputs are moved to its device.
        s1: (B, 2, H, W) or (2, H, W), VV and VH in dB.
        opt_v2: (B, 4, H, W) or (4, H, W), B02 B03 B04 B08 in DN.
        timesteps: network evaluations; default the model's.
        **options: any keyword of ``Stage3GroundingModel.ground``.

    Returns:
        opt_v3 of opt_v2's shape, on its device: float64 for float64 input, float32 otherwise.
    """
    if options.get("trust") is not None:
        options["trust"] = _move(options["trust"], model.device)
    output = model.ground(_move(s1, model.device), _move(opt_v2, model.device), timesteps, **options)
    return output.image.to(opt_v2.device)


@torch.no_grad()
def stage3_batch_inference(
    model: Stage3GroundingModel,
    dataloader: Iterable[Any],
    timesteps: int | None = None,
    verbose: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Ground every batch of a loader.

    Args:
        model: from ``build_stage3_model``.
        dataloader: yields mappings with ``s1`` and ``opt_v2`` (and optionally ``trust``), or (s1, opt_v2) pairs.
            Batches are moved to the model's device.
        timesteps: network evaluations; default the model's.
        verbose: show a progress bar.
        **options: any keyword of ``Stage3GroundingModel.ground``.

    Returns:
        ``opt_v3`` (N, 4, H, W) on the CPU, ``nfe``, and ``uncertainty`` where ``ensemble_size`` > 1.
    """
    from axs_lib.progress import track

    images: list[Tensor] = []
    spreads: list[Tensor] = []
    nfe = 0
    for batch in track(dataloader, "Stage 3", enabled=verbose):
        s1, opt_v2, trust = _batch_parts(batch)
        batch_options = options if trust is None else options | {"trust": _move(trust, model.device)}
        output = model.ground(
            _move(s1, model.device), _move(opt_v2, model.device), timesteps, **batch_options
        )
        if images and output.image.shape[1:] != images[0].shape[1:]:
            raise InputError(
                f"a batch holds tiles of {tuple(output.image.shape[1:])} after tiles of {tuple(images[0].shape[1:])};"
                " expected one size: group the tiles by size or call stage3_inference"
            )
        images.append(output.image.cpu())
        nfe = output.nfe
        if output.uncertainty is not None:
            spreads.append(output.uncertainty.cpu())
    if not images:
        raise InputError("the loader yielded no batch; expected at least one with 's1' and 'opt_v2'")
    results: dict[str, Any] = {"opt_v3": torch.cat(images), "nfe": nfe}
    return results | ({"uncertainty": torch.cat(spreads)} if spreads else {})


def compute_stage3_metrics(
    opt_v3: Tensor,
    opt_v2: Tensor,
    s2_truth: Tensor,
    mask: Tensor | None = None,
    s1: Tensor | None = None,
) -> dict[str, float]:
    """Compare opt_v3 and opt_v2 with the truth.

    Args:
        opt_v3: (B, 4, H, W) or (4, H, W) in DN.
        opt_v2: same shape.
        s2_truth: same shape.
        mask: (B, 1, H, W), True where a pixel counts; NaN never counts.
        s1: (B, 2, H, W) in dB, for edge agreement with the SAR.

    Returns:
        ``mse_v3``, ``mse_v2``, ``mse_improvement_%``, ``mae_*`` in reflectance units, and PSNR, SSIM, SAM, index errors
        and edge agreement of both; see ``axs_lib.metrics.stage3_metrics``.
    """
    return stage3_metrics(opt_v3=opt_v3, opt_v2=opt_v2, s2_truth=s2_truth, mask=mask, s1=s1)


def _check_proposal(proposal: Tensor, pair: CheckedPair, correction_mode: str) -> Tensor:
    """The given proposal, batched, float32."""
    batched = proposal[None] if pair.unbatched and proposal.ndim == 3 else proposal
    if batched.shape != pair.opt_v2.shape:
        raise InputError(
            f"proposal has shape {tuple(proposal.shape)}; expected that of opt_v2, {tuple(pair.opt_v2.shape)}"
        )
    if correction_mode == "difference":
        raise InputError(
            "a proposal was given, and correction_mode='difference' draws two of its own; use 'learned'"
        )
    return fill_nodata(batched.float(), valid_pixels(batched)).to(pair.s1.device)


def _check_correction_mode(correction_mode: str) -> str:
    if correction_mode not in CORRECTION_MODES:
        raise InputError(f"correction_mode is {correction_mode!r}; expected one of {', '.join(CORRECTION_MODES)}")
    return correction_mode


def _move(image: Tensor, device: torch.device) -> Tensor:
    """The image on a device; what is no tensor is left for the validator to name."""
    return image.to(device) if isinstance(image, Tensor) else image


def _batch_parts(batch: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    if isinstance(batch, Mapping):
        missing = {"s1", "opt_v2"} - set(batch)
        if missing:
            raise InputError(
                f"a batch has the keys {sorted(batch)}; expected 's1' and 'opt_v2' (missing {sorted(missing)})"
            )
        return batch["s1"], batch["opt_v2"], batch.get("trust")
    if isinstance(batch, Sequence) and len(batch) == 2:
        return batch[0], batch[1], None
    raise InputError(
        f"a batch is a {type(batch).__name__}; expected a mapping with 's1' and 'opt_v2', or a pair (s1, opt_v2)"
    )


def _unbatch(output: Stage3Output) -> Stage3Output:
    return replace(
        output,
        image=output.image[0],
        proposal=output.proposal[0],
        gate=output.gate[0],
        uncertainty=None if output.uncertainty is None else output.uncertainty[0],
    )


if __name__ == "__main__":
    import sys
    from pathlib import Path

    # Run as a file, this folder comes first on the path, where our data or metrics would pass for a top-level module.
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
    from axs_lib.cli.stage3_script import main

    sys.exit(main())
