"""The backbone is terratorch's Prithvi with the published weights: same features, named bands, no surprises."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from axs_lib.errors import WeightsError
from axs_lib.prithvi.backbone import PRITHVI_INDEX, PrithviBackbone, build_backbone
from axs_lib.prithvi.metadata import encode_metadata

TINY = "prithvi_eo_v2_tiny_tl"
KNOWN = {"date": "2021-07-14", "lat": 48.25, "lon": 16.5}


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    """A state dict in the published layout: masked autoencoder, six bands, four frames, random weights."""
    from terratorch.models.backbones.prithvi_vit import _create_prithvi

    model = _create_prithvi(TINY, encoder_only=False, num_frames=4)
    state: dict[str, torch.Tensor] = model.state_dict()
    state["encoder.temporal_embed_enc.scale"].fill_(0.7)
    state["encoder.location_embed_enc.scale"].fill_(0.4)
    return state


@pytest.fixture(scope="module")
def backbone(published: dict[str, torch.Tensor]) -> PrithviBackbone:
    return build_backbone(TINY, published).eval()


@pytest.fixture(scope="module")
def theirs(published: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """terratorch's own model from the same file, with the narrow near infrared named as it was pretrained."""
    from terratorch.models.backbones.prithvi_vit import _create_prithvi

    file: Path = tmp_path_factory.mktemp("published") / "Prithvi_EO_V2_tiny_TL.pt"
    torch.save(published, file)
    layout = {"model_bands": ["BLUE", "GREEN", "RED", "NIR_NARROW"], "out_indices": [2, 5, 8, 11]}
    return _create_prithvi(TINY, pretrained=True, ckpt_path=str(file), **layout).eval()


@pytest.mark.parametrize("side", [128, 224])
@torch.no_grad()
def test_features_equal_terratorchs(backbone: PrithviBackbone, theirs: Any, side: int) -> None:
    """Year before day counted from 1, latitude before longitude, blocks 2, 5, 8 and 11, class token first."""
    image = torch.randn(2, 4, side, side, generator=torch.Generator().manual_seed(1))
    when, where = torch.tensor([[[2021.0, 195.0]]] * 2), torch.tensor([[48.25, 16.5]] * 2)
    for metadata, expected in ((KNOWN, theirs(image, when, where)), (None, theirs(image))):
        features = backbone(image, encode_metadata(metadata, 2))
        assert [tuple(f.shape) for f in features] == [(2, 192, side // 16, side // 16)] * 4
        for mine, other in zip(features, expected, strict=True):
            assert torch.allclose(mine.flatten(2).mT, other[:, 1:], atol=1e-5)
            assert mine.std() > 0.1
    swapped = theirs(image, when.flip(-1), where)
    assert not torch.allclose(theirs(image, when, where)[0], swapped[0], atol=1e-3)


def test_b08_takes_the_narrow_near_infrareds_kernel(
    backbone: PrithviBackbone, published: dict[str, torch.Tensor]
) -> None:
    """terratorch would draw it at random: NIR_BROAD is not among the pretrained bands."""
    assert PRITHVI_INDEX == [0, 1, 2, 3]
    kernels = published["encoder.patch_embed.proj.weight"]
    assert torch.equal(backbone.vit.patch_embed.proj.weight, kernels[:, :4])
    assert backbone.optical.mean.flatten().tolist() == [1087.0, 1342.0, 1433.0, 2734.0]
    assert backbone.optical.std.flatten().tolist() == [2248.0, 2179.0, 2178.0, 1850.0]


@torch.no_grad()
def test_maps_lie_where_the_pixels_are(backbone: PrithviBackbone) -> None:
    """Also on a grid that is not square, where terratorch's own folding answers 6 x 6 for 4 x 9."""
    image = torch.zeros(1, 4, 64, 144)
    changed = image.clone()
    changed[..., 16:32, 112:128] += 3.0
    known = encode_metadata(None, 1)
    first, second = backbone(image, known)[0], backbone(changed, known)[0]
    assert first.shape == (1, 192, 4, 9)
    assert divmod(int((first - second).abs().sum(1).argmax()), 9) == (1, 7)


@torch.no_grad()
def test_a_copy_is_a_copy(backbone: PrithviBackbone) -> None:
    """terratorch's registry closes forward() over the original, so its copies (an EMA) run the original's weights."""
    image, known = torch.randn(1, 4, 128, 128), encode_metadata(None, 1)
    twin = copy.deepcopy(backbone)
    for parameter in twin.vit.patch_embed.parameters():
        parameter.zero_()
    assert not torch.allclose(twin(image, known)[0], backbone(image, known)[0], atol=1e-3)


@torch.no_grad()
def test_each_coordinate_has_its_own_unknown(published: dict[str, torch.Tensor]) -> None:
    """What is unknown takes the learned vector's half, and what is known is untouched by it."""
    backbone = build_backbone(TINY, published)
    temporal, place = backbone.vit.temporal_embed_enc, backbone.vit.location_embed_enc
    plain = temporal(torch.tensor([[[2021.0, 195.0]]]))
    assert torch.equal(temporal(torch.full((1, 1, 2), torch.nan)), torch.zeros(1, 1, 192))
    temporal.unknown.fill_(5.0)
    only_year = temporal(torch.tensor([[[2021.0, torch.nan]]]))
    assert torch.equal(only_year[..., :96], plain[..., :96])
    assert (only_year[..., 96:] == 5.0).all()
    without = place(torch.tensor([[48.0, 16.0, 0.0]]))
    assert torch.equal(place(torch.tensor([[48.0, 16.0, 7.0]])), without)  # biomes start at zero
    place.biome.weight[7] += 1.0
    assert torch.allclose(place(torch.tensor([[48.0, 16.0, 7.0]])), without + 1.0)
    assert torch.equal(place(torch.tensor([[48.0, 16.0, 0.0]])), without)


def test_time_is_not_rounded_under_autocast(backbone: PrithviBackbone) -> None:
    """bfloat16 has no number between 2016 and 2024."""
    when = torch.tensor([[[2021.0, 195.0]]])
    exact = backbone.vit.temporal_embed_enc(when)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(backbone.vit.temporal_embed_enc(when), exact)


def test_loading_is_complete_or_fails(published: dict[str, torch.Tensor]) -> None:
    lost = {k: v for k, v in published.items() if k != "encoder.blocks.3.attn.qkv.weight"}
    bands = published["encoder.patch_embed.proj.weight"][:, :3]
    for state, message in (
        (lost, r"1 missing \(blocks\.3\.attn\.qkv\.weight\)"),
        (published | {"head.weight": torch.zeros(3)}, r"1 unexpected \(head\.weight\)"),
        ({"encoder.0.norm1.weight": torch.zeros(3)}, "expected a published Prithvi"),
        (published | {"encoder.cls_token": torch.zeros(1, 1, 1024)}, "looks like prithvi_eo_v2_300_tl"),
        (published | {"encoder.patch_embed.proj.weight": bands}, "six bands"),
    ):
        with pytest.raises(WeightsError, match=message):
            build_backbone(TINY, state)
