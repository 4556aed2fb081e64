"""The shorter way through a 3 x 3 convolution gives the direct way's numbers, and steps aside where it must."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from axs_lib.terramind import winograd as module
from axs_lib.terramind.layers import speed_up
from axs_lib.terramind.winograd import WinogradConv2d, transform_kernel, winograd
from tests.published import wide_unet

CHANNELS = 192


def layer(bias: bool = True) -> WinogradConv2d:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = nn.Conv2d(CHANNELS, CHANNELS + 8, 3, padding=1, bias=bias)
    assert WinogradConv2d.fits(made)
    made.__class__ = WinogradConv2d
    return made.requires_grad_(False)  # type: ignore[return-value]


def image(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(1))


def direct(made: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, made.weight, made.bias, padding=1)


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("size", [(1, 16, 16), (3, 13, 18), (2, 4, 5), (9, 24, 24)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_convolution(m: int, size: tuple[int, int, int], bias: bool) -> None:
    """Also where tiles overhang the image, and where a batch is worked through in parts (9 images of 36 tiles)."""
    made = layer(bias)
    x = image(size[0], CHANNELS, *size[1:])
    exact = F.conv2d(x.double(), made.weight.double(), None if not bias else made.bias.double(), padding=1)  # type: ignore[union-attr]
    actual = winograd(x, transform_kernel(made.weight, m), made.bias, m)
    assert actual.shape == exact.shape and exact.std() > 0.3
    assert (actual - exact).abs().max() < 1e-5


def test_the_points_keep_the_digit_that_the_usual_ones_lose() -> None:
    made = layer()
    x = image(4, CHANNELS, 32, 32)
    exact = F.conv2d(x.double(), made.weight.double(), made.bias.double(), padding=1)  # type: ignore[union-attr]

    def error(points: tuple[float, ...] | None) -> float:
        module.transforms.cache_clear()
        kept = module.POINTS[4]
        try:
            module.POINTS[4] = points or kept
            return float((winograd(x, transform_kernel(made.weight, 4), made.bias, 4) - exact).abs().max())
        finally:
            module.POINTS[4] = kept
            module.transforms.cache_clear()

    assert error(None) < 0.5 * error((0.0, 1.0, -1.0, 2.0, -2.0))


def ways(made: Callable[[Tensor], Tensor], x: Tensor, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sides of the tiles that a call took the shorter way with."""
    taken: list[int] = []
    real = module.winograd

    def spy(x: Tensor, kernel: Tensor, bias: Tensor | None, m: int) -> Tensor:
        taken.append(m)
        return real(x, kernel, bias, m)

    monkeypatch.setattr(module, "winograd", spy)
    made(x)
    return taken


@pytest.mark.parametrize(
    ("batch", "side", "taken"),
    [(1, 32, [4]), (2, 16, [4]), (1, 16, [2]), (8, 8, [2]), (1, 4, [2]), (9, 2, [])],
)
def test_tiles_fit_the_image(
    batch: int, side: int, taken: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = layer()
    assert ways(made, image(batch, CHANNELS, side, side), monkeypatch) == taken


def test_gradients_lower_precision_and_a_wish_take_the_direct_way(monkeypatch: pytest.MonkeyPatch) -> None:
    made, x = layer(), image(2, CHANNELS, 16, 16)
    assert ways(made, x.clone().requires_grad_(), monkeypatch) == []
    assert ways(made, x.clone().requires_grad_().detach(), monkeypatch) == [4]
    with torch.autocast("cpu", torch.bfloat16):
        assert ways(made, x, monkeypatch) == []
    made.requires_grad_(True)
    assert ways(made, x, monkeypatch) == []
    with torch.no_grad():
        assert ways(made, x, monkeypatch) == [4]
        made.use_winograd(False)
        assert ways(made, x, monkeypatch) == [] and made.weight not in module._kernels
        made.use_winograd(True)
        assert ways(made, x, monkeypatch) == [4]


def test_gradients_are_the_convolutions() -> None:
    made, x = layer().requires_grad_(True), image(1, CHANNELS, 16, 16)
    with torch.no_grad():
        made(x)  # a kept kernel must not be used for the gradient
    made(x).square().sum().backward()
    expected = torch.autograd.grad(direct(made, x).square().sum(), [made.weight])[0]
    assert made.weight.grad is not None
    assert torch.allclose(made.weight.grad, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("change", ["in place", "loaded", "replaced", "another tile side"])
def test_a_kept_kernel_follows_its_weight(change: str) -> None:
    made, x = layer(), image(1, CHANNELS, 16, 16)
    made(x)
    if change == "in place":
        made.weight.mul_(2.0)
    elif change == "loaded":
        made.load_state_dict({"weight": made.weight * 2.0, "bias": made.bias})
    elif change == "replaced":
        made.weight = nn.Parameter(made.weight * 2.0, requires_grad=False)
    else:
        x = x[..., :8, :8]
    assert (made(x) - direct(made, x)).abs().max() < 1e-4


def test_the_weight_of_an_inference_mode_is_followed_too() -> None:
    with torch.inference_mode():
        made, x = layer(), image(1, CHANNELS, 16, 16)
        made.weight = nn.Parameter(made.weight * 1.0, requires_grad=False)
        assert made.weight.is_inference()
        made(x)
        made.weight.mul_(2.0)
        assert (made(x) - direct(made, x)).abs().max() < 1e-4


def test_kernels_live_as_long_as_their_weights() -> None:
    made, x = layer(), image(1, CHANNELS, 16, 16)
    before = len(module._kernels)
    made(x)
    kernel = module.kept_kernel(made.weight, 2)
    made(x)
    assert module.kept_kernel(made.weight, 2) is kernel and len(module._kernels) == before + 1
    assert set(made.state_dict()) == {"weight", "bias"}
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert isinstance(other, WinogradConv2d) and other.weight not in module._kernels
        assert torch.equal(other(x), made(x))
    del made, other
    gc.collect()
    assert len(module._kernels) == before


def test_compiled_it_is_the_same_and_follows_its_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    made, x = layer(), image(2, CHANNELS, 16, 16)
    compiled = torch.compile(made, backend="eager", fullgraph=True)
    assert ways(compiled, x, monkeypatch) == [4]
    assert torch.equal(compiled(x), made(x))
    made.weight.mul_(2.0)
    assert (compiled(x) - direct(made, x)).abs().max() < 1e-4


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv2d(192, 192, 3),
        nn.Conv2d(192, 192, 3, stride=2, padding=1),
        nn.Conv2d(192, 192, 3, padding=1, groups=2),
        nn.Conv2d(192, 192, 3, padding=2, dilation=2),
        nn.Conv2d(192, 192, 5, padding=2),
        nn.Conv2d(192, 192, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(192, 64, 3, padding=1),
        nn.Linear(192, 192),
    ],
    ids=str,
)
def test_other_layers_are_left_alone(other: nn.Module) -> None:
    assert not WinogradConv2d.fits(other)


def test_a_wide_unet_equals_terratorchs() -> None:
    original = wide_unet()
    fast = speed_up(copy.deepcopy(original))
    assert sum(isinstance(part, WinogradConv2d) for part in fast.modules()) >= 8
    x, codes = image(2, 12, 64, 64), image(2, 3, 4, 4)
    with torch.no_grad():
        expected = original(x, torch.tensor([999, 300]), codes)
        actual = fast(x, torch.tensor([999, 300]), codes)
        assert expected.std() > 0.1
        assert (actual - expected).abs().max() < 1e-4
        wide = [part for part in fast.modules() if isinstance(part, WinogradConv2d)]
        assert all(part.weight in module._kernels for part in wide)


def test_nothing_is_left_of_the_image_before() -> None:
    """Its steps reuse their memory: in and out of inference mode, after a larger image, and after one that is NaN."""
    weight, small = torch.randn(192, 192, 3, 3), torch.randn(2, 192, 13, 14)
    kernel = transform_kernel(weight, 4)
    with torch.inference_mode():
        assert winograd(torch.full((3, 192, 32, 32), torch.nan), kernel, None, 4).isnan().all()
    expected = torch.nn.functional.conv2d(small, weight, padding=1)
    with torch.no_grad():
        torch.testing.assert_close(winograd(small, kernel, None, 4), expected, rtol=0, atol=1e-3)
