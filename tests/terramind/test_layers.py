"""The detokenizer's faster layers equal terratorch's; lower precision and compilation change next to nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from axs_lib.stage3_tm_ground import build_stage3_model
from axs_lib.terramind.build import build_nano
from axs_lib.terramind.generator import TerraMindGenerator
from axs_lib.terramind.layers import PointwiseConv2d, SpatialAttention, speed_up
from axs_lib.terramind.noise import gaussian_field, sample_seeds
from axs_lib.terramind.sampler import build_schedule
from tests.models import random_nano
from tests.published import terratorch_unet

TOLERANCE = 1e-4  # z-units, of an output of order 1


def original_unet(heads: int) -> Any:
    return terratorch_unet(
        in_channels=4, out_channels=4, model_channels=32, channel_mult=(1, 2), num_heads=heads
    )


def unet_inputs() -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 64, 64, generator=random)
    return x, torch.tensor([999, 300]), torch.rand(2, 3, 4, 4, generator=random)


@pytest.mark.parametrize("heads", [1, 4])
def test_the_fast_unet_equals_terratorchs(heads: int) -> None:
    original = original_unet(heads)
    fast = speed_up(copy.deepcopy(original))
    replaced = [type(module) for module in fast.modules()]
    assert replaced.count(SpatialAttention) >= 2 and PointwiseConv2d in replaced
    x, t, codes = unet_inputs()
    with torch.no_grad():
        expected = original(x, t, codes)
        assert expected.std() > 0.1
        assert (fast(x, t, codes) - expected).abs().max() < TOLERANCE
        # The comparison can fail: each replaced layer has an effect.
        for kind in (SpatialAttention, PointwiseConv2d):
            broken = copy.deepcopy(fast)
            layer: Any = next(module for module in broken.modules() if isinstance(module, kind))
            (layer.proj_out if kind is SpatialAttention else layer).weight.mul_(1.5)
            assert (broken(x, t, codes) - expected).abs().max() > 10 * TOLERANCE


def test_weights_keep_their_names_and_shapes() -> None:
    original = original_unet(1)
    fast = speed_up(original_unet(1))
    state = original.state_dict()
    assert {name: value.shape for name, value in fast.state_dict().items()} == {
        name: value.shape for name, value in state.items()
    }
    fast.load_state_dict(state, strict=True)


def test_gradients_equal_terratorchs() -> None:
    original = original_unet(1)
    fast = speed_up(copy.deepcopy(original))
    x, t, codes = unet_inputs()
    gradients = []
    for unet in (original, fast):
        unet(x, t, codes).square().mean().backward()
        gradients.append({name: p.grad for name, p in unet.named_parameters()})
    for name, expected in gradients[0].items():
        assert torch.allclose(gradients[1][name], expected, rtol=1e-3, atol=1e-5), name


def test_the_generators_are_built_with_them() -> None:
    from terratorch.models.backbones.terramind.tokenizer.models.unet.unet import AttentionBlock

    detokenizer = build_nano().detokenizer
    assert not any(isinstance(module, AttentionBlock) for module in detokenizer.modules())
    assert detokenizer.out[-1].weight.is_contiguous(memory_format=torch.channels_last)


def decode(generator: TerraMindGenerator, timesteps: int) -> Tensor:
    random = torch.Generator().manual_seed(0)
    inputs = {
        "s1": torch.randn(2, 2, 64, 64, generator=random),
        "optical": torch.randn(2, 4, 64, 64, generator=random),
    }
    codes = generator.codes(generator.logits(inputs), (64, 64))
    noise = gaussian_field(sample_seeds(0, 2), (4, 64, 64))
    return generator.decode(codes, noise, build_schedule("ddim", timesteps))


@torch.no_grad()
def test_bfloat16_stays_close() -> None:
    """Of the trained nano, whose z-units are of order 1, at one evaluation; docs/performance.md says how it grows."""
    exact = build_stage3_model(variant="nano").terramind_generator
    rough = copy.deepcopy(exact)
    rough.use_precision(torch.bfloat16)
    expected, actual = decode(exact, 1), decode(rough, 1)
    assert actual.dtype == torch.float32 and expected.std() > 0.1
    error = (actual - expected).square().mean().sqrt()
    assert 0 < error < 1e-2


def test_lower_precision_takes_half_the_memory_and_spares_the_last_layers() -> None:
    generator = random_nano().terramind_generator
    before = sum(p.nbytes for p in generator.parameters())
    generator.use_precision(torch.bfloat16)
    assert sum(p.nbytes for p in generator.parameters()) < 0.55 * before
    assert {p.dtype for p in generator.detokenizer.out.parameters()} == {torch.float32}
    norms = [m for m in generator.modules() if isinstance(m, nn.GroupNorm)]
    assert norms and all(norm.weight.dtype == torch.float32 for norm in norms)


@torch.no_grad()
def test_compiling_changes_neither_names_nor_results() -> None:
    plain = random_nano().terramind_generator
    compiled = copy.deepcopy(plain)
    calls: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Any:
        calls.append(1)
        return graph.forward

    compiled.compile(backend=backend)
    assert (decode(compiled, 2) - decode(plain, 2)).abs().max() < TOLERANCE
    assert calls
    assert compiled.state_dict().keys() == plain.state_dict().keys()
