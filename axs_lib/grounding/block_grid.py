"""Grids of square blocks in an estimate, as codecs and token models leave them: found, measured and levelled.

At the seams of a grid the estimate jumps more than elsewhere, at every period and along both axes. Where the jumps of
a seam are the same along it, the blocks are off by a constant each; these are taken out by least squares, as far as the
seams' jumps exceed those of the ground (empirical Bayes), and only where the blocks' levels look drawn each by
itself and the SAR has no such grid: those of an enlarged image follow the ground, and are its content, as are fields.
Jumps that vary along a seam are lost detail, which no constant gives back: of those only the statistics are told.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from axs_lib.grounding.sar_inconsistency import smoothstep

PERIODS_PX = range(4, 33)
HALF_PX = 4  # half of the stretches of a seam over which jumps are averaged, too; they overlap by half
GRID_SCORE = (2.8, 3.8)  # standard errors of the weaker axis, from where on a grid is believed in, and wholly
VARYING = (0.12, 0.3)  # logarithm of how much more jumps vary along seams than elsewhere, where they are lost detail
EXCESS = (0.2, 0.5)  # logarithm of how much larger they are than elsewhere, up to where the ground explains them
LOG_LIKELIHOOD_RATIO = (4.0, 12.0)  # of levels drawn each by itself against those of a coarse image
IN_SAR = (1.8, 2.6)  # standard errors of the same grid in the SAR, from where on blocks are fields, and wholly
LEAST_JUMP = 1e-6  # z-units squared: about 1 DN
STATISTICS = 1 + 2 * 4 + 1


def block_grid(bands: Tensor, inside: Tensor, s1: Tensor) -> tuple[Tensor, Tensor]:
    """What takes out the offsets of blocks, (B, 4, H, W), and what tells of a grid, (B, STATISTICS) float32, bounded.

    ``bands`` (B, 4, H, W) and ``s1`` (B, 2, H, W) are z-scored; ``inside`` (B, 1, H, W) is above 0 where the bands are
    an estimate; what they are elsewhere plays no part. No gradient comes through either.
    """
    change, statistics = torch.zeros_like(bands), torch.zeros(len(bands), STATISTICS, device="cpu")
    if min(bands.shape[-2:]) >= 4 * PERIODS_PX[0]:
        bands = torch.where(inside > 0, bands.detach().float(), 0.0)
        inside = (inside > 0).float()
        errors, periods, starts = _find(bands, inside)
        statistics[:, 0] = (errors / 4.0).clamp(-1.0, 3.0)
        believed = smoothstep(errors, *GRID_SCORE)
        if bool(believed.any()):
            in_sar = [_grid_scores(_profiles(s1.detach().float(), inside, axis))[:, 1] for axis in (-2, -1)]
        for tile in (believed > 0).nonzero()[:, 0].tolist():
            period, (down, across) = int(periods[tile]), starts[tile].tolist()
            offsets, varying, excess = _measure(bands[tile], inside[tile], period, down, across)
            share = believed[tile] * smoothstep(excess.mean(), *EXCESS) * (1.0 - smoothstep(varying.mean(), *VARYING))
            sar_score = in_sar[0][tile, period - PERIODS_PX[0], down] + in_sar[1][tile, period - PERIODS_PX[0], across]
            share = share * (1.0 - smoothstep(sar_score / math.sqrt(2), *IN_SAR))
            change[tile] = (-share * offsets).to(change)
            described = F.pad(torch.tanh(torch.cat([varying, excess]) / 2), (0, 1), value=math.log2(period) / 3 - 1)
            statistics[tile, 1:] = (believed[tile] * described).float()
    return change, statistics.to(bands.device)


def _jumps(image: Tensor, axis: int) -> Tensor:
    """From each pixel to the next along an axis beyond what both sides' slopes explain, from 1 to 2 on, W - 3 of W."""
    steps = image.diff(dim=axis)
    before, step, after = (steps.narrow(axis, start, steps.shape[axis] - 2) for start in range(3))
    return torch.sub(step, before + after, alpha=0.5)


def _counted(inside: Tensor, axis: int) -> Tensor:
    """1 where all pixels of a jump are inside, 0 elsewhere."""
    return functools.reduce(torch.mul, (inside.narrow(axis, start, inside.shape[axis] - 3) for start in range(4)))


def _find(bands: Tensor, inside: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Standard errors of the likeliest grid (B,), its period (B,), its first row and column (B, 2), on the CPU."""
    best = [_grid_scores(_profiles(bands, inside, axis)).max(3) for axis in (-2, -1)]  # over a period's starts
    errors, chosen = torch.minimum(best[0].values, best[1].values).flatten(1).max(1)  # of (B, 2, periods)
    starts = torch.cat([each.indices.flatten(1).gather(1, chosen[:, None]) for each in best], dim=1)
    return errors, chosen % len(PERIODS_PX) + PERIODS_PX[0], starts


def _profiles(bands: Tensor, inside: Tensor, axis: int) -> Tensor:
    """Logarithms of the mean size of jumps along an axis at each place, as they are and averaged, (B, 2, W - 3)."""
    jumps, counted = _jumps(bands, axis), _counted(inside, axis)
    jumps, along, profiles = jumps * counted, -3 - axis, []
    for averaged in (False, True):
        if averaged:
            halves = [each.unfold(along, HALF_PX, HALF_PX).sum(-1) for each in (jumps, counted)]
            jumps, counted = (
                half.narrow(along, 0, half.shape[along] - 1) + half.narrow(along, 1, half.shape[along] - 1)
                for half in halves
            )
            jumps = jumps / counted.clamp_min(1.0) * (counted > HALF_PX)
            counted = (counted > HALF_PX).to(jumps.dtype)
        count = counted.sum(along)[:, 0]  # (B, W - 3)
        size = jumps.abs().sum(along)  # (B, 4, W - 3)
        size = size / (size.sum(2, keepdim=True) / count.sum(1).clamp_min(1.0)[:, None, None] + 1e-4)
        enough = count > 0.1 * counted.shape[along]
        logarithm = (size.mean(1) / count.clamp_min(1.0) + 1e-3).log() * enough
        profiles.append(torch.where(enough, logarithm, (logarithm.sum(1) / enough.sum(1).clamp_min(1))[:, None]))
    return torch.stack(profiles, dim=1)


def _grid_scores(profile: Tensor) -> Tensor:
    """(..., periods, starts): standard errors by which the columns of a grid exceed the others, of (..., W - 3)."""
    member, count = _members(profile.shape[-1])  # (W - 3, periods * starts), (periods * starts,)
    others = profile.shape[-1] - count
    profile = profile.cpu().double()  # which no setting rounds
    total, squares = profile.sum(-1, keepdim=True), profile.square().sum(-1, keepdim=True)
    own, own_squares = profile @ member, profile.square() @ member
    mean = (total - own) / others
    variance = ((squares - own_squares) / others - mean.square()).clamp_min(1e-6)
    errors = (own / count.clamp_min(1.0) - mean) * (count / variance).sqrt()
    return torch.where(count >= 2, errors, -9.0).unflatten(-1, (len(PERIODS_PX), PERIODS_PX[-1]))


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)  # cached weights must serve training, too
def _members(columns: int) -> tuple[Tensor, Tensor]:
    """Which jumps lie at the seams of each period and start, (columns, periods * starts), and how many do."""
    start = torch.arange(PERIODS_PX[-1], device="cpu")
    period = start[:, None] + PERIODS_PX[0]
    column = torch.arange(2, columns + 2, device="cpu")[:, None, None]  # the first beyond a jump
    member = ((column % period == start) & (start < period))[:, : len(PERIODS_PX)].flatten(1).double()
    return member, member.sum(0)


def _measure(bands: Tensor, inside: Tensor, period: int, down: int, across: int) -> tuple[Tensor, Tensor, Tensor]:
    """Offsets of blocks (4, H, W); logarithms of how much more jumps vary along seams, and how much larger they are.

    ``bands`` (4, H, W) and ``inside`` (1, H, W) are of one tile; a block begins at row ``down`` and column ``across``.
    """
    bands, inside = bands.cpu().double(), inside.cpu().double()  # which no setting rounds
    for lines, start in ((inside, across), (inside.mT, down)):  # the jump to a single line at the border is unknown
        lines[..., 0] *= start != 1
        lines[..., -1] *= (lines.shape[2] - 1 - start) % period != 0
    sides = [(bands, inside, across), (bands.mT.contiguous(), inside.mT, down)]
    seams = [_seams(image.shape[2], period, start) for image, _, start in sides]
    blocks = [F.one_hot(F.pad(at, (2, 1)).cumsum(0)).to(bands) for at, _ in seams]  # (W, columns), (H, rows)
    at_seams, between, varying = [], [], []
    for (image, valid, _), (at, free), lines in zip(sides, seams, reversed(blocks), strict=True):
        jumps, counted = _jumps(image, -1), _counted(valid, -1)
        mean = lines.T @ (jumps * counted) / (lines.T @ counted).clamp_min(1.0)  # (4, rows, W - 3)
        rest = ((jumps - lines @ mean) * counted).square().sum(1) / counted.sum(1).clamp_min(1.0)  # (4, W - 3)
        varying.append(((rest[:, at].mean(1) + LEAST_JUMP) / rest[:, free].mean(1).clamp_min(1e-12)).log())
        at_seams.append(mean[..., at])
        between.append(mean[..., free].flatten(1))
    (beside, below), free = at_seams, torch.cat(between, dim=1)  # (4, rows, columns - 1), (4, columns, rows - 1)
    both = torch.cat([each.flatten(1) for each in at_seams], dim=1)
    excess = ((both.square().mean(1) + LEAST_JUMP) / (free.square().mean(1) + LEAST_JUMP)).log()
    # In components in which the ground's jumps are uncorrelated and of size 1, each level is shrunk by itself.
    ground = free @ free.T / free.shape[1]
    root = torch.linalg.cholesky(ground + (LEAST_JUMP + 1e-12 * ground.trace()) * torch.eye(4).to(bands))
    white = torch.linalg.solve_triangular(root, both, upper=False)
    power, directions = torch.linalg.eigh(white @ white.T / white.shape[1])
    signal = power / (1.0 + 2.0 / math.sqrt(white.shape[1])) ** 2 - 1.0  # twice the variance of a block's level
    beside, below = (directions.T @ white).split([beside[0].numel(), below[0].numel()], dim=1)
    beside = beside.unflatten(1, at_seams[0].shape[1:])  # (4, rows, columns - 1)
    below = below.unflatten(1, at_seams[1].shape[1:]).mT  # (4, rows - 1, columns)
    pull = F.pad(beside, (1, 0)) - F.pad(beside, (0, 1)) + F.pad(below, (0, 0, 1, 0)) - F.pad(below, (0, 0, 0, 1))
    # Least squares of the levels' differences, solved by cosine transforms of the rows and columns of blocks.
    (columns, across_stiffness), (rows, down_stiffness) = ([x.to(bands) for x in _cosines(b.shape[1])] for b in blocks)
    stiffness = down_stiffness[:, None] + across_stiffness  # (rows, columns)
    pull, signal = rows @ pull @ columns.T, signal.clamp_min(1e-9)[:, None, None]
    levels = rows.T @ (pull / (stiffness + 2.0 / signal)) @ columns  # (4, rows, columns)
    levels = ((root @ directions) @ levels.flatten(1)).view_as(levels)
    # Where levels are drawn each by itself the slow waves are weak among jumps; a coarse image has all alike.
    own, coarse = 1.0 + 0.5 * signal * stiffness, 1.0 + signal
    log_ratio = 0.5 * (pull.square() / stiffness * (1.0 / coarse - 1.0 / own) + (coarse / own).log())
    log_ratio = log_ratio.flatten(1)[:, 1:].sum()  # without the mean, which has no jumps
    levels = levels * smoothstep(log_ratio, *LOG_LIKELIHOOD_RATIO)
    return blocks[1] @ levels @ blocks[0].T * inside, torch.stack(varying).mean(0), excess


def _seams(size: int, period: int, start: int) -> tuple[Tensor, Tensor]:
    """Which of an axis' jumps lie at seams, and which well between them, (size - 3,) each."""
    phase = (torch.arange(2, size - 1, device="cpu") - start) % period
    return phase == 0, torch.minimum(phase, period - phase) >= 2


def _cosines(count: int) -> tuple[Tensor, Tensor]:
    """The orthonormal cosine transform (count, count), and what it makes of differences squared, (count,)."""
    wave = torch.arange(count, dtype=torch.float64, device="cpu")
    cosines = (math.pi / count * wave[:, None] * (wave + 0.5)).cos() * math.sqrt(2 / count)
    cosines[0] *= math.sqrt(0.5)
    return cosines, 2 - 2 * (math.pi / count * wave).cos()
