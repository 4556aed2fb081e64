"""The folder of most tests of the evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.evaluate.fakes import tile


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tiles a and b of group g1, c of g2, and the clouded and larger d of g2; a has an opt_v2, 300 DN too bright."""
    rng = np.random.default_rng(0)
    rows = ["source,id,group,quality"]
    tiles = (("a", "g1", "ok", 32), ("b", "g1", "ok", 32), ("c", "g2", "ok", 32), ("d", "g2", "cloud", 40))
    for name, group, quality, side in tiles:
        content = tile(rng, side)
        if name == "a":
            content["opt_v2"] = content["s2"].astype(np.float32) + 300
        (tmp_path / "pairs" / "src").mkdir(parents=True, exist_ok=True)
        np.savez(tmp_path / "pairs" / "src" / f"{name}.npz", **content)
        rows.append(f"src,{name},{group},{quality}")
    (tmp_path / "index.csv").write_text("\n".join(rows))
    return tmp_path
