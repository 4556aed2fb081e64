"""Exactly n evaluations, DDIM and the multistep solver on an analytic network, and no clamping."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from axs_lib.errors import InputError
from axs_lib.terramind.sampler import (
    SCHEDULERS,
    TRAIN_TIMESTEPS,
    add_noise,
    alphas_cumprod,
    build_schedule,
    denoise,
    spaced_timesteps,
)

CODES = torch.zeros(1, 1, 1, 1)


class GaussianNetwork:
    """Exact posterior mean of x0 for data ~ N(mean, std^2): the ideal denoiser, which counts its evaluations."""

    def __init__(self, mean: float = 2.0, std: float = 0.5) -> None:
        self.mean, self.std, self.calls = mean, std, []

    def __call__(self, x: Tensor, t: Tensor, codes: Tensor) -> Tensor:
        self.calls.append(int(t[0]))
        a = alphas_cumprod()[t].reshape(-1, 1, 1, 1)
        gain = a.sqrt() * self.std**2 / (a * self.std**2 + 1 - a)
        return (self.mean + gain * (x - a.sqrt() * self.mean)).float()


def terratorchs(**options: bool) -> Any:
    from terratorch.models.backbones.terramind.tokenizer.scheduling import DDIMScheduler

    return DDIMScheduler(beta_schedule="linear", prediction_type="sample", zero_terminal_snr=True, **options)


def test_betas_are_terratorchs_and_the_last_step_carries_no_signal() -> None:
    reference = terratorchs()
    assert alphas_cumprod()[-1] == 0
    assert (alphas_cumprod() - reference.alphas_cumprod.double()).abs().max() < 1e-5
    clean, noise = torch.full((1, 1, 4, 4), 3.0), torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    at, reference.alphas_cumprod = torch.tensor([299]), alphas_cumprod().float()
    assert torch.allclose(add_noise(clean, noise, at), reference.add_noise(clean, noise, at), atol=1e-5)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("n", [1, 2, 3, 6, 7, 8, 10, 15, 30, 49, 999, 1000])
def test_every_count_is_exact(name: str, n: int) -> None:
    """terratorch makes 4, 7, 8, 9, 16 and 31 evaluations for 3, 6, 7, 8, 15 and 30."""
    network = GaussianNetwork()
    schedule = build_schedule(name, n)
    out = denoise(network, CODES, torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0)), schedule)
    assert len(network.calls) == n == schedule.nfe and network.calls[0] == TRAIN_TIMESTEPS - 1
    assert network.calls == sorted(network.calls, reverse=True) and torch.isfinite(out).all()


@pytest.mark.parametrize("n", [1, 2, 4, 5, 8, 10, 20, 25, 40, 50, 100, 125, 200, 250, 500, 1000])
def test_dividing_counts_use_terratorchs_steps(n: int) -> None:
    reference = terratorchs()
    reference.set_timesteps(n, mode="trailing")
    assert spaced_timesteps(n) == reference.timesteps.tolist()


def test_ddim_step_equals_terratorchs_without_clamping() -> None:
    noise = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    reference = terratorchs(clip_sample=False)
    reference.set_timesteps(10, mode="trailing")
    x, network = noise, GaussianNetwork()
    for t in reference.timesteps:
        x = reference.step(network(x, t[None], CODES), t, x).prev_sample
    assert (denoise(network, CODES, noise, build_schedule("ddim", 10)) - x).abs().max() < 1e-4


@pytest.mark.parametrize("name", SCHEDULERS)
def test_many_steps_sample_the_data_distribution(name: str) -> None:
    network = GaussianNetwork(mean=2.0, std=0.5)
    noise = torch.randn(1, 1, 128, 128, generator=torch.Generator().manual_seed(1))
    out = denoise(network, CODES, noise, build_schedule(name, 100))
    assert abs(float(out.mean()) - 2.0) < 0.02 and abs(float(out.std()) - 0.5) < 0.03


@pytest.mark.parametrize("name", SCHEDULERS)
def test_strength_shortens_the_range_and_keeps_the_count(name: str) -> None:
    start = torch.full((1, 1, 16, 16), 3.0)
    noise = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    network = GaussianNetwork(mean=2.0, std=0.5)
    schedule = build_schedule(name, 10, strength=0.3)
    out = denoise(network, CODES, noise, schedule, start=start)
    assert len(network.calls) == 10 and network.calls[0] == 299
    assert 2.1 < float(out.mean()) < 3.1  # between the start and the prior: the start was noised, not dropped
    with pytest.raises(InputError, match="start"):
        denoise(network, CODES, noise, schedule)


def test_impossible_settings() -> None:
    for bad in (0, 1001, -1, 2.5, True, "10", None):
        with pytest.raises(InputError, match="1 to 1000"):
            build_schedule("ddim", bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="strength"):
        build_schedule("ddim", 5, strength=1.5)
    with pytest.raises(InputError, match="ddim, dpmsolver"):
        build_schedule("euler", 5)
    with pytest.raises(InputError, match="distinct steps"):
        build_schedule("dpmsolver++", 10, strength=0.001)
    assert build_schedule("ddim", 10, strength=0.001).nfe == 10
