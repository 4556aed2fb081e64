"""The head: zero when fresh, and both of its inputs reach every pixel of its answer."""

from __future__ import annotations

import pytest
import torch

from axs_lib.prithvi.head import RefinementHead


@pytest.fixture
def head() -> RefinementHead:
    return RefinementHead(dim=32, taps=2)


def _inputs(side: int = 32, grid: int = 4) -> tuple[torch.Tensor, list[torch.Tensor]]:
    return torch.randn(1, 4, side, side), [torch.randn(1, 32, grid, grid) for _ in range(2)]


def test_a_fresh_head_answers_zero_and_knows_it(head: RefinementHead) -> None:
    assert head.untrained
    assert not head(*_inputs()).any()


@pytest.mark.parametrize(("side", "grid"), [(32, 4), (56, 4), (64, 4)])
@torch.no_grad()
def test_any_patch_size_comes_up_to_full_resolution(head: RefinementHead, side: int, grid: int) -> None:
    """Patches of 8, 14 and 16 pixels."""
    torch.nn.init.normal_(head.out.weight)
    image, features = _inputs(side, grid)
    answer = head(image, features)
    assert answer.shape == image.shape
    assert answer.std() > 0.1
    features[0][:, :16, 0, 0] += 10.0
    moved = (head(image, features) - answer).abs().amax(1)[0]
    assert moved[: side // grid, : side // grid].mean() > moved[side // 2 :, side // 2 :].mean()


@torch.no_grad()
def test_single_pixels_are_seen(head: RefinementHead) -> None:
    torch.nn.init.normal_(head.out.weight)
    image, features = _inputs()
    changed = image.clone()
    changed[0, 2, 13, 17] += 5.0
    moved = (head(changed, features) - head(image, features)).abs().amax(1)[0]
    assert divmod(int(moved.argmax()), 32)[0] in range(10, 17) and moved[0, 0] < moved.max() / 100
