"""What the evaluation needs of the models it measures, and the one way it runs them.

In: SAR, estimates and metadata of a batch of tiles. Out: ``Images``. Stage 3 is anything with ``ground``; the pipeline
is anything that makes all three images from SAR; a plain network is anything with ``inputs`` and ``predict``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from axs_lib.checks import Trust
from axs_lib.grounding.large import GroundingControls


@runtime_checkable
class Grounder(Protocol):
    """What the evaluation needs of a Stage 3 model; ``Stage3GroundingModel`` has it."""

    @property
    def provenance(self) -> Mapping[str, str]:
        """Version, variant, weights and their hash."""

    @property
    def device(self) -> torch.device:
        """Where inputs must be."""

    @property
    def timesteps(self) -> int:
        """Default number of network evaluations."""

    def ground(
        self,
        s1: Tensor,
        opt_v2: Tensor,
        timesteps: int | None = None,
        *,
        seed: int = 0,
        ensemble_size: int = 1,
        trust: Tensor | None = None,
        controls: GroundingControls = ...,
    ) -> Any:
        """Return an object with ``image``, ``proposal`` and ``uncertainty`` (or None) (B,4,H,W) and ``nfe``."""


class WholePipeline(Protocol):
    """What the evaluation needs of a pipeline; ``Pipeline`` has it."""

    @property
    def provenance(self) -> Mapping[str, str]:
        """Version, variants, weights and their hashes."""

    @property
    def device(self) -> torch.device:
        """Where inputs must be."""

    @property
    def stage3(self) -> Grounder:
        """The last stage, whose number of network evaluations is the default."""

    def __call__(
        self,
        s1: Tensor,
        metadata: Any = None,
        timesteps: int | None = None,
        *,
        seed: int = 0,
        ensemble_size: int = 1,
    ) -> Any:
        """Return ``opt_v1``, ``opt_v2``, ``opt_v3``, ``uncertainty`` (or None) (B,4,H,W), ``nfe`` of Stages 1 and 3."""


class Plain(Protocol):
    """What the evaluation needs of a plain network; ``axs_lib.evaluate.plain.PlainModel`` has it."""

    @property
    def inputs(self) -> str:
        """``"sar+optical"``, ``"optical"`` or ``"sar"``."""

    def predict(self, s1: Tensor, opt_v2: Tensor | None = None, trust: Tensor | None = None) -> Tensor:
        """Return the image (B,4,H,W) in DN."""


class Images(NamedTuple):
    """What a model made of a batch, (B,4,H,W) each on the CPU, and the network evaluations it took."""

    opt_v1: Tensor | None
    opt_v2: Tensor
    opt_v3: Tensor
    proposal: Tensor | None
    nfe: int
    uncertainty: Tensor | None = None


@dataclass(frozen=True)
class LastStage:
    """Stage 3 as the pipeline runs it: opt_v2 is a guess from the SAR alone."""

    stage3: Grounder

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.stage3.device

    @property
    def timesteps(self) -> int:
        """Default of the model."""
        return self.stage3.timesteps

    @property
    def provenance(self) -> Mapping[str, str]:
        """Of the model."""
        return self.stage3.provenance

    def ground(self, s1: Tensor, opt_v2: Tensor, timesteps: int | None = None, **options: Any) -> Any:
        """The model's ``ground`` with the trust of a guess, unless another is given."""
        guess = {"trust": torch.full_like(opt_v2[:, :1], Trust.SAR_ONLY)}
        return self.stage3.ground(s1, opt_v2, timesteps, **(guess | options))


def stage3_of(model: Grounder | WholePipeline) -> Grounder:
    """The model itself, or the last stage of the pipeline."""
    return model if isinstance(model, Grounder) else model.stage3


def last_stage(model: Grounder | WholePipeline) -> Grounder:
    """The model itself, or the last stage of the pipeline as it runs there."""
    return model if isinstance(model, Grounder) else LastStage(model.stage3)


def run(
    model: Grounder | WholePipeline,
    s1: Tensor,
    opt_v2: Tensor,
    metadata: Sequence[Mapping[str, Any]],
    timesteps: int,
    seed: int,
    *,
    ensemble_size: int = 1,
) -> Images:
    """Run a model on a batch.

    Args:
        model: Stage 3, or the pipeline.
        s1: (B,2,H,W) dB.
        opt_v2: (B,4,H,W) DN, what Stage 3 grounds; the pipeline makes its own.
        metadata: of each tile, for the pipeline.
        timesteps: network evaluations of each denoiser.
        seed: of the noise.
        ensemble_size: members averaged; their spread is the uncertainty, where the model has no other.
    """
    options: dict[str, Any] = (
        {"seed": seed} if ensemble_size == 1 else {"seed": seed, "ensemble_size": ensemble_size}
    )
    if isinstance(model, Grounder):
        output = model.ground(s1.to(model.device), opt_v2.to(model.device), timesteps, **options)
        images = Images(None, opt_v2, output.image.cpu(), output.proposal.cpu(), int(output.nfe))
    else:
        output = model(s1.to(model.device), list(metadata), timesteps, **options)
        opt_v1, opt_v3 = output.opt_v1.cpu(), output.opt_v3.cpu()
        images = Images(opt_v1, output.opt_v2.cpu(), opt_v3, None, sum(output.nfe))
    uncertainty = getattr(output, "uncertainty", None)
    return images if uncertainty is None else images._replace(uncertainty=uncertainty.cpu())


def ground(
    stage3: Grounder,
    s1: Tensor,
    opt_v2: Tensor,
    timesteps: int,
    seed: int,
    *,
    proposal: Tensor | None = None,
) -> Any:
    """Run Stage 3 on a batch on the CPU; with ``proposal`` (B,4,H,W) DN in place of its own drawing."""
    device = stage3.device
    given: dict[str, Any] = (
        {} if proposal is None else {"controls": GroundingControls(proposal=proposal.to(device))}
    )
    return stage3.ground(s1.to(device), opt_v2.to(device), timesteps, seed=seed, **given)
