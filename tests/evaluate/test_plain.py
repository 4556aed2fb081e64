"""The plain baseline: what it sees, what it keeps, and its file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from axs_lib.errors import InputError, WeightsError
from axs_lib.evaluate.plain import INPUTS, Inputs, PlainModel, load_plain
from axs_lib.terramind.weights import write_state
from experiments.nano.plain import save_plain
from tests.models import plausible_pair


def trained(inputs: Inputs) -> PlainModel:
    model = PlainModel(inputs)
    torch.nn.init.normal_(model.body.out.weight, std=0.05, generator=torch.Generator().manual_seed(0))
    return model.eval()


def test_a_fresh_net_returns_what_it_is_given_or_the_mean_colour() -> None:
    s1, opt_v2 = plausible_pair(1, 70, 52)
    assert torch.allclose(PlainModel().predict(s1, opt_v2), opt_v2, atol=0.01)
    sar = PlainModel("sar")
    assert torch.allclose(sar.predict(s1), sar.optical.mean.expand_as(opt_v2))


@pytest.mark.parametrize("inputs", INPUTS)
def test_it_depends_on_its_inputs_and_on_nothing_else(inputs: Inputs) -> None:
    model, (s1, opt_v2) = trained(inputs), plausible_pair(1, 64, 64)
    base = model.predict(s1, opt_v2)
    assert torch.equal(model.predict(s1 + 2, opt_v2), base) == ("sar" not in inputs)
    assert torch.equal(model.predict(s1, opt_v2 + 200), base) == ("optical" not in inputs)


def test_observed_pixels_stay_and_gaps_are_never_looked_at() -> None:
    model, (s1, opt_v2) = trained("sar+optical"), plausible_pair(1, 64, 64)
    trust = torch.ones(1, 1, 64, 64)
    trust[..., 20:40, 20:40] = 0
    s1[..., :3, :3] = torch.nan
    first, second = (model.predict(s1, opt_v2.masked_fill(trust == 0, value), trust) for value in (torch.nan, 9000.0))
    assert torch.equal(first.nan_to_num(), second.nan_to_num())
    assert torch.isnan(first[..., :3, :3]).all() and torch.isfinite(first[..., 3:, :]).all()
    assert torch.equal(first[..., 40:, :], opt_v2[..., 40:, :])


def test_its_file_brings_it_back_and_others_are_refused(tmp_path: Path) -> None:
    model, (s1, opt_v2) = trained("sar+optical"), plausible_pair(1, 64, 64)
    save_plain(model, tmp_path / "plain.safetensors")
    loaded = load_plain(tmp_path / "plain.safetensors")
    assert loaded.inputs == "sar+optical"
    assert (loaded.predict(s1, opt_v2) - model.predict(s1, opt_v2)).abs().max() < 5.0  # stored as float16
    write_state(tmp_path / "other.safetensors", model.state_dict(), {"variant": "nano"})
    with pytest.raises(WeightsError, match="no plain U-Net"):
        load_plain(tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="needs opt_v2"):
        model(s1)
