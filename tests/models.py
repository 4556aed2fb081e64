"""Models for tests, nano with random weights of which none is zero, so that every part has an effect; their inputs."""

from __future__ import annotations

import torch

from axs_lib.stage2_prithvi_refine import PrithviRefiner, build_prithvi_refiner
from axs_lib.stage3_tm_ground import Stage3GroundingModel, build_stage3_model
from benchmarks.measure import plausible_pair as plausible_pair
from benchmarks.measure import redraw_zero_parameters


def random_nano(seed: int = 0, **options: object) -> Stage3GroundingModel:
    """nano with redrawn zero parameters and a learned head that does something; frozen, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_stage3_model(
            pretrained=False,
            variant="nano",
            **({"correction_mode": "learned"} | options),  # type: ignore[arg-type]
        )
    redraw_zero_parameters(model, seed)
    with torch.no_grad():
        model.corrector.head.body.out.weight.mul_(0.3)
    return model.requires_grad_(False)


def random_refiner() -> PrithviRefiner:
    """Stage 2 of nano with redrawn zero parameters; frozen, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        refiner = build_prithvi_refiner(variant="nano", pretrained=False)
    redraw_zero_parameters(refiner)
    return refiner.requires_grad_(False)


def z_inputs(batch: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """What a generator takes: random s1 and optical of 64 px in z-units."""
    random = torch.Generator().manual_seed(seed)
    return {name: torch.randn(batch, count, 64, 64, generator=random) for name, count in (("s1", 2), ("optical", 4))}
