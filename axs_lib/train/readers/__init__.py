"""Readers of training data: NPZ pairs, BigEarthNet v1 and v2 as distributed, pairs of GeoTIFF scenes.

Splits are by group (or by the data set's own metadata), never by crop, and every bad file is reported by name.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from axs_lib.checks import MIN_SIDE, check_pair
from axs_lib.data.pairs import SHOWN, check_groups, split_groups
from axs_lib.errors import InputError
from axs_lib.io.safe import dark_level, warn_of_offset
from axs_lib.train.readers.sample import BadDataWarning, Listing, TrainingSample, evenly_spread

__all__ = ["BadDataWarning", "DataConfig", "Split", "list_samples", "split_samples", "without_groups"]

CHECKED = 8  # samples whose units are looked at before a run


@dataclass(frozen=True)
class DataConfig:
    """Where the data are and how they are used.

    Attributes:
        folder: the data folder.
        format: ``npz`` (pairs, also from ``axs precompute``), ``bigearthnet_v1``, ``bigearthnet_v2`` or ``scenes``
            (NAME_s1.tif and NAME_s2.tif).
        on_bad: what to do about missing, unpaired, empty or corrupt files: ``refuse`` or ``skip``, both by name.
        qualities: tiles that are used, where the data say how good they are.
        test_groups: groups never seen, kept for the figures.
        validation_groups: groups used to watch and to stop.
        validation_share: share of the pixels held out, by group, where neither the data nor validation_groups say it.
        validation_tiles: validation tiles looked at each time, evenly spread over those held out.
        crop_sizes: sides of the random crops in pixels, one drawn for each batch.
        batch_size: crops in a batch, on each device.
        workers: processes that read; the batches are the same for any number.
        s1_unit: unit of the SAR in scenes; ``auto`` goes by names and values.
        boa_offset: BOA offset in the DN of scenes; ``auto`` goes by the product's metadata.
    """

    folder: str
    format: Literal["npz", "bigearthnet_v1", "bigearthnet_v2", "scenes"] = "npz"
    on_bad: Literal["refuse", "skip"] = "refuse"
    qualities: tuple[str, ...] = ("ok",)
    test_groups: tuple[str, ...] = ()
    validation_groups: tuple[str, ...] = ()
    validation_share: float = 0.1
    validation_tiles: int = 64
    crop_sizes: tuple[int, ...] = (64, 96, 128)
    batch_size: int = 8
    workers: int = 0
    s1_unit: Literal["auto", "db", "power", "amplitude"] = "auto"
    boa_offset: Literal["auto", "0", "1000"] = "auto"


@dataclass(frozen=True)
class Split:
    """Samples by use; no group is in two of them unless the data set's own split has it so."""

    train: list[TrainingSample]
    validation: list[TrainingSample]
    test: list[TrainingSample]


def list_samples(config: DataConfig) -> list[TrainingSample]:
    """Every usable pair of the folder, sorted by name; InputError: none, or bad files, unless they are skipped."""
    listing = _list(config)
    if listing.problems:
        shown = "\n  ".join([*listing.problems[:SHOWN], *(["..."] if len(listing.problems) > SHOWN else [])])
        count = f"{len(listing.problems)} of {len(listing.problems) + len(listing.samples)}"
        if config.on_bad == "refuse":
            raise InputError(
                f"{config.folder}: {count} pairs are missing, unpaired, empty or corrupt:\n  {shown}\n"
                "  Repair the files, or skip them: --data.on_bad skip (axs precompute: --on-bad skip)"
            )
        warnings.warn(f"{config.folder}: {count} pairs are left out:\n  {shown}", BadDataWarning, stacklevel=2)
    samples = [sample for sample in listing.samples if sample.quality in config.qualities]
    if not samples:
        found = f"{len(listing.samples)} pairs, none of quality {', '.join(config.qualities)}"
        raise InputError(
            f"{config.folder} has {found if listing.samples else 'no pair'}; expected {config.format} data:"
            " see docs/training.md for the layouts"
        )
    _check_units(samples, config)
    return sorted(samples, key=lambda sample: sample.name)


def split_samples(samples: Sequence[TrainingSample], config: DataConfig, seed: int = 0) -> Split:
    """Divide samples by the groups of the configuration, else by the data set's split, else by ``validation_share``.

    Raises InputError: a group that is not there or on both sides, or nothing left to train on.
    """
    check_groups(config.folder, samples, [*config.test_groups, *config.validation_groups])
    if both := set(config.test_groups) & set(config.validation_groups):
        raise InputError(f"the groups {', '.join(sorted(both))} are test and validation groups; name each once")
    use: dict[str, list[TrainingSample]] = {"train": [], "validation": [], "test": []}
    for sample in samples:
        if sample.group in config.test_groups:
            use["test"].append(sample)
        elif config.validation_groups:
            held = sample.group in config.validation_groups
            use["validation" if held else "test" if sample.split == "test" else "train"].append(sample)
        else:
            use[sample.split or "train"].append(sample)
    wanted = not config.validation_groups and not use["validation"] and config.validation_share > 0
    groups = {sample.group for sample in use["train"]}
    if wanted and len(groups) > 1:
        folds = min(len(groups), max(2, round(1 / config.validation_share)))
        use["validation"], *rest = split_groups(use["train"], folds, seed)
        use["train"] = [sample for fold in rest for sample in fold]
    if not use["train"]:
        raise InputError(
            f"no training pair is left of {len(samples)} after test and validation groups are held out; hold out fewer"
        )
    return Split(*(sorted(use[key], key=lambda sample: sample.name) for key in ("train", "validation", "test")))


def without_groups(config: DataConfig, groups: Sequence[str]) -> DataConfig:
    """The configuration with these groups held out as test groups."""
    held = dict.fromkeys([*config.test_groups, *groups])
    kept = tuple(group for group in config.validation_groups if group not in held)
    return replace(config, test_groups=tuple(held), validation_groups=kept)


def _list(config: DataConfig) -> Listing:
    from axs_lib.io.pixels import Reading
    from axs_lib.train.readers.bigearthnet import list_bigearthnet_v1, list_bigearthnet_v2
    from axs_lib.train.readers.npz import list_npz
    from axs_lib.train.readers.scenes import list_scenes

    folder = Path(config.folder)
    if config.format == "scenes":
        return list_scenes(folder, Reading(s1_unit=config.s1_unit, boa_offset=config.boa_offset, addresses=False))
    others = {"bigearthnet_v1": list_bigearthnet_v1, "bigearthnet_v2": list_bigearthnet_v2, "npz": list_npz}
    return others[config.format](folder)


def _check_units(samples: Sequence[TrainingSample], config: DataConfig) -> None:
    """Look at a few samples, so that linear power or reflectance in 0-1 is an error before the run, not a bad model."""
    dark: dict[str, float] = {}
    for sample in evenly_spread(samples, CHECKED):
        try:
            crop = sample.read(sample.centre(256))
        except InputError:
            continue  # a broken file is reported by name where it is used
        if min(crop.s1.shape[-2:]) < MIN_SIDE:
            continue
        try:
            check_pair(torch.from_numpy(crop.s1), torch.from_numpy(crop.s2), source="file", name="s2")
        except InputError as error:
            raise InputError(f"{sample.name}: {str(error).partition('; pass --force')[0]}") from None
        if config.format == "npz":  # the readers of the others look themselves
            dark[f"{sample.name}: s2"] = dark_level(crop.s2)
    warn_of_offset(dark, "1000 taken off in the file")
