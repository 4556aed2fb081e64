"""What the tests of the command line share: a runner, and models that answer at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner, Result

from axs_lib import pipeline as pipeline_module
from axs_lib import stage3_tm_ground
from axs_lib.cli.app import app
from axs_lib.pipeline import PipelineOutput
from axs_lib.stage3_tm_ground import Stage3Output

Run = Callable[..., Any]


def run_axs(*arguments: object, code: int = 0) -> Result:
    """Run the command line, which must end with ``code``."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def axs() -> Run:
    """``axs("ground", "--s1", path)`` runs the command line and returns its result, of success or of ``code=``."""
    return run_axs


@dataclass
class FakeModel:
    """Stands in for Stage 3: adds 100 DN to opt_v2 and remembers how it was built and called."""

    built: dict[str, Any] = field(default_factory=dict)
    called: dict[str, Any] = field(default_factory=dict)
    s1: Tensor | None = None
    opt_v2: Tensor | None = None
    precision: torch.dtype = torch.float32
    variant: str = "fake"
    provenance: dict[str, str] = field(default_factory=lambda: {"AXS_VARIANT": "fake"})
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def use_precision(self, dtype: torch.dtype) -> None:
        self.precision = dtype

    def ground(self, s1: Tensor, opt_v2: Tensor, **settings: Any) -> Stage3Output:
        self.called, self.s1, self.opt_v2 = settings, s1, opt_v2
        trust = settings.get("trust")
        image = (opt_v2 if trust is None else opt_v2.masked_fill(trust == 0, 1000.0)) + 100
        spread = torch.full_like(image, 7.0) if settings.get("ensemble_size", 1) > 1 else None
        return Stage3Output(image, image, torch.ones_like(image[:, :1]), spread, settings["timesteps"])


@pytest.fixture
def fake_model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    """A model that ``build_stage3_model`` hands out in place of TerraMind."""
    model = FakeModel()

    def build(timesteps: int, **options: Any) -> FakeModel:
        model.built = {"timesteps": timesteps} | options
        return model

    monkeypatch.setattr(stage3_tm_ground, "build_stage3_model", build)
    return model


@dataclass
class FakePipeline(FakeModel):
    """Stands in for the three stages: constant images; remembers how it was built and called."""

    metadata: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    s1: Tensor = field(default_factory=lambda: torch.empty(0))
    stage3: FakeModel = field(default_factory=FakeModel)

    def __call__(self, s1: Tensor, metadata: Any, **settings: Any) -> PipelineOutput:
        self.s1, self.metadata, self.settings = s1, metadata, settings
        images = [
            torch.full((len(s1), 4, *s1.shape[-2:]), value).masked_fill(s1[:, :1].isnan(), torch.nan)
            for value in (100.0, 200.0, 300.0, 7.0)
        ]
        spread = images[3] if settings["ensemble_size"] > 1 else None
        return PipelineOutput(*images[:3], spread, (12, 10), gate=images[0][:, :1] / 100, sar_contribution=images[1])


@pytest.fixture
def fake_pipeline(monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    """Stages that ``build_pipeline`` hands out in place of TerraMind and Prithvi."""
    pipeline = FakePipeline()

    def build(**options: Any) -> FakePipeline:
        pipeline.built = options
        return pipeline

    monkeypatch.setattr(pipeline_module, "build_pipeline", build)
    return pipeline
