"""Checkpoints in the published TerraMind layout, with random weights: what stands in for IBM's files in the tests.

A fresh TerraMind decodes to exactly zero, because its last layer is zero-initialised; every all-zero parameter is
therefore redrawn, and the output layer is scaled so that images have a spread of order one. Values are rounded to
float16 so that a file takes half the space and still loads to the very same weights. That names have no prefix is known
by size: a file of terratorch's model of all thirteen modalities has the 211,873,402 bytes of the published
TerraMind_v1_tiny.pt to within 1 KB.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from axs_lib.terramind.build import TARGET_KEY
from axs_lib.terramind.weights import VARIANTS
from benchmarks.generation import build_terratorchs


def reference_generation(variant: str, modalities: list[str]) -> Any:
    """terratorch's own generation with random, redrawn weights and argmax tokens."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = build_terratorchs(variant, modalities)
    with torch.no_grad():
        model.tokenizer[TARGET_KEY].decoder.out[-1].weight.mul_(2.0)
        for name, parameter in model.sampler.model.named_parameters():
            if "cross_attn" in name or "decoder_proj_context" in name:
                parameter.mul_(3.0)  # else random tokens hardly depend on the input
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())
    return model.eval()


def save_published(model: Any, folder: Path, variant: str) -> Path:
    """Write a terratorch generation model as the two published files; returns the generator's."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = VARIANTS[variant]
    assert spec.generator is not None and spec.tokenizer is not None
    prefix = "sampler.model."
    core = {k.removeprefix(prefix): v for k, v in model.state_dict().items() if k.startswith(prefix)}
    # The published file also carries modalities that this model was built without.
    core["encoder_embeddings.untok_dem@224.proj.weight"] = torch.zeros(8, 256)
    core["decoder_embeddings.tok_lulc@224.token_emb.weight"] = torch.zeros(8, 8)
    tokenizer = model.tokenizer[TARGET_KEY].state_dict()
    for state, file in ((core, spec.generator), (tokenizer, spec.tokenizer)):
        halved = {k: v.half() if v.is_floating_point() and "pos_emb" not in k else v for k, v in state.items()}
        torch.save({k: v.clone() for k, v in halved.items()}, folder / file.name)
    return folder / spec.generator.name


@dataclass
class Published:
    """A reference model and its files in the published layout, with both SAR products."""

    variant: str
    reference: Any
    checkpoint: Path


def publish(variant: str, folder: Path) -> Published:
    """Build terratorch's own generation and write its two files into ``folder``."""
    reference = reference_generation(variant, ["S1GRD", "S1RTC", "S2L2A"])
    return Published(variant, reference, save_published(reference, folder, variant))
