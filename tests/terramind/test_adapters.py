"""Units: statistics equal terratorch's, the BOA offset is ours alone, known bands pass the lift unchanged."""

from __future__ import annotations

import pytest
import torch

from axs_lib import bands
from axs_lib.errors import InputError
from axs_lib.terramind import build
from axs_lib.terramind.adapters import OpticalAdapter, terramind_spectral_lift
from axs_lib.terramind.build import build_nano, build_v1
from tests.models import plausible_pair


@pytest.fixture(scope="module")
def optical() -> OpticalAdapter:
    index = list(bands.TERRAMIND_OPTICAL_INDEX)
    return OpticalAdapter(
        [bands.TERRAMIND_S2_MEAN[i] for i in index],
        [bands.TERRAMIND_S2_STD[i] for i in index],
        boa_offset=bands.TERRAMIND_BOA_OFFSET,
        lift=terramind_spectral_lift(),
    )


def test_statistics_are_terratorchs() -> None:
    from terratorch.models.backbones.terramind.model.terramind_register import (
        PRETRAINED_BANDS,
        v1_pretraining_mean,
        v1_pretraining_std,
    )

    assert list(bands.TERRAMIND_S2_MEAN) == v1_pretraining_mean["untok_sen2l2a@224"]
    assert list(bands.TERRAMIND_S2_STD) == v1_pretraining_std["untok_sen2l2a@224"]
    for product, key in (("S1GRD", "untok_sen1grd@224"), ("S1RTC", "untok_sen1rtc@224")):
        mean, std = bands.sar_stats(product)
        assert (list(mean), list(std)) == (v1_pretraining_mean[key], v1_pretraining_std[key])
    names = PRETRAINED_BANDS["untok_sen2l2a@224"]
    assert [names[i] for i in bands.TERRAMIND_OPTICAL_INDEX] == ["BLUE", "GREEN", "RED", "NIR_BROAD"]
    with pytest.raises(InputError, match="S1GRD, S1RTC"):
        bands.sar_stats("S1SLC")


def test_z_scores_carry_the_offset_and_come_back(optical: OpticalAdapter) -> None:
    dn = torch.full((1, 4, 2, 2), 503.317)
    z = optical.to_z(dn)
    assert z[0, 0].abs().max() < 1e-6  # B02: 503.317 DN without offset is the mean 1503.317 with it
    assert torch.allclose(optical.from_z(z), dn, atol=1e-2)


def test_lift_passes_known_bands_and_estimates_the_others_in_dn(optical: OpticalAdapter) -> None:
    _, dn = plausible_pair(1, 16, 16)
    lifted = optical.expand_bands(optical.to_z(dn))
    assert lifted.shape == (1, 12, 16, 16)
    assert torch.equal(optical.select(lifted), optical.to_z(dn))
    mean = torch.tensor(bands.TERRAMIND_S2_MEAN)[:, None, None]
    std = torch.tensor(bands.TERRAMIND_S2_STD)[:, None, None]
    in_dn = lifted * std + mean - bands.TERRAMIND_BOA_OFFSET
    matrix, bias = torch.tensor(bands.SPECTRAL_LIFT_MATRIX), torch.tensor(bands.SPECTRAL_LIFT_BIAS)
    expected = torch.einsum("ob,nbhw->nohw", matrix, dn) + bias[:, None, None]
    assert (in_dn - expected).abs().max() < 1.0


def test_product_chooses_statistics_and_modality(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch.allclose(build_nano(s1_product="S1RTC").sar.mean.flatten(), torch.tensor([-10.93, -17.329]))
    nothing = torch.nn.Module()
    monkeypatch.setattr(build, "Detokenizer", lambda *_, **__: nothing)  # 197 M parameters beside the point
    for product, key in (("S1GRD", "untok_sen1grd@224"), ("S1RTC", "untok_sen1rtc@224")):
        generator = build_v1("terramind_v1_tiny", s1_product=product)
        assert key in generator.core.encoder_embeddings and generator.layout.sar_key == key
        assert torch.allclose(generator.sar.mean.flatten(), torch.tensor(bands.sar_stats(product)[0]))
