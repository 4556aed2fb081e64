"""The command line answers at once, and its mistakes are one line, not a traceback."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import axs_lib
from axs_lib.cli import app as cli
from axs_lib.cli.command import spread_values
from axs_lib.data.samples import sample_names, sample_paths
from axs_lib.errors import AxionError, InputError, OutputError, WeightsError
from axs_lib.progress import logger
from axs_lib.stage3_tm_ground import UntrainedHeadWarning


def test_version_and_no_command(axs: Callable[..., Any]) -> None:
    assert axs("--version").output.strip() == f"axs {axs_lib.__version__}"
    assert "Commands:" in axs(code=2).output


@pytest.mark.parametrize("kind", [InputError, WeightsError, OutputError, KeyboardInterrupt, ZeroDivisionError])
def test_deliberate_errors_are_one_line_interruption_is_130_and_bugs_stay_visible(
    monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    def fail() -> None:
        raise kind("seen; expected; fix")

    result = run_with(monkeypatch, fail)
    if issubclass(kind, AxionError):
        assert result.exit_code == 2
        assert result.stderr == "error: seen; expected; fix\n" and result.stdout == ""
    elif kind is KeyboardInterrupt:
        assert result.exit_code == 130
    else:
        assert isinstance(result.exception, ZeroDivisionError)


def test_only_the_librarys_own_warnings_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def warn() -> None:
        warnings.warn("head is fresh", UntrainedHeadWarning, stacklevel=1)
        warnings.warn("some package is old", UserWarning, stacklevel=1)
        raise typer.Exit

    monkeypatch.setattr(sys, "warnoptions", [])
    with warnings.catch_warnings(action="always"):
        result = run_with(monkeypatch, warn)
    assert result.stderr == "warning: head is fresh\n"


def run_with(monkeypatch: pytest.MonkeyPatch, action: Callable[[], Any]) -> Any:
    """Run ``axs info`` with its inside replaced."""
    monkeypatch.setattr("axs_lib.terramind.weights.find_variant", lambda name: action())
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


@pytest.mark.parametrize("words", [("ground", "--out", ""), ("ground", "--out="), ("train", "head", "--out", "")])
def test_an_empty_value_is_refused(axs: Callable[..., Any], words: tuple[str, ...]) -> None:
    result = axs(*words, code=2)
    assert "the value after --out" in result.stderr and "is empty" in result.stderr


def test_the_log_says_what_is_done(axs: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logger, "handlers", [])  # both are put back for the tests that follow
    monkeypatch.setattr(logger, "level", logger.level)
    s1, s2 = sample_paths(sample_names()[0])
    words = ["ground", "--s1", s1, "--opt-v2", s2, "--variant", "nano", "-q", "--out"]
    quiet, loud = (axs(*flags, *words, tmp_path / f"{len(flags)}.tif") for flags in ([], ["-v"]))
    for said in (f"reads {s2}", "loaded the grounding head", f"wrote {tmp_path / '1.tif'}"):
        assert said in loud.stderr and said not in quiet.stderr
