"""terratorch's networks load without its data sets, and terratorch as a whole still loads after them."""

from __future__ import annotations

import subprocess
import sys

import pytest

NETWORKS = """
import sys
from axs_lib.pipeline import build_pipeline

model = build_pipeline(variant="nano")
names = ("terratorch", "terratorch.datasets", "torchgeo", "albumentations", "segmentation_models_pytorch")
import torch
changed = [] if torch.get_float32_matmul_precision() == "highest" else ["precision of products"]
print(*[name for name in names if name in sys.modules], *changed)
"""
WHOLE = """
from axs_lib.stage3_tm_ground import build_stage3_model

model = build_stage3_model(variant="nano")
import terratorch
from terratorch.models.backbones.terramind.model.terramind import TerraMind
from terratorch.models.backbones.terramind.model import terramind_register

assert type(model.terramind_generator.core) is TerraMind is terramind_register.TerraMind
assert "terramind_v1_base_generate" in terratorch.FULL_MODEL_REGISTRY
print(sorted({"terratorch.datasets", "terratorch.tasks"} - set(__import__("sys").modules)))
"""
FAILED = """
import sys
from axs_lib.lightimport import networks_only

try:
    with networks_only():
        import terratorch.models.backbones.no_such_network
except ModuleNotFoundError:
    print(*[name for name in sys.modules if name.startswith("terratorch")])
"""


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()[-1]


def test_building_nano_loads_no_data_sets() -> None:
    """Nor does it lower the precision of every product in the process, as ``import terratorch`` does."""
    assert run(NETWORKS) == ""


@pytest.mark.slow
def test_the_whole_of_terratorch_still_loads_and_knows_the_same_network() -> None:
    assert run(WHOLE) == "[]"


def test_a_failed_import_leaves_no_stand_in() -> None:
    assert run(FAILED) == ""
