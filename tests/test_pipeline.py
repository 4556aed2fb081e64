"""The three stages together: the document's snippet, one generator for two stages, seeds, ensembles, nodata."""

from __future__ import annotations

import copy
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from axs_lib import pipeline as pipeline_module
from axs_lib.adapters import apply_lora_to_linear
from axs_lib.checks import Trust
from axs_lib.errors import InputError, WeightsError
from axs_lib.models import build_terramind_generator
from axs_lib.pipeline import Pipeline, build_pipeline, full_pipeline
from axs_lib.stage1_tm_s2o import Stage1Model, tm_sar2opt
from axs_lib.stage3_tm_ground import build_stage3_model, stage3_inference
from tests.document import snippet
from tests.models import plausible_pair, random_nano, random_refiner

METADATA = {"date": "2021-07-14", "lat": 48.2, "lon": 16.4, "biome": 4}


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    """The packaged TerraMind weights, and a Stage 2 that does something."""
    stage3 = build_stage3_model(2, variant="nano")
    return Pipeline(Stage1Model(stage3.terramind_generator, timesteps=2).eval(), random_refiner(), stage3)


def sar(batch: int = 2, height: int = 64, width: int = 64) -> Tensor:
    return plausible_pair(batch, height, width)[0]


def test_the_documents_pipeline() -> None:
    names: dict[str, Any] = {
        "build_terramind_generator": build_terramind_generator,  # the document takes these for granted
        "stage3_inference": stage3_inference,
        "s1": sar(1, 120, 120),
        "metadata": METADATA,
    }
    text = snippet("Three-Stage Pipeline").replace("refiner(...)", 'refiner("nano", pretrained=False)')
    exec(text.replace("(...)", '(timesteps=2, variant="nano")'), names)
    for name in ("opt_v1", "opt_v2", "opt_v3"):
        image = names[name].detach()
        assert image.shape == (1, 4, 120, 120)
        assert torch.isfinite(image).all()
        assert image.min() >= 1.0 and image.std() > 50.0
    assert not torch.equal(names["opt_v3"], names["opt_v2"])


def test_full_pipeline_is_the_stages_in_their_order(pipeline: Pipeline) -> None:
    s1 = sar()
    opt_v1, opt_v2, opt_v3 = full_pipeline(s1, METADATA, pipeline=pipeline, seed=4)
    assert torch.equal(opt_v1, tm_sar2opt(pipeline.stage1, s1, seed=4))
    assert torch.equal(opt_v2, pipeline.stage2(opt_v1, METADATA))
    trust = torch.full_like(opt_v2[:, :1], Trust.SAR_ONLY)
    assert torch.equal(opt_v3, stage3_inference(pipeline.stage3, s1, opt_v2, seed=4, trust=trust))
    for earlier, later in ((opt_v1, opt_v2), (opt_v2, opt_v3)):
        assert (earlier - later).abs().mean() > 0.5


def test_full_pipeline_builds_its_stages_once(monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline) -> None:
    build = Mock(return_value=pipeline)
    monkeypatch.setattr(pipeline_module, "build_pipeline", build)
    pipeline_module._default_pipeline.cache_clear()
    try:
        first = full_pipeline(sar(1), METADATA, 1, variant="nano")
        again = full_pipeline(sar(1), METADATA, 1, variant="nano")
    finally:
        pipeline_module._default_pipeline.cache_clear()
    build.assert_called_once_with("nano", device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_generator_of_its_own_is_named_in_the_provenance() -> None:
    stage1 = build_terramind_generator(("S1GRD",), variant="nano", pretrained=False)
    apply_lora_to_linear(stage1.terramind_generator)
    whole = Pipeline(stage1, random_refiner(), random_nano())
    assert not whole.shares_generator and whole.stage1 is stage1
    assert whole.provenance["AXS_STAGE1_WEIGHTS"] == "random"
    assert whole.provenance["AXS_STAGE1_ADAPTER"] == "lora rank 8" and "AXS_ADAPTER" not in whole.provenance


def test_build_pipeline_builds_one_generator() -> None:
    whole = build_pipeline("nano", pretrained=False, stage1_timesteps=3, stage3_timesteps=4, s1_product="S1RTC")
    assert whole.shares_generator
    assert (whole.stage1.timesteps, whole.stage3.timesteps) == (3, 4)
    assert whole.variant == whole.stage2.variant == "nano"
    assert not any(stage.training for stage in (whole.stage1, whole.stage2, whole.stage3))
    assert float(whole.stage1.terramind_generator.sar.mean[0, 0]) == pytest.approx(-10.93)
    assert whole.provenance["AXS_STAGE2_VARIANT"] == "nano"
    with pytest.raises(WeightsError, match="does not exist"):
        build_pipeline("nano", stage1_checkpoint="none.safetensors")


@pytest.mark.parametrize("shared", [True, False])
def test_lower_precision_reaches_both_generators(pipeline: Pipeline, shared: bool) -> None:
    rough = copy.deepcopy(pipeline)
    if not shared:
        rough.stage1.terramind_generator = copy.deepcopy(rough.stage1.terramind_generator)
    assert rough.shares_generator is shared
    rough.use_precision(torch.bfloat16)
    for stage in (rough.stage1, rough.stage3):
        assert stage.terramind_generator.precision == torch.bfloat16
    s1 = sar(1)
    difference = (rough(s1, METADATA).opt_v3 - pipeline(s1, METADATA).opt_v3).abs()
    assert 0 < difference.mean() < 0.1 * pipeline(s1, METADATA).opt_v3.std()


def test_an_ensemble_runs_the_whole_pipeline(pipeline: Pipeline) -> None:
    s1 = sar(1)
    one = pipeline(s1, METADATA)
    three = pipeline(s1, METADATA, ensemble_size=3)
    assert one.uncertainty is None
    assert three.uncertainty is not None
    assert three.uncertainty.shape == one.opt_v3.shape
    assert one.nfe == three.nfe == (2, 2)
    for a, b in ((one.opt_v1, three.opt_v1), (one.opt_v3, three.opt_v3)):
        assert 0.5 < (a - b).abs().mean() < b.std()
    # Most of the uncertainty comes from Stage 1, which an ensemble of Stage 3 alone would not see.
    alone = pipeline.stage3.ground(s1, one.opt_v2, ensemble_size=3).uncertainty
    assert alone is not None
    assert three.uncertainty.mean() > alone.mean()


def test_seeds_metadata_and_steps_matter_and_nothing_else_does(pipeline: Pipeline) -> None:
    s1 = sar()
    first = pipeline(s1, METADATA, seed=1)
    state = torch.get_rng_state()
    again = pipeline(s1, METADATA, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.opt_v3, again.opt_v3)
    assert torch.equal(first.opt_v1, pipeline(s1, None, seed=1).opt_v1)
    for other in (
        pipeline(s1, METADATA, seed=2),
        pipeline(s1, {"date": "2021-01-14", "lat": -30.0, "lon": 120.0}, seed=1),
        pipeline(s1, METADATA, 3, seed=1),
    ):
        assert (first.opt_v3 - other.opt_v3).abs().max() > 1.0
    assert (pipeline(s1[1:], METADATA, seed=1).opt_v3[0] - first.opt_v3[1]).abs().max() < 1.0


def test_nodata_unbatched_and_odd_sizes(pipeline: Pipeline) -> None:
    s1 = sar(1, 45, 70)[0]
    s1[1, 10:20, 10:20] = torch.nan
    hole = torch.isnan(s1[1])
    out = pipeline(s1, METADATA, 1, ensemble_size=2)
    for image in (out.opt_v1, out.opt_v2, out.opt_v3, out.uncertainty):
        assert image is not None and image.shape == (4, 45, 70)
        assert torch.equal(torch.isnan(image).all(0), hole)
        assert torch.isfinite(image[:, ~hole]).all()
    assert not out.opt_v3.requires_grad


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.zeros(1, 3, 64, 64),), {}, "VV, VH"),
        ((sar(), {"month": 13}), {}, "month is 13"),
        ((sar(), METADATA, 0), {}, "1 to 1000"),
        ((sar(),), {"ensemble_size": 0}, "at least 1"),
        ((sar(),), {"tokens": "hard"}, "soft, argmax, sample"),
    ],
)
def test_impossible_calls(
    pipeline: Pipeline, arguments: tuple[Any, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        pipeline(*arguments, **options)


def test_stages_in_z_units_are_refused(pipeline: Pipeline) -> None:
    stage3 = copy.copy(pipeline.stage3)
    stage3.standardize = False
    with pytest.raises(InputError, match="stage3 was built with standardize=False"):
        Pipeline(pipeline.stage1, pipeline.stage2, stage3)
