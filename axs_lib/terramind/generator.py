"""TerraMind as a conditional generator: SAR and optical pixels in, codes and a decoded image out.

``TerraMindGenerator`` holds terratorch's dual encoder with its decoder and its FSQ codebook, and the diffusion
detokenizer (``detokenizer.py``), and runs them without the traps of ``TerraMindGeneration``: no global random state, no
modified inputs, no clamped output, no tokenizer encoder, exact step counts. One class serves Stage 1 (SAR alone) and
Stage 3 (SAR and optical). It works in z-units; its adapters translate to dB and DN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from axs_lib.errors import InputError
from axs_lib.networks.tm_utils import interpolate_pos_encoding
from axs_lib.terramind.adapters import OpticalAdapter, SarAdapter
from axs_lib.terramind.detokenizer import Detokenizer
from axs_lib.terramind.noise import gumbel_field
from axs_lib.terramind.sampler import Schedule, denoise
from axs_lib.terramind.winograd import WinogradConv2d

if TYPE_CHECKING:
    from axs_lib.terramind.weights import WeightsInfo

TOKEN_MODES = ("soft", "argmax", "sample")


@dataclass(frozen=True)
class GeneratorLayout:
    """Fixed facts of one architecture.

    Attributes:
        variant: name users know, e.g. ``terramind_v1_base`` or ``nano``.
        sar_key: the SAR modality's key in the encoder embeddings.
        optical_key: the optical pixel modality's key in the encoder embeddings.
        target_key: the optical token modality's key in the decoder embeddings.
        patch: pixels a token covers.
        multiple: image sides must be a multiple of this many pixels.
        min_side: smallest image side the network is run at.
        max_side: largest; bigger images are tiled.
    """

    variant: str
    sar_key: str
    optical_key: str
    target_key: str
    patch: int = 16
    multiple: int = 32
    min_side: int = 96
    max_side: int = 256


class TerraMindGenerator(nn.Module):
    """TerraMind's encoder-decoder, codebook and detokenizer, run exactly.

    Args:
        core: terratorch's ``TerraMind`` module (encoder and decoder with their embeddings).
        detokenizer: ``(x_t, t, codes) -> x0``, with its last layers in ``out``.
        quantizer: terratorch's ``FiniteScalarQuantizer``; only its codebook is used.
        sar: adapter of the SAR modality.
        optical: adapter of the optical modality.
        layout: fixed facts of the architecture.
    """

    # terratorch's modules are untyped; their attributes are used as its source defines them.
    core: Any
    quantizer: Any

    def __init__(
        self,
        core: nn.Module,
        detokenizer: Detokenizer,
        quantizer: nn.Module,
        *,
        sar: SarAdapter,
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
    def image_channels(self) -> int:
        """Channels of the detokenizer's image."""
        return self.optical.channels

    @property
    def provenance(self) -> dict[str, str]:
        """What an output was made with, for file tags: version, variant, weights and their hash, adapter."""
        from axs_lib import __version__

        tags = {"AXS_VERSION": __version__, "AXS_VARIANT": self.layout.variant}
        tags |= self.weights.tags() if self.weights else {"AXS_WEIGHTS": "random"}
        return tags | ({"AXS_ADAPTER": self.adapter} if self.adapter else {})

    # -- speed ----------------------------------------------------------------------------------------------------

    def use_precision(self, dtype: torch.dtype) -> None:
        """Keep and compute linear layers and convolutions in a lower precision, for inference.

        They are converted once and take half the memory; autocast alone would convert the frozen weights anew at every
        evaluation. Normalisation, the image's last layers, the codes and the solver's steps stay in float32. bfloat16
        is faster where the processor or GPU has instructions for it. There is no way back but building anew.

        Args:
            dtype: ``torch.bfloat16``, or ``torch.float16`` on a GPU.

        Raises:
            InputError: another one.
        """
        if dtype not in (torch.bfloat16, torch.float16):
            raise InputError(
                f"precision is {dtype}; expected torch.bfloat16, or torch.float16 on a GPU (float32 is what a model is"
                " built in)"
            )
        kept = set(self.detokenizer.out.modules())
        for part in (self.core, self.detokenizer):
            for module in part.modules():
                if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and module not in kept:
                    module.to(dtype)
        self.precision = dtype

    def use_winograd(self, use: bool = True) -> None:
        """Whether the detokenizer's 3 x 3 convolutions may be Winograd's, with fewer multiplications, on a CPU.

        They are unless told otherwise. The transformed kernels are kept: up to 1.9 GB for the published variants, none
        for nano, whose convolutions are too narrow to gain. The image is the same to float32's rounding.

        Args:
            use: ``False`` takes the direct convolutions and frees the kernels.
        """
        for module in self.detokenizer.modules():
            if isinstance(module, WinogradConv2d):
                module.use_winograd(use)

    def compile_denoiser(self, **options: Any) -> None:
        """Compile the detokenizer with ``torch.compile``: for many batches of one shape.

        Every new shape is compiled at its first use, which takes minutes for the published variants; torch keeps the
        result on disk for the next process. Names of weights stay. Convolutions are direct then, not Winograd's.

        Args:
            **options: of ``torch.compile``; by default shapes are fixed (``dynamic=False``).
        """
        self.detokenizer.compile(**({"dynamic": False} | options))

    def _autocast(self, tensor: Tensor) -> AbstractContextManager[Any]:
        """The precision asked for; without one the caller's own autocast holds."""
        if self.precision is None:
            return nullcontext()
        return torch.autocast(tensor.device.type, self.precision)

    # -- tokens ---------------------------------------------------------------------------------------------------

    def logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Token logits of the optical image given the modalities present.

        Args:
            inputs: any of ``"s1"`` (B, 2, H, W) and ``"optical"`` (B, 4, H, W) in z-units; H = W, a multiple of 32.

        Returns:
            (B, h*w, V) float logits, tokens in row-major order.
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
            height, width = image.shape[-2:]
        if not tokens:
            raise InputError("no input modality was given; pass s1, optical or both")
        queries = core.mask_token + self._target_positions(height, width)
        with self._autocast(image):
            encoded = core.forward_encoder(torch.cat(tokens, dim=1), None)
            context = core.decoder_proj_context(encoded) + torch.cat(positions, dim=1)
            decoded = core.forward_decoder(queries.expand(encoded.shape[0], -1, -1), context, None, None)
            return core.decoder_embeddings[layout.target_key].forward_logits(decoded)

    def _target_positions(self, height: int, width: int) -> Tensor:
        """(1, h*w, dim) positional and modality embedding of the tokens to predict."""
        embedding = self.core.decoder_embeddings[self.layout.target_key]
        positions = embedding.pos_emb
        if (height, width) != tuple(embedding.image_size):
            positions = interpolate_pos_encoding(positions, height, width, embedding.patch_size, embedding.dim_tokens)
        return positions + embedding.mod_emb

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
        """Codes (B, D, h, w) for the detokenizer.

        Args:
            logits: (B, h*w, V).
            size: image height and width in pixels.
            tokens: ``"soft"`` is the expected code under the predicted distribution (deterministic, differentiable),
                ``"argmax"`` the most likely token's code, ``"sample"`` a random token's.
            temperature: divides the logits of soft and sampled tokens; > 0.
            seeds: (B,) int64, needed for ``"sample"``.
            origins: (B, 2) scene coordinate of each sample, so that overlapping tiles draw alike.
        """
        height, width = size[0] // self.layout.patch, size[1] // self.layout.patch
        codebook = self.codebook
        logits = logits.float()
        if tokens == "soft":
            weight = (logits / temperature).softmax(-1)
            # No matrix product, which the process may round.
            codes = torch.stack([(weight * values).sum(-1) for values in codebook.float().mT], dim=-1)
        elif tokens == "argmax":
            codes = codebook[logits.argmax(-1)]
        elif tokens == "sample":
            if seeds is None:
                raise InputError("sampled tokens need seeds")
            token_origins = None if origins is None else origins // self.layout.patch
            gumbel = gumbel_field(seeds, (logits.shape[-1], height, width), origins=token_origins)
            codes = codebook[(logits / temperature + gumbel.flatten(2).transpose(1, 2)).argmax(-1)]
        else:
            raise InputError(f"tokens is {tokens!r}; expected one of {', '.join(TOKEN_MODES)}")
        return codes.transpose(1, 2).reshape(len(codes), -1, height, width).float()

    def confidence(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """How sure the token distribution is, (B, 1, h, w) in [0, 1]: one minus its normalised entropy."""
        log_p = logits.float().log_softmax(-1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        height, width = size[0] // self.layout.patch, size[1] // self.layout.patch
        return (1.0 - entropy / math.log(logits.shape[-1])).clamp(0.0, 1.0).reshape(-1, 1, height, width)

    # -- images ---------------------------------------------------------------------------------------------------

    def denoise_once(self, x_t: Tensor, t: Tensor, codes: Tensor) -> Tensor:
        """One evaluation of the detokenizer: x0 (B, C, H, W) in z-units from x_t, t (B,) or (1,) int64 and codes."""
        with self._autocast(x_t):
            return self.detokenizer(x_t, t, codes)

    @torch.no_grad()
    def decode(
        self,
        codes: Tensor,
        noise: Tensor,
        schedule: Schedule,
        *,
        start: Tensor | None = None,
        batch_size: int | None = None,
    ) -> Tensor:
        """Image channels (B, C, H, W) in z-units, after exactly ``schedule.nfe`` evaluations of each image.

        Args:
            codes: (B, D, h, w).
            noise: (B, C, H, W), standard normal.
            schedule: the steps.
            start: (B, C, H, W) to start from, where the schedule does not start from pure noise.
            batch_size: images the network is given at once; default all.
        """
        images = []
        for first in range(0, len(codes), batch_size or len(codes)):
            part = slice(first, first + (batch_size or len(codes)))
            begun = None if start is None else start[part]
            images.append(denoise(self.denoise_once, codes[part], noise[part], schedule, start=begun))
        return torch.cat(images)
