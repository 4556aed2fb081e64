"""Outputs of a stage for the next one's training, out of fold by group: never by a model that has seen the group.

Out comes a folder of NPZ pairs with ``opt_v1`` or ``opt_v2``, an ``index.csv`` with groups, split, date and place, and
``manifest.json``, which says what weights made which file. What is done is not done again.
"""

from __future__ import annotations

import csv
import itertools
import json
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from axs_lib.checks import find_device
from axs_lib.data.pairs import split_groups
from axs_lib.errors import InputError
from axs_lib.io.atomic import atomic_write, locked_folder, write_json
from axs_lib.io.results import to_uint16
from axs_lib.models import build_terramind_generator
from axs_lib.progress import track
from axs_lib.stage1_tm_s2o import tm_sar2opt
from axs_lib.stage2_prithvi_refine import build_prithvi_refiner
from axs_lib.terramind.weights import groups_in, read_metadata
from axs_lib.tilegrid import Tile, batches_of_one_shape
from axs_lib.train.config import MADE, RunConfig
from axs_lib.train.readers import BadDataWarning, DataConfig, list_samples, split_samples, without_groups
from axs_lib.train.readers.sample import Crop, TrainingSample

WHEN_AND_WHERE = ("date", "year", "month", "lat", "lon")
INDEX_COLUMNS = ("source", "id", "group", "quality", "h", "w", "split", *WHEN_AND_WHERE)
Predict = Callable[[list[Crop]], Tensor]


@dataclass(frozen=True)
class PrecomputeConfig:
    """What is computed."""

    stage: str  # stage1 or stage2
    data: DataConfig  # for stage 2 a folder with opt_v1, which stage 1 wrote
    out: str  # folder of the pairs
    folds: int = 5  # at most the number of groups
    checkpoints: tuple[str, ...] = ()  # weights of each fold's model, in the order of the folds; or
    train: RunConfig | None = None  # how to train one
    variant: str | None = None  # of the checkpoints, where their files do not say it
    s1_product: str = "S1GRD"
    timesteps: int = 1  # network evaluations of Stage 1; 1 is the most accurate
    tile: int = 256  # longest side of a written tile; larger images are cut
    batch_size: int = 8  # tiles the network sees at once
    seed: int = 0  # deals groups to folds; the same for both stages, so that they are the same folds
    device: str | None = None


@dataclass(frozen=True)
class Output:
    """One file to write: a window of a sample."""

    sample: TrainingSample
    window: Tile
    id: str
    path: Path


def precompute(config: PrecomputeConfig, *, progress: bool = True) -> Path:
    """Compute, or finish computing, a stage's out-of-fold outputs, and return the folder of pairs.

    Raises InputError: what does not fit, or a checkpoint that has seen its fold's groups; WeightsError: no weights;
    OutputError: another run is in the folder, or the disk refuses; finished files stay.
    """
    _check(config)
    with locked_folder(Path(config.out), ".axs-precompute.lock", "axs precompute"):
        return _precompute(config, progress)


def _precompute(config: PrecomputeConfig, progress: bool) -> Path:
    out = Path(config.out)
    samples = list_samples(config.data)
    lacking = [s.name for s in samples if "opt_v1" not in s.estimates]
    if config.stage == "stage2" and lacking:
        raise InputError(
            f"{len(lacking)} of {len(samples)} pairs in {config.data.folder} have no opt_v1 ({lacking[0]}, ...);"
            " make them with `axs precompute --stage stage1` and pass its output folder as --data"
        )
    folds = deal_folds(samples, config)
    done: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for number, fold in enumerate(folds):
        groups = sorted({sample.group for sample in fold})
        predict, provenance = _load(config, _weights(config, number, groups, progress))
        note = json.dumps({"fold": number, "timesteps": config.timesteps} | provenance, sort_keys=True)
        outputs = [output for sample in fold for output in _outputs(sample, config)]
        todo = [output for output in outputs if not _is_done(output.path, MADE[config.stage], note)]
        text = f"{config.stage}, fold {number + 1} of {len(folds)}"
        skipped: set[Path] = set()
        batches = list(batches_of_one_shape(todo, lambda output: output.window.shape, config.batch_size))
        for batch in track(batches, text, enabled=progress):
            skipped |= _compute(batch, predict, config, note)
        written = [output for output in outputs if output.path not in skipped]
        rows += [_row(output) for output in written]
        done.append({"groups": groups, "weights": provenance, "files": [output.id for output in written]})
        with (
            atomic_write(out / "index.csv", overwrite=True) as temporary,
            temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream,
        ):
            writer = csv.DictWriter(stream, INDEX_COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        write_json(out / "manifest.json", {"stage": config.stage, "seed": config.seed, "folds": done}, overwrite=True)
    return out


def _check(config: PrecomputeConfig) -> None:
    if config.stage not in MADE:
        raise InputError(f"stage is {config.stage!r}; expected stage1 (makes opt_v1) or stage2 (makes opt_v2)")
    out, data = Path(config.out).resolve(), Path(config.data.folder).resolve()
    if out == data or data.is_relative_to(out / "pairs"):
        raise InputError(f"the pairs of {config.out} would replace those of {data}, the input; choose another --out")
    if config.train is None and len(config.checkpoints) != config.folds:
        raise InputError(
            f"{len(config.checkpoints)} checkpoints are given for {config.folds} folds; pass --checkpoint once for each"
            " fold, or -c CONFIG to train a model for each"
        )
    if config.train is not None and config.checkpoints:
        raise InputError("both checkpoints and a training configuration are given; pass one of them")


def deal_folds(samples: Sequence[TrainingSample], config: PrecomputeConfig) -> list[list[TrainingSample]]:
    """Samples by fold; test samples, which no model sees, go with the first."""
    test = split_samples(samples, config.data, config.seed).test
    names = {sample.name for sample in test}
    folds = split_groups([s for s in samples if s.name not in names], config.folds, config.seed)
    folds[0] += test
    return folds


def _weights(config: PrecomputeConfig, number: int, groups: list[str], progress: bool) -> Path:
    """The weights of a fold's model: given, trained before, or trained now."""
    if config.train is None:
        path = Path(config.checkpoints[number])
        _check_unseen(path, groups, number)
        return path
    run = Path(config.out) / "models" / f"fold{number}"
    training = replace(
        config.train,
        data=without_groups(config.data, groups),
        out=str(run),
        seed=config.train.seed + number,
        # One device: the processes of several would all go on to compute and write the same files.
        trainer=replace(config.train.trainer, devices=1, num_nodes=1, strategy="auto"),
    )
    header = _header(run / "weights")
    if header is None:
        from axs_lib.train.tasks import train_stage

        return train_stage(training, progress=progress)
    settings = {key: value for key, value in asdict(training).items() if key not in ("data", "out")}
    if json.loads(header["config"]) != json.loads(json.dumps(settings)):
        raise InputError(f"{run} holds a model trained with other settings; delete it to train anew, or change --out")
    _check_unseen(run / "weights", groups, number)
    return run / "weights"


def _header(path: Path) -> dict[str, str] | None:
    """The header that `axs train` wrote, of a file or of the files in a folder."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    headers = [read_metadata(file) for file in files if file.suffix == ".safetensors" and file.is_file()]
    return next((header for header in headers if "train_groups" in header), None)


def _check_unseen(path: Path, groups: list[str], number: int) -> None:
    header = _header(path)
    if header is None:
        warnings.warn(
            f"{path} does not say what it was trained on, so whether it has seen fold {number} is not checked",
            BadDataWarning,
            stacklevel=4,
        )
        return
    if both := sorted(groups_in(header) & set(groups)):
        raise InputError(
            f"{path} was trained on {len(both)} of the {len(groups)} groups of fold {number} ({', '.join(both[:5])});"
            f" expected a model trained without them: data.test_groups: [{', '.join(groups[:20])}]"
        )


def _load(config: PrecomputeConfig, weights: Path) -> tuple[Predict, dict[str, Any]]:
    """How to predict a batch of crops with these weights, and what they are."""
    variant = config.train.variant if config.train else config.variant or (_header(weights) or {}).get("variant")
    if variant is None:
        raise InputError(f"{weights} does not say its variant; pass --variant")
    device = find_device(config.device or ("cuda" if torch.cuda.is_available() else None))
    if config.stage == "stage1":
        generator = build_terramind_generator(
            (config.s1_product,), timesteps=config.timesteps, variant=variant, checkpoint=weights, device=device
        )
        info = generator.terramind_generator.weights

        def predict(crops: list[Crop]) -> Tensor:
            return tm_sar2opt(generator, torch.from_numpy(np.stack([crop.s1 for crop in crops])).to(device))
    else:
        refiner = build_prithvi_refiner(variant=variant, checkpoint=weights, device=device)
        info = refiner.weights

        @torch.no_grad()
        def predict(crops: list[Crop]) -> Tensor:
            opt_v1 = torch.from_numpy(np.stack([crop.estimates["opt_v1"] for crop in crops])).to(device)
            return refiner(opt_v1, [crop.metadata for crop in crops])

    return predict, {"variant": variant, "sha256": dict(info.sha256) if info else {}}


def _outputs(sample: TrainingSample, config: PrecomputeConfig) -> Iterator[Output]:
    """The files of a sample: itself, or the tiles of an image that is larger than a tile."""
    folder = Path(config.out) / "pairs" / sample.source
    rows, columns = (_parts(length, config.tile) for length in (sample.height, sample.width))
    for (top, bottom), (left, right) in itertools.product(rows, columns):
        name = sample.id if len(rows) == len(columns) == 1 else f"{sample.id}_{top}_{left}"
        yield Output(sample, Tile(top, left, bottom, right), name, folder / f"{name}.npz")


def _parts(length: int, longest: int) -> list[tuple[int, int]]:
    """Start and end of even parts of a length."""
    count = -(-length // longest)
    return list(itertools.pairwise(round(part * length / count) for part in range(count + 1)))


def _compute(batch: list[Output], predict: Predict, config: PrecomputeConfig, note: str) -> set[Path]:
    """Write a batch's files; returns the paths left out because they cannot be read (or hold no data)."""
    read: list[tuple[Output, Crop]] = []
    skipped: set[Path] = set()
    for output in batch:
        crop = output.sample.read_or_skip(output.window, config.data.on_bad == "skip")
        if crop is not None and np.isfinite(crop.s1).all(0).any() and np.isfinite(crop.s2).all(0).any():
            read.append((output, crop))
        else:
            skipped.add(output.path)
    key = MADE[config.stage]
    images: Any = predict([crop for _, crop in read]).float().cpu().numpy() if read else []
    for (output, crop), image in zip(read, images, strict=True):
        arrays: dict[str, Any] = {"s1": crop.s1}
        for name, pixels in {"s2": crop.s2, **crop.estimates, key: image}.items():
            whole = np.isfinite(pixels).all(0)  # 0 in some bands alone would be read as a dark pixel
            arrays[name] = to_uint16(np.where(whole, pixels, np.nan))
        arrays |= {f"{key}_provenance": np.array(note), "metadata": np.array(json.dumps(dict(crop.metadata)))}
        with atomic_write(output.path, overwrite=True) as temporary:
            np.savez(temporary, **arrays)
    return skipped


def _is_done(path: Path, key: str, note: str) -> bool:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return f"{key}_provenance" in stored.files and str(stored[f"{key}_provenance"]) == note
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):  # not there, cut off, or not ours: made anew
        return False


def _row(output: Output) -> dict[str, Any]:
    """The line of the index: what the sample tells, and when and where, which the file does."""
    with np.load(output.path, allow_pickle=False) as stored:
        metadata = json.loads(str(stored["metadata"]))
    sample, (height, width) = output.sample, output.window.shape
    known = {"source": sample.source, "id": output.id, "group": sample.group, "quality": sample.quality}
    known |= {"h": str(height), "w": str(width), "split": sample.split}
    return known | {key: metadata.get(key, "") for key in WHEN_AND_WHERE}
