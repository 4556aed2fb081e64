"""Observed pixels stay, gaps meet them smoothly."""

from __future__ import annotations

import torch

from axs_lib.grounding.gap import fit_to_observed


def test_a_change_is_zero_where_observed_and_meets_it_at_the_border() -> None:
    trust = torch.ones(1, 1, 64, 64)
    trust[..., 20:44, 20:44] = 0.0
    change = torch.full((1, 4, 64, 64), 100.0)  # a constant offset: the network's error at observed pixels
    fitted = fit_to_observed(change, trust)
    assert not fitted[trust.expand_as(fitted) == 1].any()
    border, middle = fitted[..., 20, 32].abs().max(), fitted[..., 32, 32].min()
    assert border < 20.0  # the offset is taken off at the border
    assert middle > 90.0 and fitted[..., 27, 32].min() > 90.0  # and stays where nothing was observed nearby
    for trust_value, share in ((0.25, 1.0), (0.5, 1.0), (0.75, 0.5)):
        assert torch.allclose(fit_to_observed(change, torch.full_like(trust, trust_value)), share * change)
