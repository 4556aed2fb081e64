"""The exact sampler: from noise and codes to an image in exactly ``timesteps`` network evaluations.

TerraMind's detokenizer is a diffusion decoder that predicts the clean image x0 (linear betas 1e-4..0.02 over 1000
steps, zero terminal SNR). A schedule here is the list of the time steps the network sees plus a diffusers scheduler
that combines its answers; ``denoise`` is the loop. diffusers' own DDIM spaces steps by ``1000 // n``, which is exact
only where n divides 1000, so the DDIM scheduler is built on the sub-sampled process itself ("respacing", Nichol &
Dhariwal 2021): its betas are those between the chosen steps, and every count from 1 to 1000 is exact. Multistep
solvers take the chosen steps directly. Neither thresholds nor clips: snow, cloud and dark water stay expressible.

With one step from pure noise the answer is the network's posterior mean, the most accurate image it can give; more
steps give a sharper sample.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from axs_lib.checks import check_number
from axs_lib.errors import InputError

TRAIN_TIMESTEPS = 1000
SCHEDULERS = ("ddim", "dpmsolver++")


@lru_cache(maxsize=1)
def alphas_cumprod() -> Tensor:
    """The training process' cumulative signal power, float64 (1000,), exactly 0 at the last step.

    Linear betas rescaled to zero terminal SNR (Lin et al. 2023, arXiv:2305.08891, algorithm 1).
    """
    betas = torch.linspace(1e-4, 0.02, TRAIN_TIMESTEPS, dtype=torch.float64)
    root = (1.0 - betas).cumprod(0).sqrt()
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    return root.square()


def check_timesteps(timesteps: int) -> int:
    """``timesteps`` itself.

    Raises:
        InputError: it is not an integer from 1 to 1000.
    """
    if isinstance(timesteps, bool) or not isinstance(timesteps, int) or not 1 <= timesteps <= TRAIN_TIMESTEPS:
        raise InputError(
            f"timesteps is {timesteps!r}; expected an integer from 1 to {TRAIN_TIMESTEPS} (1 is the most accurate and"
            " fastest, 10 the default, more is sharper)"
        )
    return timesteps


def check_strength(strength: float) -> float:
    """``strength`` as a float.

    Raises:
        InputError: it is outside 0..1 or not a number.
    """
    expected = "a number from 0 (keep opt_v2 exactly) to 1 (start from pure noise)"
    return check_number("strength", strength, 0, 1, expected)


def spaced_timesteps(timesteps: int, strength: float = 1.0) -> list[int]:
    """The time steps the network sees, descending, "trailing" over the first ``strength`` of the process.

    Always exactly ``timesteps`` entries. Where the shortened range holds fewer distinct steps, neighbours repeat.
    """
    span = max(1, round(TRAIN_TIMESTEPS * strength))
    return [max(0, round(span * (timesteps - i) / timesteps) - 1) for i in range(timesteps)]


@dataclass(frozen=True)
class Schedule:
    """What one run of the denoiser needs: the steps and the rule that combines the network's answers.

    Attributes:
        network_timesteps: time step told to the network at each evaluation, descending, 0..999.
        scheduler: a diffusers-style scheduler (``timesteps``, ``step(x0, t, x).prev_sample``).
        starts_from_noise: whether the first step is the pure-noise end of the process.
    """

    network_timesteps: tuple[int, ...]
    scheduler: Any
    starts_from_noise: bool

    @property
    def nfe(self) -> int:
        """Number of network evaluations."""
        return len(self.network_timesteps)

    def fresh(self) -> Schedule:
        """The same schedule for another run: schedulers keep state between steps, so no two runs may share one."""
        return replace(self, scheduler=copy.deepcopy(self.scheduler))


def build_schedule(name: str, timesteps: int, strength: float = 1.0) -> Schedule:
    """A schedule of exactly ``timesteps`` evaluations.

    Args:
        name: ``"ddim"`` (default elsewhere) or ``"dpmsolver++"``, a second-order multistep solver.
        timesteps: 1 to 1000.
        strength: share of the diffusion process that is run, 0 < strength <= 1.

    Raises:
        InputError: unknown name, timesteps or strength out of range.
    """
    check_timesteps(timesteps)
    steps = spaced_timesteps(timesteps, check_strength(strength))
    if name == "ddim":
        scheduler = _respaced_ddim(steps)
    elif name == "dpmsolver++":
        scheduler = _multistep(steps)
    else:
        raise InputError(f"scheduler is {name!r}; expected one of {', '.join(SCHEDULERS)}")
    return Schedule(tuple(steps), scheduler, starts_from_noise=steps[0] == TRAIN_TIMESTEPS - 1)


def _respaced_ddim(steps: list[int]) -> Any:
    from diffusers import DDIMScheduler

    alpha = alphas_cumprod()[sorted(steps)]
    previous = torch.cat([alpha.new_ones(1), alpha[:-1]])
    scheduler = DDIMScheduler(
        num_train_timesteps=len(steps),
        trained_betas=(1.0 - alpha / previous).tolist(),
        prediction_type="sample",
        clip_sample=False,
        thresholding=False,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(len(steps))
    return scheduler


def _multistep(steps: list[int]) -> Any:
    from diffusers import DPMSolverMultistepScheduler

    if len(set(steps)) < len(steps):
        raise InputError(
            f"strength leaves {len(set(steps))} distinct steps for {len(steps)} timesteps, which a multistep solver"
            " cannot use; raise strength, lower timesteps or use scheduler='ddim'"
        )
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=TRAIN_TIMESTEPS,
        beta_start=1e-4,
        beta_end=0.02,
        prediction_type="sample",
        algorithm_type="dpmsolver++",
        solver_order=2,
        lower_order_final=True,
        rescale_betas_zero_snr=True,
    )
    scheduler.set_timesteps(timesteps=steps)
    return scheduler


def add_noise(clean: Tensor, noise: Tensor, timesteps: Tensor | int) -> Tensor:
    """x_t of the forward process: ``sqrt(a_t) clean + sqrt(1 - a_t) noise`` with per-sample or common t."""
    alpha = alphas_cumprod().to(clean.device)[torch.as_tensor(timesteps, device=clean.device)]
    alpha = alpha.reshape(-1, *[1] * (clean.ndim - 1))
    return alpha.sqrt().to(clean.dtype) * clean + (1.0 - alpha).sqrt().to(clean.dtype) * noise


def denoise(
    network: Callable[[Tensor, Tensor, Tensor], Tensor],
    codes: Tensor,
    noise: Tensor,
    schedule: Schedule,
    *,
    start: Tensor | None = None,
) -> Tensor:
    """Run the diffusion decoder.

    Args:
        network: ``network(x_t, t, codes) -> x0``; t is a (1,) int64 tensor, common to the batch.
        codes: (B, D, h, w) conditioning.
        noise: (B, C, H, W) float32 standard normal noise.
        schedule: from ``build_schedule``; its evaluations are made exactly.
        start: clean image (B, C, H, W) to start from where the schedule does not start from pure noise.

    Returns:
        x0, (B, C, H, W) float32. The scheduler's arithmetic stays in float32 under autocast.
    """
    if schedule.starts_from_noise:
        x = noise
    elif start is None:
        raise InputError(
            "a schedule with strength < 1 needs the image to start from; pass start=opt_v2 in z-units"
        )
    else:
        x = add_noise(start, noise, schedule.network_timesteps[0])
    for step, t in zip(schedule.network_timesteps, schedule.scheduler.timesteps, strict=True):
        time = torch.full((1,), step, dtype=torch.int64, device=x.device)
        x0 = network(x, time, codes).float()
        x = schedule.scheduler.step(x0, t, x).prev_sample
    return x
