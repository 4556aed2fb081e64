"""Small results to report, and the browser that looks at pages."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

Save = Callable[..., Path]
SIDE = 24


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """``save("name.npz", opt_v3=...)`` writes a result in which opt_v3 is halfway from opt_v2 to the truth."""

    def write(name: str, tags: dict[str, str] | None = None, **arrays: Any) -> Path:
        random = np.random.default_rng(0)
        truth = random.uniform(300, 4000, (4, SIDE, SIDE)).astype(np.float32)
        opt_v2 = truth + random.normal(0, 200, truth.shape).astype(np.float32)
        content: dict[str, Any] = {
            "s1_vv": random.normal(-12, 3, (SIDE, SIDE)),
            "s1_vh": random.normal(-18, 3, (SIDE, SIDE)),
            "opt_v2": opt_v2,
            "opt_v3": (opt_v2 + truth) / 2,
            "s2_real": truth,
            "uncertainty": np.abs(opt_v2 - truth) / 2,
            "gate": np.full((1, SIDE, SIDE), 0.5),
            "provenance": np.array(json.dumps({"AXS_VARIANT": "nano"} | (tags or {}))),
        }
        content = {key: value for key, value in (content | arrays).items() if value is not None}
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **content)
        return path

    return write


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Headless Chromium, the system's own: playwright's is a download."""
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium here to look at pages with: apt-get install chromium")
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=path, args=[*sandbox, "--disable-gpu"])
        yield chromium
        chromium.close()
