"""Train nano's Stage 3: tokenizer, generator, denoiser and grounding head together, on real pairs.

Three losses in one step: the tokenizer's autoencoding diffusion loss (noised truth, codes of the truth), token
cross-entropy of the generator with modality dropout (SAR and estimate, SAR alone, estimate alone, so that both passes
of ``"difference"`` are in distribution), and the grounding error of opt_v3 against the truth, which reaches the
generator through soft tokens. opt_v2 is simulated by ``axs_lib.data.degrade``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from axs_lib.data.degrade import degrade
from axs_lib.data.pairs import PairRecord, list_pairs, load_pair
from axs_lib.grounding.corrector import GroundingCorrector
from axs_lib.grounding.head import GroundingHead
from axs_lib.stage3_tm_ground import Stage3GroundingModel
from axs_lib.terramind.build import build_nano, build_nano_tokenizer
from axs_lib.terramind.sampler import TRAIN_TIMESTEPS, add_noise
from axs_lib.train.crops import CropBatches
from axs_lib.train.export import save_state
from axs_lib.train.fit import CHECKPOINT, AtomicCheckpoints

DN_SCALE = 1000.0  # grounding error is measured in tenths of reflectance, which keeps the losses of one order


@dataclass(frozen=True)
class NanoConfig:
    """What one training run is: written beside its weights.

    Attributes:
        data: folder of pairs (``index.csv`` or NPZ files).
        out: run folder for checkpoints and logs.
        test_groups: groups never seen, kept for the figures.
        validation_groups: groups used to watch and to stop.
        qualities: tiles that are trained on.
        steps: optimiser steps.
        learning_rate: peak, after warm-up, before the cosine.
        ema: decay of the averaged weights that are packaged.
        crop_sizes: sides of the random crops in pixels.
        batch_pixels: pixels of a batch, whatever its crop size.
        checkpoint_every: steps between checkpoints; validation comes at every second one.
        threads: CPU threads; fewer than the cores where others work on the machine.
    """

    data: str
    out: str = "runs/nano"
    test_groups: tuple[str, ...] = ()
    validation_groups: tuple[str, ...] = ()
    qualities: tuple[str, ...] = ("ok", "open_water")
    steps: int = 3000
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    warmup: int = 200
    ema: float = 0.998
    crop_sizes: tuple[int, ...] = (64, 96, 128)
    batch_pixels: int = 8 * 96 * 96
    checkpoint_every: int = 250
    seed: int = 0
    threads: int | None = None
    token_weight: float = 0.05
    reconstruction_weight: float = 0.5
    ground_weight: float = 20.0


class NanoTask(lightning.LightningModule):
    """Lightning module of nano's joint training."""

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Stage3GroundingModel(build_nano(), GroundingCorrector(GroundingHead()))
        self.tokenizer: nn.Module = build_nano_tokenizer()
        self.average: Any = torch.optim.swa_utils.AveragedModel(
            nn.ModuleDict({"model": self.model, "tokenizer": self.tokenizer}),
            multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(config.ema),
        )
        self.average.requires_grad_(False)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        generator = self.model.terramind_generator
        s1, truth = batch["s1"], batch["truth"]
        random = torch.Generator().manual_seed(self.config.seed * 7_368_787 + self.global_step)
        s1 = s1 + torch.randn(len(s1), 2, 1, 1, generator=random) * 0.5
        opt_v2 = degrade(truth, generator=random, preset="train")

        # Tokenizer: codes of the truth, and the denoiser that turns them back into it. Small crops are reflected.
        tiles = self.model.prepare(s1, truth, torch.ones_like(truth[:, :1]))
        z_s1, z_truth = generator.sar.to_z(tiles.s1), generator.optical.to_z(tiles.estimate)
        codes, tokens = self._tokenize(z_truth)
        half = max(1, len(truth) // 2)  # half a batch is enough for the two helper losses
        clean = z_truth[:half]
        t = torch.randint(TRAIN_TIMESTEPS, (half,), generator=random)
        noise = torch.randn(clean.shape, generator=random)
        reconstruction = F.mse_loss(
            generator.denoise_once(add_noise(clean, noise, t), t, codes[:half]), clean
        )

        # Grounding: one evaluation from the noised estimate, through soft tokens.
        output = self.model.training_pass(s1, opt_v2)
        opt_v3, logits = output.image, output.token_logits
        error = (opt_v3 - truth) / DN_SCALE
        ground = error.square().mean() + 0.1 * error.abs().mean()

        # Tokens: with both modalities, and with one of them dropped.
        estimate = generator.optical.to_z(opt_v2)
        alone = {"s1": z_s1[:half]} if batch_idx % 2 else {"optical": _like(estimate[:half], z_truth)}
        dropped = generator.logits(alone).transpose(1, 2)
        target = tokens.flatten(1).long()
        token = F.cross_entropy(logits.transpose(1, 2), target) + F.cross_entropy(dropped, target[:half])

        loss = (
            self.config.reconstruction_weight * reconstruction
            + self.config.token_weight * token
            + self.config.ground_weight * ground
        )
        with torch.no_grad():
            before = ((opt_v2 - truth) / DN_SCALE).square().mean()
        self.log_dict(
            {
                "loss": loss,
                "reconstruction": reconstruction,
                "token": token / 2,
                "mse_ratio": error.square().mean() / before,
            },
            prog_bar=True,
        )
        return loss

    def _tokenize(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """FSQ codes (B, D, h, w), with straight-through gradients, and token indices (B, h, w)."""
        latent = self.tokenizer(z).permute(0, 2, 3, 1)
        code, index = self.model.terramind_generator.quantizer.latent_to_code_and_indice(latent)
        return code.permute(0, 3, 1, 2), index

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.average.update_parameters(nn.ModuleDict({"model": self.model, "tokenizer": self.tokenizer}))

    @torch.no_grad()
    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        model = self.average.module["model"].eval()
        truth, opt_v2 = batch["truth"], batch["opt_v2"]
        for timesteps in (1, 10):
            opt_v3 = model.ground(batch["s1"], opt_v2, timesteps).image
            ratio = (opt_v3 - truth).square().nanmean() / (opt_v2 - truth).square().nanmean()
            self.log(f"val_mse_ratio_{timesteps}", ratio, prog_bar=True, batch_size=1)

    def configure_optimizers(self) -> Any:
        trained = [*self.model.parameters(), *self.tokenizer.parameters()]
        optimizer = torch.optim.AdamW(
            [p for p in trained if p.requires_grad],
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            betas=(0.9, 0.98),
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._learning_rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _learning_rate(self, step: int) -> float:
        """Share of the peak: linear warm-up, then a cosine to zero at the last step of the run as configured now."""
        warmup, steps = self.config.warmup, self.config.steps
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))

    def packaged_state(self) -> dict[str, Tensor]:
        """Averaged weights in the packaged layout."""
        model, tokenizer = self.average.module["model"], self.average.module["tokenizer"]
        generator = model.terramind_generator
        parts = {
            "core": generator.core,
            "detokenizer": generator.detokenizer,
            "head": model.corrector.head,
            "tokenizer": tokenizer,
        }
        return {
            f"{name}.{key}": value
            for name, module in parts.items()
            for key, value in module.state_dict().items()
        }


def _like(estimate: Tensor, padded: Tensor) -> Tensor:
    from axs_lib.nodata import pad_square

    return pad_square(estimate, padded.shape[-1])


def _validation_tiles(records: Sequence[PairRecord]) -> list[dict[str, Tensor]]:
    tiles = []
    for number, record in enumerate(records):
        pair = load_pair(record)
        s1, truth = torch.as_tensor(pair.s1)[None].float(), torch.as_tensor(pair.s2)[None].float()
        tiles.append({"s1": s1, "truth": truth, "opt_v2": degrade(truth, seed=number, preset="test")})
    return tiles


def train_nano(config: NanoConfig, *, resume: bool = True, progress: bool = True) -> Path:
    """Run (or resume) a training and write ``nano.safetensors`` into the run folder.

    Args:
        config: the run.
        resume: continue from the run folder's last checkpoint where there is one.
        progress: show Lightning's bar.

    Returns:
        Path of the weights.
    """
    out = Path(config.out)
    records = [r for r in list_pairs(config.data, quality="all") if r.quality in config.qualities]
    held_out = {*config.test_groups, *config.validation_groups}
    train = [r for r in records if r.group not in held_out]
    validation = [r for r in records if r.group in config.validation_groups and r.quality == "ok"]
    last = out / CHECKPOINT
    task = NanoTask(config)
    trainer = lightning.Trainer(
        max_steps=config.steps,
        accelerator="auto",
        devices=1,
        gradient_clip_val=1.0,
        default_root_dir=out,
        logger=lightning.pytorch.loggers.CSVLogger(str(out), name="log"),
        callbacks=[KeepProgress(out, config)],
        plugins=[AtomicCheckpoints()],
        enable_checkpointing=False,
        val_check_interval=config.checkpoint_every * 2 if validation else None,
        check_val_every_n_epoch=None,
        limit_val_batches=1.0 if validation else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=25,
        enable_progress_bar=progress,
        enable_model_summary=False,
    )
    resumed = last if resume and last.exists() else None
    batches = CropBatches(
        train,
        start=torch.load(resumed, weights_only=True, map_location="cpu")["global_step"] if resumed else 0,
        crop_sizes=config.crop_sizes,
        batch_pixels=config.batch_pixels,
        seed=config.seed,
    )
    loader = DataLoader(batches, batch_size=None)
    tiles: Any = DataLoader(_validation_tiles(validation), batch_size=None) if validation else None  # type: ignore[arg-type]
    torch.set_num_threads(config.threads or torch.get_num_threads())
    trainer.fit(task, loader, tiles, ckpt_path=resumed, weights_only=True)
    return save_packaged(task, out, config)


class KeepProgress(lightning.Callback):
    """Write a checkpoint every so often, and the averaged weights after every validation."""

    def __init__(self, out: Path, config: NanoConfig) -> None:
        self.out, self.config = out, config

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step % self.config.checkpoint_every == 0:
            trainer.save_checkpoint(self.out / CHECKPOINT)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, NanoTask)
        save_packaged(pl_module, self.out, self.config)


def save_packaged(task: NanoTask, out: Path, config: NanoConfig) -> Path:
    """Write ``nano.safetensors`` with the run's configuration in its header."""
    target = out / "nano.safetensors"
    settings = {key: value for key, value in asdict(config).items() if key not in ("data", "out")}
    header = {"variant": "nano", "steps": str(task.global_step), "config": json.dumps(settings, default=str)}
    save_state(target, task.packaged_state(), header)
    return target
