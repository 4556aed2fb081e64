"""The head: identity at birth, local, within its budget."""

from __future__ import annotations

import math

import torch
from torch.utils.flop_counter import FlopCounterMode

from axs_lib.grounding.difference import difference_correction
from axs_lib.grounding.head import HALF_CHANNELS, INPUT_CHANNELS, GroundingHead
from axs_lib.grounding.unet import DETAIL_SIGMAS_PX
from tests.models import random_nano


def inputs(side: int = 128, seed: int = 0) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(1, channels, side, side, generator=random) for channels in (2, 4, 4, 1, 1)]


def test_a_fresh_head_answers_zero() -> None:
    head = GroundingHead()
    assert head.untrained
    assert not head(*inputs()).residual.any()
    torch.nn.init.normal_(head.body.out.weight)
    assert not head.untrained
    assert head(*inputs()).residual.any()


def test_every_input_matters() -> None:
    head = GroundingHead()
    torch.nn.init.normal_(head.body.out.weight)
    base = head(*inputs(64)).residual
    for index in range(5):
        changed = inputs(64)
        changed[index] = changed[index] + 1.0
        assert (head(*changed).residual - base).abs().max() > 1e-3, index


def test_gate_and_error_are_bounded_and_release_by_what_the_sar_contradicts_or_nobody_saw() -> None:
    head = GroundingHead()
    torch.nn.init.normal_(head.body.out.weight, std=50.0)
    s1, estimate, proposal, _, _ = inputs(64)
    trust = torch.full((1, 1, 64, 64), 0.5)
    trust[..., :16], trust[..., 48:] = 0.0, 1.0
    sar_inconsistency = torch.zeros_like(trust)
    sar_inconsistency[..., 40:] = 0.25
    out = head(s1, estimate, proposal, trust, sar_inconsistency)
    assert out.gate.min() >= 0 and out.gate.max() <= 1
    assert out.release[..., :16].max() > 0.5
    assert not out.release[..., 16:40].any()
    assert 0.1 < out.release[..., 40:].max() <= 0.25
    assert out.error is not None and out.error.min() > 0 and torch.isfinite(out.error).all()


@torch.no_grad()
def test_nano_head_and_one_step_stay_within_two_gflop() -> None:
    """The budget of a 128 px tile, counting a multiply-add as two operations.

    The blurs of the detail run as products with matrices that are mostly zero; they count by their taps.
    """
    model = random_nano()
    z = torch.zeros(1, 4, 128, 128)
    with FlopCounterMode(display=False) as counter:
        model.head.body(torch.zeros(1, INPUT_CHANNELS, 128, 128), torch.zeros(1, HALF_CHANNELS, 64, 64))
        model.terramind_generator.denoise_once(z, torch.tensor([999]), torch.zeros(1, 3, 8, 8))
    taps = sum(2 * math.ceil(3 * sigma) + 1 for sigma in DETAIL_SIGMAS_PX)
    blurs = 2 * 2 * taps * z.numel()
    assert 0.5e9 < counter.get_total_flops() + blurs < 2.0e9
    assert model.terramind_generator.codebook.shape[0] <= 512


def test_difference_is_zero_where_the_sar_changes_nothing_and_weighted_by_confidence() -> None:
    image = torch.randn(1, 4, 32, 32)
    confidence, sar_inconsistency = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]]), torch.rand(1, 1, 32, 32)
    assert not difference_correction(image, image, confidence, sar_inconsistency).residual.any()
    out = difference_correction(image + 1, image, confidence, sar_inconsistency)
    assert torch.allclose(out.residual, torch.ones_like(image))
    assert out.gate[..., 0].max() == 0 and out.gate[..., -1].min() == 1
    assert torch.equal(out.release, sar_inconsistency)
