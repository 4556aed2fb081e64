"""Stage 2's promises: identity when fresh, any size, nodata, independence of the batch, metadata that matters."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from axs_lib.errors import InputError, OutputError, UntrainedHeadWarning, WeightsError
from axs_lib.stage2_losses import Stage2Loss
from axs_lib.stage2_prithvi_refine import PrithviRefiner, build_prithvi_refiner, save_refiner
from axs_lib.terramind import weights
from tests.models import plausible_pair, random_refiner

KNOWN = {"date": "2021-07-14", "lat": 48.2, "lon": 16.4, "biome": 4}


@pytest.fixture(scope="module")
def fresh() -> PrithviRefiner:
    """nano with random weights and a head that was never trained."""
    return build_prithvi_refiner(variant="nano", pretrained=False)


@pytest.fixture(scope="module")
def refiner() -> PrithviRefiner:
    """nano with random weights in which nothing is zero, frozen as loaded weights are."""
    return random_refiner()


def images(batch: int = 2, height: int = 64, width: int = 64, seed: int = 0) -> torch.Tensor:
    return plausible_pair(batch, height, width, seed)[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fresh_head_returns_opt_v1_bit_for_bit_and_says_so(fresh: PrithviRefiner, dtype: torch.dtype) -> None:
    opt_v1 = images().to(dtype)
    opt_v1[0, :, 3:5, 7] = torch.nan
    opt_v1[1, 2, 9, 9] = -12.5  # out of range, and not ours to change
    with torch.no_grad(), pytest.warns(UntrainedHeadWarning, match="axs train stage2"):
        opt_v2 = fresh(opt_v1, KNOWN)
    assert opt_v2.dtype == dtype
    assert torch.equal(opt_v2.nan_to_num(-1), opt_v1.nan_to_num(-1))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 150), (120, 120), (131, 64), (256, 256)])
@torch.no_grad()
def test_any_size(refiner: PrithviRefiner, height: int, width: int) -> None:
    opt_v2 = refiner(images(1, height, width))
    assert opt_v2.shape == (1, 4, height, width)
    assert opt_v2.isfinite().all()
    assert 1 <= opt_v2.min() <= opt_v2.max() <= 65535


@torch.no_grad()
def test_large_images_are_tiled_from_their_upper_left_corner(refiner: PrithviRefiner) -> None:
    """Where one tile alone looks, the mosaic is that tile; and there are no seams."""
    opt_v1 = images(1, 300, 448)
    mosaic = refiner(opt_v1)
    tile = refiner(opt_v1[..., :256, :256])
    assert (mosaic[..., :192, :192] - tile[..., :192, :192]).abs().max() < 1
    change = mosaic - opt_v1
    steps = change.diff(dim=-1).abs().mean((0, 1, 2))
    assert steps[[191, 255]].max() < 3 * steps.mean()


@torch.no_grad()
def test_nodata_in_is_nodata_out_and_stays_there(refiner: PrithviRefiner) -> None:
    opt_v1 = images()
    opt_v1[0, :, 20:30, 20:30] = torch.nan
    opt_v1[1, 3, 40, 40] = torch.nan  # one band is enough
    gone = opt_v1.isnan().any(1, keepdim=True).expand_as(opt_v1)
    opt_v2 = refiner(opt_v1)
    assert torch.equal(opt_v2.isnan(), gone)
    assert (opt_v2 - opt_v1)[~gone].abs().max() < 20_000
    assert refiner(torch.full((1, 4, 32, 32), torch.nan)).isnan().all()
    assert refiner(images() * 0 + 30.0).min() == 1.0  # clipped: dark pixels do not become nodata's zero


@torch.no_grad()
def test_one_tile_and_other_types(refiner: PrithviRefiner) -> None:
    opt_v1 = images(1).round()
    expected = refiner(opt_v1, KNOWN)
    assert torch.equal(refiner(opt_v1[0], KNOWN), expected[0])
    assert torch.equal(refiner(opt_v1.to(torch.int32), [KNOWN]), expected)
    double = refiner(opt_v1.double(), KNOWN)
    assert double.dtype == torch.float64
    assert torch.allclose(double.float(), expected, atol=0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = refiner(opt_v1, KNOWN)
    assert half.dtype == torch.float32
    assert (half - expected).abs().mean() < 0.1 * (expected - opt_v1).abs().mean()


@torch.no_grad()
def test_z_units_stay_z_units(refiner: PrithviRefiner) -> None:
    opt_v1 = images()
    before = opt_v1.clone()
    plain = copy.copy(refiner)
    plain.standardize = False
    optical = refiner.backbone.optical
    with warnings.catch_warnings(action="error"):  # nor is a trained head warned of
        z, opt_v2 = plain(optical.to_z(opt_v1), KNOWN), refiner(opt_v1, KNOWN)
    assert torch.allclose(optical.from_z(z).clamp(1, 65535), opt_v2, atol=0.5)
    assert (opt_v2 - opt_v1).abs().mean() > 10 and torch.equal(opt_v1, before)


@torch.no_grad()
def test_a_result_depends_on_its_own_sample_alone(refiner: PrithviRefiner) -> None:
    opt_v1 = images(5)
    metadata = [KNOWN, None, {"lat": -30.0}, {"year": 2019}, {"biome": "Tundra"}]
    random = torch.random.get_rng_state()
    together = refiner(opt_v1, metadata, batch_size=2)
    for index, each in enumerate(metadata):
        assert (refiner(opt_v1[index : index + 1], each) - together[index]).abs().max() < 1
    assert torch.equal(refiner(opt_v1, metadata, batch_size=2), together)
    assert torch.equal(torch.random.get_rng_state(), random)


@pytest.mark.parametrize("key", ["date", "lat", "lon", "biome"])
@torch.no_grad()
def test_metadata_matters(refiner: PrithviRefiner, key: str) -> None:
    other = {"date": "2017-07-14", "lat": -20.0, "lon": 100.0, "biome": 11}
    unknown = {name: value for name, value in KNOWN.items() if name != key}
    known, *others = (refiner(images(1), each) for each in (KNOWN, KNOWN | {key: other[key]}, unknown))
    assert all((known - image).abs().mean() > 0.1 for image in others)


@pytest.mark.parametrize(
    ("opt_v1", "message"),
    [
        (torch.rand(1, 2, 64, 64) * 3000, r"opt_v1 has shape \(1, 2, 64, 64\)"),
        (torch.rand(1, 4, 7, 64) * 3000, "at least 8x8"),
        (torch.full((1, 4, 16, 16), torch.inf), "opt_v1 contains infinite"),
        (torch.rand(0, 4, 16, 16), "opt_v1 has shape .* empty"),
        ([1, 2], "opt_v1 is a list"),
    ],
)
def test_wrong_images_are_refused(refiner: PrithviRefiner, opt_v1: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        refiner(opt_v1)


def test_wrong_metadata_and_settings_are_refused(refiner: PrithviRefiner) -> None:
    with pytest.raises(InputError, match="metadata holds 3 entries and the batch 2"):
        refiner(images(), [None] * 3)
    with pytest.raises(InputError, match="batch_size is 0"):
        refiner(images(), batch_size=0)
    with pytest.raises(InputError, match="Did you mean 'prithvi_eo_v2_300_tl'"):
        build_prithvi_refiner(variant="prithvi_eo_v2_300")
    with pytest.raises(InputError, match=r"metadata_dropout is 1\.0"):
        build_prithvi_refiner(metadata_dropout=1.0)


def test_a_fresh_head_trains() -> None:
    """From exactly zero: the loss falls, and gradients reach Prithvi, the unknown vectors and the biomes."""
    refiner = build_prithvi_refiner(variant="nano", pretrained=False, metadata_dropout=0.3).train()
    opt_v1 = images(4)
    truth = (opt_v1 * 1.2 + 100).clamp(1, 65535)
    opt_v1[0, :, :5] = torch.nan
    criterion = Stage2Loss()
    optimizer = torch.optim.Adam(refiner.parameters(), lr=2e-3)
    losses = []
    for _ in range(6):
        loss = criterion(refiner(opt_v1, [KNOWN, None, {"biome": 3}, {"year": 2020}]), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    vit = refiner.backbone.vit
    place = vit.location_embed_enc
    for part in (vit.blocks[0].attn.qkv.weight, vit.temporal_embed_enc.unknown, place.unknown, place.biome.weight):
        assert part.grad is not None and part.grad.isfinite().all() and part.grad.any()
    assert not refiner.head.untrained


def test_clipping_does_not_stop_learning(refiner: PrithviRefiner) -> None:
    dark = torch.full((1, 4, 32, 32), 25.0)
    learner = copy.deepcopy(refiner).requires_grad_(True)
    with torch.no_grad():
        clipped = learner(dark)
    free = learner(dark)
    assert free.min() < clipped.min() == 1.0
    free.sum().backward()
    assert learner.head.out.weight.grad.any()


@torch.no_grad()
def test_only_training_forgets_metadata(refiner: PrithviRefiner) -> None:
    forgetful = copy.deepcopy(refiner)
    forgetful.metadata_dropout = 0.999
    known, unknown = forgetful(images(1), KNOWN), forgetful(images(1))
    assert not torch.allclose(known, unknown)
    assert torch.equal(forgetful.train()(images(1), KNOWN), unknown)


def test_saved_refiners_load_frozen_and_equal(refiner: PrithviRefiner, tmp_path: Path) -> None:
    path = save_refiner(refiner, tmp_path / "refiner.safetensors", notes={"steps": "7"})
    loaded = build_prithvi_refiner(variant="nano", checkpoint=path)
    opt_v1 = images(1)
    assert torch.equal(loaded(opt_v1, KNOWN), refiner(opt_v1, KNOWN))
    assert not any(p.requires_grad for p in loaded.parameters())
    assert weights.read_metadata(path) == {"stage": "2", "variant": "nano", "steps": "7"}
    assert loaded.provenance["AXS_STAGE2_WEIGHTS"] == "checkpoint"
    assert weights.sha256_file(path) in loaded.provenance["AXS_STAGE2_WEIGHTS_SHA256"]
    with pytest.raises(OutputError, match="exists already"):
        save_refiner(refiner, path)
    short = save_refiner(refiner, tmp_path / "short.safetensors", half=True)
    assert short.stat().st_size < 0.6 * path.stat().st_size
    assert (build_prithvi_refiner(variant="nano", checkpoint=short)(opt_v1) - refiner(opt_v1)).abs().max() < 20


def test_checkpoints_of_something_else_are_refused(refiner: PrithviRefiner, tmp_path: Path) -> None:
    path = save_refiner(refiner, tmp_path / "refiner.safetensors")
    with pytest.raises(WeightsError, match=r"holds the variant 'nano'.*expected 'prithvi_eo_v2_tiny_tl'"):
        build_prithvi_refiner(variant="prithvi_eo_v2_tiny_tl", checkpoint=path)
    state = weights.read_state(path)
    del state["head.out.bias"]
    torch.save(state, tmp_path / "lost.pt")
    with pytest.raises(WeightsError, match=r"1 missing \(head\.out\.bias\)"):
        build_prithvi_refiner(variant="nano", checkpoint=tmp_path / "lost.pt")


def test_a_published_file_gives_a_frozen_prithvi_with_a_fresh_head(tmp_path: Path) -> None:
    """By the file or by its folder; what the file has is frozen, what it lacks is trainable; save and load again."""
    from terratorch.models.backbones.prithvi_vit import _create_prithvi

    variant = "prithvi_eo_v2_tiny_tl"
    file = tmp_path / "Prithvi_EO_V2_tiny_TL.pt"
    torch.save(_create_prithvi(variant, encoder_only=False).state_dict(), file)
    for checkpoint in (file, tmp_path):
        refiner = build_prithvi_refiner(variant=variant, checkpoint=checkpoint)
        trainable = {name for name, p in refiner.named_parameters() if p.requires_grad}
        backbone = {name for name in trainable if name.startswith("backbone.")}
        assert backbone == {
            "backbone.vit.temporal_embed_enc.unknown",
            "backbone.vit.location_embed_enc.unknown",
            "backbone.vit.location_embed_enc.biome.weight",
        }
        head = {f"head.{name}" for name, _ in refiner.head.named_parameters()}
        assert trainable - backbone == head | {"colour.weight"}
    opt_v1 = images(1, 100, 90)
    with torch.no_grad():
        with pytest.warns(UntrainedHeadWarning):
            assert torch.equal(refiner(opt_v1, KNOWN), opt_v1)
        nn.init.normal_(refiner.head.out.weight)
        path = save_refiner(refiner, tmp_path / "trained.safetensors")
        again = build_prithvi_refiner(variant=variant, checkpoint=path)
        assert torch.equal(again(opt_v1, KNOWN), refiner(opt_v1, KNOWN))
        assert not torch.equal(again(opt_v1, KNOWN), opt_v1)
    assert not any(p.requires_grad for p in again.parameters())


@torch.no_grad()
def test_the_seasons_colour_is_part_of_the_correction(tmp_path: Path) -> None:
    """It is added where the date is known, and kept in the file."""
    refiner = build_prithvi_refiner(variant="nano", pretrained=False)
    opt_v1 = images(1, 40, 40)
    refiner.colour.weight[2, 0] = 0.5  # B04, whatever the pixel
    expected = torch.zeros(4)
    expected[2] = 0.5 * refiner.backbone.optical.std.flatten()[2]
    change = (refiner(opt_v1, {"date": "2021-06-21"}) - opt_v1).mean((0, 2, 3))
    torch.testing.assert_close(change, expected, rtol=1e-3, atol=0.1)
    assert torch.equal(refiner(opt_v1), opt_v1)

    file = save_refiner(refiner, tmp_path / "new.safetensors")
    again = build_prithvi_refiner(variant="nano", checkpoint=file)
    assert torch.equal(again.colour.weight, refiner.colour.weight)


@torch.no_grad()
def test_what_needs_the_season_leaves_the_rest_alone(refiner: PrithviRefiner, tmp_path: Path) -> None:
    """Image by image; the file says so, and whoever builds it may say otherwise."""
    opt_v1 = images(3)
    tropics = {"date": "2021-07-14", "lat": 1.0, "lon": 30.0}
    strict = copy.deepcopy(refiner)
    strict.needs_season = True
    before, after = (model(opt_v1, [KNOWN, None, tropics]) for model in (refiner, strict))
    assert torch.equal(after[0], before[0]) and not torch.equal(after[0], opt_v1[0])
    assert torch.equal(after[1:], opt_v1[1:]) and not torch.equal(before[1:], opt_v1[1:])

    file = save_refiner(strict, tmp_path / "strict.safetensors")
    again = build_prithvi_refiner(variant="nano", checkpoint=file)
    assert again.needs_season and torch.equal(again(opt_v1), opt_v1)
    asked = build_prithvi_refiner(variant="nano", checkpoint=file, needs_season=False)
    assert not torch.equal(asked(opt_v1), opt_v1)
    plain = save_refiner(refiner, tmp_path / "plain.safetensors")
    assert not build_prithvi_refiner(variant="nano", checkpoint=plain).needs_season
    packaged = build_prithvi_refiner(variant="nano")
    assert packaged.needs_season and packaged.provenance["AXS_STAGE2_WEIGHTS"] == "packaged" and not packaged.training


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["prithvi_eo_v2_300_tl", "prithvi_eo_v2_600_tl"])
@torch.no_grad()
def test_the_large_ones_run(variant: str) -> None:
    refiner = build_prithvi_refiner(variant=variant, pretrained=False)
    nn.init.normal_(refiner.head.out.weight)
    opt_v2 = refiner(images(1, 120, 120), KNOWN)
    assert opt_v2.shape == (1, 4, 120, 120)
    assert opt_v2.isfinite().all()
