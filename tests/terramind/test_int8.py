"""8-bit linear layers: nearly the same result, token by token, and no way to save them by mistake."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from axs_lib.errors import InputError
from axs_lib.stage3_tm_ground import build_stage3_model
from axs_lib.terramind.int8 import Int8Linear, round_linears
from tests.models import plausible_pair


@pytest.fixture
def linear() -> nn.Linear:
    layer = nn.Linear(256, 96).requires_grad_(False)
    layer.weight *= torch.logspace(-2, 1, 96)[:, None]  # channels of very different size
    return layer


@torch.no_grad()
def test_it_is_the_layer_to_a_hundredth_in_every_channel(linear: nn.Linear) -> None:
    x = torch.randn(3, 50, 256) * torch.logspace(-3, 2, 50)[:, None]  # and tokens of very different size
    exact = linear(x) - linear.bias
    error = Int8Linear(linear)(x) - linear.bias - exact
    assert (error.square().mean((0, 1)) < (0.02**2) * exact.square().mean((0, 1))).all()
    assert (error.square().mean((0, 2)) < (0.02**2) * exact.square().mean((0, 2))).all()


@torch.no_grad()
def test_a_token_depends_on_no_other(linear: nn.Linear) -> None:
    layer, x = Int8Linear(linear), torch.randn(4, 7, 256)
    together = layer(x)
    x[0] *= 1000.0
    x[1] = torch.nan
    changed = layer(x)
    assert torch.equal(changed[2:], together[2:])
    assert changed[1].isnan().all() and changed[0].isfinite().all()


@torch.no_grad()
def test_nothing_in_gives_the_bias(linear: nn.Linear) -> None:
    assert torch.equal(Int8Linear(linear)(torch.zeros(2, 256)), linear.bias.expand(2, -1))
    bare = nn.Linear(16, 8, bias=False)
    assert not Int8Linear(bare)(torch.zeros(1, 16)).any()


@torch.no_grad()
def test_nanos_image_changes_by_less_than_its_rounding() -> None:
    exact = build_stage3_model(variant="nano", timesteps=1)
    rough = copy.deepcopy(exact)
    rough.terramind_generator.use_precision(torch.int8)
    assert any(isinstance(module, Int8Linear) for module in rough.terramind_generator.core.modules())
    s1, opt_v2 = plausible_pair(2, 120, 120)
    before, after = exact.ground(s1, opt_v2), rough.ground(s1, opt_v2)
    assert not torch.equal(before.proposal, after.proposal)
    assert (before.proposal - after.proposal).square().mean().sqrt() < 10.0  # DN
    assert (before.image - after.image).square().mean().sqrt() < 1.0


def test_only_encoder_and_decoder_are_rounded() -> None:
    generator = build_stage3_model(variant="nano").terramind_generator
    before = {name: value.clone() for name, value in generator.detokenizer.state_dict().items()}
    generator.use_precision(torch.int8)
    assert all(torch.equal(value, before[name]) for name, value in generator.detokenizer.state_dict().items())
    assert round_linears(generator.core.encoder) == 0
    with pytest.raises(InputError, match="save the model before"):
        generator.state_dict()


def test_rounded_weights_are_not_saved(tmp_path: Path) -> None:
    model = build_stage3_model(variant="nano")
    model.terramind_generator.use_precision(torch.int8)
    with pytest.raises(InputError, match="for inference alone"):
        model.save_pretrained(tmp_path / "model")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_what_cannot_be_is_refused() -> None:
    generator = build_stage3_model(variant="nano").terramind_generator
    with pytest.raises(InputError, match=r"expected torch\.bfloat16"):
        generator.use_precision(torch.int32)
    with pytest.raises(InputError, match=r"8-bit integers are for a CPU"):
        generator.to("meta").use_precision(torch.int8)
