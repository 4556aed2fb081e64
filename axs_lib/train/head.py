"""Train the grounding head of nano on top of a frozen generator, on real pairs.

The generator's weights come from a nano file; the head starts fresh. Every step takes one kind of example
(``axs_lib.train.examples``): degraded estimates, estimates that miss a flood, and clear pixels around clouds. Out comes
a nano file with the same generator and the new head. Steps are functions of (seed, step), and a stopped run goes on
from its last checkpoint. The packaged head was not made by this command: a trial of 620 steps was worse on the mean.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from axs_lib.data.atomic import atomic_write
from axs_lib.data.pairs import list_pairs
from axs_lib.grounding.head import GroundingHead
from axs_lib.progress import track
from axs_lib.stage3_tm_ground import Stage3GroundingModel
from axs_lib.terramind.load import load_generator
from axs_lib.terramind.tiles import training_start
from axs_lib.terramind.weights import read_metadata, read_state, resolve
from axs_lib.train.crops import CropBatches
from axs_lib.train.examples import Examples, Kind, augment, make_examples
from axs_lib.train.export import save_state
from axs_lib.train.plain import balanced_loss, warmup_cosine
from axs_lib.train.tasks import own_random

CHECKPOINT = "head.ckpt"


@dataclass(frozen=True)
class HeadConfig:
    """One run; it is written into the header of its weights.

    Attributes:
        data: folder of pairs.
        out: run folder.
        checkpoint: nano file whose generator and tokenizer are kept; default the packaged one.
        test_groups: groups never seen.
        validation_groups: groups kept out for choices.
        qualities: tiles that are trained on.
        kinds: kinds of examples, taken in turn.
        use_sar: False trains the control that meets mean backscatter everywhere, as ``axs evaluate`` runs it.
        steps: optimiser steps.
        learning_rate: peak, after warm-up, before the cosine to zero.
        ema: decay of the averaged weights that are written.
        crop_sizes: sides of the crops in pixels.
        batch_pixels: pixels of a batch.
        checkpoint_every: steps between checkpoints.
        seed: of every draw.
        threads: CPU threads; null leaves them.
    """

    data: str
    out: str = "runs/head"
    checkpoint: str | None = None
    test_groups: tuple[str, ...] = ()
    validation_groups: tuple[str, ...] = ()
    qualities: tuple[str, ...] = ("ok", "open_water")
    kinds: tuple[Kind, ...] = ("degraded", "gaps", "degraded", "flood", "degraded")
    use_sar: bool = True
    steps: int = 800
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    warmup: int = 40
    ema: float = 0.99
    crop_sizes: tuple[int, ...] = (96, 128)
    batch_pixels: int = 8 * 96 * 96
    checkpoint_every: int = 50
    seed: int = 0
    threads: int | None = None


def train_head(config: HeadConfig, *, resume: bool = True, progress: bool = True) -> Path:
    """Run (or resume) a training and write ``nano.safetensors`` into the run folder."""
    if config.threads:
        torch.set_num_threads(config.threads)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    held_out = {*config.test_groups, *config.validation_groups}
    records = [
        record
        for record in list_pairs(config.data, quality="all")
        if record.quality in config.qualities and record.group not in held_out
    ]
    with own_random(config.seed):
        head = GroundingHead()
    generator = load_generator("nano", checkpoint=config.checkpoint).requires_grad_(False)
    model = Stage3GroundingModel(generator, head, grounding="learned").eval()
    average = torch.optim.swa_utils.AveragedModel(
        head, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(config.ema)
    )
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98)
    )
    last, first = out / CHECKPOINT, 0
    if resume and last.exists():
        saved = torch.load(last, weights_only=True)
        head.load_state_dict(saved["head"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    batches = CropBatches(
        records, crop_sizes=config.crop_sizes, batch_pixels=config.batch_pixels, seed=config.seed
    )
    for step in track(range(first, config.steps), "head", enabled=progress, total=config.steps - first):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * warmup_cosine(step, config.warmup, config.steps)
        batch = batches.batch(step)
        random = torch.Generator().manual_seed(config.seed * 7_368_787 + step)
        s1, truth = augment(batch["s1"], batch["truth"], random)
        examples = make_examples(config.kinds[step % len(config.kinds)], s1, truth, random)
        image = _ground(model, examples, step, use_sar=config.use_sar)
        loss = balanced_loss(image, examples.estimate, examples.truth)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(head)
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
            state = {"head": head.state_dict(), "average": average.state_dict(), "step": step + 1}
            with atomic_write(last, overwrite=True) as temporary:
                torch.save(state | {"optimizer": optimizer.state_dict()}, temporary)
            _package(config, average.module, out, step + 1)
    return _package(config, average.module, out, config.steps)


def _ground(model: Stage3GroundingModel, examples: Examples, step: int, *, use_sar: bool) -> Tensor:
    """opt_v3, differentiable in the head alone; the generator draws one proposal without gradients."""
    generator = model.terramind_generator
    with torch.no_grad():
        s1 = examples.s1 if use_sar else generator.sar.mean.expand_as(examples.s1)
        z = model._prepare(s1, examples.estimate, examples.trust)
        with own_random(step):
            x_t, t = training_start(z.estimate, training=True)
        logits = generator.logits(z.conditions)
        proposal = generator.denoise_once(x_t, t, generator.codes(logits, z.size))
    correction = model._correct(z, [proposal], [logits], "learned")
    height, width = examples.estimate.shape[-2:]
    return examples.estimate + model._change(correction, z.trust)[..., :height, :width]


def _package(config: HeadConfig, head: Any, out: Path, step: int) -> Path:
    """The nano file: what was loaded, with the averaged head in place of its own."""
    source = resolve("nano", checkpoint=config.checkpoint).generator
    state = {name: value for name, value in read_state(source).items() if not name.startswith("head.")}
    state |= {f"head.{name}": value for name, value in head.state_dict().items()}
    settings = {
        key: value for key, value in asdict(config).items() if key not in ("data", "out", "checkpoint")
    }
    header = read_metadata(source) | {"head_steps": str(step), "head_config": json.dumps(settings)}
    target = out / "nano.safetensors"
    save_state(target, state, header)
    return target
