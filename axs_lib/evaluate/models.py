"""The one place that runs the models an evaluation measures: batches of tiles on the CPU in, ``Images`` out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from axs_lib.data.pairs import PairRecord
from axs_lib.evaluate.sources import EvaluationTile, OptV2Source, read_tile
from axs_lib.grounding.large import GroundingControls

if TYPE_CHECKING:
    from axs_lib.evaluate.plain import PlainModel
    from axs_lib.pipeline import Pipeline
    from axs_lib.stage3_tm_ground import Stage3GroundingModel


class Images(NamedTuple):
    """What a model made of a batch, (B,4,H,W) each on the CPU, and the network evaluations it took."""

    opt_v1: Tensor | None
    opt_v2: Tensor
    opt_v3: Tensor
    proposal: Tensor | None
    nfe: int
    uncertainty: Tensor | None = None


@dataclass(frozen=True)
class EvaluatedModel:
    """The model that is measured, Stage 3 or the pipeline, and how it is run on the tiles of a folder."""

    wrapped: Stage3GroundingModel | Pipeline
    timesteps: int  # network evaluations of each denoiser
    seed: int  # of the noise
    source: OptV2Source
    donors: Mapping[str, PairRecord]  # for each tile's name another tile
    other_dates: Mapping[str, PairRecord]  # for a tile's name the same place at another date, where there is one
    dated: bool  # whether anything is known of any tile's date and place
    force: bool  # whether values that look like another unit are accepted

    def donor(self, tile: EvaluationTile) -> EvaluationTile:
        """Another tile, in its own size."""
        return read_tile(self.donors[tile.record.name], force=self.force)

    def other_date(self, tile: EvaluationTile) -> EvaluationTile | None:
        """The same place at another date, of the same size."""
        record = self.other_dates.get(tile.record.name)
        return None if record is None else read_tile(record, force=self.force)

    @property
    def is_pipeline(self) -> bool:
        """Whether Stages 1 and 2 make the estimate."""
        return hasattr(self.wrapped, "stage3")

    @property
    def stage3(self) -> Stage3GroundingModel:
        """The model itself, or the last stage of the pipeline."""
        model: Any = self.wrapped
        return model.stage3 if self.is_pipeline else model

    @property
    def takes_proposals(self) -> bool:
        """Whether the correction is a function of one proposal, which may be replaced."""
        return self.stage3.provenance.get("AXS_CORRECTION_MODE") != "difference"

    def run(self, s1: Tensor, opt_v2: Tensor, metadata: Sequence[Mapping[str, Any]], ensemble_size: int = 1) -> Images:
        """Run the model as a user would; the pipeline makes its own opt_v2 from ``metadata`` of each tile."""
        if not self.is_pipeline:
            return self.ground(s1, opt_v2, ensemble_size=ensemble_size)
        model: Any = self.wrapped
        options = {"seed": self.seed, "ensemble_size": ensemble_size}
        output = model(s1.to(model.device), list(metadata), self.timesteps, **options)
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
        model: Stage3GroundingModel | None = None,
    ) -> Images:
        """Run Stage 3, or another ``model`` in its place, on SAR (B,2,H,W) in dB and opt_v2 (B,4,H,W) in DN."""
        stage3 = model or self.stage3
        device = stage3.device
        trust, proposal = (None if each is None else each.to(device) for each in (trust, proposal))
        controls = GroundingControls(proposal=proposal, use_sar=use_sar)
        options: dict[str, Any] = {"trust": trust, "ensemble_size": ensemble_size, "controls": controls}
        output = stage3.ground(s1.to(device), opt_v2.to(device), self.timesteps, seed=self.seed, **options)
        image, proposed = output.image.cpu(), output.proposal.cpu()
        return Images(None, opt_v2, image, proposed, int(output.nfe), _on_cpu(output.uncertainty))

    def without_sar(self, model: Any, s1: Tensor, opt_v2: Tensor, trust: Tensor | None = None) -> Tensor:
        """The image of a plain network or a Stage 3 trained without SAR, which is given mean backscatter everywhere."""
        if hasattr(model, "predict"):
            return self.predict(model, s1, opt_v2, trust)
        mean = model.terramind_generator.sar.mean.cpu()  # (1,2,1,1) dB
        return self.ground(torch.where(s1.isnan(), s1, mean.to(s1)), opt_v2, trust=trust, model=model).opt_v3

    def predict(self, network: PlainModel, s1: Tensor, opt_v2: Tensor, trust: Tensor | None = None) -> Tensor:
        """The image of a plain network on the model's device, which gets no estimate where it takes none."""
        device = self.wrapped.device
        estimate = opt_v2.to(device) if "optical" in network.inputs else None
        return network.predict(s1.to(device), estimate, None if trust is None else trust.to(device)).cpu()


def _on_cpu(image: Tensor | None) -> Tensor | None:
    return None if image is None else image.cpu()
