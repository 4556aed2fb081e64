"""The builder of Stage 1: modalities, variants, weights frozen or trainable, the published layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from axs_lib.errors import InputError, WeightsError
from axs_lib.models import build_terramind_generator
from axs_lib.stage1_tm_s2o import Stage1Model, tm_sar2opt
from axs_lib.stage3_tm_ground import build_stage3_model
from axs_lib.terramind.generator import TerraMindGenerator
from tests.models import plausible_pair


def build(*arguments: Any, **options: Any) -> Stage1Model:
    return build_terramind_generator(*arguments, **({"variant": "nano", "pretrained": False} | options))


def test_the_documents_defaults() -> None:
    model = build(input_modalities=("S1GRD",), output_modalities=("S2L2A",), timesteps=12, standardize=True)
    assert model.timesteps == build().timesteps == 12
    assert model.standardize and model.variant == "nano" and not model.training
    assert isinstance(model.terramind_generator, TerraMindGenerator)
    assert all(p.requires_grad for p in model.parameters())  # random weights come trainable
    assert model.provenance["AXS_WEIGHTS"] == "random"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_modalities": ("S1SLC",)}, r"S1SLC.*\('S1GRD',\), \('S1RTC',\)"),
        ({"input_modalities": ("S1GRD", "S1RTC")}, "expected one of"),
        ({"input_modalities": ("S1GRD", "S2L2A")}, "build_stage3_model"),
        ({"input_modalities": ()}, r"is \(\); expected one of"),
        ({"input_modalities": (1,)}, r"is \('1',\); expected one of"),
        ({"output_modalities": ("LULC",)}, r"LULC.*expected \('S2L2A',\)"),
        ({"output_modalities": ("S2L2A", "NDVI")}, "expected"),
        ({"timesteps": 0}, "1 to 1000"),
        ({"variant": "terramind_v1_huge"}, "terramind_v1_base"),
        ({"scheduler": "euler"}, "ddim"),
    ],
)
def test_impossible_builds(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(**options)


def test_packaged_weights_come_frozen_and_are_stage_3s() -> None:
    model = build(pretrained=True)
    assert not any(p.requires_grad for p in model.parameters())
    assert model.provenance["AXS_WEIGHTS"] == "packaged"
    assert model.provenance["AXS_WEIGHTS_SHA256"]
    stage3 = build_stage3_model(variant="nano").terramind_generator.state_dict()
    assert all(torch.equal(v, stage3[k]) for k, v in model.terramind_generator.state_dict().items())
    assert tm_sar2opt(model, plausible_pair(1)[0], 1).std() > 50.0


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"terramind_v1_base(.|\n)*nano"):
        build_terramind_generator()
    with pytest.raises(WeightsError, match="does not exist"):
        build(pretrained=True, checkpoint=tmp_path / "none.safetensors")


def test_device_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("axs_lib.models.find_device", torch.device)  # which refuses "meta": nothing computes there
    model = build(device="meta")
    assert model.device.type == "meta"
    assert all(t.device.type == "meta" for t in (*model.parameters(), *model.buffers()))
