"""What packaged nano does to the packaged tiles, so that no change of code or weights spoils it unseen.

``EXPECTED`` holds the figures of the weights in the package. New weights get new figures, and a commit that says so.
"""

from __future__ import annotations

import pytest
import torch

from axs_lib.data.estimates import make_estimate
from axs_lib.data.samples import load_sample
from axs_lib.evaluate.gaps import simulated_trust
from axs_lib.evaluate.sources import simulated_estimate
from axs_lib.metrics import compute_metrics
from axs_lib.stage3_tm_ground import Stage3GroundingModel, build_stage3_model

# MSE in 10⁻⁴ of reflectance squared, of opt_v3 from the simulated estimate, and of a filled gap inside it; RMS in DN of
# what the truth itself is changed by.
EXPECTED = {
    "finland_lake": (3.000, 8.210, 0.0),
    "ireland_fields": (4.798, 14.628, 0.0),
    "portugal_hills": (4.762, 7.969, 0.0),
}
# RMS in DN of what is changed of estimates of some kinds, which any other statistic, limit or rule would move.
KINDS = ("patch_offsets", "one_way_blur", "stripes", "white_noise")
CHANGED = {
    "finland_lake": (48.94, 0.22, 15.18, 35.72),
    "ireland_fields": (47.11, 1.65, 9.56, 43.99),
    "portugal_hills": (49.29, 0.25, 4.42, 29.96),
}
TOLERANCE = 0.05
TOLERANCE_DN = 1.0


@pytest.fixture(scope="module")
def nano() -> Stage3GroundingModel:
    return build_stage3_model(1, variant="nano")


@pytest.mark.parametrize("name", EXPECTED)
def test_nano_is_what_it_was(nano: Stage3GroundingModel, name: str) -> None:
    sar, optical = load_sample(name)
    s1, truth = torch.from_numpy(sar.batch), torch.from_numpy(optical.batch)
    wanted_estimate, wanted_gap, wanted_change = EXPECTED[name]

    opt_v2 = simulated_estimate(truth[0], name)[None]
    before, after = (1e4 * compute_metrics(image, truth)["mse"] for image in (opt_v2, nano.ground(s1, opt_v2).image))
    assert after == pytest.approx(wanted_estimate, rel=TOLERANCE)
    assert after < 0.9 * before

    trust = simulated_trust(truth[0], name)[None]
    filled = nano.ground(s1, truth.masked_fill(trust == 0, torch.nan), trust=trust).image
    assert torch.equal(filled[:, :, trust[0, 0] == 1], truth[:, :, trust[0, 0] == 1]), "clear pixels, bit for bit"
    inside = 1e4 * compute_metrics(filled, truth, mask=trust == 0)["mse"]
    assert inside == pytest.approx(wanted_gap, rel=TOLERANCE)

    changed = float((nano.ground(s1, truth).image - truth).square().mean().sqrt())
    assert changed == pytest.approx(wanted_change, abs=TOLERANCE_DN)


@pytest.mark.parametrize("name", CHANGED)
def test_nano_changes_each_kind_of_error_as_it_did(nano: Stage3GroundingModel, name: str) -> None:
    sar, optical = load_sample(name)
    s1, truth = torch.from_numpy(sar.batch), torch.from_numpy(optical.batch)
    for kind, expected in zip(KINDS, CHANGED[name], strict=True):
        opt_v2 = make_estimate(kind, truth, generator=torch.Generator().manual_seed(0), strength=0.8)
        changed = float((nano.ground(s1, opt_v2).image - opt_v2).square().mean().sqrt())
        assert changed == pytest.approx(expected, rel=0.02, abs=0.02), kind
