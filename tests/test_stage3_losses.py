"""Stage 3's loss: Stage 2's, with the SAR's edges and the tokens where they are given."""

from __future__ import annotations

import math

import pytest
import torch

from axs_lib.errors import InputError
from axs_lib.metrics import compute_metrics
from axs_lib.stage2_losses import Stage2Loss
from axs_lib.stage3_losses import IGNORED_TOKEN, Stage3Loss, token_cross_entropy
from tests.models import plausible_pair
from tests.test_stage2_losses import terms_of


def scene(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(SAR, an image that shares its fields, one that does not)."""
    s1, other = plausible_pair(batch, 64, 64)
    fields = s1.mean(1, keepdim=True)
    return s1, (fields * 100 + 3000).expand(-1, 4, -1, -1).clone(), other


def test_it_is_stage_2s_loss_where_nothing_else_is_given() -> None:
    _, image, truth = scene()
    assert torch.equal(Stage3Loss()(image, truth), Stage2Loss()(image, truth))
    assert torch.equal(Stage3Loss(l1=2.0, sam=0.0)(image, truth), Stage2Loss(l1=2.0, sam=0.0)(image, truth))
    assert set(terms_of(Stage3Loss(), image, truth)) == set(terms_of(Stage2Loss(), image, truth))


def test_the_sar_term_falls_with_agreement() -> None:
    s1, alike, other = scene()
    criterion = Stage3Loss(sar=1.0)
    near, far = (terms_of(criterion, image, alike, s1=s1)["sar"] for image in (alike, other))
    assert near == pytest.approx(0.0, abs=1e-3) and far > 0.5
    assert torch.allclose(criterion(other, alike, s1=s1), Stage2Loss()(other, alike) + far)
    assert terms_of(criterion, 3 * alike + 40, alike, s1=s1)["sar"] == pytest.approx(0.0, abs=1e-3)


def test_the_sar_term_is_the_metric_it_trains() -> None:
    s1, alike, other = scene(1)
    image = alike + 2 * other
    metric = compute_metrics(image, alike, s1=s1)["edge_sar"]
    assert 1 - float(terms_of(Stage3Loss(), image, alike, s1=s1)["sar"]) == pytest.approx(metric, abs=0.01)


def test_flat_images_have_no_structure_and_finite_gradients() -> None:
    s1 = scene(1)[0]
    flat = torch.full((1, 4, 64, 64), 500.0, requires_grad=True)
    loss = Stage3Loss(sar=1.0)(flat, flat.detach(), s1=s1)
    loss.backward()
    assert loss.item() == pytest.approx(Stage2Loss()(flat, flat.detach()).item() + 1.0, abs=2e-3)
    assert flat.grad is not None and flat.grad.isfinite().all()


def test_pixels_without_sar_or_truth_do_not_count() -> None:
    s1, alike, other = scene()
    mask = torch.ones(2, 1, 64, 64, dtype=torch.bool)
    mask[:, :, 10:30, 12:20] = False
    expected = terms_of(Stage3Loss(), other, alike, mask, s1=s1)["sar"]
    for fill in (0.0, 1e4, torch.nan):
        filled = [torch.where(mask, image, fill) for image in (other, alike, s1)]
        assert torch.equal(terms_of(Stage3Loss(), filled[0], filled[1], mask, s1=filled[2])["sar"], expected)
    holed = s1.masked_fill(~mask, torch.nan)
    assert torch.equal(terms_of(Stage3Loss(), other, alike, s1=holed)["sar"], expected)
    # Elsewhere the other terms still count pixels without SAR.
    assert torch.equal(terms_of(Stage3Loss(), other, alike, s1=holed)["l1"], terms_of(Stage2Loss(), other, alike)["l1"])


def test_token_cross_entropy() -> None:
    logits = torch.zeros(2, 3, 8, requires_grad=True)
    targets = torch.tensor([[0, 1, 2], [3, IGNORED_TOKEN, 7]])
    assert token_cross_entropy(logits, targets).item() == pytest.approx(math.log(8))
    sharp = torch.zeros(2, 3, 8)
    sharp[0, [0, 1, 2], [0, 1, 2]] = 50.0
    sharp[1, [0, 2], [3, 7]] = 50.0
    sharp[1, 1] = torch.randn(8)
    assert token_cross_entropy(sharp, targets) < 1e-3
    assert token_cross_entropy(sharp, torch.full_like(targets, IGNORED_TOKEN)) == 0
    _, image, truth = scene()
    with_tokens = Stage3Loss(tokens=0.5)(image, truth, logits=logits, targets=targets)
    assert with_tokens.item() == pytest.approx(float(Stage2Loss()(image, truth)) + 0.5 * math.log(8), rel=1e-5)
    with_tokens.backward()
    assert logits.grad is not None and not logits.grad[1, 1].any() and logits.grad[0].any()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"s1": torch.zeros(2, 2, 64, 63)}, "s1 has shape"),
        ({"logits": torch.zeros(2, 3, 8)}, "logits and targets together"),
        ({"logits": torch.zeros(2, 3, 8), "targets": torch.zeros(2, 4, dtype=torch.int64)}, "logits have shape"),
        ({"logits": torch.zeros(2, 3, 8), "targets": torch.full((2, 3), 8)}, "expected tokens from 0 to 7"),
    ],
)
def test_wrong_inputs_are_refused(given: dict[str, torch.Tensor], message: str) -> None:
    _, image, truth = scene()
    with pytest.raises(InputError, match=message):
        Stage3Loss()(image, truth, **given)
    with pytest.raises(InputError, match="weight of sar is -1"):
        Stage3Loss(sar=-1.0)
