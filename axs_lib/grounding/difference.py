"""The training-free way to correct: what the SAR asks for is what changes when the SAR is taken away (experimental).

TerraMind decodes twice from the same noise, once conditioned on SAR and estimate, once on the estimate alone. The
difference of the two images is free of what both lose in the tokenizer. It is weighted by how sure TerraMind is of
its tokens and held at low frequencies where the SAR does not contradict the estimate.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from axs_lib.grounding.head import Correction


def difference_correction(
    with_sar: Tensor, without_sar: Tensor, confidence: Tensor, sar_inconsistency: Tensor
) -> Correction:
    """Correction from the two decoded images.

    Args:
        with_sar: (B, 4, H, W) z-units, conditioned on SAR and estimate.
        without_sar: (B, 4, H, W) z-units, conditioned on the estimate alone, from the same noise.
        confidence: (B, 1, h, w) token confidence in [0, 1].
        sar_inconsistency: (B, 1, H, W) in [0, 1].
    """
    gate = F.interpolate(confidence, size=with_sar.shape[-2:], mode="bilinear", align_corners=False)
    return Correction(with_sar - without_sar, gate.clamp(0.0, 1.0), sar_inconsistency)
