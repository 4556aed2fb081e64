"""Train nano from nothing: tokenizer, generator, denoiser and grounding head together, on real pairs.

Usage: python -m experiments.nano.joint --config experiments/nano/nano_stage3.yaml --data DIR

Three losses in one step: the tokenizer's autoencoding diffusion loss (noised truth, codes of the truth), token
cross-entropy of the generator with modality dropout (SAR and estimate, SAR alone, estimate alone, so that both passes
of ``"difference"`` are in distribution), and the grounding error of opt_v3 against the truth, which reaches the
generator through soft tokens. opt_v2 is simulated by ``axs_lib.data.degrade``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from axs_lib.cli.train import parse
from axs_lib.data.degrade import degrade
from axs_lib.data.pairs import PairRecord, list_pairs, load_pair
from axs_lib.grounding.corrector import GroundingCorrector
from axs_lib.grounding.head import GroundingHead
from axs_lib.grounding.load import CORRECTOR_FILE
from axs_lib.stage3_tm_ground import Stage3GroundingModel
from axs_lib.terramind.build import build_nano, build_nano_tokenizer
from axs_lib.terramind.sampler import TRAIN_TIMESTEPS, add_noise
from axs_lib.terramind.tiles import network_side, to_network
from axs_lib.terramind.weights import write_state
from axs_lib.train.config import LoopConfig
from axs_lib.train.trainer import SEED_STRIDE, ByStep, TrainingTask, fit, own_random
from experiments.nano.crops import Crops

DN_SCALE = 1000.0  # grounding error is measured in tenths of reflectance, which keeps the losses of one order


@dataclass(frozen=True, kw_only=True)
class PairsConfig(LoopConfig):
    """What nano's own trainings share.

    Attributes:
        data: folder of pairs (``index.csv`` or NPZ files).
        test_groups: groups never seen, kept for the figures.
        validation_groups: groups kept out for choices.
        qualities: tiles that are trained on.
        crop_sizes: sides of the random crops in pixels.
        batch_pixels: pixels of a batch, whatever its crop size.
    """

    data: str
    test_groups: tuple[str, ...] = ()
    validation_groups: tuple[str, ...] = ()
    qualities: tuple[str, ...] = ("ok", "open_water")
    crop_sizes: tuple[int, ...] = (64, 96, 128)
    batch_pixels: int = 8 * 96 * 96

    def records(self, groups: tuple[str, ...] | None = None) -> list[PairRecord]:
        """The pairs of these groups; by default those that may be trained on."""
        held_out = {*self.test_groups, *self.validation_groups}
        return [
            record
            for record in list_pairs(self.data, quality="all")
            if record.quality in self.qualities
            and (record.group not in held_out if groups is None else record.group in groups)
        ]

    def batches(self) -> ByStep:
        """Batches of what may be trained on, with their ``step``."""
        crops = Crops(self.records(), self.crop_sizes, self.batch_pixels, self.seed)
        return ByStep(lambda step: crops.batch(step) | {"step": step})

    def settings(self) -> str:
        """What goes into the header of the weights."""
        unsaid = ("data", "out", "checkpoint")
        return json.dumps({key: value for key, value in asdict(self).items() if key not in unsaid})


@dataclass(frozen=True, kw_only=True)
class NanoConfig(PairsConfig):
    """The joint training.

    Attributes:
        token_weight: of the token cross-entropy.
        reconstruction_weight: of the tokenizer's loss.
        ground_weight: of the error of opt_v3.
    """

    out: str = "runs/nano"
    learning_rate: float = 1e-3
    token_weight: float = 0.05
    reconstruction_weight: float = 0.5
    ground_weight: float = 20.0


class NanoTask(TrainingTask):
    """The joint training as a task of the loop."""

    config: NanoConfig

    def __init__(self, config: NanoConfig) -> None:
        super().__init__(config, "nano")
        with own_random(config.seed):
            self.model = Stage3GroundingModel(build_nano(), GroundingCorrector(GroundingHead()))
            self.tokenizer: nn.Module = build_nano_tokenizer()
        self.errors: list[tuple[float, float]] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        with own_random(self.config.seed * SEED_STRIDE + batch["step"], self.device):
            return self.loss(batch["s1"], batch["truth"], batch["step"])

    def loss(self, s1: Tensor, truth: Tensor, step: int) -> Tensor:
        """The three losses of a batch, weighted."""
        generator = self.model.terramind_generator
        s1 = s1 + torch.randn(len(s1), 2, 1, 1, device=s1.device) * 0.5
        opt_v2 = degrade(truth, seed=self.config.seed * SEED_STRIDE + step, preset="train")

        # Tokenizer: codes of the truth, and the denoiser that turns them back into it. Small crops are reflected.
        valid = torch.ones_like(truth[:, :1], dtype=torch.bool)
        side = network_side(generator.layout, *truth.shape[-2:])
        z_s1, z_truth, z_estimate = (
            adapter.to_z(to_network(image, valid, side, adapter, standardize=True))
            for image, adapter in ((s1, generator.sar), (truth, generator.optical), (opt_v2, generator.optical))
        )
        latent = self.tokenizer(z_truth).permute(0, 2, 3, 1)
        codes, tokens = generator.quantizer.latent_to_code_and_indice(latent)  # with straight-through gradients
        half = max(1, len(truth) // 2)  # half a batch is enough for the two helper losses
        clean, noise = z_truth[:half], torch.randn_like(z_truth[:half])
        t = torch.randint(TRAIN_TIMESTEPS, (half,), device=clean.device)
        decoded = generator.denoise_once(add_noise(clean, noise, t), t, codes.permute(0, 3, 1, 2)[:half])
        reconstruction = F.mse_loss(decoded, clean)

        # Grounding: one evaluation from the noised estimate, through soft tokens.
        image, logits = self.model.training_pass(s1, opt_v2)
        error = (image - truth) / DN_SCALE
        ground = error.square().mean() + 0.1 * error.abs().mean()

        # Tokens: with both modalities, and with one of them dropped.
        alone = {"s1": z_s1[:half]} if step % 2 else {"optical": z_estimate[:half]}
        dropped = generator.logits(alone).transpose(1, 2)
        target = tokens.flatten(1).long()
        token = F.cross_entropy(logits.transpose(1, 2), target) + F.cross_entropy(dropped, target[:half])

        config = self.config
        loss = config.reconstruction_weight * reconstruction
        loss = loss + config.token_weight * token + config.ground_weight * ground
        before = ((opt_v2 - truth) / DN_SCALE).square().mean()
        parts = {"reconstruction": reconstruction, "token": token / 2, "ratio": error.square().mean() / before}
        self.log_dict({"loss": loss} | parts, prog_bar=True, batch_size=1)
        return loss

    @torch.no_grad()
    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        opt_v3 = self.model.ground(batch["s1"], batch["opt_v2"], 1).image
        error, before = (
            float(((image - batch["truth"]) / DN_SCALE).square().nanmean()) for image in (opt_v3, batch["opt_v2"])
        )
        self.errors.append((error, before))

    def on_validation_epoch_end(self) -> None:
        error, before = torch.tensor(self.errors).mean(0)
        self.errors.clear()
        self.log("val_mse", error, prog_bar=True)
        self.log("val_ratio", error / before, prog_bar=True)

    def export(self, step: int, error: float | None) -> Path:
        generator = self.model.terramind_generator
        parts = {"core": generator.core, "detokenizer": generator.detokenizer, "tokenizer": self.tokenizer}
        state = {f"{name}.{key}": v for name, part in parts.items() for key, v in part.state_dict().items()}
        header = {"variant": "nano", "steps": str(step), "config": self.config.settings()}
        target = Path(self.config.out) / "nano.safetensors"
        corrector = self.model.corrector.state_dict()
        for file, tensors in ((target.with_name(CORRECTOR_FILE), corrector), (target, state)):
            write_state(file, tensors, header, half=True, overwrite=True)
        return target


def train_nano(config: NanoConfig, *, resume: bool = True, progress: bool = True) -> Path:
    """Run (or resume) a training and write ``nano.safetensors`` into the run folder."""
    tiles = []
    for number, record in enumerate(config.records(config.validation_groups)):
        if record.quality == "ok":
            pair = load_pair(record)
            s1, truth = torch.as_tensor(pair.s1)[None].float(), torch.as_tensor(pair.s2)[None].float()
            tiles.append({"s1": s1, "truth": truth, "opt_v2": degrade(truth, seed=number, preset="test")})
    return fit(NanoTask(config), config.batches(), tiles, resume=resume, progress=progress)


def main(train: Any, configuration: Any, arguments: list[str]) -> None:
    """Parse a configuration, train, and say where the weights are."""
    run, restart, quiet = parse(configuration, arguments, f"python -m experiments.nano.{Path(sys.argv[0]).stem}")
    print(train(run, resume=not restart, progress=not quiet))


if __name__ == "__main__":
    main(train_nano, NanoConfig, sys.argv[1:])
