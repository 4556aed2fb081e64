"""The folder of most tests of the evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluate.fakes import write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path)
