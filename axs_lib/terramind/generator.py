"""TerraMind as a conditional generator: SAR and optical pixels in, codes and a decoded image out.

``TerraMindGenerator`` holds terratorch's own modules (the dual encoder with its decoder, the FSQ codebook and the
diffusion detokenizer) and runs them without the traps of ``TerraMindGeneration``: no global random state, no
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
from axs_lib.precision import full_float32
from axs_lib.terramind.adapters import OpticalAdapter, SarAdapter
from axs_lib.terramind.integers import gains_by_words, round_convolutions, round_linears
from axs_lib.terramind.noise import gumbel_field
from axs_lib.terramind.packed import PackedLinear
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
        detokenizer: terratorch's ``PatchedUNetCondCat``, ``(x_t, t, codes) -> x0``.
        quantizer: terratorch's ``FiniteScalarQuantizer``; only its codebook is used.
        sar: adapter of the SAR modality.
        optical: adapter of the optical modality.
        layout: fixed facts of the architecture.
    """

    # terratorch's modules are untyped; their attributes are used as its source defines them.
    core: Any
    detokenizer: Any
    quantizer: Any

    def __init__(
        self,
        core: nn.Module,
        detokenizer: nn.Module,
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
    def _device(self) -> torch.device:
        return next(self.detokenizer.parameters()).device

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
        """Keep and compute matrix products and convolutions in a lower precision, for inference.

        bfloat16 takes half the memory, and is faster where the processor or GPU has instructions for it. Autocast alone
        would convert the frozen weights anew at every evaluation. Normalisation, the image's last layers, the codes and
        the scheduler's steps stay in float32; on a processor with ``amx_int8`` the wide convolutions of the
        detokenizer's finest grid, where nine tenths of the error would arise, are made in 16-bit integers.

        Integers are for a CPU: the products of encoder and decoder, and on a processor that multiplies bytes the
        detokenizer's wide convolutions but the first and the last (nano has none so wide). With these a tile differs
        with its batch by as much as by the rounding. 16 bits are nearly float32's image in less time on a processor
        with ``amx_int8``; elsewhere they would take longer, and the model stays in float32.

        Args:
            dtype: ``torch.bfloat16``, ``torch.float16`` on a GPU, or ``torch.int8`` or ``torch.int16`` on a CPU. There
                is no way back but building anew, and what is rounded to integers can be neither saved nor moved.

        Raises:
            InputError: another one, or integers on a GPU.
        """
        if dtype in (torch.int8, torch.int16):
            self._use_integers(dtype)
            return
        if not dtype.is_floating_point:
            raise InputError(
                f"precision is {dtype}; expected torch.bfloat16, torch.float16, torch.int16 or torch.int8"
            )
        if dtype == torch.bfloat16 and self._device.type == "cpu" and gains_by_words():
            round_convolutions(self.detokenizer, torch.int16.itemsize, finest_only=True)
        kept = set(self.detokenizer.out.modules())
        for part in (self.core, self.detokenizer):
            for module in part.modules():
                if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and module not in kept:
                    module.to(dtype)
                if type(module) is nn.Linear:
                    module.__class__ = PackedLinear
        self.precision = dtype

    def _use_integers(self, dtype: torch.dtype) -> None:
        if self._device.type != "cpu":
            raise InputError(
                f"integers are for a CPU and the model is on {self._device}; there use_precision(torch.bfloat16)"
            )
        if dtype == torch.int16 and not gains_by_words():
            return
        for part in (self.core.encoder, self.core.decoder, self.core.decoder_embeddings):
            round_linears(part, dtype.itemsize)
        round_convolutions(self.detokenizer, dtype.itemsize)

    def use_winograd(self, use: bool = True) -> None:
        """Whether the detokenizer's 3 x 3 convolutions may take the way of fewer multiplications on a CPU.

        They do unless told otherwise. The transformed kernels are kept: up to 1.9 GB for the published variants, none
        for nano, whose convolutions are too narrow to gain. The image is the same to float32's rounding.

        Args:
            use: ``False`` takes the direct way and frees the kernels.
        """
        for module in self.detokenizer.modules():
            if isinstance(module, WinogradConv2d):
                module.use_winograd(use)

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile the detokenizer with ``torch.compile``: opt in, for many batches of one shape.

        Every new shape is compiled at its first use, which takes minutes for the published variants; torch keeps the
        result on disk for the next process. Names of weights stay.

        Args:
            *args: of ``torch.compile``.
            **options: of ``torch.compile``; by default shapes are fixed (``dynamic=False``).
        """
        self.detokenizer.compile(*args, **({"dynamic": False} | options))

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
        from terratorch.models.backbones.terramind.model.tm_utils import interpolate_pos_encoding

        embedding = self.core.decoder_embeddings[self.layout.target_key]
        positions = embedding.pos_emb
        if (height, width) != tuple(embedding.image_size):
            positions = interpolate_pos_encoding(
                positions, height, width, embedding.patch_size, embedding.dim_tokens
            )
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
            with full_float32():
                codes = (logits / temperature).softmax(-1) @ codebook.float()
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
            images.append(denoise(self.denoise_once, codes[part], noise[part], schedule.fresh(), start=begun))
        return torch.cat(images)
