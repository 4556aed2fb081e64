"""The exact sampler: from noise and codes to an image in exactly ``timesteps`` network evaluations.

TerraMind's detokenizer is a diffusion decoder that predicts the clean image x0 (linear betas 1e-4..0.02 over 1000
steps, zero terminal SNR). With one step from pure noise its answer is the posterior mean, the most accurate image; more
steps give a sharper sample. diffusers' DDIM spaces steps by ``1000 // n``, which is exact only where n divides 1000, so
DDIM's update is written here; the multistep solver is diffusers'. Neither clips: snow and cloud stay expressible.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from axs_lib.checks import check_choice, check_count, check_number
from axs_lib.errors import InputError

TRAIN_TIMESTEPS = 1000
SCHEDULERS = ("ddim", "dpmsolver++")

# (x0, number of the evaluation, x_t) -> x_t of the next evaluation, or the image after the last one
Update = Callable[[Tensor, int, Tensor], Tensor]


@lru_cache(maxsize=1)
@torch.inference_mode(False)  # kept, so it must serve training as well
def alphas_cumprod() -> Tensor:
    """Cumulative signal power (1000,), float64, rescaled to zero terminal SNR (Lin et al. 2023, arXiv:2305.08891)."""
    betas = torch.linspace(1e-4, 0.02, TRAIN_TIMESTEPS, dtype=torch.float64)
    root = (1.0 - betas).cumprod(0).sqrt()
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    return root.square()


def check_timesteps(timesteps: int) -> int:
    """``timesteps`` itself; an InputError where it is not an integer from 1 to 1000."""
    return check_count("timesteps", timesteps, 1, TRAIN_TIMESTEPS)


def check_strength(strength: float) -> float:
    """``strength`` as a float; an InputError where it is outside 0..1 or not a number."""
    expected = "a number from 0 (keep opt_v2 exactly) to 1 (start from pure noise)"
    return check_number("strength", strength, 0, 1, expected)


def spaced_timesteps(timesteps: int, strength: float = 1.0) -> list[int]:
    """The time steps the network sees, descending, "trailing"; where there are too few, neighbours repeat."""
    span = max(1, round(TRAIN_TIMESTEPS * strength))
    return [max(0, round(span * (timesteps - i) / timesteps) - 1) for i in range(timesteps)]


@dataclass(frozen=True)
class Schedule:
    """What the denoiser needs: the steps and the rule that combines the network's outputs."""

    network_timesteps: tuple[int, ...]  # that the network is told at each evaluation, descending, 0..999
    solver: Callable[[], Update]  # starts a run and returns its update rule, which may keep state

    @property
    def nfe(self) -> int:
        """Number of network evaluations."""
        return len(self.network_timesteps)


def build_schedule(name: str, timesteps: int, strength: float = 1.0) -> Schedule:
    """Exactly ``timesteps`` evaluations over the first ``strength`` of the diffusion process; else an InputError."""
    check_timesteps(timesteps)
    steps = tuple(spaced_timesteps(timesteps, check_strength(strength)))
    if check_choice("scheduler", name, SCHEDULERS) == "ddim":
        return Schedule(steps, lambda: ddim(steps))
    if len(set(steps)) < len(steps):
        raise InputError(
            f"strength leaves {len(set(steps))} distinct steps for {len(steps)} timesteps, which a multistep solver"
            " cannot use; raise strength, lower timesteps or use scheduler='ddim'"
        )
    return Schedule(steps, lambda: multistep(steps))


def ddim(steps: Sequence[int]) -> Update:
    """DDIM without added noise (Song et al. 2021, arXiv:2010.02502, equation 12) between the given time steps."""
    signal = [*alphas_cumprod()[list(steps)].tolist(), 1.0]

    def update(x0: Tensor, number: int, x: Tensor) -> Tensor:
        now, following = signal[number], signal[number + 1]
        share = math.sqrt((1.0 - following) / (1.0 - now))  # of the noise that stays
        return (math.sqrt(following) - share * math.sqrt(now)) * x0 + share * x

    return update


def multistep(steps: Sequence[int]) -> Update:
    """DPM-Solver++ of second order (Lu et al. 2022, arXiv:2211.01095) by diffusers, at the given time steps."""
    from diffusers import DPMSolverMultistepScheduler

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
    scheduler.set_timesteps(timesteps=list(steps))

    def update(x0: Tensor, number: int, x: Tensor) -> Tensor:
        return scheduler.step(x0, scheduler.timesteps[number], x).prev_sample

    return update


def add_noise(clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """x_t of the forward process: ``sqrt(a_t) clean + sqrt(1 - a_t) noise``, with t (B,) or (1,)."""
    alpha = alphas_cumprod().to(clean.device)[timesteps.to(clean.device)].reshape(-1, *[1] * (clean.ndim - 1))
    return alpha.sqrt().to(clean.dtype) * clean + (1.0 - alpha).sqrt().to(clean.dtype) * noise


def denoise(
    network: Callable[[Tensor, Tensor, Tensor], Tensor],
    codes: Tensor,
    noise: Tensor,
    schedule: Schedule,
    *,
    start: Tensor | None = None,
) -> Tensor:
    """Run the diffusion decoder from noise (B, C, H, W), and codes (B, D, h, w), to x0 (B, C, H, W) in float32.

    ``network(x_t, t, codes)`` gives x0, with t (1,) common to the batch; ``start`` is the clean image to start from
    where the schedule does not start from pure noise. The solver's arithmetic stays in float32 under autocast.
    """
    if schedule.network_timesteps[0] == TRAIN_TIMESTEPS - 1:  # the pure-noise end of the process
        x = noise
    elif start is None:
        raise InputError("a schedule with strength < 1 needs the image to start from; pass start=opt_v2 in z-units")
    else:
        x = add_noise(start, noise, torch.tensor(schedule.network_timesteps[:1]))
    update = schedule.solver()
    for number, step in enumerate(schedule.network_timesteps):
        time = torch.full((1,), step, device=x.device)
        x = update(network(x, time, codes).float(), number, x)
    return x
