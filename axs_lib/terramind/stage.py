"""What the stages around a TerraMind generator share: defaults, device, precision, provenance."""

from __future__ import annotations

import torch
from torch import nn

from axs_lib.checks import check_flag, check_type
from axs_lib.terramind.generator import TerraMindGenerator
from axs_lib.terramind.sampler import build_schedule, check_timesteps


class GeneratorStage(nn.Module):
    """A stage around a conditional generator, which two stages may share.

    ``timesteps`` and ``scheduler`` are the defaults of every call; ``standardize=False`` means z-units in and out
    instead of dB and DN.
    """

    def __init__(
        self,
        terramind_generator: TerraMindGenerator,
        *,
        timesteps: int = 12,
        standardize: bool = True,
        scheduler: str = "ddim",
    ) -> None:
        super().__init__()
        self.terramind_generator = check_type("generator", terramind_generator, TerraMindGenerator, "TerraMind")
        self.timesteps = check_timesteps(timesteps)
        self.standardize = check_flag("standardize", standardize)
        self.scheduler = scheduler
        build_schedule(scheduler, 1)  # an unknown name fails here, not at the first tile

    @property
    def variant(self) -> str:
        """Name of the generator's architecture."""
        return self.terramind_generator.layout.variant

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return next(self.parameters()).device

    def use_precision(self, dtype: torch.dtype) -> None:
        """Let the generator compute in a lower precision, for inference: ``TerraMindGenerator.use_precision``."""
        self.terramind_generator.use_precision(dtype)

    @property
    def provenance(self) -> dict[str, str]:
        """What made an output, for file tags: version, variant, weights and their hash, defaults."""
        return self.terramind_generator.provenance | {"AXS_SCHEDULER": self.scheduler}
