"""Packed bfloat16 layers: the usual layers' results, weights that may change, and the usual way where there is none."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from axs_lib.terramind import packed as module
from axs_lib.terramind.generator import TerraMindGenerator
from axs_lib.terramind.layers import PointwiseConv2d, speed_up
from axs_lib.terramind.packed import PackedConv2d, PackedLinear, packs
from tests.models import random_nano
from tests.published import wide_unet

ROUNDING = 0.02  # of an output of order 1 in bfloat16

needs_packing = pytest.mark.skipif(not packs(), reason="no packed layers in bfloat16 here")


@pytest.fixture(autouse=True)
def _same_numbers() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def conv(stride: int = 1, *, kernel: int = 3, bias: bool = True) -> Any:
    layer = nn.Conv2d(48, 64, kernel, stride=stride, padding=kernel // 2, bias=bias)
    assert PackedConv2d.fits(layer)
    layer.__class__ = PackedConv2d if kernel == 3 else PointwiseConv2d
    return layer.to(torch.bfloat16).requires_grad_(False)


def image(*size: int) -> Tensor:
    return torch.randn(*size).to(torch.bfloat16)


def expected(layer: Any, x: Tensor) -> Tensor:
    bias = None if layer.bias is None else layer.bias.float()
    return F.conv2d(x.float(), layer.weight.float(), bias, layer.stride, layer.padding)


def packings(call: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> int:
    """How many weights a call packs."""
    count = 0
    for name in ("_packed_matrix", "_packed_kernel"):
        real = getattr(module, name)

        def spy(*arguments: Any, real: Callable[..., Tensor] = real) -> Tensor:
            nonlocal count
            count += 1
            return real(*arguments)

        monkeypatch.setattr(module, name, spy)
    call()
    monkeypatch.undo()
    return count


@needs_packing
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_convolution(kernel: int, stride: int, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = conv(stride, kernel=kernel, bias=bias), image(2, 48, 9, 12)
    assert packings(lambda: layer(x), monkeypatch) == 1
    out = layer(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected(layer, x), rtol=0.01, atol=ROUNDING)


@needs_packing
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_shift_and_an_image_are_added(kernel: int) -> None:
    layer, x = conv(kernel=kernel), image(2, 48, 8, 8)
    shift, onto = image(64), image(2, 64, 8, 8)
    before = onto.clone()
    out = layer(x, shift, onto).float()
    sums = expected(layer, x) + shift.float()[:, None, None] + onto.float()
    torch.testing.assert_close(out, sums, rtol=0.01, atol=ROUNDING)
    assert torch.equal(onto, before)


@needs_packing
def test_what_is_added_by_the_convolution_is_rounded_once() -> None:
    layer, x, onto = conv(), image(4, 48, 16, 16), 4.0 * image(4, 64, 16, 16)
    sums = expected(layer, x) + onto.float()
    once, twice = layer(x, None, onto).float(), (layer(x) + onto).float()
    assert (once - sums).square().mean() < (twice - sums).square().mean()


@needs_packing
def test_it_is_the_linear_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(96, 40).to(torch.bfloat16).requires_grad_(False)
    layer.__class__ = PackedLinear
    x = torch.randn(3, 7, 96)
    assert packings(lambda: layer(x), monkeypatch) == 1
    out = layer(x)
    assert out.shape == (3, 7, 40) and out.dtype == torch.bfloat16
    exact = F.linear(x.to(torch.bfloat16).float(), layer.weight.float(), layer.bias.float())
    torch.testing.assert_close(out.float(), exact, rtol=0.01, atol=ROUNDING)


@needs_packing
@pytest.mark.parametrize("change", ["in place", "loaded", "size"])
def test_a_packed_weight_follows_its_weight(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = conv(), image(1, 48, 16, 16)
    layer(x)
    assert packings(lambda: layer(x), monkeypatch) == 0
    if change == "in place":
        layer.weight.mul_(2.0)
    elif change == "loaded":
        layer.load_state_dict({"weight": layer.weight * 2.0, "bias": layer.bias})
    else:
        x = x[..., :8, :8]
    assert packings(lambda: layer(x), monkeypatch) == 1
    torch.testing.assert_close(layer(x).float(), expected(layer, x), rtol=0.01, atol=ROUNDING)


@needs_packing
def test_gradients_and_float32_take_the_usual_way(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = conv(), image(1, 48, 8, 8)
    assert packings(lambda: layer(x.clone().requires_grad_()), monkeypatch) == 0
    layer.requires_grad_(True)
    assert packings(lambda: layer(x).float().sum().backward(), monkeypatch) == 0
    assert layer.weight.grad is not None
    layer.requires_grad_(False).float()
    assert packings(lambda: layer(x.float()), monkeypatch) == 0


@needs_packing
def test_copies_and_pickles_are_layers_of_their_own() -> None:
    layer, x = conv(), image(1, 48, 8, 8)
    before = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), before)
        other.weight.zero_()
        assert torch.equal(layer(x), before)


@pytest.mark.parametrize("lacking", ["support", "layers", "right"])
def test_only_right_layers_are_used(lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if lacking == "support":
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    elif lacking == "layers":
        monkeypatch.setattr(module, "_linear", lambda *_: torch.ops.mkldnn.no_such_layer())
    else:
        monkeypatch.setattr(module, "_linear", lambda *_: torch.zeros(1, 1))
    module._probe.cache_clear()
    try:
        assert not packs()
        layer, x = conv(), image(1, 48, 8, 8)
        torch.testing.assert_close(layer(x).float(), expected(layer, x), rtol=0.01, atol=ROUNDING)
    finally:
        module._probe.cache_clear()


@needs_packing
@torch.no_grad()
@pytest.mark.parametrize("times", [[999], [999, 300]], ids=["one time step", "a time step each"])
def test_a_wide_unet_in_bfloat16_stays_close(times: list[int]) -> None:
    exact = speed_up(wide_unet())
    rough = copy.deepcopy(exact)
    kept = {*rough.out.modules()}
    for part in rough.modules():
        if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d) and part not in kept:
            part.to(torch.bfloat16)
    x, t, codes = torch.randn(2, 12, 64, 64), torch.tensor(times), torch.randn(2, 3, 4, 4)
    before = exact(x, t, codes)
    with torch.autocast("cpu", torch.bfloat16):
        after = rough(x, t, codes)
    assert after.dtype == torch.float32
    assert 0.0 < (after - before).std() < 0.02 * before.std()


@needs_packing
@torch.no_grad()
def test_compiled_it_is_the_same_and_follows_its_weight() -> None:
    layer, x, onto = conv(stride=2), image(2, 48, 9, 16), image(2, 64, 5, 8)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x, None, onto), layer(x, None, onto))
    layer.weight.mul_(2.0)
    assert torch.equal(compiled(x, None, onto), layer(x, None, onto))
    product = nn.Linear(48, 16).to(torch.bfloat16).requires_grad_(False)
    product.__class__ = PackedLinear
    rows = image(5, 48)
    assert torch.equal(torch.compile(product, backend="eager", fullgraph=True)(rows), product(rows))


@needs_packing
def test_the_generators_layers_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of encoder and decoder, and of the detokenizer; and the model can still be saved."""
    generator: TerraMindGenerator = random_nano().terramind_generator
    names = generator.state_dict().keys()
    generator.use_precision(torch.bfloat16)
    x = {"s1": torch.randn(1, 2, 64, 64), "optical": torch.randn(1, 4, 64, 64)}
    linears = sum(isinstance(part, nn.Linear) for part in generator.core.encoder.modules())
    assert linears and packings(lambda: generator.logits(x), monkeypatch) >= linears
    noise, codes = torch.randn(1, 4, 64, 64), torch.rand(1, 3, 4, 4)
    convolutions = sum(isinstance(part, nn.Conv2d) for part in generator.detokenizer.modules())
    call = lambda: generator.denoise_once(noise, torch.tensor([999]), codes)  # noqa: E731
    with torch.no_grad():
        assert packings(call, monkeypatch) >= convolutions - 1  # the last stays in float32
    assert generator.state_dict().keys() == names
