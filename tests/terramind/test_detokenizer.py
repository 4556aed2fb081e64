"""The detokenizer equals terratorch's U-Net; lower precision and compilation change next to nothing."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from axs_lib.errors import InputError
from axs_lib.stage3_tm_ground import build_stage3_model
from axs_lib.terramind.detokenizer import Detokenizer, SpatialAttention, Upsample
from axs_lib.terramind.generator import TerraMindGenerator
from axs_lib.terramind.noise import gaussian_field, sample_seeds
from axs_lib.terramind.sampler import build_schedule
from axs_lib.terramind.winograd import WinogradConv2d
from benchmarks.measure import redraw_zero_parameters
from tests.models import random_nano, z_inputs

TOLERANCE = 1e-4  # z-units, of an output of order 1


def unet_inputs(channels: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, 64, 64, generator=random)
    return x, torch.tensor([999, 300]), torch.rand(2, 3, 4, 4, generator=random)


def terratorch_unet(channels: int, width: int, multipliers: tuple[int, ...]) -> Any:
    """terratorch's conditional U-Net with random weights, nothing zero, one residual block a level, and these sizes."""
    from terratorch.models.backbones.terramind.tokenizer.models.unet.unet import PatchedUNetCondCat

    torch.set_float32_matmul_precision("highest")  # which the import lowered
    torch.manual_seed(0)
    sizes = {"in_channels": channels, "out_channels": channels, "model_channels": width, "channel_mult": multipliers}
    unet = PatchedUNetCondCat(**sizes, cond_channels=3, patch_size=4, num_res_blocks=1, attention_resolutions=[2])
    redraw_zero_parameters(unet)
    return unet.eval()


def our_unet(original: Any) -> Detokenizer:
    """Our detokenizer with the weights of ``terratorch_unet``."""
    levels = {"multipliers": original.channel_mult, "residual_blocks": 1, "attention": (2,)}
    ours = Detokenizer(original.in_channels, 3, width=original.model_channels, **levels)
    ours.load_state_dict(original.state_dict(), strict=True)
    return ours.eval()


@pytest.mark.parametrize("wide", [False, True])
def test_it_equals_terratorchs(wide: bool) -> None:
    """Also as wide as the layers of the published variants that are sped up."""
    original = terratorch_unet(12, 192, (1, 1)) if wide else terratorch_unet(4, 32, (1, 2))
    ours = our_unet(original)
    assert (sum(isinstance(part, WinogradConv2d) for part in ours.modules()) >= 8) or not wide
    x, t, codes = unet_inputs(original.in_channels)
    with torch.no_grad():
        expected = original(x, t, codes)
        assert expected.std() > 0.1
        assert (ours(x, t, codes) - expected).abs().max() < TOLERANCE
        # The comparison can fail: the layer that is other than terratorch's has an effect.
        broken = copy.deepcopy(ours)
        next(module for module in broken.modules() if isinstance(module, SpatialAttention)).proj_out.weight.mul_(1.5)
        assert (broken(x, t, codes) - expected).abs().max() > 10 * TOLERANCE
        for part in ours.modules():
            if isinstance(part, WinogradConv2d):
                part.use_winograd(False)
        assert (ours(x, t, codes) - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("side", [4, 8, 12])
def test_upsampling_is_repetition_and_a_convolution(side: int) -> None:
    """To the borders and in its gradients, also where it is made of sums of the taps."""
    layer: Any = Upsample(64)
    x = torch.randn(2, 64, side, side + 4, requires_grad=True)
    plain, out = layer.conv(layer.repeat(x)), layer(x)
    assert plain.std() > 0.1 and (out - plain).abs().max() < 1e-5 and torch.equal(out, plain) == (side == 4)
    gradients = [torch.autograd.grad(image.square().sum(), (x, *layer.parameters())) for image in (out, plain)]
    assert all(torch.allclose(one, other, rtol=1e-4, atol=1e-3) for one, other in zip(*gradients, strict=True))


def decode(generator: TerraMindGenerator, timesteps: int) -> Tensor:
    codes = generator.codes(generator.logits(z_inputs()), (64, 64))
    noise = gaussian_field(sample_seeds(0, 2), (4, 64, 64))
    return generator.decode(codes, noise, build_schedule("ddim", timesteps))


@torch.no_grad()
def test_bfloat16_stays_close_and_repeats() -> None:
    """Of the trained nano, whose z-units are of order 1, at one evaluation."""
    exact = build_stage3_model(variant="nano").terramind_generator
    rough = copy.deepcopy(exact)
    rough.use_precision(torch.bfloat16)
    expected, actual = decode(exact, 1), decode(rough, 1)
    assert actual.dtype == torch.float32 and expected.std() > 0.1
    error = (actual - expected).square().mean().sqrt()
    assert 0 < error < 1e-2
    assert torch.equal(decode(rough, 1), actual)
    with pytest.raises(InputError, match="batch_size is -1; expected an integer of at least 0"):
        exact.decode(actual, actual, build_schedule("ddim", 1), batch_size=-1)


@torch.no_grad()
def test_bfloat16_can_be_saved_copied_and_pickled() -> None:
    rough = random_nano().terramind_generator
    rough.use_precision(torch.bfloat16)
    file = io.BytesIO()
    torch.save(rough.state_dict(), file)
    file.seek(0)
    again = random_nano(seed=1).terramind_generator
    again.use_precision(torch.bfloat16)
    again.load_state_dict(torch.load(file, weights_only=True), strict=True)
    expected = decode(rough, 2)
    for other in (again, copy.deepcopy(rough), pickle.loads(pickle.dumps(rough))):
        assert torch.equal(decode(other, 2), expected)


def test_lower_precision_takes_half_the_memory_and_spares_the_last_layers() -> None:
    generator = random_nano().terramind_generator
    before = sum(p.nbytes for p in generator.parameters())
    generator.use_precision(torch.bfloat16)
    assert sum(p.nbytes for p in generator.parameters()) < 0.55 * before
    assert {p.dtype for p in generator.detokenizer.out.parameters()} == {torch.float32}
    norms = [m for m in generator.modules() if isinstance(m, nn.GroupNorm)]
    assert norms and all(norm.weight.dtype == torch.float32 for norm in norms)
    for other in (torch.int8, torch.float64):
        with pytest.raises(InputError, match=r"expected torch\.bfloat16"):
            generator.use_precision(other)


@torch.no_grad()
def test_compiling_changes_neither_names_nor_results() -> None:
    plain = random_nano().terramind_generator
    compiled = copy.deepcopy(plain)
    calls: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Any:
        calls.append(1)
        return graph.forward

    compiled.compile_denoiser(backend=backend)
    assert (decode(compiled, 2) - decode(plain, 2)).abs().max() < TOLERANCE
    assert calls and compiled.state_dict().keys() == plain.state_dict().keys()
