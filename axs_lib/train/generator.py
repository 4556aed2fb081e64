"""Fine-tune nano's generator on the image it makes: one time step, soft tokens, with and without an estimate.

Joint training (``axs_lib.train.nano``) teaches the generator tokens; the average of likely tokens, which inference
decodes, is something its denoiser has not met. Here the error of the decoded image itself reaches generator and
denoiser, in turn from SAR alone (Stage 1) and from SAR with an estimate (Stage 3's proposal). Half of the denoiser's
steps start from pure noise, as one-step inference does, the others anywhere, so that more time steps stay usable.
Token cross-entropy goes on beside it. Head and tokenizer are kept as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from axs_lib.terramind.generator import TerraMindGenerator
from axs_lib.terramind.load import load_generator, load_nano_tokenizer
from axs_lib.terramind.tiles import training_start
from axs_lib.terramind.weights import read_metadata, read_state, resolve
from axs_lib.train.crops import CropBatches
from axs_lib.train.examples import SAR_JITTER_DB, augment, make_examples
from axs_lib.train.export import save_state
from axs_lib.train.loop import fit_module, training_records
from axs_lib.train.plain import balanced_loss
from axs_lib.train.tasks import SEED_STRIDE, own_random

CHECKPOINT = "generator.ckpt"


@dataclass(frozen=True)
class GeneratorConfig:
    """One run; it is written into the header of its weights.

    Attributes:
        data: folder of pairs.
        out: run folder.
        checkpoint: nano file to start from; default the packaged one.
        test_groups: groups never seen.
        validation_groups: groups kept out for choices.
        qualities: tiles that are trained on.
        steps: optimiser steps.
        learning_rate: peak, after warm-up, before the cosine to zero.
        token_weight: of the token cross-entropy.
        ema: decay of the averaged weights that are written.
        crop_sizes: sides of the crops in pixels, multiples of 32.
        batch_pixels: pixels of a batch.
        checkpoint_every: steps between checkpoints.
        seed: of every draw.
        threads: CPU threads; null leaves them.
    """

    data: str
    out: str = "runs/generator"
    checkpoint: str | None = None
    test_groups: tuple[str, ...] = ()
    validation_groups: tuple[str, ...] = ()
    qualities: tuple[str, ...] = ("ok", "open_water")
    steps: int = 1200
    learning_rate: float = 5e-4
    weight_decay: float = 0.05
    warmup: int = 30
    token_weight: float = 0.02
    ema: float = 0.995
    crop_sizes: tuple[int, ...] = (64, 96, 128)
    batch_pixels: int = 8 * 96 * 96
    checkpoint_every: int = 50
    seed: int = 0
    threads: int | None = None


def train_generator(config: GeneratorConfig, *, resume: bool = True, progress: bool = True) -> Path:
    """Run (or resume) a fine-tuning and write ``nano.safetensors`` into the run folder."""
    if config.threads:
        torch.set_num_threads(config.threads)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    generator = load_generator("nano", checkpoint=config.checkpoint).requires_grad_(True).train()
    tokenizer = load_nano_tokenizer(config.checkpoint).requires_grad_(False).eval()
    batches = CropBatches(
        training_records(config),
        crop_sizes=config.crop_sizes,
        batch_pixels=config.batch_pixels,
        seed=config.seed,
    )

    def loss_of(step: int) -> Tensor:
        return _loss(config, generator, tokenizer, batches.batch(step), step)

    def package(averaged: nn.Module, step: int) -> Path:
        return _package(config, averaged, out, step)

    return fit_module(
        config, generator, loss_of, package, checkpoint=out / CHECKPOINT, resume=resume, progress=progress
    )


def _loss(
    config: GeneratorConfig,
    generator: TerraMindGenerator,
    tokenizer: nn.Module,
    batch: Mapping[str, Tensor],
    step: int,
) -> Tensor:
    """Error of the one-step image against the truth, and of the tokens against the truth's."""
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


def _package(config: GeneratorConfig, generator: nn.Module, out: Path, step: int) -> Path:
    """The nano file: what was loaded, with the averaged generator in place of its own."""
    source = resolve("nano", checkpoint=config.checkpoint).generator
    state = read_state(source)
    for name in ("core", "detokenizer"):
        module = getattr(generator, name)
        state |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    settings = {
        key: value for key, value in asdict(config).items() if key not in ("data", "out", "checkpoint")
    }
    header = read_metadata(source) | {"generator_steps": str(step), "generator_config": json.dumps(settings)}
    target = out / "nano.safetensors"
    save_state(target, state, header)
    return target
