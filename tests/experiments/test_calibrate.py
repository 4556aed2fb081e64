"""``experiments/calibrate.py``: the scales that it writes make the deviations match the errors."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from axs_lib.grounding.calibration import Calibration
from axs_lib.terramind.weights import read_metadata
from experiments import calibrate


class Doubtful:
    """opt_v3 is opt_v2, which errs by 200 DN; at n timesteps it doubts by n DN, times the scales it came with."""

    timesteps = 10
    device = torch.device("cpu")
    provenance: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, checkpoint: str | Path) -> None:
        calibration = Calibration.from_header(read_metadata(checkpoint))
        self.scale = calibration.scale if calibration else lambda nfe: torch.ones(4)

    def ground(self, s1: Tensor, opt_v2: Tensor, timesteps: int, **_: object) -> Any:
        doubt = timesteps * torch.ones_like(opt_v2) * self.scale(timesteps)[:, None, None]
        return SimpleNamespace(image=opt_v2, proposal=opt_v2, nfe=timesteps, uncertainty=doubt)


def write_place(folder: Path, name: str, side: int, error: int) -> None:
    s2 = np.full((4, side, side), 1000, np.uint16)
    (folder / name).mkdir()
    s1 = np.full((2, side, side), -12.0, np.float32)
    np.savez(folder / name / "a.npz", s1=s1, s2=s2, opt_v2=s2 + error)


def test_scales_are_written_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("inside", "outside"):
        write_place(tmp_path, name, 16, 200)
    weights = {"w": torch.arange(6.0).half()}
    first, fresh, head = (tmp_path / of / "grounding.safetensors" for of in ("inside", "outside", ""))
    save_file(weights, first, metadata={"steps": "7"})
    monkeypatch.setattr(calibrate, "load_adapter", lambda model, folder: model.__init__(folder / head.name))
    again = tmp_path / "again.safetensors"
    for source, target, how in ((first, fresh, "checkpoint"), (fresh, head, "checkpoint"), (head, again, "adapter")):
        monkeypatch.setattr(calibrate, "build_stage3_model", lambda source=source, **_: Doubtful(source))
        given = [f"--{how}", str(tmp_path if how == "adapter" else source)]
        calibrate.main([str(tmp_path), *given, "--out", str(target), "--groups", "inside/a"])
        header = read_metadata(target)
        assert header["steps"] == "7" and header["calibration_groups"] == "inside/a"
        calibration = Calibration.from_header(header)
        assert calibration is not None
        assert calibration.scale(1).tolist() == pytest.approx([200.0] * 4)
        assert calibration.scale(10).tolist() == pytest.approx([20.0] * 4)
        assert torch.equal(load_file(target)["w"], weights["w"])
    assert "nfe 10: B02 20.000" in capsys.readouterr().out
    with pytest.raises(SystemExit):  # else the one beside it would be measured
        calibrate.main([str(tmp_path), "--checkpoint", str(again), "--out", str(tmp_path / "b"), "--groups", "a"])


def test_every_place_counts_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large place that errs by 100 DN and a small one by 700: the mean square is 500²."""
    monkeypatch.setattr(calibrate, "build_stage3_model", lambda **_: Doubtful(str(tmp_path / "grounding.safetensors")))
    for name, side, error in (("large", 64, 100), ("small", 16, 700)):
        write_place(tmp_path, name, side, error)
    save_file({"w": torch.zeros(1)}, tmp_path / "grounding.safetensors", metadata={"steps": "7"})
    target = tmp_path / "new.safetensors"
    words = [str(tmp_path), "--checkpoint", str(tmp_path / "grounding.safetensors"), "--out", str(target)]
    calibrate.main([*words, "--groups", "large/a,small/a", "--timesteps", "1"])
    calibration = Calibration.from_header(read_metadata(target))
    assert calibration is not None and calibration.scale(1).tolist() == pytest.approx([500.0] * 4)
