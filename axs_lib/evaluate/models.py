"""What the evaluation needs of the models it measures, and the one place that runs them.

In: SAR, estimates and metadata of a batch of tiles on the CPU. Out: ``Images`` on the CPU. Stage 3 is anything with
``ground``; the pipeline is anything that makes all three images from SAR; a plain network is anything with ``inputs``
and ``predict``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from axs_lib.grounding.large import GroundingControls

if TYPE_CHECKING:
    from axs_lib.stage3_tm_ground import Stage3GroundingModel


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

    def ground(self, s1: Tensor, opt_v2: Tensor, timesteps: int | None = None, *, seed: int = 0) -> Any:
        """Return an object with ``image``, ``proposal`` and ``uncertainty`` (or None) (B,4,H,W) and ``nfe``.

        It also takes ``trust`` (B,1,H,W), ``ensemble_size``, and ``controls`` with ``proposal`` and ``use_sar``.
        """


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
        self, s1: Tensor, metadata: Any = None, timesteps: int | None = None, *, seed: int = 0, ensemble_size: int = 1
    ) -> Any:
        """Return ``opt_v1``, ``opt_v2``, ``opt_v3``, ``uncertainty`` (or None) (B,4,H,W), ``nfe`` of Stages 1 and 3."""


class PlainNetwork(Protocol):
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
class Runner:
    """Runs one model with one number of network evaluations and one seed.

    Attributes:
        model: Stage 3, or the pipeline.
        timesteps: network evaluations of each denoiser.
        seed: of the noise.
    """

    model: Grounder | WholePipeline
    timesteps: int
    seed: int

    @property
    def stage3(self) -> Grounder:
        """The model itself, or the last stage of the pipeline."""
        return self.model if isinstance(self.model, Grounder) else self.model.stage3

    @property
    def whole(self) -> bool:
        """Whether Stages 1 and 2 make the estimate."""
        return not isinstance(self.model, Grounder)

    @property
    def takes_proposals(self) -> bool:
        """Whether the correction is a function of one proposal, which may be replaced."""
        return self.stage3.provenance.get("AXS_CORRECTION_MODE") != "difference"

    def run(
        self, s1: Tensor, opt_v2: Tensor, metadata: Sequence[Mapping[str, Any]], *, ensemble_size: int = 1
    ) -> Images:
        """Run the model as a user would.

        Args:
            s1: (B,2,H,W) dB.
            opt_v2: (B,4,H,W) DN, what Stage 3 grounds; the pipeline makes its own.
            metadata: of each tile, for the pipeline.
            ensemble_size: members averaged.
        """
        if isinstance(self.model, Grounder):
            return self.ground(s1, opt_v2, ensemble_size=ensemble_size)
        options = {"ensemble_size": ensemble_size} if ensemble_size > 1 else {}
        device = self.model.device
        output = self.model(s1.to(device), list(metadata), self.timesteps, seed=self.seed, **options)
        opt_v1, opt_v2, opt_v3 = (image.cpu() for image in (output.opt_v1, output.opt_v2, output.opt_v3))
        return Images(opt_v1, opt_v2, opt_v3, None, sum(output.nfe), _on_cpu(output.uncertainty))

    def ground(
        self,
        s1: Tensor,
        opt_v2: Tensor,
        *,
        trust: Tensor | None = None,
        proposal: Tensor | None = None,
        use_sar: bool = True,
        ensemble_size: int = 1,
        model: Grounder | None = None,
    ) -> Images:
        """Run Stage 3 by itself.

        Args:
            s1: (B,2,H,W) dB.
            opt_v2: (B,4,H,W) DN.
            trust: (B,1,H,W); by default opt_v2 is an estimate.
            proposal: (B,4,H,W) DN in place of its own.
            use_sar: False leaves the SAR's content out.
            ensemble_size: members averaged.
            model: another Stage 3 model in place of the one that is measured.
        """
        stage3 = model or self.stage3
        device = stage3.device
        options: dict[str, Any] = {}
        if trust is not None:
            options["trust"] = trust.to(device)
        if ensemble_size > 1:
            options["ensemble_size"] = ensemble_size
        if proposal is not None or not use_sar:
            proposal = None if proposal is None else proposal.to(device)
            options["controls"] = GroundingControls(proposal=proposal, use_sar=use_sar)
        output = stage3.ground(s1.to(device), opt_v2.to(device), self.timesteps, seed=self.seed, **options)
        image, proposed = output.image.cpu(), output.proposal.cpu()
        uncertainty = _on_cpu(getattr(output, "uncertainty", None))
        return Images(None, opt_v2, image, proposed, int(output.nfe), uncertainty)

    def ground_blind(
        self, model: Stage3GroundingModel, s1: Tensor, opt_v2: Tensor, trust: Tensor | None = None
    ) -> Tensor:
        """opt_v3 of a model that was trained without SAR: it is given mean backscatter everywhere."""
        mean = model.terramind_generator.sar.mean.cpu()  # (1,2,1,1) dB
        blind = torch.where(s1.isnan(), s1, mean.to(s1))
        return self.ground(blind, opt_v2, trust=trust, model=model).opt_v3

    def predict(self, network: PlainNetwork, s1: Tensor, opt_v2: Tensor, trust: Tensor | None = None) -> Tensor:
        """The image of a plain network on the model's device, which gets no estimate where it takes none."""
        device = self.model.device
        estimate = opt_v2.to(device) if "optical" in network.inputs else None
        options = {} if trust is None else {"trust": trust.to(device)}
        return network.predict(s1.to(device), estimate, **options).cpu()


def _on_cpu(image: Tensor | None) -> Tensor | None:
    return None if image is None else image.cpu()
