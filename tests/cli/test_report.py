"""``axs report`` writes a page, or says what is wrong in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from axs_lib.bands import SAR_BANDS
from axs_lib.data.samples import load_sample, sample_paths
from tests.scenes.conftest import write_scene

from .conftest import Run


def test_a_page_of_a_file(axs: Run, tmp_path: Path) -> None:
    images = np.random.default_rng(0).uniform(100, 3000, (4, 16, 16))
    np.savez(tmp_path / "field.npz", opt_v2=images, opt_v3=images + 10)
    out = tmp_path / "page.html"
    result = axs("report", tmp_path / "field.npz", "--out", out, "--title", "Ours & theirs")
    assert f"{out}: 1 result, " in result.output.replace("\n", "") and "kB; open" in result.output
    page = out.read_text()
    assert "<title>Ours &amp; theirs</title>" in page and ">field</h2>" in page
    assert "exists already" in axs("report", tmp_path / "field.npz", "--out", out, code=2).stderr
    assert axs("report", tmp_path, "--out", out, "--overwrite", "-q").output == ""


def test_layers_of_a_file_with_any_name(axs: Run, tmp_path: Path) -> None:
    s1, s2 = sample_paths("ireland_fields")
    sar, _ = load_sample("ireland_fields")
    place = {"crs": sar.grid.crs, "transform": sar.grid.affine}
    pairs = zip(SAR_BANDS, sar.data, strict=True)
    bands = [write_scene(tmp_path / f"{band}.tif", data[None], (band,), **place) for band, data in pairs]
    out = tmp_path / "page.html"
    for first, last in (([s2], []), ([], ["--s1", *bands, s2]), ([], ["--s1", s1, s2])):  # --s1 may take the result
        given = (*first, "--opt-v2", s2, "--truth", s2, *(last or ["--s1", *bands]))
        result = axs("report", "--out", out, "--overwrite", *given)
        views = [f'data-view="{view}"' in out.read_text() for view in ("opt_v2", "opt_v3", "truth", "s1", "change")]
        assert all(views), result.output
    both = axs("report", s2, s1, "--truth", s2, "--out", tmp_path / "b.html", code=2)
    assert "belong to one" in both.stderr


def test_nothing_to_show_is_one_line(axs: Run, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    for arguments, word in (([], "nothing is given"), ([tmp_path], "no results"), ([tmp_path / "none"], "not exist")):
        result = axs("report", *arguments, "--out", out, code=2)
        assert word in result.stderr, result.output
    assert not out.exists()
