"""The shorter way through a 3 x 3 convolution gives the direct way's numbers, and steps aside where it must."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from axs_lib.terramind import winograd as module
from axs_lib.terramind.winograd import WinogradConv2d, checked_once, transform_kernel, winograd

CHANNELS = 192


def layer(bias: bool = True, channels: int = CHANNELS) -> WinogradConv2d:
    made = WinogradConv2d(channels, channels + 8)
    if not bias:
        made.bias = None
    return made.requires_grad_(False)


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


@pytest.mark.parametrize(
    ("batch", "side", "taken"), [(1, 32, 4), (2, 16, 4), (1, 16, 2), (8, 8, 2), (1, 4, 2), (9, 2, 0)]
)
def test_tiles_fit_the_image(batch: int, side: int, taken: int) -> None:
    made = layer()
    x = image(batch, CHANNELS, side, side)
    assert made.tile_side(x) == taken
    assert (made(x) - direct(made, x)).abs().max() < 1e-4


def test_gradients_lower_precision_and_a_wish_take_the_direct_way() -> None:
    made, x = layer(), image(2, CHANNELS, 16, 16)
    assert made.tile_side(x) == 4
    assert made.tile_side(x.clone().requires_grad_()) == 0
    assert made.tile_side(x.double()) == 0
    with torch.autocast("cpu", torch.bfloat16):
        assert made.tile_side(x) == 0
    made.requires_grad_(True)
    assert made.tile_side(x) == 0
    with torch.no_grad():
        assert made.tile_side(x) == 4
        made.use_winograd(False)
        assert made.tile_side(x) == 0
        made.use_winograd(True)
        assert made.tile_side(x) == 4


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_takes_small_tiles_between_many_channels(autocast: bool) -> None:
    """And rounds little; also under autocast, which would round the checksum, a small change of a weight is seen."""
    exact, x = layer(channels=512), image(2, 512, 16, 16)
    made, low, expected = copy.deepcopy(exact).bfloat16(), x.bfloat16(), direct(exact, x)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert layer().bfloat16().tile_side(low[:, :CHANNELS]) == made.tile_side(x) == 0 < made.tile_side(low) == 2
        error = (made(low).float() - expected).square().mean().sqrt() / expected.std()
        made.weight[3, 5, 1, 1] += 2.0**-12
        assert torch.equal(made.kernel(2), transform_kernel(made.weight, 2))
    assert 0.002 < error < 0.0065


def test_products_that_the_process_rounds_take_the_direct_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after ``import terratorch`` on a processor that multiplies bfloat16."""
    made, x = layer(), image(2, CHANNELS, 16, 16)
    assert module.products_are_full()
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: torch.mm(a.bfloat16(), b.bfloat16()).float())
    assert not module.products_are_full() and made.tile_side(x) == 0
    assert torch.equal(made(x), direct(made, x))


@pytest.mark.parametrize(
    "change",
    [
        lambda made: made.weight.mul_(2.0),
        lambda made: made.weight[3, 5, 1, 1].add_(0.5),
        lambda made: made.weight[:2, 5, 1, 1].add_(torch.tensor([0.5, -0.5])),  # the sum of the middle taps stays
        lambda made: made.weight[3, 5, 0].add_(torch.tensor([0.5, 0.0, -0.5])),  # that of the filter, too
        lambda made: made.weight.copy_(made.weight.flip(0)),  # every filter is there still
        lambda made: made.weight.copy_(made.weight.flip(1)),
        lambda made: made.load_state_dict({"weight": made.weight * 2.0, "bias": made.bias}),
        lambda made: setattr(made, "weight", nn.Parameter(made.weight * 2.0, requires_grad=False)),
    ],
)
@pytest.mark.parametrize("inference", [False, True])
def test_the_transformed_kernel_follows_its_weight(change: Callable[[nn.Conv2d], object], inference: bool) -> None:
    with torch.inference_mode(inference):
        made, x = layer(), image(1, CHANNELS, 16, 16)
        before = made(x)
        change(made)
        assert (made(x) - direct(made, x)).abs().max() < 1e-4
        assert (made(x) - before).abs().max() > 0.1
        small = x[..., :8, :8]  # another side of the tiles
        assert (made(small) - direct(made, small)).abs().max() < 1e-4


def test_a_decoding_looks_at_the_weights_once_and_the_next_one_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made, x, seen = layer(), image(1, CHANNELS, 16, 16), []
    checksum = module.checksum
    monkeypatch.setattr(module, "checksum", lambda weight: seen.append(1) or checksum(weight))
    with checked_once(nn.Sequential(made)):
        before = made(x)
        assert torch.equal(made(x), before) and len(seen) == 1
    made.weight.mul_(2.0)
    with checked_once(made):
        assert (made(x) - direct(made, x)).abs().max() < 1e-4 and len(seen) == 2
    made(x)
    made(x)
    assert len(seen) == 4


def test_the_transformed_kernel_is_kept_and_neither_saved_nor_copied() -> None:
    made, x = layer(), image(1, CHANNELS, 16, 16)
    size = len(pickle.dumps(made))
    expected = made(x)
    assert made.kernel(2) is made.kernel(2)
    assert set(made.state_dict()) == {"weight", "bias"}
    assert len(pickle.dumps(made)) == size
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert torch.equal(other(x), expected)
