"""The head: identity at birth, local, within its budget."""

from __future__ import annotations

import torch

from axs_lib.checks import Trust
from axs_lib.grounding.head import GroundingHead


def inputs(side: int = 128, seed: int = 0) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    images = [torch.randn(1, channels, side, side, generator=random) for channels in (2, 4, 4)]
    return images + [0.5 * torch.rand(1, 1, side, side, generator=random) for _ in range(2)]


def test_a_fresh_head_answers_zero() -> None:
    head = GroundingHead()
    assert head.untrained
    assert not head(*inputs()).residual.any()
    torch.nn.init.normal_(head.body.out.weight)
    assert not head.untrained
    assert head(*inputs()).residual.any()


def test_the_filter_follows_the_kind_of_error() -> None:
    """Noise and blur leave other statistics, and what the context makes of them differs: its units are alive."""
    torch.manual_seed(0)
    head = GroundingHead()
    context = head.body.context
    assert context is not None
    torch.nn.init.normal_(context.last.weight)
    s1, estimate, *others = inputs(64)
    smooth = torch.nn.functional.avg_pool2d(estimate, 5, 1, 2)
    noisy, blurred = (head(s1, image, *others).filtered for image in (smooth + 0.2 * estimate, smooth))
    assert noisy.any() and blurred.any()
    assert (noisy.std() / blurred.std() - 1).abs() > 0.1
    head.filter_floor.fill_(1e6)
    assert not head(s1, smooth, *others).filtered.any()


def test_the_filter_of_a_fresh_head_learns() -> None:
    """Its coefficients are exactly 0, and bringing them nearer to 0 leaves them a gradient."""
    head = GroundingHead()
    (head(*inputs(64)).filtered - 1.0).square().sum().backward()
    assert head.body.context is not None
    gradient = head.body.context.last.bias.grad
    assert gradient is not None and gradient[-8:].all()


def test_every_input_matters() -> None:
    head = GroundingHead()
    torch.nn.init.normal_(head.body.out.weight)
    base = head(*inputs(64)).residual
    for index in range(5):
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
