"""TerraMind as a conditional generator: SAR and optical pixels in, codes and a decoded image out.

``TerraMindGenerator`` runs terratorch's dual encoder, decoder and codebook, and the diffusion detokenizer, without the
traps of ``TerraMindGeneration``: no global random state, no modified inputs, no clamped output, exact step counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from axs_lib import __version__
from axs_lib.checks import check_choice, check_count
from axs_lib.errors import InputError
from axs_lib.networks.tm_utils import interpolate_pos_encoding
from axs_lib.terramind.adapters import Adapter, OpticalAdapter
from axs_lib.terramind.detokenizer import Detokenizer
from axs_lib.terramind.noise import gumbel_field
from axs_lib.terramind.sampler import Schedule, denoise
from axs_lib.terramind.winograd import WinogradConv2d, checked_once

if TYPE_CHECKING:
    from axs_lib.terramind.weights import WeightsInfo

TOKEN_MODES = ("soft", "argmax", "sample")


@dataclass(frozen=True)
class GeneratorLayout:
    """Fixed facts of one architecture; sizes in pixels."""

    variant: str  # name users know, e.g. terramind_v1_base or nano
    sar_key: str  # of the SAR modality in the encoder embeddings
    optical_key: str  # of the optical pixel modality there
    target_key: str  # of the optical token modality in the decoder embeddings
    s1_product: str  # whose statistics the SAR adapter has
    patch: int = 16  # side that a token covers
    multiple: int = 32  # of which image sides must be
    min_side: int = 96  # that the network is run at
    max_side: int = 256  # beyond it images are tiled


class TerraMindGenerator(nn.Module):
    """TerraMind's encoder-decoder, codebook and detokenizer, run exactly."""

    # terratorch's TerraMind and FiniteScalarQuantizer, which are untyped.
    core: Any
    quantizer: Any

    def __init__(
        self,
        core: nn.Module,
        detokenizer: Detokenizer,
        quantizer: nn.Module,
        *,
        sar: Adapter,
        optical: OpticalAdapter,
        layout: GeneratorLayout,
    ) -> None:
        super().__init__()
        self.core = core
        self.detokenizer = detokenizer
        self.quantizer = quantizer
        self.sar = sar
        self.optical = optical
        self.layout = layout
        self.weights: WeightsInfo | None = None
        self.adapter: str | None = None  # the LoRA adapter in the weights, in words
        self.precision: torch.dtype | None = None  # of products and convolutions, where it was lowered

    @property
    def codebook(self) -> Tensor:
        """(V, D) code of each vocabulary entry, on an ordered grid in [0, 1]^D."""
        return self.quantizer.codebook

    @property
    def provenance(self) -> dict[str, str]:
        """What an output was made with, for file tags: version, variant, weights and their hash, adapter."""
        tags = {"AXS_VERSION": __version__, "AXS_VARIANT": self.layout.variant}
        tags |= self.weights.tags() if self.weights else {"AXS_WEIGHTS": "random"}
        return tags | ({"AXS_ADAPTER": self.adapter} if self.adapter else {})

    def use_precision(self, dtype: torch.dtype) -> None:
        """Keep and compute linear layers and convolutions in bfloat16, or float16 on a GPU, for inference.

        They are converted once and take half the memory. Normalisation, the image's last layers, the codes and the
        solver's steps stay in float32. There is no way back but building anew. Another dtype is an InputError.
        """
        if dtype not in (torch.bfloat16, torch.float16):
            raise InputError(
                f"precision is {dtype}; expected torch.bfloat16, or torch.float16 on a GPU (built in float32)"
            )
        kept = set(self.detokenizer.out.modules())
        for module in (*self.core.modules(), *self.detokenizer.modules()):
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and module not in kept:
                module.to(dtype)
        self.precision = dtype

    def use_winograd(self, use: bool = True) -> None:
        """Whether the detokenizer's wide 3 x 3 convolutions may be Winograd's on a CPU; they are unless told otherwise.

        The transformed kernels take up to 1.9 GB for the published variants (0.5 GB in bfloat16), none for nano;
        ``False`` frees them. The image is the same to the rounding of its precision.
        """
        for module in self.detokenizer.modules():
            if isinstance(module, WinogradConv2d):
                module.use_winograd(use)

    def compile_denoiser(self, **options: Any) -> None:
        """Compile the detokenizer with ``torch.compile`` and its options, for many batches of one shape."""
        self.detokenizer.compile(**({"dynamic": False} | options))

    def _autocast(self, tensor: Tensor) -> AbstractContextManager[Any]:
        """The precision asked for; without one the caller's own autocast holds."""
        return nullcontext() if self.precision is None else torch.autocast(tensor.device.type, self.precision)

    def logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Token logits (B, h*w, V) of the optical image, tokens in row-major order.

        ``inputs`` are any of ``"s1"`` (B, 2, H, W) and ``"optical"`` (B, 4, H, W) in z-units; H = W, a multiple of 32.
        """
        core, layout = self.core, self.layout
        tokens, positions = [], []
        for name, image in inputs.items():
            key = layout.sar_key if name == "s1" else layout.optical_key
            pixels = image if name == "s1" else self.optical.expand_bands(image)
            with self._autocast(pixels):
                embedded = core.encoder_embeddings[key]({"tensor": pixels})
            tokens.append(embedded["x"] + embedded["emb"])
            positions.append(embedded["emb"])
        if not tokens:
            raise InputError("no input modality was given; pass s1, optical or both")
        target, size = core.decoder_embeddings[layout.target_key], tuple(image.shape[-2:])
        places = target.pos_emb
        if size != tuple(target.image_size):
            places = interpolate_pos_encoding(places, *size, target.patch_size, target.dim_tokens)
        queries = core.mask_token + (places + target.mod_emb)  # (1, h*w, dim) of the tokens to predict
        with self._autocast(image):
            encoded = core.forward_encoder(torch.cat(tokens, dim=1), None)
            context = core.decoder_proj_context(encoded) + torch.cat(positions, dim=1)
            decoded = core.forward_decoder(queries.expand(encoded.shape[0], -1, -1), context, None, None)
            return target.forward_logits(decoded)

    def codes(
        self,
        logits: Tensor,
        size: tuple[int, int],
        *,
        tokens: str = "soft",
        temperature: float = 1.0,
        seeds: Tensor | None = None,
        origins: Tensor | None = None,
    ) -> Tensor:
        """Codes (B, D, h, w) for the detokenizer, of logits (B, h*w, V) of an image of this size in pixels.

        ``tokens`` are ``"soft"``, the expected code under the predicted distribution (deterministic, differentiable),
        ``"argmax"``, the most likely token's code, or ``"sample"``, a random token's, by ``seeds`` (B,) int64. The
        ``temperature`` divides the logits; ``origins`` (B, 2) are scene coordinates, so that overlapping tiles draw
        alike.
        """
        height, width = size[0] // self.layout.patch, size[1] // self.layout.patch
        codebook, logits = self.codebook, logits.float()
        if check_choice("tokens", tokens, TOKEN_MODES) == "soft":
            weight = (logits / temperature).softmax(-1)
            # No matrix product, which the process may round.
            codes = torch.stack([(weight * values).sum(-1) for values in codebook.float().mT], dim=-1)
        elif tokens == "argmax":
            codes = codebook[logits.argmax(-1)]
        else:
            if seeds is None:
                raise InputError("sampled tokens need seeds")
            token_origins = None if origins is None else origins // self.layout.patch
            gumbel = gumbel_field(seeds, (logits.shape[-1], height, width), origins=token_origins)
            codes = codebook[(logits / temperature + gumbel.flatten(2).transpose(1, 2)).argmax(-1)]
        return codes.transpose(1, 2).reshape(len(codes), -1, height, width).float()

    def confidence(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """How sure the token distribution is, (B, 1, h, w) in [0, 1]: one minus its normalised entropy."""
        log_p = logits.float().log_softmax(-1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        height, width = size[0] // self.layout.patch, size[1] // self.layout.patch
        return (1.0 - entropy / math.log(logits.shape[-1])).clamp(0.0, 1.0).reshape(-1, 1, height, width)

    def denoise_once(self, x_t: Tensor, t: Tensor, codes: Tensor) -> Tensor:
        """One evaluation of the detokenizer: x0 (B, C, H, W) in z-units from x_t, t (B,) or (1,) int64 and codes."""
        with self._autocast(x_t):
            return self.detokenizer(x_t, t, codes)

    @torch.no_grad()
    def decode(
        self, codes: Tensor, noise: Tensor, schedule: Schedule, *, start: Tensor | None = None, batch_size: int = 0
    ) -> Tensor:
        """Image channels (B, C, H, W) in z-units, after exactly ``schedule.nfe`` evaluations of each image.

        From codes (B, D, h, w) and standard normal noise (B, C, H, W), and from ``start`` (B, C, H, W) where the
        schedule does not start from pure noise; ``batch_size`` images at once, 0 for all.
        """
        images, at_once = [], check_count("batch_size", batch_size, 0) or len(codes)
        with checked_once(self.detokenizer):
            for first in range(0, len(codes), at_once):
                part = slice(first, first + at_once)
                begun = None if start is None else start[part]
                images.append(denoise(self.denoise_once, codes[part], noise[part], schedule, start=begun))
        return torch.cat(images)
