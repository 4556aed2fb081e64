"""Stage 1: any size, nodata, independence of batch and place, exact step counts, units, gradients."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from axs_lib.errors import InputError
from axs_lib.models import build_terramind_generator
from axs_lib.stage1_tm_s2o import Stage1Model, Stage1Output, tm_sar2opt
from tests.models import plausible_pair, random_nano


@pytest.fixture(scope="module")
def nano() -> Stage1Model:
    """The packaged weights: with random ones the SAR hardly matters, and every test would pass without it."""
    return build_terramind_generator(variant="nano")


def sar(batch: int = 2, height: int = 64, width: int = 64, seed: int = 0) -> torch.Tensor:
    return plausible_pair(batch, height, width, seed)[0]


@torch.no_grad()
def draw(model: Stage1Model, s1: torch.Tensor, **options: object) -> Stage1Output:
    return model.generate(s1, **({"timesteps": 2} | options))  # type: ignore[arg-type]


def test_it_draws_dn_from_the_sar(nano: Stage1Model) -> None:
    s1 = sar()
    image = tm_sar2opt(nano, s1, 2)
    assert image.shape == (2, 4, 64, 64)
    assert image.dtype == torch.float32
    assert image.std() > 50.0
    assert image.min() >= 1.0 and image.max() <= 65_535.0
    other = tm_sar2opt(nano, s1 - 5.0, 2)
    assert (image - other).abs().mean() > 50.0


def test_every_knob_changes_the_image(nano: Stage1Model) -> None:
    s1 = sar(1)
    base = draw(nano, s1, timesteps=4).image
    for changed in (
        {"timesteps": 5},
        {"seed": 1},
        {"scheduler": "dpmsolver++"},
        {"tokens": "argmax"},
        {"tokens": "sample"},
        {"temperature": 3.0},
        {"origin": (16, 0)},
        {"ensemble_size": 2},
    ):
        other = draw(nano, s1, **({"timesteps": 4} | changed)).image
        assert (other - base).abs().max() > 0.5, changed


@pytest.mark.parametrize("tokens", ["soft", "sample"])
def test_a_tile_does_not_depend_on_its_batch(nano: Stage1Model, tokens: str) -> None:
    s1 = sar(3)
    whole = draw(nano, s1, tokens=tokens).image
    for place in range(3):
        alone = draw(nano, s1[place : place + 1], tokens=tokens).image
        assert (alone - whole[place]).abs().max() < 1.0
    turned = draw(nano, s1.flip(0), tokens=tokens, batch_size=2).image
    assert (turned.flip(0) - whole).abs().max() < 1.0


@settings(max_examples=6)
@given(height=st.integers(8, 140), width=st.integers(8, 140))
def test_any_size_from_8_px(nano: Stage1Model, height: int, width: int) -> None:
    image = draw(nano, sar(1, height, width, seed=height), timesteps=1).image
    assert image.shape == (1, 4, height, width)
    assert torch.isfinite(image).all()


def test_large_images_are_anchored_and_blended(nano: Stage1Model) -> None:
    s1 = sar(1, 460, 64)
    whole = draw(nano, s1, timesteps=1).image
    cut = draw(nano, s1[..., 192:, :], timesteps=1, origin=(192, 0)).image
    assert (whole[..., 256:, :] - cut[..., 64:, :]).abs().max() < 1.0
    steps = (whole[..., 1:, :] - whole[..., :-1, :]).abs().mean(dim=(0, 1, 3))
    same_phase = steps[3::4]  # the denoiser works on patches of 4 px, whose borders show
    borders = torch.tensor([191, 255])
    inside = same_phase[~torch.isin(torch.arange(3, 459, 4), borders)]
    assert steps[borders].max() <= inside.max() and steps[borders].mean() < 1.5 * inside.median()


def test_nodata_in_is_nodata_out_and_does_not_spread(nano: Stage1Model) -> None:
    s1 = sar(2, 96, 96)
    clean = draw(nano, s1).image
    s1[0, 1, 20:40, 30:50] = torch.nan
    s1[1] = torch.nan
    out = draw(nano, s1, ensemble_size=2)
    hole = torch.zeros(96, 96, dtype=torch.bool)
    hole[20:40, 30:50] = True
    for layer in (out.image, out.uncertainty):
        assert layer is not None
        assert torch.equal(torch.isnan(layer[0]).all(0), hole)
        assert torch.isfinite(layer[0][:, ~hole]).all()
        assert torch.isnan(layer[1]).all()
    far = draw(nano, s1).image[0] - clean[0]
    assert far[:, 60:].abs().mean() < clean[0].std()


def test_standardize_false_is_z_in_and_z_out(nano: Stage1Model) -> None:
    generator = nano.terramind_generator
    model = Stage1Model(generator, standardize=False)
    s1 = sar(1)
    with warnings.catch_warnings(action="error"):
        z = draw(model, generator.sar.to_z(s1)).image
    expected = draw(nano, s1).image
    assert z.abs().max() < 20.0
    assert (generator.optical.from_z(z).clamp_min(1.0) - expected).abs().max() < 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timesteps": 0}, "1 to 1000"),
        ({"tokens": "hard"}, "soft, argmax, sample"), ({"scheduler": "euler"}, "ddim"),
        ({"ensemble_size": 0}, "at least 1"), ({"temperature": 0.0}, "above 0"), ({"seed": [1, 2, 3]}, "3 seeds"),
        ({"origin": "x"}, "origin is 'x'"),
    ],
)  # fmt: skip
def test_impossible_options(nano: Stage1Model, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw(nano, sar(), **options)


def test_another_kind_of_model_is_refused_with_the_way_out() -> None:
    with pytest.raises(InputError, match=r"Stage3GroundingModel.*Stage1Model\(stage3_model"):
        tm_sar2opt(random_nano(), sar())  # type: ignore[arg-type]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("with_truth", [True, False])
def test_gradients_reach_the_generators_attention(training: bool, with_truth: bool) -> None:
    model = Stage1Model(random_nano().terramind_generator).requires_grad_(True).train(training)
    s1, truth = plausible_pair(2, 40, 64)
    image, logits = model.training_pass(s1, truth if with_truth else None)
    assert image.shape == truth.shape
    assert logits.shape == (2, 16, 512)
    (image - truth).square().mean().backward()
    core = model.terramind_generator.core
    for parameter in (core.encoder[0].attn.qkv.weight, core.decoder[-1].cross_attn.kv.weight):
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0


def test_training_sees_the_noised_truth_at_random_steps() -> None:
    model = Stage1Model(random_nano().terramind_generator).requires_grad_(True).train()
    steps: list[torch.Tensor] = []
    model.terramind_generator.detokenizer.register_forward_pre_hook(lambda _, i: steps.append(i[1]))
    s1, truth = plausible_pair(8, 64, 64)
    for _ in range(3):
        model.training_pass(s1, truth)
    assert torch.cat(steps).unique().numel() > 3
    steps.clear()
    model(s1)
    assert (torch.cat(steps) == 999).all()


def test_forward_without_gradients_is_inference(nano: Stage1Model) -> None:
    model = Stage1Model(nano.terramind_generator, timesteps=2)
    s1 = sar(1)
    assert torch.equal(model(s1), tm_sar2opt(model, s1))


def test_training_refuses_what_it_cannot_use() -> None:
    model = Stage1Model(random_nano().terramind_generator).requires_grad_(True)
    with pytest.raises(InputError, match="train on crops"):
        model(sar(1, 300, 64))
    with pytest.raises(InputError, match="one truth"):
        model.training_pass(sar(2), plausible_pair(1)[1])
