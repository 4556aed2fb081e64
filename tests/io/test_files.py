"""Only regular files are opened for reading."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from axs_lib.errors import InputError, WeightsError
from axs_lib.io.files import check_regular, open_regular


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path, "the mask .* is a folder; expected a regular file"),
        (tmp_path / "pipe", "is a named pipe"),
        ("/dev/zero", "is a device"),
        (tmp_path / "missing", "does not exist"),
        (tmp_path / "a\0b", "cannot be read: embedded null"),
        (tmp_path / ("x" * 300), "name too long"),
    ):
        for function in (check_regular, open_regular):
            with pytest.raises(InputError, match=message):
                function(path, "the mask")
    with pytest.raises(WeightsError):
        check_regular("/dev/zero", error=WeightsError)
