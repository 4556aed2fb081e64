"""The report page: everything of a result is on it, nothing of a result can take it over, and it needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from axs_lib.errors import InputError
from axs_lib.evaluate.html.page import write_report
from axs_lib.metrics import stage3_metrics

from .conftest import SIDE, Save

HOSTILE = "<script>alert('x')<!-- & \"quoted\" --><img src=http:evil onerror=alert(1)>"


class Page(HTMLParser):
    """What a browser would make of the text: elements with their attributes, and all the words."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self._code = False
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._code = tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._code:
            self.words += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def report(tmp_path: Path, *results: Path, **options: Any) -> Page:
    path = tmp_path / "report.html"
    write_report(path, results, overwrite=True, **options)
    return Page(path)


def test_every_layer_can_be_chosen_and_is_drawn(save: Save, tmp_path: Path) -> None:
    page = report(tmp_path, save("field.npz", opt_v1=np.full((4, SIDE, SIDE), 900.0)))
    views = ["opt_v1", "opt_v2", "opt_v3", "truth", "s1", "change", "removed", "uncertainty", "gate"]
    assert [option["value"] for option in page.all("option")] == views * 2
    drawn = {(image["data-view"], image["data-colour"]) for image in page.all("img") if "data-view" in image}
    optical = {(view, colour) for view in views[:4] for colour in ("true", "false")}
    assert drawn == optical | {(view, "any") for view in views[4:]}
    at_first = {(image["class"] or "").strip(): image["data-view"] for image in page.all("img") if image.get("class")}
    assert at_first == {"is-left": "opt_v2", "is-right": "opt_v3"}
    for image in page.all("img"):
        kind, _, content = (image["src"] or "").partition(",")
        assert kind == "data:image/jpeg;base64" and base64.b64decode(content).startswith(b"\xff\xd8")


def test_figures_are_those_of_the_metrics(save: Save, tmp_path: Path) -> None:
    path = save("field.npz")
    page = report(tmp_path, path)
    with np.load(path) as saved:
        metrics = stage3_metrics(*(torch.from_numpy(saved[key]) for key in ("opt_v3", "opt_v2", "s2_real")))
    assert f"{metrics['mse_v2'] * 1e4:.2f}" in page.words and f"{metrics['mse_v3'] * 1e4:.2f}" in page.words
    assert page.words.count("MSE −75.0 %") == 0  # the index is for several results
    assert f"pixels: {100 * metrics['improved']:.0f} % improved" in page.words
    assert "−75.0 %" in page.words and f"{metrics['ssim_v3']:.3f}" in page.words
    charts = [chart["aria-label"] or "" for chart in page.all("svg")]
    assert sum(chart.startswith("Histogram") for chart in charts) == 6
    assert any("least certain" in chart for chart in charts) and any("Observed error" in c for c in charts)


def test_an_error_is_green_only_where_a_flat_colour_is_beaten(save: Save, tmp_path: Path) -> None:
    """opt_v3 is better than opt_v2 in both; in ``bad`` one flat colour is nearer still."""
    truth = np.random.default_rng(1).uniform(900, 1100, (4, SIDE, SIDE))
    save("all/bad.npz", opt_v2=truth + 2000, opt_v3=truth + 1000, s2_real=truth)
    save("all/good.npz", opt_v2=truth + 20, opt_v3=truth + 10, s2_real=truth)
    page = report(tmp_path, tmp_path / "all")
    assert {link["href"] for link in page.all("a")} == {"#result-1", "#result-2"} and "2 results" in page.words
    verdicts = [small["class"] for small in page.all("small")]
    assert verdicts == ["", "gain"]
    assert "MSE −75.0 %, one flat colour is nearer" in page.words and "Beside simpler images" in page.words


def test_a_filled_gap_is_measured_inside_and_beside_a_smooth_fill(save: Save, tmp_path: Path) -> None:
    truth = np.random.default_rng(1).uniform(500, 3000, (4, SIDE, SIDE))
    gap = np.zeros((1, SIDE, SIDE), dtype=bool)
    gap[:, 5:15, 5:15] = True
    opt_v2, opt_v3 = np.where(gap, np.nan, truth), np.where(gap, truth + 100, truth)
    page = report(tmp_path, save("x.npz", opt_v2=opt_v2, opt_v3=opt_v3, s2_real=truth, trust=1.0 - gap))
    assert "Inside the gaps, against the clear truth" in page.words and "smooth fill" in page.words
    assert "1.00" in page.words and "opt_v2 · clouded image" in page.source
    assert "opt_v3 · filled, clear kept" in report(tmp_path, save("y.npz", {"AXS_MASK_KIND": "scl"})).source
    assert "opt_v2 · estimate" in report(tmp_path, save("z.npz")).source


def test_without_truth_opt_v2_and_opt_v3_share_one_stretch(save: Save, tmp_path: Path) -> None:
    """opt_v3 ten times as bright as opt_v2 is drawn bright and opt_v2 dark, and neither is saturated."""
    dark = np.random.default_rng(1).uniform(200, 400, (4, SIDE, SIDE))
    page = report(tmp_path, save("x.npz", opt_v2=dark, opt_v3=dark * 10, s2_real=None))
    means = {}
    for picture in page.all("img"):
        if picture.get("data-colour") == "true":
            content = base64.b64decode((picture["src"] or "").partition(",")[2])
            means[picture["data-view"]] = np.asarray(Image.open(io.BytesIO(content))).mean()
    assert means["opt_v2"] < 60 and 120 < means["opt_v3"] < 245


def test_little_is_enough(save: Save, tmp_path: Path) -> None:
    """opt_v3 alone, all of it nodata, beside SAR that is none."""
    nothing = dict.fromkeys(("opt_v2", "s2_real", "uncertainty", "gate", "provenance"))
    sar = {"s1_vv": np.zeros((8, 8)), "s1_vh": np.zeros((4, 8))}
    page = report(tmp_path, save("x.npz", opt_v3=np.full((4, 8, 8), np.nan), **sar, **nothing))
    assert "Without a clear truth" in page.words
    assert "not shown: SAR, since s1_vv has shape (8, 8) and s1_vh (4, 8)" in page.words
    assert [option["value"] for option in page.all("option")] == ["opt_v3"] * 2


def test_everything_is_in_the_file_and_nothing_else_may_load(save: Save, tmp_path: Path) -> None:
    page = report(tmp_path, save("field.npz"))
    rest = re.sub(r"data:image/jpeg;base64,[\w+/=]+", "", page.source)
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttp", rest)
    assert {name for name, _ in page.elements} & {"iframe", "object", "embed", "form", "base"} == set()
    for _, attributes in page.elements:
        for key in ("src", "href"):
            assert (attributes.get(key) or "data:").startswith(("data:", "#"))
    (policy,) = (m["content"] or "" for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    (script,) = re.findall(r"<script>(.*?)</script>", page.source, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy


def test_hostile_names_tags_and_titles_are_only_words(save: Save, tmp_path: Path) -> None:
    calm = report(tmp_path, save("calm.npz", tags={"AXS_SAMPLE": "x"}), title="x")
    tags = {"AXS_VARIANT": HOSTILE, f"AXS_{HOSTILE}": "</dd></script><script>alert(2)</script>"}
    page = report(tmp_path, save(f"hostile/{HOSTILE}.npz", tags=tags), title=HOSTILE)
    assert len(page.all("script")) == 1
    assert [image for image in page.all("img") if "onerror" in image] == []
    assert {tag for tag, _ in page.elements} == {tag for tag, _ in calm.elements}
    assert page.words.count(HOSTILE) >= 2 and "<script>alert(2)" in page.words


def test_a_damaged_file_among_others_is_named_and_alone_is_an_error(save: Save, tmp_path: Path) -> None:
    save("all/good.npz")
    save("all/<b>bad.npz", opt_v2=np.zeros((4, 3, 3)))
    page = report(tmp_path, tmp_path / "all")
    assert "<b>bad is not shown" in page.words and "opt_v2 has shape (4, 3, 3)" in page.words
    with pytest.raises(InputError, match="opt_v2 has shape"):
        report(tmp_path, tmp_path / "all" / "<b>bad.npz")


def test_a_long_list_is_cut_and_says_so(save: Save, tmp_path: Path) -> None:
    batch = {key: None for key in ("s1_vv", "s1_vh", "s2_real", "uncertainty", "gate")}
    images = np.random.default_rng(0).uniform(1, 3000, (3, 4, 8, 8))
    save("all/batch.npz", opt_v2=images, opt_v3=images + 5, **batch)
    save("all/one.npz")
    page = report(tmp_path, tmp_path / "all", most=2)
    assert len(page.all("article")) == 2 and "batch #2" in page.words
    assert "holds further tiles" in page.words and "1 further files are not shown" in page.words


def evaluation() -> dict[str, Any]:
    """As ``axs evaluate --json`` writes it, with what the page reads."""
    mean = {f"{key}_{suffix}": 0.5 for key in ("ssim", "sharpness", "edge_truth") for suffix in ("v2", "v3")}
    mean |= {"mse_v2": 8e-4, "mse_v3": 6e-4, "mae_v2": 2e-2, "mae_v3": 1.5e-2, "psnr_v2": None, "psnr_v3": None}
    mean |= {"improved": 0.6, "omitted": 0.3, "hallucinated": 0.1, "identity_collapse": 0.0}
    control = {"mean": {"mse": 10e-4, "mae": 2.2e-2}, "wins_over": 1.0}
    tiles = [
        {"id": name, "metrics": {"mse_improvement_%": gain, "mse_v2": 8e-4, "mse_v3": 6e-4}}
        for name, gain in (("field", 25.0), ("<u>lake", -5.0))
    ]
    tiles[0]["no_sar"] = {"mse": 9e-4, "mae": 1.9e-2}
    summary = {
        "tiles": 2, "wins": 0.5, "worst_tile_%": 5.0, "improvement_quartiles_%": [1.0, 10.0, 20.0], "mean": mean,
        "no_sar": control | {"sar_worth_%": 12.5},
    }  # fmt: skip
    uncertainty = {
        "spread_skill": {"B02": 0.97}, "retention": [[0.0, 8e-4], [0.2, 5e-4]],
        "reliability": {"B02": [[0.01, 0.011], [0.02, 0.03]], "<b>": [[1, 1]]},
    }  # fmt: skip
    return {
        "data": "<pairs>", "quality": "ok", "opt_v2_source": {"degraded": 2}, "timesteps": 1, "nfe": 1, "seed": 0,
        "model": {"AXS_VARIANT": "nano", "AXS_WEIGHTS_SHA256": "abc123"}, "device": "cpu", "seconds_per_tile": 0.25,
        "summary": {"ok": summary}, "tiles": tiles, "uncertainty": uncertainty,
    }  # fmt: skip


def written(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(content))
    return path


def test_an_evaluation_is_shown_with_its_controls(save: Save, tmp_path: Path) -> None:
    page = report(tmp_path, save("field.npz"), evaluation=written(tmp_path, evaluation()))
    for word in ("Mean over 2 tiles", "8.00", "6.00", "−25.0 %", "+25.0 %", "retrained without SAR", "+12.5 %"):
        assert word in page.words, word
    assert "Controls of the evaluation, this tile" in page.words and "9.00" in page.words
    assert "B02 0.97" in page.words and "SHA-256" in page.words and "abc123" in page.words
    assert "pixels: 60 % improved, 30 % omitted, 10 % hallucinated (improved: nearer to the truth" in page.words
    assert "worst tile +5.0 %" in page.words and "<pairs>" in page.words and "<u>lake" in page.words
    assert {"pairs", "u", "lake"} & {tag for tag, _ in page.elements} == set()
    twins = evaluation()
    named = [twins["tiles"][0] | {"source": name, "no_sar": {"mse": mse}} for name, mse in (("a", 4e-4), ("b", 3e-4))]
    page = report(tmp_path, save("a/field.npz"), evaluation=written(tmp_path, twins | {"tiles": named}))
    assert "4.00" in page.words and "3.00" not in page.words  # two sources have a tile of that id


def test_several_timesteps_are_compared(tmp_path: Path) -> None:
    more = evaluation() | {"timesteps": 10}
    content = {"timesteps_table": [], "reports": [evaluation(), more]}
    page = report(tmp_path, evaluation=written(tmp_path, content))
    assert "How many timesteps" in page.words and "1 timestep" in page.words and "10 timesteps" in page.words
    assert "Error by timesteps" in [chart["aria-label"] for chart in page.all("svg")]


@pytest.mark.parametrize("content", ["no JSON", "[" * 100_000, "[]", '{"reports": []}', '{"summary": {}}'])
def test_another_json_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(content)
    with pytest.raises(InputError, match="axs evaluate --json"):
        report(tmp_path, evaluation=path)
    words = evaluation()
    words["summary"]["ok"]["mean"]["mse_v3"] = "<script>"
    with pytest.raises(InputError, match="is no number"):
        report(tmp_path, evaluation=written(tmp_path, words))
