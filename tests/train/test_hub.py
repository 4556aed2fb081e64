"""A LoRA adapter goes to the Hub and into another model, in PEFT's format."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from axs_lib.errors import InputError, WeightsError
from axs_lib.stage3_tm_ground import Stage3GroundingModel
from axs_lib.train.hub import LoraAdapter
from axs_lib.train.lora import apply_lora_to_linear
from tests.hub import LocalHub
from tests.models import plausible_pair, random_nano


@pytest.fixture(scope="module")
def base() -> Stage3GroundingModel:
    return random_nano(timesteps=1)


@pytest.fixture
def adapted(base: Stage3GroundingModel) -> Stage3GroundingModel:
    model = copy.deepcopy(base)
    apply_lora_to_linear(model.terramind_generator, rank=2)
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=random))
    return model


def test_an_adapter_goes_to_the_hub_and_back(
    base: Stage3GroundingModel,
    adapted: Stage3GroundingModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = LocalHub(tmp_path / "hub", monkeypatch)
    commit = LoraAdapter(adapted.terramind_generator).push_to_hub(
        "me/adapter", model_card_kwargs={"data": "Our own fields."}
    )
    files = sorted(path.name for path in hub.snapshot("me/adapter", commit).iterdir())
    assert files == ["README.md", "adapter_config.json", "adapter_model.safetensors", "config.json"]
    card = ModelCard.load(hub.snapshot("me/adapter", commit) / "README.md")
    assert "LoRA adapter of nano" in card.text and "Our own fields." in card.text
    assert "Wrapped layers: kv, proj, q, qkv." in card.text

    fresh = copy.deepcopy(base)
    s1, opt_v2 = plausible_pair(1, 40, 40)
    before = fresh.ground(s1, opt_v2).image
    LoraAdapter.from_pretrained(
        "me/adapter", module=fresh.terramind_generator, revision=commit, cache_dir=hub.cache
    )
    after = fresh.ground(s1, opt_v2).image
    assert torch.equal(after, adapted.ground(s1, opt_v2).image)
    assert not torch.equal(after, before)
    assert not any(p.requires_grad for p in fresh.parameters())
    with pytest.raises(InputError, match="already has an adapter"):
        LoraAdapter.from_pretrained("me/adapter", module=fresh.terramind_generator, cache_dir=hub.cache)


def test_what_is_not_there_is_said(
    base: Stage3GroundingModel, adapted: Stage3GroundingModel, tmp_path: Path
) -> None:
    fresh = copy.deepcopy(base).terramind_generator
    with pytest.raises(WeightsError, match="me/nothing cannot be had"):
        LoraAdapter.from_pretrained("me/nothing", module=fresh, cache_dir=tmp_path)
    LoraAdapter(adapted.terramind_generator).save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"lacks adapter_model\.safetensors"):
        LoraAdapter.from_pretrained(tmp_path / "a", module=fresh)
