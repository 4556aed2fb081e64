"""``axs ground`` reads every format, refuses before it computes, and keeps georeference, names and nodata."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch

from axs_lib.bands import OPTICAL_BANDS, SAR_BANDS
from axs_lib.data.samples import load_sample, sample_paths

from .conftest import FakeModel

Run = Callable[..., Any]
NAME = "ireland_fields"
S1, S2 = sample_paths(NAME)


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    s1, s2 = load_sample(NAME)
    path = tmp_path / "sample.npz"
    np.savez(path, s1_vv=s1.data[0], s1_vh=s1.data[1], opt_v2=s2.data)
    return path


@pytest.fixture
def band_files(tmp_path: Path) -> dict[str, Path]:
    """The sample tile as one GeoTIFF a band."""
    files = {}
    for source, names in ((S1, SAR_BANDS), (S2, OPTICAL_BANDS)):
        with rasterio.open(source) as dataset:
            profile = {**dataset.profile, "count": 1}
            for index, name in enumerate(names, start=1):
                files[name] = tmp_path / f"tile_{name}.tif"
                with rasterio.open(files[name], "w", **profile) as single:
                    single.write(dataset.read(index), 1)
    return files


def truth() -> np.ndarray:
    return load_sample(NAME)[1].data


def test_tif_to_tif(axs: Run, fake_model: FakeModel, tmp_path: Path) -> None:
    out = tmp_path / "new" / "opt_v3.tif"
    result = axs("ground", "--s1", S1, "--opt-v2", S2, "--out", out, "--seed", 5, "--timesteps", 3)
    assert result.exit_code == 0, result.output
    assert str(out) in result.output
    with rasterio.open(out) as written, rasterio.open(S2) as given:
        assert (written.crs, written.transform) == (given.crs, given.transform)
        assert written.descriptions == OPTICAL_BANDS and written.nodata == 0
        np.testing.assert_array_equal(written.read(), given.read() + 100)
        tags = written.tags()
    assert tags["AXS_VARIANT"] == "fake" and tags["AXS_SEED"] == "5" and tags["AXS_TIMESTEPS"] == "3"
    assert tags["AXS_S1_PRODUCT"] == "S1GRD" and tags["AXS_STRENGTH"] == "1.0" and tags["AXS_NFE"] == "3"


def test_the_librarys_defaults_are_the_commands_defaults(
    axs: Run, fake_model: FakeModel, tmp_path: Path
) -> None:
    axs("ground", "--s1", S1, "--opt-v2", S2, "--out", tmp_path / "o.tif")
    assert "variant" not in fake_model.built and "grounding" not in fake_model.built
    assert fake_model.built["timesteps"] == 10 and fake_model.built["s1_product"] == "S1GRD"
    assert fake_model.called == {
        "timesteps": 10, "strength": 1.0, "seed": 0, "ensemble_size": 1, "trust": None,
    }  # fmt: skip
    assert not fake_model.autocast


def test_every_option_reaches_the_model(axs: Run, fake_model: FakeModel, npz: Path, tmp_path: Path) -> None:
    result = axs(
        "ground", "--s1", npz, "--out", tmp_path / "o.npz", "--variant", "nano", "--checkpoint", "w.safetensors",
        "--s1-product", "S1RTC", "--grounding", "difference", "--device", "cpu", "--dtype", "bfloat16",
        "--strength", "0.5", "--ensemble-size", "2",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert fake_model.built == {
        "timesteps": 10, "variant": "nano", "checkpoint": "w.safetensors", "s1_product": "S1RTC",
        "grounding": "difference", "device": "cpu",
    }  # fmt: skip
    assert fake_model.called["strength"] == 0.5 and fake_model.called["ensemble_size"] == 2
    assert fake_model.autocast


def test_one_npz_holds_both(axs: Run, fake_model: FakeModel, npz: Path, tmp_path: Path) -> None:
    assert axs("ground", "--s1", npz, "--out", tmp_path / "o.npz").exit_code == 0
    with np.load(tmp_path / "o.npz", allow_pickle=False) as data:
        np.testing.assert_array_equal(data["opt_v3"], truth() + 100)
        np.testing.assert_array_equal(data["s1_vv"], load_sample(NAME)[0].data[0])


def test_pt_tensors_and_a_batch(axs: Run, fake_model: FakeModel, tmp_path: Path) -> None:
    s1, s2 = (torch.from_numpy(raster.data) for raster in load_sample(NAME))
    torch.save(torch.stack([s1, s1]), tmp_path / "s1.pt")
    torch.save(torch.stack([s2, s2]), tmp_path / "opt.pt")
    arguments = ("ground", "--s1", tmp_path / "s1.pt", "--opt-v2", tmp_path / "opt.pt", "--out")
    assert axs(*arguments, tmp_path / "o.pt").exit_code == 0
    assert torch.load(tmp_path / "o.pt", weights_only=True).shape == (2, 4, 120, 120)
    fake_model.called = {}
    result = axs(*arguments, tmp_path / "o.tif")
    assert result.exit_code == 2 and "name it .npz or .pt" in result.stderr
    assert fake_model.called == {}


@pytest.mark.parametrize("spelling", ["repeated", "listed"])
def test_one_file_a_band(
    axs: Run, fake_model: FakeModel, band_files: dict[str, Path], tmp_path: Path, spelling: str
) -> None:
    if spelling == "repeated":
        sar = [part for b in ("VH", "VV") for part in ("--s1", band_files[b])]
        optical = [part for b in OPTICAL_BANDS[::-1] for part in ("--opt-v2", band_files[b])]
    else:
        sar = ["--s1", *(band_files[b] for b in SAR_BANDS)]
        optical = ["--opt-v2", *(band_files[b] for b in OPTICAL_BANDS)]
    result = axs("ground", *sar, *optical, "--out", tmp_path / "o.tif")
    assert result.exit_code == 0, result.output
    with rasterio.open(tmp_path / "o.tif") as written:
        np.testing.assert_array_equal(written.read(), truth() + 100)
    assert fake_model.s1 is not None
    np.testing.assert_array_equal(fake_model.s1[0].numpy(), load_sample(NAME)[0].data)


def test_bands_of_a_stack_in_another_order(axs: Run, fake_model: FakeModel, tmp_path: Path) -> None:
    torch.save(torch.from_numpy(truth()[[2, 1, 0, 3]]), tmp_path / "opt.pt")
    result = axs(
        "ground", "--s1", S1, "--opt-v2", tmp_path / "opt.pt", "--bands", "B04,B03,B02,B08",
        "--out", tmp_path / "o.pt",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(torch.load(tmp_path / "o.pt", weights_only=True).numpy(), truth() + 100)


def test_nodata_stays_nodata(axs: Run, fake_model: FakeModel, tmp_path: Path) -> None:
    with rasterio.open(S2) as dataset:
        data, profile = dataset.read(), {**dataset.profile, "nodata": 9999}
    data[:, :7] = 9999
    with rasterio.open(tmp_path / "holes.tif", "w", **profile) as dataset:
        dataset.write(data)
        dataset.descriptions = OPTICAL_BANDS
    assert (
        axs("ground", "--s1", S1, "--opt-v2", tmp_path / "holes.tif", "--out", tmp_path / "o.tif").exit_code
        == 0
    )
    with rasterio.open(tmp_path / "o.tif") as written:
        assert written.nodata == 0
        image = written.read()
    assert (image[:, :7] == 0).all() and (image[:, 7:] > 0).all()


def test_uncertainty_is_written_beside_the_image(axs: Run, fake_model: FakeModel, tmp_path: Path) -> None:
    result = axs(
        "ground", "--s1", S1, "--opt-v2", S2, "--out", tmp_path / "o.tif", "--uncertainty", tmp_path / "u.tif"
    )
    assert result.exit_code == 0, result.output
    assert fake_model.called["ensemble_size"] == 4
    with rasterio.open(tmp_path / "u.tif") as dataset:
        assert dataset.dtypes == ("float32",) * 4 and (dataset.read() == 7).all()


def test_quiet_says_nothing(axs: Run, fake_model: FakeModel, tmp_path: Path) -> None:
    assert axs("ground", "--s1", S1, "--opt-v2", S2, "--out", tmp_path / "o.tif", "--quiet").output == ""


def test_an_existing_output_is_refused_before_anything_runs(
    axs: Run, fake_model: FakeModel, tmp_path: Path
) -> None:
    out = tmp_path / "o.tif"
    out.write_bytes(b"precious")
    result = axs("ground", "--s1", S1, "--opt-v2", S2, "--out", out)
    assert result.exit_code == 2 and "--overwrite" in result.stderr and "Traceback" not in result.output
    assert out.read_bytes() == b"precious" and fake_model.built == {}
    assert axs("ground", "--s1", S1, "--opt-v2", S2, "--out", out, "--overwrite").exit_code == 0
    assert out.read_bytes() != b"precious"


def test_implausible_values_need_force(axs: Run, fake_model: FakeModel, tmp_path: Path) -> None:
    s1, s2 = load_sample(NAME)
    cases = {
        "linear": {"s1": 10 ** (s1.data / 10), "opt_v2": s2.data},
        "reflectance": {"s1": s1.data, "opt_v2": s2.data / 10_000},
    }
    for name, arrays in cases.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
        arguments = ("ground", "--s1", tmp_path / f"{name}.npz", "--out", tmp_path / f"{name}_out.npz")
        result = axs(*arguments)
        assert result.exit_code == 2 and "--force" in result.stderr, result.output
        assert fake_model.built == {} and not (tmp_path / f"{name}_out.npz").exists()
        assert axs(*arguments, "--force").exit_code == 0
        fake_model.built = {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "o.jpg"), "ends in .jpg"),
        (("--out", "o.tif", "--uncertainty", "u.gif"), "ends in .gif"),
        (("--out", "o.tif", "--uncertainty", "o.tif"), "give them different names"),
        (("--out", "o.tif", "--uncertainty", "u.tif", "--ensemble-size", "1"), "expected 2 or more"),
        (("--out", "o.tif", "--variant", "giant"), "unknown variant 'giant'"),
        (("--out", "o.tif", "--device", "tpu9"), "--device tpu9 cannot be used"),
        (("--out", "o.tif", "--bands", "B04,B03"), "names 2"),
        (("--out", "o.tif", "--timesteps", "0"), "timesteps is 0; expected an integer from 1 to 1000"),
        (("--out", "o.tif", "--timesteps", "1001"), "timesteps is 1001"),
        (("--out", "o.tif", "--strength", "1.5"), "strength is 1.5"),
        (("--out", "o.tif", "--dtype", "float16"), "float16"),
        (("--out", "o.tif", "--s1-product", "S1SLC"), "S1SLC"),
        (("--out", "o.tif", "--opt-v2", "missing.tif"), "missing.tif does not exist"),
        ((), "--out"),
    ],
)
def test_what_cannot_be_is_refused_in_words(
    axs: Run, fake_model: FakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...],
    message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    optical = () if "--opt-v2" in arguments else ("--opt-v2", S2)
    result = axs("ground", "--s1", S1, *optical, *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr and "Traceback" not in result.output
    assert fake_model.called == {} and list(tmp_path.iterdir()) == []


def test_a_gpu_without_room_is_said_in_words(axs: Run, fake_model: FakeModel, tmp_path: Path) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    fake_model.ground = full  # type: ignore[method-assign, assignment]
    result = axs("ground", "--s1", S1, "--opt-v2", S2, "--out", tmp_path / "o.tif")
    assert result.exit_code == 2 and "too little memory" in result.stderr


def test_the_trust_map_of_an_npz_is_used(axs: Run, fake_model: FakeModel, tmp_path: Path) -> None:
    s1, s2 = load_sample(NAME)
    trust = np.ones((120, 120), "float32")
    trust[:60] = 0
    np.savez(tmp_path / "t.npz", s1=s1.data, opt_v2=s2.data, trust=trust)
    assert axs("ground", "--s1", tmp_path / "t.npz", "--out", tmp_path / "o.npz").exit_code == 0
    np.testing.assert_array_equal(fake_model.called["trust"].numpy()[0, 0], trust)
