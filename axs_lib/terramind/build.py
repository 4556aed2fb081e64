"""Builders of TerraMind generators: the published v1 variants and the small packaged ``nano``, and their weights.

Encoder, decoder and codebook are terratorch's modules, the detokenizer is ours. Only what generation needs is built.
Random weights follow ``torch.manual_seed`` and advance nobody's random state; loading succeeds completely or raises.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from axs_lib import bands
from axs_lib.checks import check_flag
from axs_lib.errors import WeightsError
from axs_lib.fresh import fresh_weights
from axs_lib.io.files import PathLike
from axs_lib.networks.decoder_embeddings import ImageTokenDecoderEmbedding
from axs_lib.networks.encoder_embeddings import ImageEncoderEmbedding
from axs_lib.networks.quantize_finite_scalar import FiniteScalarQuantizer
from axs_lib.networks.terramind import TerraMind
from axs_lib.networks.tm_utils import LayerNorm
from axs_lib.terramind.adapters import Adapter, OpticalAdapter, terramind_spectral_lift
from axs_lib.terramind.detokenizer import Detokenizer
from axs_lib.terramind.generator import GeneratorLayout, TerraMindGenerator
from axs_lib.terramind.weights import NANO, WeightsInfo, find_variant, load_strict, read_state, resolve, substate

TARGET_KEY = "tok_sen2l2a@224"
OPTICAL_KEY = "untok_sen2l2a@224"
SAR_KEYS = {"S1GRD": "untok_sen1grd@224", "S1RTC": "untok_sen1rtc@224"}
FSQ_LEVELS = "8-8-8-6-5"


@dataclass(frozen=True)
class CoreConfig:
    """Size of a TerraMind encoder-decoder; ``swiglu`` marks the bias-free gated blocks of base and large."""

    dim: int
    heads: int
    encoder_depth: int
    decoder_depth: int
    swiglu: bool


V1_CORES: dict[str, CoreConfig] = {
    "terramind_v1_tiny": CoreConfig(192, 3, 12, 4, swiglu=False),
    "terramind_v1_small": CoreConfig(384, 6, 12, 6, swiglu=False),
    "terramind_v1_base": CoreConfig(768, 12, 12, 12, swiglu=True),
    "terramind_v1_large": CoreConfig(1024, 16, 24, 24, swiglu=True),
}

NANO_CORE = CoreConfig(192, 3, 4, 2, swiglu=True)
NANO_FSQ_LEVELS = "8-8-8"
NANO_IMAGE_SIZE = 128


def build_core(config: CoreConfig, sar_key: str, optical_channels: int, vocabulary: int, image_size: int) -> Any:
    """terratorch's encoder-decoder for 2-band SAR, optical pixels and optical tokens."""
    common = {"patch_size": 16, "dim_tokens": config.dim, "image_size": image_size}
    biases = dict.fromkeys(("qkv_bias", "proj_bias", "mlp_bias"), not config.swiglu)
    return TerraMind(
        encoder_embeddings={
            sar_key: ImageEncoderEmbedding(num_channels=2, **common),
            OPTICAL_KEY: ImageEncoderEmbedding(num_channels=optical_channels, **common),
        },
        decoder_embeddings={TARGET_KEY: ImageTokenDecoderEmbedding(vocab_size=vocabulary, **common)},
        modality_info={},
        dim=config.dim,
        encoder_depth=config.encoder_depth,
        decoder_depth=config.decoder_depth,
        num_heads=config.heads,
        mlp_ratio=4.0,
        **biases,
        norm_layer=partial(LayerNorm, eps=1e-6, bias=False),
        act_layer=nn.SiLU if config.swiglu else nn.GELU,
        gated_mlp=config.swiglu,
    )


@fresh_weights()
def build_v1(variant: str, *, s1_product: str = "S1GRD") -> TerraMindGenerator:
    """A TerraMind v1 generator with random weights: 2-band SAR, 12-band optical, FSQ codebook of 15360."""
    statistics = bands.sar_stats(s1_product)
    quantizer = FiniteScalarQuantizer(codebook_size=FSQ_LEVELS)
    channels, sar_key = len(bands.TERRAMIND_S2_BANDS), SAR_KEYS[s1_product]
    return TerraMindGenerator(
        build_core(V1_CORES[variant], sar_key, channels, quantizer.codebook_size, image_size=224),
        Detokenizer(channels, code_channels=quantizer.codebook.shape[1]),
        quantizer,
        sar=Adapter(*statistics),
        optical=OpticalAdapter(
            [bands.TERRAMIND_S2_MEAN[i] for i in bands.TERRAMIND_OPTICAL_INDEX],
            [bands.TERRAMIND_S2_STD[i] for i in bands.TERRAMIND_OPTICAL_INDEX],
            boa_offset=bands.TERRAMIND_BOA_OFFSET,
            lift=terramind_spectral_lift(),
        ),
        layout=GeneratorLayout(variant, sar_key, OPTICAL_KEY, TARGET_KEY, s1_product),
    )


@fresh_weights()
def build_nano(*, s1_product: str = "S1GRD") -> TerraMindGenerator:
    """The small four-band generator with random weights: dim 192, 4 + 2 blocks, codebook of 512, 32-channel U-Net."""
    statistics = bands.sar_stats(s1_product)
    quantizer = FiniteScalarQuantizer(codebook_size=NANO_FSQ_LEVELS)
    channels = len(bands.OPTICAL_BANDS)
    sar_key = SAR_KEYS["S1GRD"]  # one SAR embedding; the product only chooses the statistics
    return TerraMindGenerator(
        build_core(NANO_CORE, sar_key, channels, quantizer.codebook_size, NANO_IMAGE_SIZE),
        Detokenizer(channels, code_channels=quantizer.codebook.shape[1], width=32, residual_blocks=2),
        quantizer,
        sar=Adapter(*statistics),
        optical=OpticalAdapter(bands.OPTICAL_MEAN, bands.OPTICAL_STD),
        layout=GeneratorLayout(NANO, sar_key, OPTICAL_KEY, TARGET_KEY, s1_product, min_side=64),
    )


@fresh_weights()
def build_nano_tokenizer() -> nn.Module:
    """nano's tokenizer encoder, needed for training only: image (B, 4, H, W) in z-units -> FSQ latent (B, 3, h, w)."""
    from axs_lib.networks.vit_models import ViTEncoder

    latent, channels = len(NANO_FSQ_LEVELS.split("-")), len(bands.OPTICAL_BANDS)
    encoder = ViTEncoder(
        in_channels=channels, patch_size=16, resolution=NANO_IMAGE_SIZE, dim_tokens=128, depth=3, num_heads=4
    )
    return nn.Sequential(encoder, nn.Conv2d(128, latent, kernel_size=1))


def load_generator(
    variant: str,
    *,
    pretrained: bool = True,
    checkpoint: PathLike | None = None,
    revision: str | None = None,
    s1_product: str = "S1GRD",
) -> TerraMindGenerator:
    """A generator, with weights where ``pretrained``; an InputError or WeightsError where there are none such."""
    find_variant(variant)
    check_flag("pretrained", pretrained)
    files = resolve(variant, checkpoint=checkpoint, revision=revision) if pretrained else None
    nano = variant == NANO
    generator = build_nano(s1_product=s1_product) if nano else build_v1(variant, s1_product=s1_product)
    if files is not None and nano:
        _load_nano(files, {"core": generator.core, "detokenizer": generator.detokenizer})
    elif files is not None:
        _load_published(generator, files)
    generator.weights = files
    return generator


def load_nano_tokenizer(checkpoint: PathLike | None = None) -> nn.Module:
    """nano's trained tokenizer encoder, for training."""
    tokenizer = build_nano_tokenizer()
    _load_nano(resolve(NANO, checkpoint=checkpoint), {"tokenizer": tokenizer})
    return tokenizer


def _load_nano(files: WeightsInfo, modules: dict[str, nn.Module]) -> None:
    state = read_state(files.generator)
    if foreign := [name for name in state if not name.startswith(("core.", "detokenizer.", "tokenizer."))]:
        raise WeightsError(f"{files.generator} holds {foreign[0]}, which is no part of nano; give another file")
    for name, module in modules.items():
        load_strict(module, substate(state, f"{name}."), what=f"nano {name} ({files.generator})")


def other_modalities(module: nn.Module, state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Prefixes of the modality embeddings that a published file has and a module was built without."""
    published, built = (
        {match[0] for name in names if (match := re.match(r"(?:en|de)coder_embeddings\.[^.]+\.", name))}
        for names in (state, module.state_dict())
    )
    return tuple(sorted(published - built))


def _load_published(generator: TerraMindGenerator, files: WeightsInfo) -> None:
    core, state = generator.core, read_state(files.generator)
    # Sine-cosine positions and zero norm biases are buffers whose value is fixed; a file may leave them out.
    fixed = dict(core.named_buffers())
    others, what = other_modalities(core, state), f"{generator.layout.variant} ({files.generator})"
    load_strict(core, fixed | state, ignore_prefixes=others, what=what)
    assert files.tokenizer is not None  # resolve() raises where a published variant lacks it
    tokenizer = substate(read_state(files.tokenizer), "decoder.")
    load_strict(generator.detokenizer, tokenizer, what=f"S2L2A tokenizer ({files.tokenizer})")
