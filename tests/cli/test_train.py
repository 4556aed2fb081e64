"""``axs train`` and ``axs precompute``: one command, configurations checked to the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from axs_lib.cli.train import main, parse_stage
from axs_lib.errors import InputError

CONFIGS = Path(__file__).resolve().parents[2] / "axs_lib" / "configs"


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What training was asked for, in place of training."""
    from axs_lib.train import fit

    seen: list[dict[str, Any]] = []

    def stub(config: Any, flags: Any, **options: Any) -> Path:
        seen.append({"config": config, "flags": flags} | options)
        return Path("weights")

    monkeypatch.setattr(fit, "fit", stub)
    return seen


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("stage*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_parses(path: Path) -> None:
    stage = path.stem.split("_")[0]
    config, flags, _ = parse_stage(stage, ["-c", str(path), "--data", "DIR"])
    assert config.data.folder == "DIR" and config.out == f"runs/{path.stem}"
    assert (config.lora is not None) == ("lora" in path.stem)
    assert flags.get("precision") == ("bf16-mixed" if "lora" in path.stem else None)


def test_options_go_over_the_file_and_lightning_gets_its_flags(
    axs: Any, trained: list[dict[str, Any]]
) -> None:
    file = CONFIGS / "stage3_nano.yaml"
    result = axs(
        "train", "stage3", "-c", file, "--data", "DIR", "--steps", 7, "--data.crop_sizes", "[64]",
        "--loss.sar", 0.5, "--trainer.devices", 2, "--trainer.strategy", "ddp", "--restart", "--quiet",
    )  # fmt: skip
    assert result.exit_code == 0 and "weights" in result.stdout, result.output
    (run,) = trained
    assert run["config"].steps == 7 and run["config"].data.crop_sizes == (64,)
    assert run["config"].loss == {"sar": 0.5} and run["config"].variant == "nano"
    assert str(run["flags"]["devices"]) == "2" and run["flags"]["strategy"] == "ddp"
    assert run["resume"] is False and run["progress"] is False


def test_the_doors_of_the_stages_take_the_same_options(
    trained: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["stage2", "-c", str(CONFIGS / "stage2_nano.yaml"), "--data=DIR"], program="train_stage2.py")
    assert type(trained[0]["config"]).__name__ == "Stage2Config" and trained[0]["config"].data.folder == "DIR"
    with pytest.raises(SystemExit) as end:
        main(["stage2", "--stepz", "3"], program="train_stage2.py")
    assert end.value.code == 2 and capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1", "learning_rat'? is not accepted; did you mean learning_rate"),
        ("data: {batchsize: 4}", "batchsize.*did you mean data.batch_size"),
        ("lora: {rnk: 4}", "rnk"),
        ("trainer: {precison: 16}", "precison"),
        ("steps: many", "steps.*many"),
        ("data: {format: zip}", "format.*zip"),
        ("variant: [", "expected|parse|while"),
    ],
)
def test_what_is_wrong_in_a_configuration_is_named(
    axs: Any, tmp_path: Path, trained: list[dict[str, Any]], text: str, message: str
) -> None:
    import re

    file = tmp_path / "run.yaml"
    file.write_text(f"out: run\n{text}\n")
    result = axs("train", "stage1", "-c", file, "--data", "DIR")
    assert result.exit_code == 2 and not trained
    assert re.search(message, result.stderr) and "Traceback" not in result.output, result.stderr
    assert result.stderr.startswith("error: ")


def test_unknown_options_and_missing_ones_are_named() -> None:
    with pytest.raises(InputError, match=r"--stepz(.|\n)*did you mean steps"):
        parse_stage("stage1", ["--data", "DIR", "--out", "run", "--stepz", "3"])
    with pytest.raises(InputError, match=r"data\.folder"):
        parse_stage("stage1", ["--out", "run"])


def test_precompute_passes_on_what_it_is_told(
    axs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from axs_lib.train import precompute

    seen: list[Any] = []
    monkeypatch.setattr(
        precompute, "precompute", lambda config, progress: seen.append(config) or Path("pairs")
    )
    result = axs(
        "precompute", "--stage", "stage1", "--data", "DIR", "--out", tmp_path, "--folds", 2, "--quiet",
        "--checkpoint", "a.safetensors", "b.safetensors", "--variant", "nano",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert seen[0].checkpoints == ("a.safetensors", "b.safetensors") and seen[0].train is None
    result = axs(
        "precompute",
        "--stage",
        "stage2",
        "--data",
        "DIR",
        "--out",
        tmp_path,
        "-c",
        CONFIGS / "stage2_nano.yaml",
    )
    assert result.exit_code == 0, result.output
    assert seen[1].train.variant == "nano" and seen[1].data.folder == "DIR" and seen[1].data.batch_size == 8


def test_a_folder_without_data_is_an_error_of_one_line(axs: Any, tmp_path: Path) -> None:
    result = axs(
        "train", "stage2", "-c", CONFIGS / "stage2_nano.yaml", "--data", tmp_path, "--out", tmp_path / "run"
    )
    assert result.exit_code == 2 and "no *.npz file" in result.stderr and "Traceback" not in result.output
