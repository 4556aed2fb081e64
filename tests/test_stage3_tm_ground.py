"""Stage 3: identity where it must be, independence of batch and place, any size, nodata, seeds, gradients, traps."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from axs_lib.checks import Trust
from axs_lib.errors import InputError
from axs_lib.grounding.head import GroundingHead
from axs_lib.stage1_tm_s2o import Stage1Model
from axs_lib.stage3_tm_ground import (
    CORRECTION_MODES,
    GroundingControls,
    Stage3GroundingModel,
    Stage3Output,
    UntrainedHeadWarning,
    build_stage3_model,
    stage3_batch_inference,
    stage3_inference,
)
from axs_lib.terramind.sampler import SCHEDULERS
from tests.models import plausible_pair, random_nano


@pytest.fixture(scope="module")
def nano() -> Stage3GroundingModel:
    return random_nano()


@torch.no_grad()
def ground(model: Stage3GroundingModel, *pair: torch.Tensor, **options: object) -> Stage3Output:
    return model.ground(*pair, **({"timesteps": 2} | options))  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", CORRECTION_MODES)
def test_it_does_something(nano: Stage3GroundingModel, mode: str) -> None:
    """Guards every identity test below: with random weights the correction is not zero."""
    s1, opt_v2 = plausible_pair()
    out = ground(nano, s1, opt_v2, correction_mode=mode)
    assert (out.image - opt_v2).abs().max() > (1.0 if mode == "learned" else 1e-3)
    assert out.proposal.std() > 10.0
    other = ground(nano, -s1 - 30.0, opt_v2, correction_mode=mode)
    assert (out.image - other.image).abs().max() > 1e-3


def test_a_fresh_head_returns_opt_v2_bit_for_bit_and_says_so() -> None:
    s1, opt_v2 = plausible_pair()
    model = random_nano()
    model.corrector.head = GroundingHead()
    with pytest.warns(UntrainedHeadWarning, match="nano|difference"):
        assert torch.equal(ground(model, s1, opt_v2).image, opt_v2)
    # The way that needs no training is the default of a fresh build.
    assert build_stage3_model(pretrained=False, variant="nano").correction_mode == "difference"


@pytest.mark.parametrize("mode", CORRECTION_MODES)
def test_strength_zero_returns_opt_v2_bit_for_bit(nano: Stage3GroundingModel, mode: str) -> None:
    """In float64, and values outside the valid range, too."""
    s1, opt_v2 = plausible_pair(height=40, width=72)
    opt_v2 = opt_v2.double() + 1e-9
    opt_v2[0, 0, 0, 0] = 0.25
    out = ground(nano, s1, opt_v2, strength=0.0, correction_mode=mode, ensemble_size=2)
    assert torch.equal(out.image, opt_v2)
    assert out.nfe == 0
    assert out.uncertainty is not None and not out.uncertainty.any()


@pytest.mark.parametrize("mode", CORRECTION_MODES)
@pytest.mark.parametrize("tokens", ["soft", "argmax", "sample"])
def test_a_tile_does_not_depend_on_its_batch(nano: Stage3GroundingModel, mode: str, tokens: str) -> None:
    """Within 1 DN, whatever the mates, the place and the batch size; terratorch's result depends on all three."""
    s1, opt_v2 = plausible_pair(3)
    options = {"correction_mode": mode, "tokens": tokens, "ensemble_size": 2}
    whole = ground(nano, s1, opt_v2, **options)
    for place in range(3):
        alone = ground(nano, s1[place : place + 1], opt_v2[place : place + 1], **options)
        assert (alone.image - whole.image[place]).abs().max() < 1.0
    turned = ground(nano, s1.flip(0), opt_v2.flip(0), batch_size=2, **options)
    assert (turned.image.flip(0) - whole.image).abs().max() < 1.0


def test_callers_tensors_and_global_random_states_are_untouched(nano: Stage3GroundingModel) -> None:
    """terratorch overwrites its input dict, reseeds torch and consumes Python's random."""
    s1, opt_v2 = plausible_pair()
    s1[0, 0, 3, 3] = torch.nan
    trust = torch.ones(2, 1, 64, 64)
    before = [x.clone() for x in (s1, opt_v2, trust)]
    torch_state, python_state, numpy_state = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1])
    for mode in CORRECTION_MODES:
        ground(nano, s1, opt_v2, trust=trust, tokens="sample", ensemble_size=2, correction_mode=mode)
    stage3_batch_inference(nano, [{"s1": s1, "opt_v2": opt_v2}], 1, verbose=False)
    for tensor, copied in zip((s1, opt_v2, trust), before, strict=True):
        assert torch.equal(tensor.nan_to_num(), copied.nan_to_num())
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    assert np.array_equal(np.random.get_state()[1], numpy_state)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("mode", CORRECTION_MODES)
@pytest.mark.parametrize("timesteps", [1, 3, 7, 10])
def test_exactly_timesteps_network_evaluations(
    nano: Stage3GroundingModel, scheduler: str, mode: str, timesteps: int
) -> None:
    s1, opt_v2 = plausible_pair(1)
    calls: list[int] = []
    hook = nano.terramind_generator.detokenizer.register_forward_hook(lambda *_: calls.append(1))
    try:
        out = ground(nano, s1, opt_v2, timesteps=timesteps, scheduler=scheduler, correction_mode=mode)
    finally:
        hook.remove()
    runs = 2 if mode == "difference" else 1
    assert len(calls) == timesteps * runs and out.nfe == timesteps


def test_every_knob_of_the_denoiser_changes_the_proposal(nano: Stage3GroundingModel) -> None:
    s1, opt_v2 = plausible_pair(1)
    base = ground(nano, s1, opt_v2, timesteps=4)
    for changed in (
        {"timesteps": 5},
        {"seed": 1},
        {"strength": 0.5},
        {"scheduler": "dpmsolver++"},
        {"tokens": "argmax"},
        {"tokens": "sample"},
        {"temperature": 3.0},
        {"controls": GroundingControls(origin=(16, 0))},
    ):
        other = ground(nano, s1, opt_v2, **({"timesteps": 4} | changed))
        assert (other.proposal - base.proposal).abs().max() > 0.5, changed


def test_the_proposal_is_not_clamped(nano: Stage3GroundingModel) -> None:
    """terratorch's scheduler keeps every band within one standard deviation."""
    model = copy.deepcopy(nano)
    with torch.no_grad():
        model.terramind_generator.detokenizer.out[-1].bias.fill_(5.0)
    proposal = ground(model, *plausible_pair(1), timesteps=5).proposal
    assert model.terramind_generator.optical.to_z(proposal).max() > 3.0


def test_ensemble_mean_and_spread(nano: Stage3GroundingModel) -> None:
    s1, opt_v2 = plausible_pair(1)
    options = {"tokens": "sample", "timesteps": 3}
    one = ground(nano, s1, opt_v2, ensemble_size=1, **options)
    three = ground(nano, s1, opt_v2, ensemble_size=3, **options)
    assert one.uncertainty is not None and three.uncertainty is not None
    assert three.uncertainty.shape == opt_v2.shape
    assert one.uncertainty.min() > 0
    assert not torch.equal(one.image, three.image)

    # Where the head predicts no error the uncertainty is the spread alone.
    options["correction_mode"] = "difference"
    assert ground(nano, s1, opt_v2, ensemble_size=1, **options).uncertainty is None
    spread = ground(nano, s1, opt_v2, ensemble_size=3, **options).uncertainty
    assert spread is not None and spread.mean() > 0.1


@pytest.mark.parametrize("mode", CORRECTION_MODES)
def test_the_grounding_map_has_the_change_and_the_sar_contribution(nano: Stage3GroundingModel, mode: str) -> None:
    s1, opt_v2 = plausible_pair(1)
    s1[..., :8, :8] = torch.nan
    found = nano.grounding_map(s1, opt_v2, 2, correction_mode=mode)
    image = ground(nano, s1, opt_v2, correction_mode=mode).image
    blind = ground(nano, s1, opt_v2, correction_mode=mode, controls=GroundingControls(use_sar=False)).image
    assert torch.allclose(opt_v2 + found.change, image, equal_nan=True)
    assert torch.allclose(image - found.sar_contribution, blind, equal_nan=True)
    assert found.sar_contribution.nan_to_num().abs().max() > 1e-3
    same = torch.Generator().manual_seed(1)
    drawn = (int(torch.randint(2**62, (1,), generator=same)), same.manual_seed(1), [torch.Generator().manual_seed(1)])
    maps = [nano.grounding_map(s1, opt_v2, 2, correction_mode=mode, seed=seed).sar_contribution for seed in drawn]
    assert all(torch.equal(each.nan_to_num(), maps[0].nan_to_num()) for each in maps)


@settings(max_examples=12)
@given(height=st.integers(8, 140), width=st.integers(8, 140))
def test_any_size_from_8_px(nano: Stage3GroundingModel, height: int, width: int) -> None:
    s1, opt_v2 = plausible_pair(1, height, width, seed=height)
    out = ground(nano, s1, opt_v2, timesteps=1)
    assert out.image.shape == opt_v2.shape
    assert torch.isfinite(out.image).all()
    assert out.image.min() >= 1.0


def test_large_images_are_anchored_and_seamless(nano: Stage3GroundingModel) -> None:
    """Away from a new edge a cut along the grid gives the same pixels, and tile borders do not show."""
    s1, opt_v2 = plausible_pair(1, 600, 256)
    whole = ground(nano, s1, opt_v2, timesteps=1)
    cut = ground(nano, s1[..., 192:, :], opt_v2[..., 192:, :], timesteps=1, controls=GroundingControls(origin=(192, 0)))
    assert (whole.image[..., 256 : 256 + 128, :] - cut.image[..., 64 : 64 + 128, :]).abs().max() < 1.0
    change = whole.image - opt_v2
    steps = (change[..., 1:, :] - change[..., :-1, :]).abs().mean(dim=(0, 1, 3))
    assert steps[[191, 255, 383, 447]].max() < 2.0 * steps.median()  # rows where a tile begins or ends
    again = ground(nano, s1, opt_v2, timesteps=1, batch_size=np.int64(8))
    assert torch.equal(again.image, whole.image)
    trust = torch.full_like(opt_v2[:, :1], Trust.ESTIMATE)
    trust[..., 100:300, :], trust[..., 300:320, :] = Trust.OBSERVED, Trust.UNKNOWN
    filled = [
        ground(nano, s1, opt_v2.masked_fill(trust == 0, value), timesteps=1, trust=trust).image for value in (1.0, 9e3)
    ]
    assert torch.equal(filled[0], filled[1]), "what is unknown is not looked at"
    assert torch.equal(filled[0][..., 100:300, :], opt_v2[..., 100:300, :]), "what was observed, bit for bit"


@pytest.mark.parametrize("which", ["s1", "opt_v2"])
def test_nodata_in_is_nodata_out_and_does_not_spread(nano: Stage3GroundingModel, which: str) -> None:
    s1, opt_v2 = plausible_pair(1, 96, 96)
    clean = (ground(nano, s1, opt_v2).image - opt_v2).abs().mean()
    holed = s1 if which == "s1" else opt_v2
    holed[0, 1, 20:40, 30:50] = torch.nan
    out = ground(nano, s1, opt_v2, ensemble_size=2)
    expected = torch.zeros(96, 96, dtype=torch.bool)
    expected[20:40, 30:50] = True
    for layer in (out.image, out.proposal, out.uncertainty):
        assert layer is not None
        assert torch.equal(torch.isnan(layer[0]).all(0), expected)
        assert torch.isfinite(layer[0][:, ~expected]).all()
    around = torch.ones(96, 96, dtype=torch.bool)
    around[10:50, 20:60] = False
    change = (out.image - opt_v2).abs()[0][:, around].mean()
    assert change < 3.0 * clean + 1.0


def test_a_tile_of_nothing_but_nodata(nano: Stage3GroundingModel) -> None:
    s1, opt_v2 = plausible_pair(2)
    clean = ground(nano, s1, opt_v2).image[1]
    opt_v2[0] = torch.nan
    out = ground(nano, s1, opt_v2)
    assert torch.isnan(out.image[0]).all()
    assert (out.image[1] - clean).abs().max() < 1.0


def test_hold_colour_is_the_models_where_a_call_does_not_say(nano: Stage3GroundingModel) -> None:
    s1, opt_v2 = plausible_pair(1, seed=3)
    s1 = s1 - 12.0  # as dark as water
    held = ground(nano, s1, opt_v2, hold_colour=True).image
    assert not torch.equal(held, ground(nano, s1, opt_v2).image)
    model = copy.deepcopy(nano)
    model.hold_colour = True
    assert torch.equal(ground(model, s1, opt_v2).image, held)
    assert model.provenance["AXS_HOLD_COLOUR"] == "True"


@pytest.mark.parametrize("size", [64, 300])
@pytest.mark.parametrize("origin", ["x", (1, 2, 3), 5, torch.zeros(3, 2)])
def test_places_that_cannot_be(nano: Stage3GroundingModel, origin: Any, size: int) -> None:
    pair = plausible_pair(2, size, 64)
    with pytest.raises(InputError, match=r"(?s)origin is .*expected the scene's \(row, column\)"):
        ground(nano, *pair, controls=GroundingControls(origin=origin))
    with pytest.raises(InputError, match="orientation is 'x'"):
        ground(nano, *pair, controls=GroundingControls(orientation="x"))  # type: ignore[arg-type]


def test_valid_pixels_never_become_nodata_zero(nano: Stage3GroundingModel) -> None:
    model = copy.deepcopy(nano)
    with torch.no_grad():
        model.corrector.head.body.out.bias[:16] = torch.tensor([-50.0, 50.0]).repeat(8)  # detail, which is never held
        model.corrector.head.body.out.bias[16:20] = 20.0
    for width in (64, 300):
        assert ground(model, *plausible_pair(1, 64, width), timesteps=1).image.min() == 1.0


@pytest.mark.parametrize(
    ("dtype", "expected"), [(torch.float64, torch.float64), (torch.int16, torch.float32), (torch.uint16, torch.float32)]
)
def test_number_types(nano: Stage3GroundingModel, dtype: torch.dtype, expected: torch.dtype) -> None:
    s1, opt_v2 = plausible_pair(1)
    opt_v2 = opt_v2.round()
    reference = stage3_inference(nano, s1, opt_v2, timesteps=1)
    out = stage3_inference(nano, s1.double(), opt_v2.to(dtype), timesteps=1)
    assert out.dtype == expected
    assert (out.float() - reference).abs().max() < 0.1


def test_one_unbatched_tile(nano: Stage3GroundingModel) -> None:
    s1, opt_v2 = plausible_pair(1)
    out = ground(nano, s1[0], opt_v2[0], ensemble_size=2)
    batched = ground(nano, s1, opt_v2, ensemble_size=2)
    assert out.image.shape == (4, 64, 64)
    assert out.gate.shape == (1, 64, 64)
    assert torch.equal(out.image, batched.image[0])


def test_everything_follows_to(nano: Stage3GroundingModel) -> None:
    """terratorch keeps its statistics as plain attributes, and ``.to(device, dtype)`` raises."""
    model = copy.deepcopy(nano).to("meta", torch.float32)
    assert all(tensor.device.type == "meta" for tensor in (*model.parameters(), *model.buffers()))
    assert model.terramind_generator.optical.mean.device.type == "meta"
    with pytest.raises(InputError, match=r"model is on meta.*inputs on cpu"):
        model.ground(*plausible_pair(1))


@pytest.mark.parametrize("mode", CORRECTION_MODES)
@pytest.mark.parametrize("training", [True, False])
def test_gradients_reach_the_generators_attention(mode: str, training: bool) -> None:
    model = random_nano(correction_mode=mode).requires_grad_(True).train(training)
    s1, opt_v2 = plausible_pair(2)
    out = model(s1, opt_v2)
    assert out.shape == opt_v2.shape
    out.square().mean().backward()
    core = model.terramind_generator.core
    for parameter in (
        core.encoder[0].attn.qkv.weight,
        core.decoder[-1].cross_attn.kv.weight,
        core.encoder_embeddings["untok_sen1grd@224"].proj.weight,
    ):
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0


def test_training_keeps_nodata_and_the_colour_that_is_held() -> None:
    model = random_nano().requires_grad_(True)
    s1, opt_v2 = plausible_pair(1)
    s1[..., 3, 3] = opt_v2[..., 5, 5] = torch.nan
    nodata = torch.zeros(64, 64, dtype=torch.bool)
    nodata[3, 3] = nodata[5, 5] = True
    free = model(s1, opt_v2).detach()
    assert torch.equal(free[0].isnan().all(0), nodata) and torch.equal(free[0].isnan().any(0), nodata)
    assert torch.equal(Stage1Model(model.terramind_generator)(s1)[0].isnan().any(0), s1[0].isnan().any(0))
    model.corrector.broad_change = lambda tiles, missed, hold: 1.0 - float(hold) + 0.0 * missed  # type: ignore
    changes = []
    for model.hold_colour in (False, True):
        changes.append((model(s1, opt_v2).detach() - opt_v2)[0, :, 10:60, 10:60].mean((1, 2)).abs().max())
    assert changes[0] > 2.0 * changes[1]


def test_training_evaluates_the_denoiser_once_at_random_steps() -> None:
    model = random_nano().requires_grad_(True).train()
    seen: list[torch.Tensor] = []
    model.terramind_generator.detokenizer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    for _ in range(4):
        model(*plausible_pair(4))
    assert len(seen) == 4
    assert torch.cat(seen).unique().numel() > 2
    with pytest.raises(InputError, match="train on crops"):
        model(*plausible_pair(1, 300, 64))


def test_forward_without_gradients_is_inference(nano: Stage3GroundingModel) -> None:
    s1, opt_v2 = plausible_pair(1)
    with torch.no_grad():
        assert torch.equal(nano(s1, opt_v2), nano.ground(s1, opt_v2).image)


def test_batch_inference_equals_single(nano: Stage3GroundingModel) -> None:
    s1, opt_v2 = plausible_pair(3)
    loader = [{"s1": s1[:2], "opt_v2": opt_v2[:2]}, (s1[2:], opt_v2[2:])]
    results = stage3_batch_inference(nano, loader, 1, verbose=False, ensemble_size=2)
    assert results["opt_v3"].shape == results["uncertainty"].shape == (3, 4, 64, 64) and results["nfe"] == 1
    single = stage3_inference(nano, s1[2:], opt_v2[2:], 1, ensemble_size=2)
    assert (results["opt_v3"][2:] - single).abs().max() < 1.0
    alone = stage3_batch_inference(nano, list(zip(s1, opt_v2, strict=True)), 1, verbose=False, ensemble_size=2)
    assert all((alone[key] - results[key]).abs().max() < 1.0 for key in ("opt_v3", "uncertainty"))


@pytest.mark.parametrize(
    ("loader", "message"),
    [([], "no batch"), ([{"s1": torch.zeros(1, 2, 64, 64)}], "opt_v2"), ([torch.zeros(1, 2, 64, 64)], "mapping")],
)
def test_bad_loaders(nano: Stage3GroundingModel, loader: list[object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        stage3_batch_inference(nano, loader, 1, verbose=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timesteps": 0}, "1 to 1000"),
        ({"strength": -0.1}, "strength"),
        ({"tokens": "hard"}, "soft, argmax, sample"),
        ({"correction_mode": "magic"}, "learned, difference"),
        ({"scheduler": "euler"}, "ddim"),
        ({"ensemble_size": 0}, "at least 1"),
        ({"temperature": 0.0}, "above 0"),
        ({"seed": [1, 2, 3]}, "3 seeds"),
    ],
)
def test_impossible_options(nano: Stage3GroundingModel, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ground(nano, *plausible_pair(2), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "terramind_v1_huge"}, "terramind_v1_base"),
        ({"timesteps": 0}, "1 to 1000"),
        ({"s1_product": "SLC"}, "S1GRD"),
        ({"correction_mode": "x"}, "learned"),
        ({"scheduler": "x"}, "ddim"),
        *(({"device": each}, "device .* cannot be used; expected cpu") for each in ("x", "cuda:99", "meta", 1.5, [])),
    ],
)
def test_impossible_builds(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_stage3_model(**({"variant": "nano", "pretrained": False} | options))  # type: ignore[arg-type]


def test_inference_moves_its_inputs_to_the_model_and_the_result_back(nano: Stage3GroundingModel) -> None:
    """The document builds a model without ``.cuda()`` and passes CUDA tensors; a stand-in model records the move."""

    class Recorder:
        device = torch.device("meta")

        def ground(self, s1: torch.Tensor, opt_v2: torch.Tensor, _: object, **options: object) -> Stage3Output:
            assert s1.device == opt_v2.device == options["trust"].device == self.device  # type: ignore[attr-defined]
            return Stage3Output(torch.zeros(opt_v2.shape), opt_v2, opt_v2, None, 1)

    s1, opt_v2 = plausible_pair(1)
    out = stage3_inference(Recorder(), s1, opt_v2, trust=torch.ones(64, 64))  # type: ignore[arg-type]
    assert out.device == opt_v2.device


def test_observed_pixels_come_back_bit_for_bit_and_what_lies_in_a_gap_is_never_looked_at(
    nano: Stage3GroundingModel,
) -> None:
    s1, opt_v2 = plausible_pair(2, 72, 72)
    trust = torch.ones(2, 1, 72, 72)
    trust[..., 20:50, 24:60] = 0.0
    clouded = opt_v2.clone()
    clouded[..., 20:50, 24:60] = 20_000.0
    hidden = opt_v2.masked_fill(trust == 0, torch.nan)
    first, second = (nano.ground(s1, image, 1, trust=trust).image for image in (clouded, hidden))
    assert torch.equal(first, second)
    clear = trust.expand_as(first) == 1
    assert torch.equal(first[clear], opt_v2[clear])
    assert torch.isfinite(first).all()
    inside = (slice(None), slice(None), slice(26, 44), slice(30, 54))
    moved = nano.ground(s1 + 4.0, hidden, 1, trust=trust).image
    assert (moved[inside] - first[inside]).abs().max() > 1.0  # the gap's content comes from the SAR too


@pytest.mark.parametrize("given", [False, True])
def test_a_wholly_unknown_estimate_begins_with_an_image_of_the_sar(nano: Stage3GroundingModel, given: bool) -> None:
    """As Stage 1 draws it, or with the given proposal, and trusted as such; beside tiles of which more is known."""
    s1, opt_v2 = plausible_pair(3, 60, 64)
    s1[..., :4, :4] = torch.nan
    trust = torch.zeros(3, 1, 60, 64)
    trust[1, :, 8:, 9] = 1.0
    given_one = opt_v2[1].flip(1) if given else None
    controls = GroundingControls(proposal=opt_v2.flip(2) if given else None)
    drawn = opt_v2.flip(2) if given else Stage1Model(nano.terramind_generator).eval().generate(s1, 1).image
    expected = nano.ground(s1, drawn, 1, trust=torch.full_like(trust, 0.25), controls=controls)
    out = nano.ground(s1, opt_v2, 1, trust=trust, controls=controls)
    assert torch.isnan(out.image[..., :4, :4]).all() and torch.isfinite(out.image[..., 4:, :]).all()
    for result, alike in ((out.image, expected.image), (out.uncertainty, expected.uncertainty)):
        torch.testing.assert_close(result[[0, 2]], alike[[0, 2]], atol=0.1, rtol=0, equal_nan=True)
    assert torch.equal(out.image[1, :, 8:, 9], opt_v2[1, :, 8:, 9])
    alone = nano.ground(s1[1], opt_v2[1], 1, trust=trust[1], controls=replace(controls, proposal=given_one)).image
    torch.testing.assert_close(out.image[1], alone, atol=0.1, rtol=0, equal_nan=True)


def test_a_given_proposal_takes_the_place_of_the_drawn_one(nano: Stage3GroundingModel) -> None:
    s1, opt_v2 = plausible_pair(1, 64, 64)
    drawn = nano.ground(s1, opt_v2, 1)
    again = nano.ground(s1, opt_v2, 1, controls=GroundingControls(proposal=drawn.proposal))
    assert again.nfe == 0 and torch.allclose(again.image, drawn.image, atol=1.0)
    other = nano.ground(s1, opt_v2, 1, controls=GroundingControls(proposal=drawn.proposal.flip(2)))
    assert (other.image - drawn.image).abs().max() > 1.0
    large = [image.repeat(1, 1, 5, 1) for image in (s1, opt_v2)]
    for pair, proposal in (((s1, opt_v2), drawn.proposal[..., :32]), (large, drawn.proposal.repeat(1, 1, 6, 1))):
        with pytest.raises(InputError, match="proposal has shape"):
            nano.ground(*pair, 1, controls=GroundingControls(proposal=proposal))


def test_without_sar_nothing_depends_on_its_content(nano: Stage3GroundingModel) -> None:
    s1, opt_v2 = plausible_pair(1, 64, 64)
    first, second = (
        nano.ground(image, opt_v2, 1, controls=GroundingControls(use_sar=False)).image for image in (s1, s1 + 3.0)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, nano.ground(s1, opt_v2, 1).image)


@pytest.mark.parametrize("mode", CORRECTION_MODES)
def test_members_in_one_batch_are_what_each_would_be_alone(nano: Stage3GroundingModel, mode: str) -> None:
    s1, opt_v2 = plausible_pair(1)
    options = {"timesteps": 2, "ensemble_size": 3, "tokens": "sample", "correction_mode": mode}
    alone, together = (nano.ground(s1, opt_v2, batch_size=size, **options) for size in (1, 8))
    torch.testing.assert_close(together.image, alone.image, atol=0.05, rtol=0)
    torch.testing.assert_close(together.uncertainty, alone.uncertainty, atol=0.05, rtol=0)


@pytest.mark.parametrize("value", [None, "x", [1]])
def test_options_of_another_type_are_refused(value: Any) -> None:
    with pytest.raises(InputError, match="standardize is"):
        random_nano(standardize=value)
    for size in (64, 300):
        with pytest.raises(InputError, match="expected GroundingControls"):
            random_nano().ground(*plausible_pair(1, size), controls=value)
