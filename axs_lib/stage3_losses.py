"""The loss of Stage 3: the terms of Stage 2, edges shared with the SAR, and TerraMind's tokens.

Two terms join those of ``axs_lib.stage2_losses``, each only where its inputs are given: ``sar``, see
``sar_structure_error``, whose weight is small because the SAR's edges are not all the truth's; and ``tokens``, the
cross-entropy in nats of TerraMind's token logits and the truth's tokens.
"""

from __future__ import annotations

from collections.abc import Callable

from kornia.filters import spatial_gradient
from torch import Tensor
from torch.nn import functional as F

from axs_lib.bands import SAR_BANDS
from axs_lib.errors import InputError
from axs_lib.metrics import SAR_SMOOTHING, smooth, whole_windows
from axs_lib.stage2_losses import TINY, ComparedImages, Stage2Loss

IGNORED_TOKEN = -100
_FLAT = 1e-6  # variance of the edge strength, in units of its mean square, under which there is no structure


class Stage3Loss(Stage2Loss):
    """Stage 2's loss with SAR structure and token cross-entropy, by their weights; the others are ``Stage2Loss``'s.

    ``forward`` takes estimate, truth and mask as Stage 2's does, and by name what ``measures`` takes.
    """

    def __init__(self, sar: float = 0.01, tokens: float = 0.01, **weights: float) -> None:
        super().__init__(**weights)
        self.weights |= {"sar": sar, "tokens": tokens}
        self.check_weights()

    def measures(
        self,
        images: ComparedImages,
        *,
        s1: Tensor | None = None,
        logits: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> dict[str, Callable[[], Tensor]]:
        """How to compute each term; shapes that do not match are an InputError.

        Without ``s1``, (B, 2, H, W) or (2, H, W), VV and VH in dB, NaN = nodata, the SAR term is left out; without both
        ``logits`` (B, N, V) and ``targets`` (see ``token_cross_entropy``) the token term.
        """
        measures = super().measures(images)
        if s1 is not None:
            sar = _check_sar(s1, images.pred)
            valid = images.valid & ~sar.isnan().any(1, keepdim=True)
            seen = sar.masked_fill(~valid, 0.0)
            measures["sar"] = lambda: images.per_image(sar_structure_error(images.pred, seen, valid))
        if logits is not None and targets is not None:
            measures["tokens"] = lambda: token_cross_entropy(logits, targets)
        elif logits is not None or targets is not None:
            raise InputError("the token term needs logits and targets together; pass both, or neither to leave it out")
        return measures


def token_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats over the tokens that count; 0 where none does.

    Logits are (B, N, V), targets (B, N) int64 or ``IGNORED_TOKEN``; what does not fit is an InputError.
    """
    if logits.ndim != 3 or logits.shape[:2] != targets.shape or targets.is_floating_point():
        raise InputError(
            f"logits have shape {tuple(logits.shape)} and targets {tuple(targets.shape)} ({targets.dtype}); expected"
            " (B, N, V) and integers (B, N)"
        )
    counted = targets != IGNORED_TOKEN
    if bool((counted & ((targets < 0) | (targets >= logits.shape[2]))).any()):
        raise InputError(
            f"targets hold {int(targets.min())} to {int(targets.max())}; expected tokens from 0 to"
            f" {logits.shape[2] - 1}, or {IGNORED_TOKEN} where a token does not count"
        )
    total = F.cross_entropy(logits.float().mT, targets.long(), ignore_index=IGNORED_TOKEN, reduction="sum")
    return total / counted.sum().clamp_min(1)


def sar_structure_error(image: Tensor, s1: Tensor, valid: Tensor) -> Tensor:
    """1 - correlation of edge strengths of each image and its SAR: (B,), 0 to 2; 1 where either has no structure.

    Edges are those of the mean of the bands, both first smoothed, since speckle has edges everywhere and smoothing the
    SAR alone would favour a blurred image.
    ``image`` (B, C, H, W) and ``s1`` (B, 2, H, W) in dB are 0 where they do not count by ``valid`` (B, 1, H, W).
    """
    inner = whole_windows(valid)
    smoothed = (smooth(x.mean(1, keepdim=True), valid, SAR_SMOOTHING) for x in (image, s1))
    one, other = ((spatial_gradient(x).square().sum(2) + TINY).sqrt() for x in smoothed)
    count = inner.sum((1, 2, 3)).clamp_min(1)

    def mean(x: Tensor) -> Tensor:
        return (x * inner).sum((1, 2, 3)) / count

    # Scaled first, since the edges of reflectance are far smaller than those of dB.
    one, other = (x / (mean(x.square()) + TINY).sqrt()[:, None, None, None] for x in (one, other))
    one, other = one - mean(one)[:, None, None, None], other - mean(other)[:, None, None, None]
    spread = (mean(one.square()) + _FLAT) * (mean(other.square()) + _FLAT)
    return 1 - mean(one * other) / spread.sqrt()


def _check_sar(s1: Tensor, image: Tensor) -> Tensor:
    bands = len(SAR_BANDS)
    sar = s1[None] if s1.ndim == 3 else s1
    if sar.ndim != 4 or sar.shape[1] != bands or sar.shape[0] != len(image) or sar.shape[2:] != image.shape[2:]:
        batch, _, height, width = image.shape
        raise InputError(f"s1 has shape {tuple(s1.shape)}; expected VV and VH, ({batch}, {bands}, {height}, {width})")
    return sar.to(device=image.device, dtype=image.dtype)
