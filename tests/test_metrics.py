"""Metrics against values worked out by hand, and masks that mask."""

from __future__ import annotations

import math

import pytest
import torch

from axs_lib.checks import RangeWarning
from axs_lib.errors import InputError
from axs_lib.metrics import METRIC_KEYS, compute_metrics, correctness, stage3_metrics

DISTANCES = ("d_improvement", "d_omission", "d_hallucination")
CORRECTNESS_KEYS = (*DISTANCES, "improved", "omitted", "hallucinated", "identity_collapse")


def scene(batch: int = 1, side: int = 40, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 4, side // 8, side // 8, generator=generator)
    fields = coarse.repeat_interleave(8, -1).repeat_interleave(8, -2)
    return 400 + 2500 * fields


def noise(like: torch.Tensor, size: float, seed: int = 1) -> torch.Tensor:
    return size * torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), dtype=like.dtype)


def test_perfect_estimate() -> None:
    truth = scene()
    figures = compute_metrics(truth, truth)
    assert set(figures) == set(METRIC_KEYS)
    assert figures["mse"] == figures["mae"] == figures["ergas"] == figures["ndvi"] == figures["ndwi"] == 0
    assert figures["psnr"] == math.inf
    for image, fix in ((truth / 10_000, "multiply by 10000"), (truth / 1000 + 9, "unless the place is that dark")):
        with pytest.warns(RangeWarning, match=fix) as seen:
            compute_metrics(image, image)
        assert not any("model" in str(warning.message) for warning in seen)
    with pytest.raises(InputError, match="infinite"):
        compute_metrics(truth / 0, truth)
    assert figures["sam"] == pytest.approx(0, abs=1e-5)
    for key in ("ssim", "edge_truth", "sharpness"):
        assert figures[key] == pytest.approx(1), key


def test_known_values() -> None:
    """A flat tile, 200 DN too bright in every band."""
    truth = torch.tensor([500.0, 800.0, 600.0, 3000.0])[:, None, None].expand(4, 16, 16)
    figures = compute_metrics(truth + 200, truth)
    expected = {"mse": 4e-4, "mae": 0.02, "psnr": -10 * math.log10(4e-4)}
    expected |= {"ndvi": abs(2400 / 4000 - 2400 / 3600), "ndwi": abs(-2200 / 4200 + 2200 / 3800)}
    assert {key: figures[key] for key in expected} == pytest.approx(expected)


def test_pixels_that_do_not_count_change_nothing() -> None:
    truth, sar = scene(2), noise(scene(2)[:, :2], 3.0) - 12
    estimate = truth + noise(truth, 100)
    mask = torch.ones(2, 1, 40, 40, dtype=torch.bool)
    mask[:, :, 5:20, 8:30] = False
    reference = compute_metrics(estimate, truth, s1=sar, mask=mask)
    assert compute_metrics(torch.where(mask, estimate, 60_000.0), truth, s1=sar, mask=mask) == reference
    assert compute_metrics(torch.where(mask, estimate, torch.nan), truth, s1=sar) == reference
    one_band = truth.clone()
    one_band[:, 2:3] = torch.where(mask, truth[:, 2:3], torch.nan)
    assert compute_metrics(estimate, one_band, s1=sar) == reference
    assert compute_metrics(estimate, truth, s1=torch.where(mask, sar, torch.nan)) == reference
    assert compute_metrics(estimate, truth, s1=sar) != reference


@pytest.mark.parametrize("shape", [(1, 1, 40, 40), (1, 40, 40), (40, 40), (2, 40, 40)])
def test_mask_shapes(shape: tuple[int, ...]) -> None:
    truth = scene(2)
    estimate = truth + noise(truth, 100)
    mask = torch.ones(shape)
    mask[..., :20, :] = 0
    half = compute_metrics(estimate[..., 20:, :], truth[..., 20:, :])
    figures = compute_metrics(estimate, truth, mask=mask)
    assert [figures[key] for key in ("mse", "sam")] == pytest.approx([half[key] for key in ("mse", "sam")])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int16, torch.uint16])
def test_any_type_batched_or_not(dtype: torch.dtype) -> None:
    truth = scene().round()
    estimate = (truth + noise(truth, 100)).round()
    expected = compute_metrics(estimate.clone().requires_grad_(), truth)
    figures = compute_metrics(estimate[0].to(dtype), truth[0].to(dtype))
    assert figures["mse"] == pytest.approx(expected["mse"], rel=1e-2)
    assert figures["edge_truth"] == pytest.approx(expected["edge_truth"], abs=1e-2)


def test_edges_follow_blur_noise_and_sar() -> None:
    truth = scene(side=64, seed=5)
    sar = truth.mean(1, keepdim=True).repeat(1, 2, 1, 1) / 400 - 15
    blurred = torch.nn.functional.avg_pool2d(truth, 5, stride=1, padding=2, count_include_pad=False)
    sharp, soft = compute_metrics(truth, truth, s1=sar), compute_metrics(blurred, truth, s1=sar)
    other = compute_metrics(scene(side=64, seed=6).flip(-1).roll(4, -2), truth, s1=sar)
    assert soft["sharpness"] < 0.7 and other["edge_truth"] < soft["edge_truth"] < 0.9
    assert sharp["edge_sar"] > 0.6 and other["edge_sar"] < 0.3
    noisy_sar = sar + noise(sar, 2.0)
    sharp, soft = compute_metrics(truth, truth, s1=noisy_sar), compute_metrics(blurred, truth, s1=noisy_sar)
    assert soft["edge_sar"] <= sharp["edge_sar"] + 0.02, "blur does not buy agreement with the SAR"
    flat = compute_metrics(torch.full_like(truth, 1000), truth, s1=sar)
    assert flat["edge_truth"] == flat["edge_sar"] == 0
    assert flat["sharpness"] == pytest.approx(0, abs=1e-9)


def test_stage3_keys_and_improvement() -> None:
    truth = scene()
    wrong = noise(truth, 200)
    figures = stage3_metrics(truth + 0.5 * wrong, truth + wrong, truth)
    named = {"mse_improvement_%", "mae_improvement_%", "copy_ratio", *CORRECTNESS_KEYS}
    assert set(figures) == named | {f"{key}_{suffix}" for key in METRIC_KEYS for suffix in ("v2", "v3")}
    assert figures["mse_improvement_%"] == pytest.approx(75, rel=1e-4)
    assert figures["mae_improvement_%"] == pytest.approx(50, rel=1e-4)
    assert figures["copy_ratio"] == pytest.approx(1, rel=1e-4)
    assert figures["mse_v2"] == pytest.approx(compute_metrics(truth + wrong, truth)["mse"])
    worse = stage3_metrics(truth + wrong, truth + 0.5 * wrong, truth)
    assert worse["mse_improvement_%"] == pytest.approx(-300, rel=1e-4)
    sar = noise(truth[:, :2], 3.0)
    assert {"edge_sar_v2", "edge_sar_v3"} <= set(stage3_metrics(truth, truth + wrong, truth, s1=sar))


def test_stage3_extremes_are_defined() -> None:
    truth = scene()
    other = truth + 100
    copied = stage3_metrics(other, other, truth)
    assert (copied["mse_improvement_%"], copied["copy_ratio"]) == (0, 0)
    perfect = stage3_metrics(truth, other, truth)
    assert (perfect["mse_improvement_%"], perfect["copy_ratio"]) == (100, math.inf)
    nothing = stage3_metrics(truth, truth, truth)
    assert (nothing["mse_improvement_%"], nothing["copy_ratio"]) == (0, 0)
    spoilt = stage3_metrics(other, truth, truth)
    assert (spoilt["mse_improvement_%"], spoilt["mae_improvement_%"]) == (-math.inf, -math.inf)
    opt_v2, opt_v3 = truth + 100, truth + 50
    opt_v2[..., :10, :] += 5000
    opt_v3[..., :10, :] = torch.nan
    assert stage3_metrics(opt_v3, opt_v2, truth)["mse_v2"] == pytest.approx(1e-4, rel=1e-4), "on the same pixels"
    small = scene(side=16)[..., :5, :7]
    assert math.isnan(compute_metrics(small + 100, small)["ssim"])


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((1, 4, 8, 8), (1, 4, 8, 9), (1, 4, 8, 8)), r"opt_v2 has shape \(1, 4, 8, 9\)"),
        (((1, 4, 8, 8), (1, 4, 8, 8), (1, 3, 8, 8)), r"s2_truth has shape \(1, 3, 8, 8\)"),
        (((8, 8),) * 3, r"\(B,4,H,W\)"),
        (((1, 4, 0, 8),) * 3, "not empty"),
    ],
)
def test_wrong_shapes_are_named(shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        stage3_metrics(*map(torch.ones, shapes))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mask": torch.ones(3, 40, 40)}, r"mask has shape \(3, 40, 40\)"),
        ({"mask": torch.zeros(40, 40)}, "no pixel counts"),
        ({"s1": torch.ones(1, 2, 20, 20)}, "s1 has shape"),
        ({"s1": scene()}, "s1 has shape"),
    ],
)
def test_wrong_masks_and_sar_are_named(wrong: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compute_metrics(scene(), scene(), **wrong)


def outside_triple() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """opt_v3, opt_v2 and truth in reflectance, as below they were given to others."""
    random = torch.Generator().manual_seed(7)
    truth = 0.05 + 0.3 * torch.rand(4, 48, 48, generator=random, dtype=torch.double)
    opt_v2 = truth + 0.03 * torch.randn(4, 48, 48, generator=random, dtype=torch.double)
    wrong = 0.02 * torch.randn(4, 48, 48, generator=random, dtype=torch.double)
    return truth + 0.6 * (opt_v2 - truth) + wrong, opt_v2, truth


def test_ssim_spectral_angle_and_ergas_are_those_of_torchmetrics() -> None:
    from torchmetrics import image as outside

    estimate, _, truth = outside_triple()
    figures, pair = compute_metrics(10_000 * estimate, 10_000 * truth), (estimate[None], truth[None])
    ssim = outside.StructuralSimilarityIndexMeasure(data_range=1.0)(*pair)
    assert figures["ssim"] == pytest.approx(float(ssim), abs=1e-4)
    assert figures["sam"] == pytest.approx(math.degrees(float(outside.SpectralAngleMapper()(*pair))), rel=1e-6)
    ergas = outside.ErrorRelativeGlobalDimensionlessSynthesis(ratio=1)(*pair)
    assert figures["ergas"] == pytest.approx(float(ergas), rel=1e-6)


def test_correctness_is_that_of_opensr_test() -> None:
    """Computed once with opensr-test 1.3.3, whose dependencies (CLIP, satalign, another OpenCV) are too many for here.

    pip install opensr-test==1.3.3, then with the images of ``outside_triple``:

        from opensr_test.correctness import *
        ref, im, om = get_distances(opt_v2, opt_v3, truth, "l1", "pixel")
        mask = torch.where(torch.stack([ref, im, om]).amax(0) > 0.005, 1.0, torch.nan)
        im, om = im / ref, om / ref
        kinds = tc_improvement(im, om, 0.05), tc_omission(im, om, 0.05), tc_hallucination(im, om, 0.05)
        get_correctness_stats(*kinds, mask, "percent")["stats"]
        ref, im, om = get_distances(opt_v2, opt_v3, truth, "l1", "image"); im / ref, om / ref
    """
    figures = correctness(*(10_000 * image for image in outside_triple()))
    shares = [figures[key] for key in ("improved", "omitted", "hallucinated")]
    assert shares == pytest.approx([0.2786458432674408, 0.4652777910232544, 0.2560763955116272], abs=1e-6)
    distances = [figures[key] for key in DISTANCES]
    assert distances == pytest.approx([0.8963021494339487, 0.7748932162073089, 0.6711953656412577])


def triple(share: float, sideways: float = 0.0) -> dict[str, float]:
    """opt_v2 misses 400 DN; opt_v3 went ``share`` of the way, and ``sideways`` DN up in half of the pixels."""
    truth = torch.full((4, 8, 8), 1000.0)
    opt_v2 = truth - 400
    opt_v3 = opt_v2 + 400 * share
    opt_v3[:, :4] += sideways
    return correctness(opt_v3, opt_v2, truth)


@pytest.mark.parametrize(("share", "kind"), [(1.0, "improved"), (0.75, "improved"), (0.25, "omitted")])
def test_a_pixel_belongs_to_the_nearer_end(share: float, kind: str) -> None:
    figures = triple(share)
    assert set(figures) == set(CORRECTNESS_KEYS)
    assert [figures[key] for key in DISTANCES] == pytest.approx([1 - share, share, 0], rel=1e-6, abs=1e-9)
    expected = {"improved": 0.0, "omitted": 0.0, "hallucinated": 0.0, "identity_collapse": 0.0, kind: 1.0}
    assert {key: figures[key] for key in expected} == expected


def test_extremes_are_defined_and_identity_collapse_is_flagged() -> None:
    sideways = triple(1.0, sideways=1200.0)
    assert (sideways["improved"], sideways["hallucinated"]) == (0.5, 0.5)
    copied = triple(0.0)
    assert (copied["d_omission"], copied["omitted"], copied["identity_collapse"]) == (0, 1, 1)
    truth = torch.full((4, 8, 8), 1000.0)
    perfect = correctness(truth, truth, truth)
    assert perfect["identity_collapse"] == 1
    assert all(perfect[key] == 0 for key in CORRECTNESS_KEYS[:-1])
    spoilt = correctness(truth + 300, truth, truth)
    assert spoilt["hallucinated"] == 1 and spoilt["d_improvement"] == spoilt["d_hallucination"] == math.inf


def test_what_nobody_can_see_is_in_no_class() -> None:
    truth = torch.full((4, 8, 8), 1000.0)
    opt_v2 = truth - 400
    opt_v2[:, :2] = 1010.0
    figures = correctness(truth, opt_v2, truth)
    assert (figures["improved"], figures["omitted"], figures["hallucinated"]) == (0.75, 0, 0)
    mask = torch.zeros(8, 8)
    mask[:2] = 1
    assert correctness(truth, opt_v2, truth, mask)["improved"] == 0
