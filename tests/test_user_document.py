"""The user's document, word for word: every snippet about Stage 3 inference runs and does what it says.

Snippets are executed as they stand there, ``.cuda()`` only where there is a GPU. Names that the document takes for
granted (``model``, ``tiles``, ``test_loader``) are given to them. Most run on nano; the first example and the command
line also run on terratorch's real TerraMind with weights in the published layout.
"""

from __future__ import annotations

import functools
import os
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from axs_lib import stage3_tm_ground
from axs_lib.checks import RangeWarning
from axs_lib.stage3_tm_ground import Stage3GroundingModel, build_stage3_model, stage3_batch_inference, stage3_inference
from tests.document import snippet
from tests.models import plausible_pair
from tests.published import Published, publish

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def run(text: str, **names: Any) -> dict[str, Any]:
    """Execute a snippet with the document's earlier imports and ``names``; what it defined comes back."""
    if not torch.cuda.is_available():
        text = text.replace(".cuda()", "")
    namespace = {"np": np, "torch": torch, "build_stage3_model": stage3_tm_ground.build_stage3_model}
    namespace |= {"stage3_inference": stage3_inference, "stage3_batch_inference": stage3_batch_inference} | names
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of torch's older autocast
        warnings.filterwarnings("ignore", message=".*CUDA is not available.*")
        exec(compile(text, "<the user's document>", "exec"), namespace)
    return namespace


build_nano = functools.partial(build_stage3_model, variant="nano")


@pytest.fixture(scope="session")
def model() -> Stage3GroundingModel:
    """The document's ``model``."""
    return build_nano(timesteps=10, standardize=True, pretrained=True).to(DEVICE)


@pytest.fixture
def nano_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snippets that import or call ``build_stage3_model`` get nano."""
    monkeypatch.setattr(stage3_tm_ground, "build_stage3_model", build_nano)


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    s1, opt_v2 = plausible_pair(1, 120, 120)
    return s1.to(DEVICE), opt_v2.to(DEVICE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with the document's sub-folders."""
    for name in ("data/tiles", "outputs"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Tiles(Dataset[dict[str, Tensor]]):
    """What ``test_loader`` yields."""

    def __init__(self, count: int, side: int = 64) -> None:
        self.s1, self.opt_v2 = plausible_pair(count, side, side)

    def __len__(self) -> int:
        return len(self.s1)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"s1": self.s1[index], "opt_v2": self.opt_v2[index]}


def command(text: str, repository: Path, *more: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one of the document's commands (and ``more`` arguments) in a shell's place.

    ``python`` is this one, and the script is that of this checkout, as the working folder is a temporary one.
    """
    words = shlex.split(text.replace("\\\n", " "), comments=True)
    assert words[:2] == ["python", "axs_lib/stage3_tm_ground.py"]
    words[:2] = [sys.executable, str(repository / words[1])]
    environment = os.environ | {"PYTHONPATH": str(repository)} | environment
    return subprocess.run([*words, *map(str, more)], env=environment, capture_output=True, text=True, timeout=900)


def assert_first_example(capsys: pytest.CaptureFixture[str]) -> Stage3GroundingModel:
    with pytest.warns(RangeWarning) as seen:
        names = run(snippet("Basic Usage"))
    assert {str(w.message).split()[0] for w in seen if w.category is RangeWarning} == {"s1", "opt_v2"}
    assert capsys.readouterr().out == "Output shape: torch.Size([1, 4, 120, 120])\n"
    assert torch.isfinite(names["opt_v3"]).all()
    assert names["opt_v3"].device.type == DEVICE
    return names["model"]


def test_basic_usage(nano_by_default: None, capsys: pytest.CaptureFixture[str]) -> None:
    built = assert_first_example(capsys)
    assert isinstance(built, Stage3GroundingModel) and built.variant == "nano"


@pytest.mark.xdist_group("published")
def test_basic_usage_on_the_real_terramind(
    published_tiny: Published, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AXS_WEIGHTS", str(published_tiny.checkpoint.parent))
    tiny = functools.partial(build_stage3_model, variant="terramind_v1_tiny")
    monkeypatch.setattr(stage3_tm_ground, "build_stage3_model", tiny)
    built = assert_first_example(capsys)
    assert built.variant == "terramind_v1_tiny" and built.provenance["AXS_WEIGHTS"] == "AXS_WEIGHTS"

    # Random weights are sure of no token, so the correction is next to nothing; the proposal is an image of the SAR.
    s1, opt_v2 = (image.to(DEVICE) for image in plausible_pair(1, 120, 120))
    with torch.no_grad():
        proposal = built.ground(s1, opt_v2, timesteps=1, tokens="argmax").proposal
        turned = built.ground(s1.flip(-1), opt_v2, timesteps=1, tokens="argmax").proposal
    assert proposal.std() > 100
    assert (proposal - turned).abs().max() > 100


@pytest.fixture(scope="module")
def published_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the document's own variant in the published layout."""
    return publish("terramind_v1_base", tmp_path_factory.mktemp("published-base")).checkpoint.parent


@pytest.mark.slow
@pytest.mark.xdist_group("published")
def test_basic_usage_as_it_stands(
    published_base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AXS_WEIGHTS", str(published_base))
    assert assert_first_example(capsys).variant == "terramind_v1_base"


@pytest.mark.parametrize("dtype", [np.float32, np.uint16], ids=["float32", "uint16"])
def test_from_npz_files_and_metrics(
    model: Stage3GroundingModel, folder: Path, dtype: type, capsys: pytest.CaptureFixture[str]
) -> None:
    s1, truth = (image[0].numpy() for image in plausible_pair(1, 120, 120))
    truth = truth.astype(dtype)
    opt_v2 = (truth + 100).astype(dtype)
    np.savez("data/tiles/sample.npz", s1_vv=s1[0], s1_vh=s1[1], opt_v2=opt_v2, s2_real=truth)

    names = run(snippet("From NPZ Files"), model=model)

    with np.load(folder / "outputs/sample_v3.npz", allow_pickle=False) as saved:
        assert set(saved.files) == {"opt_v3", "s1_vv", "s1_vh"}
        opt_v3 = saved["opt_v3"]
        np.testing.assert_array_equal(saved["s1_vv"], s1[0])
        np.testing.assert_array_equal(saved["s1_vh"], s1[1])
    assert opt_v3.shape == (1, 4, 120, 120) and opt_v3.dtype == np.float32
    assert np.isfinite(opt_v3).all() and opt_v3.min() >= 1 and opt_v3.max() <= 65_535

    keys = ("data", "opt_v2", "opt_v3")
    metrics = run(snippet("Compute Performance Metrics"), **{key: names[key] for key in keys})["metrics"]
    expected = float(np.mean(np.square((opt_v3[0].astype(np.float64) - truth) / 10_000)))
    assert metrics["mse_v3"] == pytest.approx(expected, rel=1e-4)
    assert metrics["mse_v2"] == pytest.approx(1e-4, rel=1e-4)
    assert all(isinstance(value, float) for value in metrics.values())
    shown = capsys.readouterr().out.splitlines()
    assert shown[:3] == ["Stage 3 Performance:", f"  MSE (v3): {expected:.6f}", "  MSE (v2): 0.000100"]
    assert shown[3] == f"  Improvement: {100 * (1 - expected / 1e-4):.2f}%"


def test_batch_processing(model: Stage3GroundingModel, capsys: pytest.CaptureFixture[str]) -> None:
    tiles = Tiles(3)
    results = run(snippet("Batch Processing"), model=model, test_loader=DataLoader(tiles, batch_size=2))["results"]
    captured = capsys.readouterr()
    assert captured.out == "Processed 3 samples\nOutput shape: torch.Size([3, 4, 64, 64])\n"
    assert "2/2" in captured.err  # the progress bar, in batches
    for index in range(3):
        alone = stage3_inference(model, tiles.s1[index].to(DEVICE), tiles.opt_v2[index].to(DEVICE), timesteps=10)
        assert (results["opt_v3"][index] - alone.cpu()).abs().max() < 1.0
    stage3_batch_inference(model=model, dataloader=DataLoader(tiles), timesteps=2, verbose=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("line", "timesteps"),
    [
        ("model = build_stage3_model(timesteps=5)", 5),
        ("model = build_stage3_model(timesteps=10)", 10),
        ("model = build_stage3_model(timesteps=20)", 20),
        ("model = build_stage3_model()", 10),
    ],
)
def test_timesteps(nano_by_default: None, line: str, timesteps: int) -> None:
    """The number of network evaluations, exactly."""
    built = run(line)["model"]
    calls: list[object] = []
    built.terramind_generator.detokenizer.register_forward_hook(lambda *_: calls.append(1))
    stage3_inference(built, *plausible_pair(1, 64, 64))
    assert len(calls) == built.timesteps == timesteps
    assert built.standardize is True


def test_standardization(nano_by_default: None) -> None:
    """Without it the model takes and gives z-units, and its result is the same image."""
    on = run("model = build_stage3_model(standardize=True)")["model"]
    off = run("model = build_stage3_model(standardize=False)")["model"]
    s1, opt_v2 = plausible_pair(1, 64, 64)
    sar, optical = on.terramind_generator.sar, on.terramind_generator.optical
    with warnings.catch_warnings(action="error", category=RangeWarning):
        z = stage3_inference(off, sar.to_z(s1), optical.to_z(opt_v2), timesteps=2)
    assert z.abs().max() < 50
    assert (optical.from_z(z) - stage3_inference(on, s1, opt_v2, timesteps=2)).abs().max() < 1.0


def test_pretrained_weights(nano_by_default: None) -> None:
    loaded = run("model = build_stage3_model(pretrained=True)")["model"]
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded.provenance["AXS_WEIGHTS"] != "random"
    fresh = run("model = build_stage3_model(pretrained=False)")["model"]
    assert all(parameter.requires_grad for parameter in fresh.parameters())
    assert fresh.provenance["AXS_WEIGHTS"] == "random"
    key = "core.encoder.0.attn.qkv.weight"
    weights = [each.terramind_generator.state_dict()[key] for each in (loaded, fresh)]
    assert not torch.equal(*weights)


def test_the_test_command(repository: Path) -> None:
    result = command(snippet("Test Model"), repository)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "all checks passed" in result.stdout and "FAILED" not in result.stdout
    assert "timesteps=10: evaluations       10," in result.stdout


def test_the_info_command(repository: Path) -> None:
    result = command(snippet("Model Information"), repository)
    assert result.returncode == 0, result.stderr
    for word in ("terramind_v1_base", "generator core", "detokenizer", "grounding head", "timesteps=10"):
        assert word in result.stdout


def save_tensors() -> tuple[Tensor, Tensor]:
    s1, opt_v2 = plausible_pair(2, 120, 120)
    torch.save(s1, "data/s1.pt")
    torch.save(opt_v2, "data/opt_v2.pt")
    return s1, opt_v2


def test_the_infer_command_on_nano(repository: Path, folder: Path, model: Stage3GroundingModel) -> None:
    s1, opt_v2 = save_tensors()
    result = command(snippet("Run Inference"), repository, "--variant", "nano")
    assert result.returncode == 0, result.stderr
    notes = [line for line in result.stderr.splitlines() if line.startswith("data/")]
    assert "taken for VV, VH in this order" in notes[0] and "Traceback" not in result.stderr
    opt_v3 = torch.load("outputs/opt_v3.pt", weights_only=True)
    assert opt_v3.shape == (2, 4, 120, 120) and opt_v3.dtype == torch.float32
    expected = stage3_inference(model, s1.to(DEVICE), opt_v2.to(DEVICE), timesteps=10).cpu()
    assert (opt_v3 - expected).abs().max() < 1.0


def test_the_infer_command_without_weights(repository: Path, folder: Path) -> None:
    """One error with the three ways out, no traceback, nothing written."""
    save_tensors()
    result = command(snippet("Run Inference"), repository)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and "Traceback" not in result.stderr
    for way in ("axs weights download terramind_v1_base", "AXS_WEIGHTS", "--variant nano"):
        assert way in result.stderr
    assert not list((folder / "outputs").iterdir())


@pytest.mark.slow
@pytest.mark.xdist_group("published")
def test_the_infer_command_as_it_stands(repository: Path, folder: Path, published_base: Path) -> None:
    _, opt_v2 = save_tensors()
    result = command(snippet("Run Inference"), repository, AXS_WEIGHTS=str(published_base))
    assert result.returncode == 0, result.stderr
    opt_v3 = torch.load("outputs/opt_v3.pt", weights_only=True)
    assert opt_v3.shape == opt_v2.shape and torch.isfinite(opt_v3).all()


def test_stage_3_only(nano_by_default: None, folder: Path) -> None:
    s1, opt_v2 = (image.numpy() for image in plausible_pair(2, 64, 64))
    np.savez("stage2_results.npz", s1=s1, opt_v2=opt_v2)
    run(snippet("Stage 3 Only (Assuming Stage 1 & 2 Completed)"))
    with np.load(folder / "stage3_final.npz", allow_pickle=False) as final:
        assert set(final.files) == {"opt_v3", "opt_v2", "s1"}
        np.testing.assert_array_equal(final["s1"], s1)
        np.testing.assert_array_equal(final["opt_v2"], opt_v2)
        assert final["opt_v3"].shape == opt_v2.shape and np.isfinite(final["opt_v3"]).all()


@pytest.mark.parametrize("call", ["autocast()", "torch.autocast(device)", "torch.autocast(device, torch.bfloat16)"])
def test_amp(model: Stage3GroundingModel, pair: tuple[Tensor, Tensor], call: str) -> None:
    s1, opt_v2 = pair
    text = snippet("Optimization Tips").replace("autocast():", f"{call}:")
    opt_v3 = run(text, model=model, s1=s1, opt_v2=opt_v2, device=DEVICE)["opt_v3"]
    exact = stage3_inference(model, s1, opt_v2, timesteps=10)
    assert opt_v3.dtype == torch.float32
    assert (opt_v3 - exact).abs().mean() < 0.05 * (exact - opt_v2).abs().mean() + 1.0


def test_out_of_memory(nano_by_default: None, pair: tuple[Tensor, Tensor]) -> None:
    tiles = [dict(zip(("s1", "opt_v2"), plausible_pair(1, 64, 64, seed), strict=True)) for seed in range(2)]
    names = run(snippet("Issue: Out of Memory"), s1=pair[0], opt_v2=pair[1], tiles=tiles)
    assert names["model"].timesteps == 5
    assert names["model"].device.type == names["opt_v3"].device.type == names["s1"].device.type == "cpu"
    assert names["opt_v3"].shape == (1, 4, 64, 64)


def test_poor_quality(nano_by_default: None, pair: tuple[Tensor, Tensor], capsys: pytest.CaptureFixture[str]) -> None:
    s1, opt_v2 = pair
    names = run(snippet("Issue: Poor Quality"), s1=s1, opt_v2=opt_v2)
    assert names["model"].standardize
    assert not torch.equal(names["opt_v3"], stage3_inference(names["model"], s1, opt_v2, timesteps=1))
    assert capsys.readouterr().out.splitlines() == [
        f"S1 range: [{s1.min()}, {s1.max()}]",
        f"opt_v2 range: [{opt_v2.min()}, {opt_v2.max()}]",
    ]


def test_slow_inference(nano_by_default: None, pair: tuple[Tensor, Tensor]) -> None:
    from torch.cuda.amp import autocast

    s1, opt_v2 = pair
    loader = DataLoader(Tiles(2), batch_size=2)
    names = run(snippet("Issue: Slow Inference"), s1=s1, opt_v2=opt_v2, dataloader=loader, autocast=autocast)
    assert names["opt_v3"].shape == (1, 4, 120, 120) and not names["opt_v3"].requires_grad
    assert names["results"]["opt_v3"].shape == (2, 4, 64, 64)
    assert names["results"]["nfe"] == 5
