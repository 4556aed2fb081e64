"""What the README shows runs, and the picture it opens with is there."""

from __future__ import annotations

import re
import shlex
import warnings
from pathlib import Path

import pytest
from typer.testing import CliRunner

from axs_lib.cli.app import app


@pytest.fixture(scope="module")
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs(readme: str) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.S)
    names: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # the example's numbers are plausible dB and DN
        exec(code, names)
    assert names["opt_v3"].shape == (1, 4, 120, 120)  # type: ignore[attr-defined]
    assert names["output"].uncertainty is not None  # type: ignore[attr-defined]


def test_the_commands_exist_with_their_options(readme: str) -> None:
    lines = [line for block in re.findall(r"```\n(.*?)```", readme, re.S) for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("axs ")]
    assert commands
    for words in commands:
        text = CliRunner().invoke(app, [words[0], "--help"], terminal_width=200).output
        for word in words:
            assert not word.startswith("--") or word in text, (words[0], word)


def test_the_picture_is_there_and_light(readme: str, repository: Path) -> None:
    (picture,) = re.findall(r"!\[[^]]*\]\(([^)]*)\)", readme)
    size = (repository / picture).stat().st_size
    assert 20_000 < size < 700_000
