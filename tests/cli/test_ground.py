"""``axs ground`` reads every format, refuses before it computes, and keeps georeference, names and nodata."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import Affine

from axs_lib.bands import OPTICAL_BANDS
from axs_lib.data.samples import load_sample, sample_paths
from axs_lib.io.masks import SCL_CLASSES, SCL_DROPPED
from tests.scenes.conftest import write_tiff

from .conftest import FakeModel, Run

NAME = "ireland_fields"
S1, S2 = sample_paths(NAME)


@pytest.fixture
def ground(axs: Run, tmp_path: Path) -> Run:
    """``axs ground`` on the sample, to ``o.tif``, with further options."""

    return functools.partial(axs, "ground", "--s1", S1, "--opt-v2", S2, "--out", tmp_path / "o.tif")


def test_tif_to_tif(axs: Run, fake_model: FakeModel, tmp_path: Path) -> None:
    out = tmp_path / "new" / "opt_v3.tif"
    common = ("ground", "--s1", S1, "--opt-v2", S2, "--out", out)
    result = axs(*common, "--seed", 5, "--timesteps", 3, "--uncertainty", tmp_path / "u.tif")
    assert "head is not calibrated" in result.stderr, result.output
    assert str(out) in result.output
    with rasterio.open(out) as written, rasterio.open(S2) as given:
        assert (written.crs, written.transform) == (given.crs, given.transform)
        assert written.descriptions == OPTICAL_BANDS and written.nodata == 0
        np.testing.assert_array_equal(written.read(), given.read() + 100)
        tags = written.tags()
    assert tags["AXS_VARIANT"] == "fake" and tags["AXS_SEED"] == "5" and tags["AXS_TIMESTEPS"] == "3"
    assert tags["AXS_S1_PRODUCT"] == "S1GRD" and tags["AXS_STRENGTH"] == "1.0" and tags["AXS_NFE"] == "3"
    # What is not said is left to the library.
    assert axs(*common, "--overwrite", "--quiet").output == ""
    assert fake_model.built.keys() == {"timesteps", "device", "s1_product"} and fake_model.built["timesteps"] == 10
    expected = {"timesteps": 10, "strength": 1.0, "seed": 0, "ensemble_size": 1, "trust": None}
    assert expected.items() <= fake_model.called.items() and "hold_colour" not in fake_model.called
    assert fake_model.precision == torch.float32


def test_one_npz_holds_both_and_every_option_reaches_the_model(axs: Run, fake_model: FakeModel, tmp_path: Path) -> None:
    s1, s2 = load_sample(NAME)
    np.savez(tmp_path / "t.npz", s1_vv=s1.data[0], s1_vh=s1.data[1], opt_v2=s2.data)
    axs(
        "ground", "--s1", tmp_path / "t.npz", "--out", tmp_path / "o.npz", "--variant", "nano", "--checkpoint", "w",
        "--s1-product", "S1RTC", "--correction-mode", "difference", "--device", "cpu", "--dtype", "bfloat16",
        "--strength", "0.5", "--ensemble-size", "2", "--hold-colour",
    )  # fmt: skip
    assert fake_model.built == {
        "timesteps": 1, "variant": "nano", "checkpoint": Path("w"), "s1_product": "S1RTC", "device": "cpu",
        "correction_mode": "difference",
    }  # fmt: skip
    assert fake_model.called["strength"] == 0.5 and fake_model.called["ensemble_size"] == 2
    assert fake_model.called["hold_colour"] is True and fake_model.precision == torch.bfloat16
    with np.load(tmp_path / "o.npz", allow_pickle=False) as data:
        np.testing.assert_array_equal(data["opt_v3"], s2.data + 100)
        np.testing.assert_array_equal(data["s1_vv"], s1.data[0])


def test_pt_tensors_and_a_batch(axs: Run, fake_model: FakeModel, tmp_path: Path, monkeypatch: Any) -> None:
    s1, s2 = (torch.from_numpy(raster.data) for raster in load_sample(NAME))
    torch.save(torch.stack([s1, s1]), tmp_path / "s1.pt")
    torch.save(torch.stack([s2, s2]), tmp_path / "opt.pt")
    arguments = ("ground", "--s1", tmp_path / "s1.pt", "--opt-v2", tmp_path / "opt.pt", "--out")
    axs(*arguments, tmp_path / "o.pt")
    assert torch.load(tmp_path / "o.pt", weights_only=True).shape == (2, 4, 120, 120)
    fake_model.called = {}
    assert "name it .npz or .pt" in axs(*arguments, tmp_path / "o.tif", code=2).stderr and fake_model.called == {}
    monkeypatch.setenv("AXS_WEIGHTS", str(tmp_path))  # o.pt may be one of them
    assert "would replace" in axs(*arguments, tmp_path / "o.pt", "--overwrite", code=2).stderr
    axs(*arguments, tmp_path / "o.pt", "--overwrite", "--variant", "nano")  # which needs none


def test_sar_contribution(ground: Run, fake_model: FakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fake_model.ground

    def grounded(s1: torch.Tensor, opt_v2: torch.Tensor, **settings: Any) -> object:
        return real(s1, opt_v2 if settings["controls"].use_sar else opt_v2 - 30, **settings)

    monkeypatch.setattr(fake_model, "ground", grounded)
    ground("--sar-contribution", tmp_path / "b.tif")
    with rasterio.open(tmp_path / "b.tif") as written:
        assert written.descriptions == OPTICAL_BANDS and written.dtypes[0] == "float32"
        assert np.allclose(written.read(), 30.0, atol=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "o.jpg"), "ends in .jpg"),
        (("--uncertainty", "u.gif"), "ends in .gif"),
        (("--uncertainty", "o.tif"), "name one file twice"),
        (("--variant", "giant"), "unknown variant 'giant'"),
        (("--device", "tpu9"), "--device 'tpu9' cannot be used"),
        (("--bands", "B04,B03"), "names 2"),
        (("--timesteps", "0"), "'--timesteps': Input should be greater than or equal to 1"),
        (("--seed", str(2**32)), "'--seed': Input should be less than or equal to 4294967295"),
        (("--out", "x" * 300 + ".tif"), "the name is too long"),
        (("--strength", "1.5"), "'--strength': Input should be less than or equal to 1"),
        (("--dtype", "float16"), "float16"),
        (("--s1-product", "S1SLC"), "S1SLC"),
        (("--opt-v2", "missing.tif"), "missing.tif does not exist"),
        (("--mask-invert",), "none is given; add --mask FILE"),
        (("--drop", "snow"), "none is given; add --mask FILE"),
        (("--mask-buffer", "3"), "none is given; add --mask FILE"),
        (("--mask-kind", "scl"), "none is given; add --mask FILE"),
        (("--mask", "missing.tif"), "missing.tif does not exist"),
        (("--mask", S2), "has 4 band(s) of uint16; expected one"),
        (("--mask", S2, "--drop", "fog"), "--drop names fog"),
        (("--mask", S2, "--mask-kind", "cloud"), "cloud"),
    ],
)
def test_what_cannot_be_is_refused_in_words(
    axs: Run, fake_model: FakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...],
    message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    optical = () if "--opt-v2" in arguments else ("--opt-v2", S2)
    out = () if "--out" in arguments else ("--out", "o.tif")
    result = axs("ground", "--s1", S1, *optical, *out, *arguments, code=2)
    assert message in " ".join(result.stderr.split()) and "Traceback" not in result.output
    assert fake_model.called == {} and list(tmp_path.iterdir()) == []


def test_a_gpu_without_room_is_said_in_words(ground: Run, fake_model: FakeModel) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    fake_model.ground = full  # type: ignore[method-assign, assignment]
    assert "too little memory" in ground(code=2).stderr


def test_the_trust_map_of_an_npz_counts_unless_there_is_a_mask(axs: Run, fake_model: FakeModel, tmp_path: Path) -> None:
    s1, s2 = load_sample(NAME)
    trust = np.full((120, 120), 0.5, "float32")
    trust[:60] = 0
    np.savez(tmp_path / "t.npz", s1=s1.data, opt_v2=s2.data, trust=trust)
    mask_file = write_tiff(tmp_path / "clear.tif", np.ones((1, 120, 120), "uint8"), crs=None, transform=None)
    with rasterio.open(mask_file, "r+") as file:
        file.write(np.zeros((30, 120), "uint8"), 1, window=((30, 60), (0, 120)))
    arguments = ("ground", "--s1", tmp_path / "t.npz", "--out", tmp_path / "o.npz", "--overwrite")
    axs(*arguments)
    np.testing.assert_array_equal(fake_model.called["trust"].numpy()[0, 0], trust)
    axs(*arguments, "--mask", mask_file)
    with np.load(tmp_path / "o.npz", allow_pickle=False) as data:
        assert (data["trust"][..., 30:60, :] == 0).all() and (data["trust"][..., 60:, :] == 1).all()
        np.testing.assert_array_equal(data["opt_v2"], s2.data)
    axs(*arguments, "--mask", mask_file, "--mask-invert")
    assert (fake_model.called["trust"][0, 0, 30:60] == 1).all() and fake_model.called["trust"].mean() == 0.25
    with np.load(tmp_path / "o.npz", allow_pickle=False) as data:
        assert '"AXS_MASK_MEANING": "0 is clear and all else a gap"' in str(data["provenance"])


def test_an_scl_mask_with_classes_and_buffer(ground: Run, fake_model: FakeModel, tmp_path: Path) -> None:
    classes = np.full((1, 60, 60), 4, "uint8")
    classes[:, 10:20], classes[:, 40:] = 11, 9
    with rasterio.open(S2) as given:
        place = {"crs": given.crs, "transform": given.transform * Affine.scale(2)}
    write_tiff(tmp_path / "tile_SCL.tif", classes, **place)
    ground("--mask", tmp_path / "tile_SCL.tif", "--drop", "snow,3", "--mask-buffer", 2)
    expected = np.ones((120, 120))
    expected[18:42] = 0
    np.testing.assert_array_equal(fake_model.called["trust"][0, 0].numpy(), expected)
    with rasterio.open(tmp_path / "o.tif") as written:
        tags = written.tags()
    assert tags["AXS_MASK_KIND"] == "scl" and tags["AXS_MASK_MEANING"] == "gaps are cloud_shadow, snow"
    assert tags["AXS_MASK_BUFFER"] == "2"


def test_the_guide_names_options_and_classes_that_there_are(axs: Run, repository: Path) -> None:
    guide = (repository / "docs" / "gaps.md").read_text(encoding="utf-8")
    text = axs("ground", "--help").output
    of_evaluate = {"--gaps", "--json", "--no-sar-checkpoint", "--plain-checkpoint"}
    options = set(re.findall(r"--[a-z0-9][a-z0-9-]*", guide)) - of_evaluate
    assert {"--mask", "--mask-kind", "--mask-invert", "--mask-buffer", "--drop"} <= options
    assert all(option in text for option in options)
    dropped, clear = (re.findall(r"(\d+) `(\w+)`", row) for row in re.findall(r"^\| (?:dropped|clear) .*", guide, re.M))
    assert {int(number): name for number, name in dropped + clear} == dict(enumerate(SCL_CLASSES))
    assert tuple(name for _, name in dropped) == SCL_DROPPED
