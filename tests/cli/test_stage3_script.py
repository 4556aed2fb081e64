"""``python axs_lib/stage3_tm_ground.py`` grounds files safely, describes the model fast, and its test can fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from axs_lib import stage3_tm_ground
from axs_lib.cli import info
from axs_lib.cli.stage3_script import main
from axs_lib.stage3_tm_ground import Stage3Output
from axs_lib.terramind.build import load_generator
from axs_lib.terramind.weights import VARIANTS
from tests.models import plausible_pair

from .conftest import FakeModel


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected one of --test, --info and --infer"),
        (["--test", "--info"], "expected one of"),
        (["--infer"], "--infer needs --s1, --opt_v2, --output"),
        (["--infer", "--s1", "a.pt", "--output", "b.pt"], "--infer needs --opt_v2"),
        (["--test", "--timesteps", "many"], "--timesteps"),
        (["--info", "--s1-product", "SLC"], "S1RTC"),
        (["--info", "--variant", "giant"], "unknown variant 'giant'"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_our_folder_leaves_the_path_when_run_as_a_file(repository: Path) -> None:
    """There ``data`` or ``metrics`` of ours would be imported where a package means its own."""
    code = (
        "import atexit, runpy, sys; sys.path[:0] = ['axs_lib', '.']; sys.argv = ['stage3_tm_ground.py', '--help']\n"
        "atexit.register(lambda: print('PATH', sys.path))\n"
        "runpy.run_path('axs_lib/stage3_tm_ground.py', run_name='__main__')"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True, timeout=300)
    shown, _, path = result.stdout.partition("PATH ")
    assert "--opt_v2" in shown
    assert "'axs_lib'" not in path and "'.'" in path


def test_infer_writes_the_image(fake_model: FakeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All else of ``--infer`` is ``axs ground``."""
    files = {"s1": tmp_path / "s1.pt", "opt_v2": tmp_path / "opt_v2.pt", "output": tmp_path / "new" / "opt_v3.pt"}
    arguments = ["--infer", *(word for name, path in files.items() for word in (f"--{name}", str(path)))]
    s1, opt_v2 = plausible_pair(2)
    torch.save(s1, files["s1"])
    torch.save(opt_v2[:, [3, 2, 1, 0]], files["opt_v2"])
    bands = ["--bands", "B08,B04,B03,B02"]
    assert main([*arguments, *bands]) == 0
    assert torch.equal(torch.load(files["output"], weights_only=True), opt_v2 + 100)
    assert str(files["output"]) in capsys.readouterr().out
    assert fake_model.built["timesteps"] == 10 and "variant" not in fake_model.built
    assert fake_model.called["strength"] == 1.0 and fake_model.called["seed"] == 0
    assert main([*arguments, *bands]) == 2 and "--overwrite" in capsys.readouterr().err
    torch.save(opt_v2 / 10_000, files["opt_v2"])
    assert main([*arguments, "--overwrite"]) == 2 and "multiply by 10000" in capsys.readouterr().err
    assert main([*arguments, "--overwrite", "--force"]) == 0


class Honest(nn.Module):
    """Does what Stage 3 promises; ``flaw`` breaks one promise."""

    variant = "fake"

    def __init__(self, flaw: str = "") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.provenance = {"AXS_WEIGHTS": "none"}
        self.flaw = flaw
        self.calls: list[int] = []

    def ground(
        self, s1: Tensor, opt_v2: Tensor, timesteps: int, *, seed: int = 0, strength: float = 1.0
    ) -> Stage3Output:
        self.calls.append(timesteps)
        image = opt_v2 + 10.0 if strength or self.flaw == "strength=0 returns opt_v2" else opt_v2.clone()
        if self.flaw.endswith("shape"):
            image = image[..., :-1]
        elif self.flaw.endswith("finite, valid DN"):
            image[0, 0, 0, 0] = torch.nan
        elif self.flaw == "the same again":
            image = image + len(self.calls)
        nfe = timesteps + (1 if self.flaw.endswith("evaluations") else 0)
        return Stage3Output(image, image, torch.ones_like(image[:, :1]), None, nfe)


@pytest.mark.parametrize(
    "flaw",
    [
        "", "timesteps=1: shape", "timesteps=4: finite, valid DN", "timesteps=4: evaluations", "the same again",
        "strength=0 returns opt_v2",
    ],
)  # fmt: skip
def test_the_test_fails_where_a_promise_is_broken(
    flaw: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, built = Honest(flaw), {}

    def build(timesteps: int, **options: Any) -> Honest:
        built.update(options)
        return model

    monkeypatch.setattr(stage3_tm_ground, "build_stage3_model", build)
    assert main(["--test", "--timesteps", "4", "--device", "cpu"]) == (1 if flaw else 0)
    lines = capsys.readouterr().out.splitlines()
    failed = [line for line in lines if line.startswith("FAILED")]
    assert built["variant"] == "nano"
    assert set(model.calls) == {1, 4}
    assert bool(failed) == bool(flaw)
    assert all(any(flaw in line for line in failed) for _ in failed)
    assert sum(line.startswith("OK") for line in lines) >= 3


@pytest.mark.parametrize("variant", VARIANTS)
def test_info_says_what_is_built(variant: str, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["--info", "--variant", variant]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name in ("empty", "zeros", "ones", "randn"):  # parameters take no memory, and constants are real
        real = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *size, real=real, **how: real(*size, **how | {"device": "meta"}))
    model = load_generator(variant, pretrained=False)
    core, parts = model.core, (model.core, model.detokenizer)
    millions = [sum(parameter.numel() for parameter in part.parameters()) / 1e6 for part in parts]
    assert info.PARAMETERS[variant] == tuple(round(each, 2) for each in millions)
    entries, numbers = model.codebook.shape
    for word in (
        variant, "VV, VH in dB", "B02, B03, B04, B08 in DN", "timesteps=10", f"detokenizer {millions[1]:.2f} M",
        f"core {millions[0]:.2f} M {len(core.encoder)} encoder and {len(core.decoder)} decoder blocks",
        f"width {core.mask_token.shape[-1]}, {core.encoder[0].attn.num_heads} attention heads",
        f"{entries} entries of {numbers} numbers", f"the network's image has {model.optical.channels} size",
        f"at least {model.layout.min_side} px",
    ):  # fmt: skip
        assert word in shown
