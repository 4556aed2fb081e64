"""Readers: every layout as it is distributed, splits by group, bad files by name."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import Table, parquet
from rasterio.transform import from_origin
from rasterio.warp import transform_bounds

from axs_lib.bands import OPTICAL_BANDS, SAR_BANDS
from axs_lib.errors import InputError
from axs_lib.io.safe import ReadingWarning
from axs_lib.tilegrid import Tile
from axs_lib.train.readers import BadDataWarning, DataConfig, list_samples, split_samples, without_groups
from axs_lib.train.readers.batches import CropDataset, validation_batches
from axs_lib.train.readers.sample import TrainingSample
from axs_lib.train.trainer import Batches, ByStep
from tests.models import plausible_pair
from tests.scenes.conftest import write_tiff
from tests.train.conftest import write_pairs

PLACE = from_origin(600_000, 5_300_000, 10, 10)


def samples_of(folder: Path, **options: Any) -> list[TrainingSample]:
    return list_samples(DataConfig(str(folder), **options))


def pair_arrays(seed: int, side: int = 120) -> tuple[np.ndarray, np.ndarray]:
    s1, s2 = (image[0].numpy() for image in plausible_pair(1, side, side, seed=seed))
    return s1, s2.round().astype(np.uint16)


def write_patch(folder: Path, bands: tuple[str, ...], image: np.ndarray) -> None:
    for band, pixels in zip(bands, image, strict=True):
        write_tiff(folder / f"{folder.name}_{band}.tif", pixels[None], transform=PLACE)


V1 = [
    ("S2A_MSIL2A_20170613T101031_0_45", "S1A_IW_GRDH_1SDV_20170613T165043_33UUP_0_45"),
    ("S2A_MSIL2A_20170613T101031_0_46", "S1A_IW_GRDH_1SDV_20170613T165043_33UUP_0_46"),
    ("S2B_MSIL2A_20170808T094029_69_62", "S1B_IW_GRDH_1SDV_20170808T050221_35VPK_69_62"),
]


def write_v1(root: Path) -> Path:
    for number, (s2_name, s1_name) in enumerate(V1):
        s1, s2 = pair_arrays(number)
        write_patch(root / "BigEarthNet-v1.0" / s2_name, OPTICAL_BANDS, s2)
        write_patch(root / "BigEarthNet-S1-v1.0" / s1_name, SAR_BANDS, s1)
        note = root / "BigEarthNet-S1-v1.0" / s1_name / f"{s1_name}_labels_metadata.json"
        note.write_text(json.dumps({"labels": [], "corresponding_s2_patch": s2_name}))
    return root


def write_v2(root: Path) -> Path:
    rows = []
    s2_scene, s1_scene = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP", "S1A_IW_GRDH_1SDV_20170613T165043"
    for number, split in enumerate(("train", "validation", "test")):
        s2_name, s1_name = f"{s2_scene}_26_{number}", f"{s1_scene}_33UUP_26_{number}"
        s1, s2 = pair_arrays(number)
        write_patch(root / "BigEarthNet-S2" / s2_scene / s2_name, OPTICAL_BANDS, s2)
        write_patch(root / "BigEarthNet-S1" / s1_scene / s1_name, SAR_BANDS, s1)
        rows.append({"patch_id": s2_name, "split": split, "country": "Austria", "s1_name": s1_name})
    parquet.write_table(Table.from_pylist(rows), root / "metadata.parquet")
    return root


def test_npz_pairs_carry_date_place_and_estimates(tmp_path: Path) -> None:
    _, estimate = pair_arrays(9, 72)
    write_pairs(tmp_path, opt_v1=estimate)
    sample = samples_of(tmp_path)[0]
    crop = sample.read(Tile(4, 8, 20, 32))
    assert crop.s1.shape == (2, 16, 24) and crop.metadata == {"date": "2018-01-15", "lat": 48.0, "lon": 12.5}
    assert sample.estimates == ("opt_v1",)
    np.testing.assert_array_equal(crop.estimates["opt_v1"], estimate[:, 4:20, 8:32])


def test_bad_npz_files_are_refused_by_name_or_skipped_by_name(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    folder = tmp_path / "pairs" / "src"
    (folder / "t1.npz").unlink()
    (tmp_path / "index.csv").write_text((tmp_path / "index.csv").read_text().replace(",72,72,", ",,,"))
    (folder / "t2.npz").write_bytes(b"")
    with pytest.raises(InputError, match=r"2 of 4 pairs(.|\n)*t1\.npz(.|\n)*t2\.npz(.|\n)*\n  Repair .* --data.on_bad"):
        samples_of(tmp_path)
    with pytest.warns(BadDataWarning, match=r"t1\.npz(.|\n)*t2\.npz"):
        samples = samples_of(tmp_path, on_bad="skip")
    assert [sample.id for sample in samples] == ["t0", "t3"]


def test_wrong_units_are_an_error(tmp_path: Path) -> None:
    s1, s2 = pair_arrays(0)
    np.savez(tmp_path / "linear.npz", s1=10 ** (s1 / 10), s2=s2)
    with pytest.raises(InputError, match=r"linear(.|\n)*linear power"):
        samples_of(tmp_path)
    np.savez(tmp_path / "linear.npz", s1=s1, s2=s2 - s2.min() + 1000)
    with pytest.warns(ReadingWarning, match="linear: s2: the darkest pixels are near 11"):
        samples_of(tmp_path)


def test_bigearthnet_v1_pairs_by_the_json_of_the_sar_patches_or_by_split_files(tmp_path: Path) -> None:
    samples = samples_of(write_v1(tmp_path), format="bigearthnet_v1")
    assert [sample.id for sample in samples] == [s2 for s2, _ in V1]
    assert [sample.group for sample in samples] == ["33UUP", "33UUP", "35VPK"]
    s1, s2 = pair_arrays(0)
    crop = samples[0].read()
    np.testing.assert_array_equal(crop.s1, s1)
    np.testing.assert_array_equal(crop.s2, s2)
    assert crop.metadata["date"] == "2017-06-13" and crop.metadata["lat"] == pytest.approx(47.85, abs=0.05)
    for (s2_name, s1_name), split in zip(V1, ("train", "val", "test"), strict=True):
        (tmp_path / f"bigearthnet-{split}.csv").write_text(f"{s2_name},{s1_name}\n")
    samples = samples_of(tmp_path, format="bigearthnet_v1")
    assert [sample.split for sample in samples] == ["train", "validation", "test"]


def test_bigearthnet_v1_names_unpaired_missing_and_empty_files(tmp_path: Path) -> None:
    write_v1(tmp_path)
    s1_root = tmp_path / "BigEarthNet-S1-v1.0"
    (s1_root / V1[0][1] / f"{V1[0][1]}_labels_metadata.json").write_text("{}")
    (s1_root / V1[1][1] / f"{V1[1][1]}_VH.tif").write_bytes(b"")
    (tmp_path / "BigEarthNet-v1.0" / V1[2][0] / f"{V1[2][0]}_B08.tif").unlink()
    with pytest.raises(InputError) as error:
        samples_of(tmp_path, format="bigearthnet_v1")
    for name in (f"{V1[0][1]}_labels_metadata.json", f"{V1[1][1]}_VH.tif is empty", f"{V1[2][0]}_B08.tif is missing"):
        assert name in str(error.value)
    assert f"{V1[0][0]}: no Sentinel-1 patch names it" in str(error.value)


def test_bigearthnet_v2_takes_pairs_and_split_from_its_metadata(tmp_path: Path) -> None:
    config = DataConfig(str(write_v2(tmp_path)), format="bigearthnet_v2")
    split = split_samples(list_samples(config), config)
    parts = (split.train, split.validation, split.test)
    assert [[s.id[-4:] for s in part] for part in parts] == [["26_0"], ["26_1"], ["26_2"]]
    crop = split.test[0].read(Tile(0, 0, 32, 32))
    s1, s2 = pair_arrays(2)
    np.testing.assert_array_equal(crop.s1, s1[:, :32, :32])
    np.testing.assert_array_equal(crop.s2, s2[:, :32, :32])


def test_bigearthnet_without_its_parts_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="BigEarthNet-S1"):
        samples_of(tmp_path, format="bigearthnet_v2")
    write_v2(tmp_path)
    (tmp_path / "metadata.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match=r"metadata\.parquet is no readable parquet"):
        samples_of(tmp_path, format="bigearthnet_v2")
    (tmp_path / "metadata.parquet").unlink()
    with pytest.raises(InputError, match=r"has no metadata\.parquet"):
        samples_of(tmp_path, format="bigearthnet_v2")


def test_a_corrupt_patch_is_named_when_it_is_read_or_replaced_by_another_draw(tmp_path: Path) -> None:
    config = DataConfig(str(write_v1(tmp_path)), format="bigearthnet_v1", crop_sizes=(64,), batch_size=4)
    broken = tmp_path / "BigEarthNet-v1.0" / V1[0][0] / f"{V1[0][0]}_B04.tif"
    broken.write_bytes(broken.read_bytes()[:300])
    samples = list_samples(config)
    with pytest.raises(InputError, match=rf"{broken.name}(.|\n)*on_bad skip"):
        [CropDataset(samples, config)[i] for i in range(4)]
    skipping = CropDataset(samples, replace(config, on_bad="skip"))
    with pytest.warns(BadDataWarning, match=broken.name) as seen:
        batches = [skipping[i] for i in range(4)]
    assert sum(w.category is BadDataWarning for w in seen) == 1
    assert all(len(batch["s1"]) == 4 for batch in batches)


def write_scene(
    folder: Path, name: str, *, east: float = 600_000, side: int = 160, unit: str = "dB", offset: int = 0
) -> np.ndarray:
    """An S2 scene at 10 m and an S1 scene at 20 m in another zone's CRS; returns the SAR as it is stored."""
    _, s2 = pair_arrays(3, side)
    image, place = s2[::-1] + np.uint16(offset), from_origin(east, 5_300_000, 10, 10)
    write_tiff(folder / f"{name}_s2.tif", image, OPTICAL_BANDS[::-1], transform=place)
    bounds = (east, 5_300_000 - side * 10, east + side * 10, 5_300_000)
    west, south, right, north = transform_bounds("EPSG:32633", "EPSG:32632", *bounds)
    width, height = int((right - west) / 20) + 20, int((north - south) / 20) + 20
    rows, columns = np.mgrid[:height, :width]
    s1 = np.stack([-11 + 3 * np.sin(rows / 9), -18 + 3 * np.cos(columns / 7)]).astype(np.float32)
    stored = s1 if unit == "dB" else (10 ** (s1 / 10)).astype(np.float32)
    transform = from_origin(west - 200, north + 200, 20, 20)
    write_tiff(folder / f"{name}_s1.tif", stored, SAR_BANDS, crs="EPSG:32632", transform=transform)
    return stored


def test_scene_crops_are_georeferenced_windows_of_the_whole(tmp_path: Path) -> None:
    write_scene(tmp_path, "place_20200615")
    (sample,) = samples_of(tmp_path, format="scenes")
    whole = sample.read()
    assert np.isfinite(whole.s1).all() and -25 < whole.s1.mean() < -8
    crop = sample.read(Tile(30, 50, 94, 98))
    np.testing.assert_array_equal(crop.s2, whole.s2[:, 30:94, 50:98])
    np.testing.assert_allclose(crop.s1, whole.s1[:, 30:94, 50:98], atol=1e-3)
    assert crop.metadata["date"] == "2020-06-15" and whole.metadata["lat"] < crop.metadata["lat"]  # further north
    _, s2 = pair_arrays(3, 160)
    np.testing.assert_array_equal(whole.s2, s2)  # bands found by name, stored the other way round


def test_scenes_in_power_and_with_an_offset_come_out_as_db_and_dn(tmp_path: Path) -> None:
    write_scene(tmp_path / "db", "a")
    write_scene(tmp_path / "power", "a", unit="power", offset=1000)
    in_db = samples_of(tmp_path / "db", format="scenes")[0].read()
    power = DataConfig(str(tmp_path / "power"), format="scenes", s1_unit="power", boa_offset="1000")
    in_power = list_samples(power)[0].read()
    np.testing.assert_allclose(in_power.s1, in_db.s1, atol=1e-3)
    np.testing.assert_array_equal(in_power.s2, in_db.s2)


def test_scenes_that_overlap_are_one_group_and_unpaired_ones_are_named(tmp_path: Path) -> None:
    write_scene(tmp_path, "a_2019")
    write_scene(tmp_path, "a_2020", east=600_800)
    write_scene(tmp_path, "far", east=700_000)
    (tmp_path / "lonely_s2.tif").write_bytes((tmp_path / "far_s2.tif").read_bytes())
    config = DataConfig(str(tmp_path), format="scenes", on_bad="skip")
    with pytest.warns(BadDataWarning, match=r"lonely_s1\.tif is missing"):
        samples = list_samples(config)
    groups = {sample.id: sample.group for sample in samples}
    assert groups["a_2019"] == groups["a_2020"] != groups["far"]
    write_scene(tmp_path / "swapped", "b", east=600_000)
    write_scene(tmp_path / "other", "b", east=700_000)
    (tmp_path / "other" / "b_s1.tif").replace(tmp_path / "swapped" / "b_s1.tif")
    with pytest.raises(InputError, match="show different places"):
        samples_of(tmp_path / "swapped", format="scenes")


def test_groups_are_never_on_both_sides(pairs: Path) -> None:
    config = DataConfig(str(pairs), validation_share=0.3, test_groups=("g2",))
    split = split_samples(list_samples(config), config)
    groups = [{sample.group for sample in part} for part in (split.train, split.validation, split.test)]
    assert groups[2] == {"g2"} and all(groups) and sum(map(len, groups)) == 4
    named = replace(config, validation_groups=("g0", "g1"))
    assert {s.group for s in split_samples(list_samples(named), named).validation} == {"g0", "g1"}
    held = without_groups(named, ["g0"])
    assert held.test_groups == ("g2", "g0") and held.validation_groups == ("g1",)
    with pytest.raises(InputError, match="has no group nowhere"):
        split_samples(list_samples(config), replace(config, test_groups=("nowhere",)))
    with pytest.raises(InputError, match="test and validation groups"):
        split_samples(list_samples(config), replace(named, test_groups=("g1",)))


def test_a_batch_is_a_function_of_seed_and_index(pairs: Path) -> None:
    config = DataConfig(str(pairs), crop_sizes=(32, 64), batch_size=3)
    one, other, reseeded = (CropDataset(samples_of(pairs), config, seed=seed) for seed in (5, 5, 6))
    for index in (0, 7, 3):
        a, b = one[index], other[index]
        assert all(torch.equal(a[key], b[key]) for key in ("s1", "truth", "mask")) and a["metadata"] == b["metadata"]
    assert not torch.equal(one[0]["truth"], one[1]["truth"])
    assert not torch.equal(one[0]["truth"], reseeded[0]["truth"])


def test_sar_and_truth_are_turned_together_and_nodata_is_masked(tmp_path: Path) -> None:
    s1, s2 = pair_arrays(0, 64)
    s1[0] = s2[0] / 1000 - 15
    s1[:, :20, :] = np.nan
    np.savez(tmp_path / "a.npz", s1=s1, s2=s2)
    batch = CropDataset(samples_of(tmp_path), DataConfig("", crop_sizes=(48,), batch_size=6))[0]
    mask = batch["mask"][:, 0]
    assert torch.isfinite(batch["s1"]).all() and 0.5 <= mask.float().mean() < 1
    torch.testing.assert_close(batch["s1"][:, 0][mask], (batch["truth"][:, 0] / 1000 - 15)[mask])


@pytest.mark.parametrize(("rank", "expected"), [(0, [4, 6, 8]), (1, [5, 7, 9])])
def test_devices_share_the_batches_and_a_resumed_run_skips_what_was_made(rank: int, expected: list[int]) -> None:
    batches = Batches(ByStep(int), [], workers=0)
    batches.trainer = SimpleNamespace(global_step=1, accumulate_grad_batches=2, global_rank=rank, world_size=2)
    assert list(itertools.islice(batches.train_dataloader(), 3)) == expected


def test_crops_larger_than_all_pairs_are_refused_and_validation_takes_whole_tiles(pairs: Path) -> None:
    with pytest.raises(InputError, match="largest pair is 72 px"):
        CropDataset(samples_of(pairs), DataConfig("", crop_sizes=(96,)))
    tiles = validation_batches(samples_of(pairs), DataConfig("", validation_tiles=2))
    assert len(tiles) == 2 and tiles[1]["truth"].shape == (1, 4, 72, 72)
