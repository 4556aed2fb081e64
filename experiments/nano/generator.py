"""Fine-tune nano's generator on the image it makes: one time step, soft tokens, with and without an estimate.

Usage: python -m experiments.nano.generator --config experiments/nano/nano_generator.yaml --data DIR --checkpoint F

Joint training (``joint.py``) teaches the generator tokens; the average of likely tokens, which inference
decodes, is something its denoiser has not met. Here the error of the decoded image itself reaches generator and
denoiser, in turn from SAR alone (Stage 1) and from SAR with an estimate (Stage 3's proposal). Half of the denoiser's
steps start from pure noise, as one-step inference does, the others anywhere, so that more time steps stay usable.
Token cross-entropy goes on beside it. Head and tokenizer are kept as they are.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from axs_lib.terramind.build import load_generator, load_nano_tokenizer
from axs_lib.terramind.generator import TerraMindGenerator
from axs_lib.terramind.tiles import training_start
from axs_lib.terramind.weights import groups_in, read_metadata, read_state, resolve, write_state
from axs_lib.train.trainer import SEED_STRIDE, ModuleTask, fit, own_random
from experiments.nano.examples import SAR_JITTER_DB, augment, make_examples
from experiments.nano.joint import PairsConfig, main
from experiments.nano.plain import balanced_loss


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig(PairsConfig):
    """One run; it is written into the header of its weights.

    Attributes:
        checkpoint: nano file to start from; default the packaged one.
        token_weight: of the token cross-entropy.
    """

    out: str = "runs/generator"
    checkpoint: str | None = None
    steps: int = 1200
    learning_rate: float = 5e-4
    weight_decay: float = 0.05
    warmup: int = 30
    ema: float = 0.995
    check_every: int = 50
    token_weight: float = 0.02


def train_generator(config: GeneratorConfig, *, resume: bool = True, progress: bool = True) -> Path:
    """Run (or resume) a fine-tuning and write ``nano.safetensors`` into the run folder."""
    generator = load_generator("nano", checkpoint=config.checkpoint).requires_grad_(True).train()
    tokenizer = load_nano_tokenizer(config.checkpoint).requires_grad_(False).eval()
    loss = partial(_loss, config, generator, tokenizer)
    write = partial(_write, config, generator)
    task = ModuleTask(config, "generator", generator, loss, write)
    return fit(task, config.batches(), resume=resume, progress=progress)


def _loss(
    config: GeneratorConfig, generator: TerraMindGenerator, tokenizer: nn.Module, batch: Mapping[str, Tensor]
) -> Tensor:
    """Error of the one-step image against the truth, and of the tokens against the truth's."""
    step = int(batch["step"])
    random = torch.Generator().manual_seed(config.seed * SEED_STRIDE + step)
    s1, truth = batch["s1"], batch["truth"]
    if step % 2:  # Stage 1: what the light was like, SAR cannot tell, so that brightness is not drawn
        s1 = s1 + torch.randn(len(s1), 2, 1, 1, generator=random) * SAR_JITTER_DB
        conditions = {"s1": generator.sar.to_z(s1)}
        start = generator.optical.from_z(torch.zeros_like(truth))
    else:
        s1, truth = augment(s1, truth, random)
        examples = make_examples("gaps" if step % 8 == 0 else "degraded", s1, truth, random)
        start = examples.estimate
        conditions = {"s1": generator.sar.to_z(s1), "optical": generator.optical.to_z(start)}
    clean = generator.optical.to_z(truth)
    size = (truth.shape[-2], truth.shape[-1])
    with own_random(config.seed * SEED_STRIDE + step):
        x_t, t = training_start(clean, training=True)
    logits = generator.logits(conditions)
    image = generator.denoise_once(x_t, t, generator.codes(logits, size))
    with torch.no_grad():
        latent = tokenizer(clean).permute(0, 2, 3, 1)
        tokens = generator.quantizer.latent_to_code_and_indice(latent)[1].flatten(1).long()
    tokens_loss = F.cross_entropy(logits.transpose(1, 2), tokens)
    return balanced_loss(generator.optical.from_z(image), start, truth) + config.token_weight * tokens_loss


def _write(config: GeneratorConfig, generator: TerraMindGenerator, step: int) -> Path:
    """The nano file: what was loaded, with the averaged generator in place of its own."""
    source = resolve("nano", checkpoint=config.checkpoint).generator
    state = read_state(source)
    for name, module in (("core", generator.core), ("detokenizer", generator.detokenizer)):
        state |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    header = read_metadata(source)
    steps = step + int(header.get("generator_steps", 0))
    groups = groups_in(header, ["train"]) | {record.group for record in config.records()}
    header |= {"generator_steps": str(steps), "generator_config": config.settings()}
    header |= {"train_groups": json.dumps(sorted(groups))}
    target = Path(config.out) / "nano.safetensors"
    write_state(target, state, header, half=True, overwrite=True)
    return target


if __name__ == "__main__":
    main(train_generator, GeneratorConfig, sys.argv[1:])
