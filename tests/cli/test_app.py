"""The command line answers at once, and its mistakes are one line, not a traceback."""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

import axs_lib
from axs_lib.cli import app as cli
from axs_lib.cli.command import spread_values
from axs_lib.errors import InputError, OutputError, WeightsError
from axs_lib.stage3_tm_ground import UntrainedHeadWarning

HEAVY = ("torch", "terratorch", "rasterio", "numpy", "matplotlib", "huggingface_hub", "rich.markdown")


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)


def test_help_lists_the_commands_without_loading_anything_heavy() -> None:
    code = (
        "import sys; from axs_lib.cli.app import app\n"
        "try: app(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        f"print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    result = python(code)
    assert result.returncode == 0, result.stderr
    assert "HEAVY []" in result.stdout
    for command in ("demo", "evaluate", "ground", "info", "train", "weights"):
        assert f"\n  {command} " in result.stdout


def test_help_is_fast() -> None:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "axs_lib", "--help"], capture_output=True, check=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 1.0, times


def test_version(axs: Callable[..., Any]) -> None:
    result = axs("--version")
    assert result.exit_code == 0 and result.output.strip() == f"axs {axs_lib.__version__}"


def test_no_command_shows_help(axs: Callable[..., Any]) -> None:
    assert "Commands:" in axs().output


def test_options_of_training_reach_training(axs: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from axs_lib.cli import train

    seen: list[list[str]] = []
    monkeypatch.setattr(train, "main", lambda arguments: seen.append(list(arguments)))
    assert axs("train", "head", "--config", "mine.yaml", "--help").exit_code == 0
    assert seen == [["head", "--config", "mine.yaml", "--help"]]


@pytest.mark.parametrize("kind", [InputError, WeightsError, OutputError])
def test_deliberate_errors_are_one_line_and_exit_code_2(
    axs: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    result = run_with(monkeypatch, lambda: (_ for _ in ()).throw(kind("seen; expected; fix")))
    assert result.exit_code == 2
    assert result.stderr == "error: seen; expected; fix\n" and result.stdout == ""


def test_interruption_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_with(monkeypatch, lambda: (_ for _ in ()).throw(KeyboardInterrupt)).exit_code == 130


def test_other_errors_are_bugs_and_stay_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_with(monkeypatch, lambda: 1 / 0)
    assert isinstance(result.exception, ZeroDivisionError)


def test_only_the_librarys_own_warnings_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def warn() -> None:
        warnings.warn("head is fresh", UntrainedHeadWarning, stacklevel=1)
        warnings.warn("some package is old", UserWarning, stacklevel=1)

    monkeypatch.setattr(sys, "warnoptions", [])
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        result = run_with(monkeypatch, warn)
    assert result.stderr == "warning: head is fresh\n"


def run_with(monkeypatch: pytest.MonkeyPatch, action: Callable[[], Any]) -> Any:
    """Run ``axs info`` with its inside replaced."""
    from axs_lib.cli import info

    monkeypatch.setattr(info, "_show_installation", lambda show: action())
    return CliRunner().invoke(cli.app, ["info"])


@pytest.mark.parametrize(
    ("line", "spread"),
    [
        ("--s1 a b --out c", "--s1 a --s1 b --out c"),
        ("--s1 a --s1 b", "--s1 a --s1 b"),
        ("--out c --s1=a b", "--out c --s1=a --s1 b"),
        ("--opt-v2 a b c d -q", "--opt-v2 a --opt-v2 b --opt-v2 c --opt-v2 d -q"),
        ("--out c d", "--out c d"),
        ("--s1 --out c", "--s1 --out c"),
        ("", ""),
    ],
)
def test_several_values_after_one_option(line: str, spread: str) -> None:
    assert spread_values(line.split(), {"--s1", "--opt-v2"}) == spread.split()
