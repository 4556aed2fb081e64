"""The three stages as tasks of the training loop: what a batch costs, what is trained, how good held-out tiles are.

``val_mse``, by which training stops and weights are chosen, is the mean squared error of the held-out tiles in
(reflectance x 10)^2. Every draw of a step is a function of (seed, batch index).
"""

from __future__ import annotations

import json
import math
import warnings
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from axs_lib import __version__
from axs_lib.adapters import apply_lora_to_linear, merge_adapter, save_adapter
from axs_lib.bands import VALID_DN
from axs_lib.data.degrade import degrade
from axs_lib.errors import InputError, UntrainedHeadWarning, listed
from axs_lib.hub import prefixed, weight_files
from axs_lib.models import build_terramind_generator
from axs_lib.nodata import pad_square
from axs_lib.stage2_losses import Stage2Loss
from axs_lib.stage2_prithvi_refine import build_prithvi_refiner, save_refiner
from axs_lib.stage3_losses import IGNORED_TOKEN, Stage3Loss
from axs_lib.stage3_tm_ground import build_stage3_model
from axs_lib.terramind.build import build_nano_tokenizer, load_nano_tokenizer
from axs_lib.terramind.tiles import network_side, to_network
from axs_lib.terramind.weights import PRITHVI_VARIANTS, write_state
from axs_lib.train.colour import fit_colour
from axs_lib.train.config import CONFIGS, MADE, RunConfig, Stage1Config, Stage2Config, Stage3Config
from axs_lib.train.readers import Split, list_samples, split_samples
from axs_lib.train.readers.batches import Batch, CropDataset, validation_batches
from axs_lib.train.trainer import LAST, SEED_STRIDE, TrainingTask, check_run, fit, own_random

DN_SCALE = 1000.0  # held-out errors are in tenths of reflectance
STAGES = {kind: stage for stage, kind in CONFIGS.items()}


class StageTask(TrainingTask):
    """What the stages share: seeded steps, held-out error, the weights and their header.

    ``criterion`` is the loss; ``tokenizer`` makes token targets, where there is one; ``estimate_source`` is ``file``,
    or ``degraded`` where the stage's estimate is simulated from the truth; ``notes`` go into the weights' header.
    """

    stage: str
    estimate_key: str | None = None
    config: RunConfig

    def __init__(
        self,
        config: RunConfig,
        model: Any,
        criterion: nn.Module,
        tokenizer: nn.Module | None = None,
        *,
        estimate_source: str = "degraded",
        notes: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(config, self.stage)
        self.model, self.criterion, self.tokenizer = model, criterion, tokenizer
        self.estimate_source, self.notes = estimate_source, dict(notes or {})
        self.held_out: list[tuple[float, float]] = []  # error of each tile, and that of the estimate

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """What is minimised, for a batch with SAR, truth, mask and the stage's estimate."""

    @abstractmethod
    def predict(self, batch: Batch) -> Tensor:
        """The stage's image (B, 4, H, W) in DN for a validation batch, with one time step."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        with own_random(self.config.seed * SEED_STRIDE + batch["index"], self.device):
            jitter = torch.randn(len(batch["s1"]), 2, 1, 1, generator=self.random(batch, 1)) * self.config.sar_jitter
            batch = batch | {"s1": batch["s1"] + jitter.to(batch["s1"].device)}
            loss = self.loss(self.with_estimate(batch, "train"))
        self.log("loss", loss.detach(), prog_bar=True, batch_size=1)
        return loss

    @torch.no_grad()
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        batch = self.with_estimate(batch, "test")
        mask = batch["mask"].expand_as(batch["truth"])

        def mse(image: Tensor) -> float:
            return float((((image - batch["truth"]) / DN_SCALE)[mask]).square().mean())

        before = mse(batch[self.estimate_key]) if self.estimate_key else math.nan
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UntrainedHeadWarning)  # being trained is what it is here for
            self.held_out.append((mse(self.predict(batch)), before))

    def on_validation_epoch_end(self) -> None:
        errors = torch.tensor(self.held_out or [(math.inf, math.nan)], device=self.device)
        self.held_out.clear()
        mse, before = errors.mean(0)
        self.log("val_mse", mse, prog_bar=True, sync_dist=True)
        if self.estimate_key:
            self.log("val_mse_before", before, sync_dist=True)
            self.log("val_ratio", mse / before, prog_bar=True, sync_dist=True)

    def export(self, step: int, error: float | None) -> Path:
        """Write the weights, float16, in the files that the stages load by ``checkpoint=``, with what made them."""
        folder = Path(self.config.out) / "weights"
        settings = {key: value for key, value in asdict(self.config).items() if key not in ("data", "out")}
        header = self.notes | {
            "variant": self.config.variant,
            "stage": self.stage.removeprefix("stage"),
            "steps": str(step),
            "config": json.dumps(settings),
            "axs_version": __version__,
            "torch_version": torch.__version__,
        }
        if self.estimate_key:
            header["estimate_source"] = self.estimate_source
        if error is not None:
            header["val_mse"] = f"{error:.6g}"
        if self.config.lora is not None:
            if self.stage != "stage2":
                save_adapter(self.model, folder / "adapter", overwrite=True, notes=header)
            merge_adapter(self.model)
        if self.stage == "stage2":
            file = (folder / PRITHVI_VARIANTS[self.model.variant].file_names[0]).with_suffix(".safetensors")
            save_refiner(self.model, file, half=True, notes=header, overwrite=True)
            return folder
        files = weight_files(self.model)
        if "nano.safetensors" in files:
            files["nano.safetensors"] |= prefixed("tokenizer", (self.tokenizer or build_nano_tokenizer()).state_dict())
        for name, state in files.items():  # the generator's file comes last, so that a folder that has it is complete
            write_state(folder / name, state, header, half=True, overwrite=True)
        return folder

    def random(self, batch: Batch, stream: int) -> torch.Generator:
        """A generator of one of the batch's streams of draws."""
        return torch.Generator().manual_seed((self.config.seed * SEED_STRIDE + batch["index"]) * 16 % 2**62 + stream)

    def with_estimate(self, batch: Batch, preset: Any) -> Batch:
        """The batch with the estimate that the stage starts from, simulated where the files do not carry it."""
        if self.estimate_key is None or self.estimate_source == "file":
            return batch
        return batch | {self.estimate_key: degrade(batch["truth"], generator=self.random(batch, 2), preset=preset)}

    def generator_loss(self, batch: Batch, optical: Tensor, **compared: Tensor) -> Tensor:
        """The loss of a training pass of a generator from an optical image, with the tokens where they can be had."""
        image, logits = self.model.training_pass(batch["s1"], optical)
        targets = self.truth_tokens(batch)
        if targets is not None:
            compared |= {"logits": logits, "targets": targets}
        return self.criterion(image, batch["truth"], batch["mask"], **compared)

    @torch.no_grad()
    def truth_tokens(self, batch: Batch) -> Tensor | None:
        """(B, h*w) tokens of the truth, ``IGNORED_TOKEN`` where it is mostly nodata; ``None`` without a tokenizer."""
        if self.tokenizer is None:
            return None
        generator, truth, mask = self.model.terramind_generator, batch["truth"], batch["mask"]
        side = network_side(generator.layout, *truth.shape[-2:])
        filled = to_network(truth, torch.ones_like(mask), side, generator.optical, standardize=True)
        latent = self.tokenizer(generator.optical.to_z(filled)).permute(0, 2, 3, 1).float()
        _, index = generator.quantizer.latent_to_code_and_indice(latent)
        valid = nn.functional.avg_pool2d(pad_square(mask.float(), side), generator.layout.patch) > 0.5
        return index.flatten(1).long().masked_fill(~valid.flatten(1), IGNORED_TOKEN)


class Stage1Task(StageTask):
    """SAR to optical: error of the one-step image, and token cross-entropy where the truth's tokens can be had."""

    stage = "stage1"

    def loss(self, batch: Batch) -> Tensor:
        return self.generator_loss(batch, batch["truth"])

    def predict(self, batch: Batch) -> Tensor:
        return self.model.generate(batch["s1"], 1).image


class Stage2Task(StageTask):
    """Refine opt_v1 with Prithvi and what is known of date and place."""

    stage = "stage2"
    estimate_key = "opt_v1"
    config: Stage2Config

    def loss(self, batch: Batch) -> Tensor:
        size = (len(batch["truth"]), 4, 1, 1)
        gain = torch.exp(torch.randn(size, generator=self.random(batch, 3)) * self.config.brightness_jitter)
        batch = batch | {key: (batch[key] * gain.to(batch[key])).clamp(*VALID_DN) for key in ("opt_v1", "truth")}
        return self.criterion(self.predict(batch), batch["truth"], batch["mask"])

    def predict(self, batch: Batch) -> Tensor:
        return self.model(batch["opt_v1"], batch["metadata"])


class Stage3Task(StageTask):
    """Ground opt_v2 in the SAR: one evaluation from the noised estimate, through soft tokens and the head."""

    stage = "stage3"
    estimate_key = "opt_v2"

    def loss(self, batch: Batch) -> Tensor:
        return self.generator_loss(batch, batch["opt_v2"], s1=batch["s1"])

    def predict(self, batch: Batch) -> Tensor:
        return self.model.ground(batch["s1"], batch["opt_v2"], 1).image


def build_task(config: RunConfig, **options: Any) -> StageTask:
    """The task of a configuration, in training mode; its random weights are a function of the seed."""
    weights: dict[str, Any] = {key: getattr(config, key) for key in ("variant", "pretrained", "checkpoint", "revision")}
    terms = (Stage2Loss if isinstance(config, Stage2Config) else Stage3Loss)().weights
    if not config.loss.keys() <= terms.keys():
        raise InputError(f"loss names {listed(config.loss)}; expected any of {listed(terms)}")
    with own_random(config.seed):
        task: StageTask
        if isinstance(config, Stage1Config):
            stage1 = build_terramind_generator((config.s1_product,), timesteps=1, **weights)
            task = Stage1Task(config, stage1, Stage3Loss(**config.loss), _nano_tokenizer(config), **options)
        elif isinstance(config, Stage2Config):
            stage2 = build_prithvi_refiner(
                metadata_dropout=config.metadata_dropout, needs_season=config.needs_season, **weights
            )
            task = Stage2Task(config, stage2, Stage2Loss(**config.loss), **options)
        else:
            assert isinstance(config, Stage3Config)
            stage3 = build_stage3_model(timesteps=1, s1_product=config.s1_product, correction_mode="learned", **weights)
            stage3.corrector.calibration = None  # it was fitted to the head before
            task = Stage3Task(config, stage3, Stage3Loss(**config.loss), _nano_tokenizer(config), **options)
        _choose_trained(task.model, config)
    task.model.train()  # builders return models in eval() mode
    return task


def _nano_tokenizer(config: RunConfig) -> nn.Module | None:
    """nano's trained tokenizer encoder, frozen: it makes token targets, and is passed on with the weights."""
    if config.variant != "nano" or not config.pretrained:
        return None
    return load_nano_tokenizer(config.checkpoint).requires_grad_(False).eval()


def _choose_trained(model: nn.Module, config: RunConfig) -> None:
    """Make all weights trainable; with LoRA adapters, head, season's colour and the vectors for unknown metadata."""
    if config.lora is None:
        model.requires_grad_(True)
        return
    apply_lora_to_linear(model, **vars(config.lora))
    for name, parameter in model.named_parameters():
        if name.startswith(("corrector.", "colour.", "head.")) or name.endswith(("_enc.unknown", "_enc.biome.weight")):
            parameter.requires_grad_(True)


def train_stage(config: RunConfig, *, resume: bool = True, progress: bool = True) -> Path:
    """Train a stage, or with ``resume`` go on where a stopped run left off, and return the folder of the weights.

    Raises InputError: unusable data or configuration; WeightsError: no weights to start from; and what ``fit`` raises.
    """
    data = config.data
    if resume:
        check_run(config, STAGES[type(config)])  # before weights are loaded
    split = split_samples(list_samples(data), data, config.seed)
    source = estimate_source(config, split)
    groups = {
        f"{name}_groups": json.dumps(sorted({sample.group for sample in samples}))
        for name, samples in (("train", split.train), ("validation", split.validation))
    }
    task = build_task(config, estimate_source=source, notes=groups)
    resumed = resume and (Path(config.out) / LAST).is_file()
    if isinstance(config, Stage2Config) and config.fit_colour and source == "file" and not resumed:
        fit_colour(task.model, split.train, progress=progress)
    estimates = [task.estimate_key] if source == "file" and task.estimate_key else []
    crops = CropDataset(split.train, data, estimates, config.seed)
    tiles = validation_batches(split.validation, data, estimates)
    return fit(task, crops, tiles, workers=data.workers, patience=config.patience, resume=resume, progress=progress)


def estimate_source(config: RunConfig, split: Split) -> str:
    """``file``, or ``degraded`` where the estimate is simulated; InputError where files lack one that is wanted."""
    wanted = getattr(config, "estimate", "degraded")
    if wanted == "degraded":
        return "degraded"
    previous = "stage1" if isinstance(config, Stage2Config) else "stage2"
    key = MADE[previous]
    samples = [*split.train, *split.validation]
    count = sum(key in sample.estimates for sample in samples)
    if count == len(samples):
        return "file"
    if count == 0 and wanted == "auto":
        return "degraded"
    raise InputError(
        f"{count} of {len(samples)} pairs in {config.data.folder} carry {key}; expected all of them: make them with"
        f" `axs precompute --stage {previous}`, or simulate {key} from the truth with estimate: degraded"
    )
