"""The head: features of any patch size reach the pixels that they lie under."""

from __future__ import annotations

import pytest
import torch

from axs_lib.prithvi.head import RefinementHead


@pytest.mark.parametrize(("side", "grid"), [(32, 4), (56, 4), (64, 4)])
@torch.no_grad()
def test_any_patch_size_comes_up_to_full_resolution(side: int, grid: int) -> None:
    """Patches of 8, 14 and 16 pixels."""
    head = RefinementHead(dim=32, taps=2)
    torch.nn.init.normal_(head.out.weight)
    image, features = torch.randn(1, 4, side, side), [torch.randn(1, 32, grid, grid) for _ in range(2)]
    answer = head(image, features)
    assert answer.shape == image.shape
    assert answer.std() > 0.1
    features[0][:, :16, 0, 0] += 10.0
    moved = (head(image, features) - answer).abs().amax(1)[0]
    assert moved[: side // grid, : side // grid].mean() > moved[side // 2 :, side // 2 :].mean()
