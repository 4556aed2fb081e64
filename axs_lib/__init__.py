"""Axion-Sat grounds an optical satellite estimate (Stage 2) in Sentinel-1 radar with TerraMind (Stage 3).

The three stages are the modules ``stage1_tm_s2o``, ``stage2_prithvi_refine`` and ``stage3_tm_ground``; the ``axs``
command wraps them. The functions named in ``__all__`` can be imported from here. Importing this package imports nothing
heavy: torch and terratorch load when a stage is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "build_terramind_generator": "axs_lib.models",
    "tm_sar2opt": "axs_lib.stage1_tm_s2o",
    "build_prithvi_refiner": "axs_lib.stage2_prithvi_refine",
    "Stage2Loss": "axs_lib.stage2_losses",
    "Stage3Loss": "axs_lib.stage3_losses",
    "Stage3GroundingModel": "axs_lib.stage3_tm_ground",
    "build_stage3_model": "axs_lib.stage3_tm_ground",
    "compute_stage3_metrics": "axs_lib.stage3_tm_ground",
    "stage3_batch_inference": "axs_lib.stage3_tm_ground",
    "stage3_inference": "axs_lib.stage3_tm_ground",
    "build_pipeline": "axs_lib.pipeline",
    "full_pipeline": "axs_lib.pipeline",
    "MaskFile": "axs_lib.io.masks",
    "fill_gaps": "axs_lib.scenes.api",
    "ground_scene": "axs_lib.scenes.api",
    "run_scene": "axs_lib.scenes.api",
}
__all__ = [*_LAZY, "__version__"]


def __getattr__(name: str) -> Any:
    """A public function, imported at its first use."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
