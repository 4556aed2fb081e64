"""From a variant's name to a generator with weights in it.

Published TerraMind checkpoints are loaded strictly through their own layout; nano's packaged file holds generator and
tokenizer encoder in one. Loading either succeeds completely or raises.
"""

from __future__ import annotations

from torch import nn

from axs_lib.terramind.build import build_nano, build_nano_tokenizer, build_v1
from axs_lib.terramind.generator import TerraMindGenerator
from axs_lib.terramind.weights import (
    WeightsInfo,
    find_variant,
    load_strict,
    other_modalities,
    read_state,
    resolve,
    substate,
)


def load_generator(
    variant: str,
    *,
    pretrained: bool = True,
    checkpoint: str | None = None,
    revision: str | None = None,
    s1_product: str = "S1GRD",
) -> TerraMindGenerator:
    """A generator, with weights where ``pretrained``; an InputError or WeightsError where there are none such."""
    find_variant(variant)
    files = resolve(variant, checkpoint=checkpoint, revision=revision) if pretrained else None
    nano = variant == "nano"
    generator = build_nano(s1_product=s1_product) if nano else build_v1(variant, s1_product=s1_product)
    if files is not None and nano:
        _load_nano(files, {"core": generator.core, "detokenizer": generator.detokenizer})
    elif files is not None:
        _load_published(generator, files)
    generator.weights = files
    return generator


def load_nano_tokenizer(checkpoint: str | None = None) -> nn.Module:
    """nano's trained tokenizer encoder, for training."""
    tokenizer = build_nano_tokenizer()
    _load_nano(resolve("nano", checkpoint=checkpoint), {"tokenizer": tokenizer})
    return tokenizer


def _load_nano(files: WeightsInfo, modules: dict[str, nn.Module]) -> None:
    state = read_state(files.generator)
    for name, module in modules.items():
        load_strict(module, substate(state, f"{name}."), what=f"nano {name} ({files.generator})")


def _load_published(generator: TerraMindGenerator, files: WeightsInfo) -> None:
    core, state = generator.core, read_state(files.generator)
    # Sine-cosine positions and zero norm biases are buffers whose value is fixed; a file may leave them out.
    fixed = dict(core.named_buffers())
    load_strict(
        core,
        fixed | state,
        ignore_prefixes=other_modalities(core, state),
        what=f"{generator.layout.variant} ({files.generator})",
    )
    assert files.tokenizer is not None  # resolve() raises where a published variant lacks it
    tokenizer = substate(read_state(files.tokenizer), "decoder.")
    load_strict(generator.detokenizer, tokenizer, what=f"S2L2A tokenizer ({files.tokenizer})")
