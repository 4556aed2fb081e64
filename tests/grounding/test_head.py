"""The head: identity at birth, local, within its budget."""

from __future__ import annotations

import torch

from axs_lib.checks import Trust
from axs_lib.grounding.head import GroundingHead
from axs_lib.grounding.tile_filter import STATISTICS


def inputs(side: int = 128, seed: int = 0) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    images = [torch.randn(1, channels, side, side, generator=random) for channels in (2, 4, 4)]
    maps = [0.5 * torch.rand(1, 1, side, side, generator=random) for _ in range(2)]
    return [*images, *maps, torch.randn(1, STATISTICS, generator=random)]


def filtered(head: GroundingHead, estimate: torch.Tensor, trust: torch.Tensor | None = None) -> torch.Tensor:
    height, width = estimate.shape[-2:]
    trust = torch.full_like(estimate[:, :1], Trust.ESTIMATE) if trust is None else trust
    return head.filtered(inputs(width)[0][..., :height, :], estimate, trust, (height, width))[0]


def test_a_fresh_head_answers_zero() -> None:
    head = GroundingHead()
    in_blocks = 0.1 * inputs()[1] + inputs(16)[1].repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert head.untrained and not head(*inputs()).residual.any() and not filtered(head, in_blocks).any()
    torch.nn.init.normal_(head.body.out.weight)
    assert head(*inputs()).residual.any() and not bool(head.untrained)
    head.levelled.fill_(1.0)
    assert filtered(head, in_blocks[..., :64, :]).any()


def test_the_filter_follows_the_kind_of_error() -> None:
    """Noise and blur leave other statistics, and what the filter makes of them differs: its units are alive."""
    torch.manual_seed(0)
    head = GroundingHead()
    torch.nn.init.normal_(head.filter.last.weight)
    estimate = inputs(64)[1]
    smooth = torch.nn.functional.avg_pool2d(estimate, 5, 1, 2)
    noisy, blurred = (filtered(head, image) for image in (smooth + 0.2 * estimate, smooth))
    assert noisy.any() and blurred.any()
    assert (noisy.std() / blurred.std() - 1).abs() > 0.1
    head.filter_floor.fill_(1e6)
    assert not filtered(head, smooth).any()


def test_the_filter_leaves_what_is_no_estimate() -> None:
    """Observed and unknown pixels are not filtered, and have no part in the statistics."""
    head = GroundingHead()
    torch.nn.init.normal_(head.filter.last.weight)
    estimate = inputs(64)[1]
    trust = torch.full_like(estimate[:, :1], Trust.ESTIMATE)
    trust[..., :20], trust[..., 50:] = Trust.UNKNOWN, Trust.OBSERVED
    change = filtered(head, estimate, trust)
    assert change[..., 20:50].all() and not change[..., :20].any() and not change[..., 50:].any()
    other = estimate.clone()
    other[..., :12], other[..., 58:] = 3.0, -1.0
    assert torch.allclose(filtered(head, other, trust)[..., 30:40], change[..., 30:40], rtol=0.05, atol=1e-3)


def test_the_filter_of_a_fresh_head_learns() -> None:
    head = GroundingHead()
    (filtered(head, inputs(64)[1]) - 1.0).square().sum().backward()
    gradient = head.filter.last.bias.grad
    assert gradient is not None and gradient.all()


def test_every_input_matters() -> None:
    head = GroundingHead()
    assert head.body.context is not None
    torch.nn.init.normal_(head.body.context.last.weight)
    torch.nn.init.normal_(head.body.out.weight)
    base = head(*inputs(64)).residual
    for index in range(6):
        changed = inputs(64)
        changed[index] = changed[index] + 0.5
        assert (head(*changed).residual - base).abs().max() > 1e-3, index


def test_gate_mask_and_error_are_bounded() -> None:
    head = GroundingHead()
    torch.nn.init.normal_(head.body.out.weight, std=50.0)
    out = head(*inputs(64))
    for part in (out.gate, out.missed_water):
        assert part.min() >= 0 and part.max() <= 1
    assert out.error.min() > 0 and torch.isfinite(out.error).all()


def test_gates_under_the_floor_are_closed_except_in_gaps() -> None:
    head, given = GroundingHead(), inputs(64)  # a fresh head's gates are one half
    given[3][..., :32], given[3][..., 32:] = Trust.UNKNOWN, Trust.ESTIMATE
    head.gate_floor.fill_(0.6)
    gate = head(*given).gate
    assert (gate[..., :32] == 0.5).all() and not gate[..., 32:].any()
