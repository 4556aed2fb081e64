"""The picture panel: its size, what is on it, and one stretch for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from axs_lib.errors import InputError
from axs_lib.evaluate.panel import plot_panel
from axs_lib.io.saved import read_results
from axs_lib.metrics import compute_metrics, stage3_metrics


def images(side: tuple[int, int] = (120, 120)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.uniform(300, 4000, (4, *side))
    opt_v2 = truth + rng.normal(0, 200, truth.shape)
    return {"s1": rng.normal(-12, 3, (2, *side)), "opt_v2": opt_v2, "opt_v3": (opt_v2 + truth) / 2, "truth": truth}


def heads(figure: Figure) -> list[str]:
    return [title for axes in figure.axes if (title := axes.get_title(loc="left"))]


def words_on(content: dict[str, Any], **options: Any) -> str:
    figure = plot_panel(content, **options)
    below = [text.get_text() for axes in figure.axes for text in axes.texts]
    return " | ".join([*heads(figure), *below])


@pytest.mark.parametrize("side", [(64, 200), (8, 8), (700, 600)])
def test_size_and_file(tmp_path: Path, side: tuple[int, int]) -> None:
    settings = dict(matplotlib.rcParams)
    plot_panel(images(side) | {"uncertainty": np.ones((4, *side))}).savefig(tmp_path / "p.png")
    assert plt.get_fignums() == [] and dict(matplotlib.rcParams) == settings, "nothing of the process's"
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.format == "PNG" and 900 < picture.width <= 1600


def test_figures_are_on_the_panel() -> None:
    content = images()
    metrics = stage3_metrics(*(torch.from_numpy(content[k]) for k in ("opt_v3", "opt_v2", "truth")))
    words = words_on(content | {"uncertainty": np.ones((4, 120, 120))})
    assert f"{metrics['mse_v2'] * 1e4:.2f}·10⁻⁴" in words
    assert "(−75.0 %)" in words
    assert f"SSIM {metrics['ssim_v3']:.3f}" in words
    for word in ("SAR", "opt_v2", "opt_v3", "truth", "change", "uncertainty", "NIR, red, green"):
        assert word in words, word
    assert "9.00·10⁻⁴" in words_on(content, metrics={"mse_v2": 9e-4})
    assert "error removed (red: added)" in words_on(content)
    del content["truth"]
    assert not any(word in words_on(content) for word in ("truth", "uncertainty", "error"))


def test_optical_views_share_one_stretch() -> None:
    """An estimate twice as bright as the truth looks brighter; stretched on its own it would look the same."""
    content = images()
    content["opt_v2"] = content["truth"] * 2
    figure = plot_panel(content)
    views = {axes.get_title(loc="left"): axes.images[0].get_array() for axes in figure.axes[:5]}
    bright, real = (np.asarray(view).mean() for name, view in views.items() if name.split()[0] in ("opt_v2", "truth"))
    assert bright > real + 0.15


def test_nodata_is_grey_and_all_nodata_is_drawn() -> None:
    content = images()
    content["opt_v3"][:, :10, :10] = np.nan
    view = next(a for a in plot_panel(content).axes if a.get_title(loc="left").startswith("opt_v3"))
    assert np.allclose(np.asarray(view.images[0].get_array())[:10, :10], 0.85)
    plot_panel({name: np.full_like(image, np.nan) for name, image in images((16, 16)).items()})


def test_wrong_shapes_are_named() -> None:
    wrong = (
        ({"opt_v3": np.ones((4, 8, 8))}, r"opt_v3 is \(8, 8\)"),
        ({"s1": np.ones((3, 16, 16))}, r"s1 has shape \(3, 16, 16\)"),
        ({"uncertainty": np.ones((4, 8, 8))}, "uncertainty"),
    )
    for layers, message in wrong:
        with pytest.raises(InputError, match=message):
            plot_panel(images((16, 16)) | layers)


def test_the_pipelines_panel_has_a_view_of_every_stage() -> None:
    content = images()
    content["opt_v1"] = np.full_like(content["truth"], 1000)
    views = ["SAR", "opt_v1", "opt_v2", "opt_v3", "truth"] * 2
    assert [head.split()[0] for head in heads(plot_panel(content))] == views
    words = words_on(content)
    assert words.count("true colour") == 1 and words.count("false colour") == 4
    mse = compute_metrics(*(torch.from_numpy(content[key]) for key in ("opt_v1", "truth")))["mse"]
    assert f"{mse * 1e4:.2f}·10⁻⁴" in words
    del content["truth"]
    assert len(plot_panel(content).axes) == 8


def test_a_notebook_draws_saved_results_and_what_is_in_memory(tmp_path: Path) -> None:
    content = images((24, 24))
    sar = content.pop("s1")
    saved = content | {"s1_vv": sar[0], "s1_vh": sar[1], "s2_real": content.pop("truth")}
    np.savez(tmp_path / "field.npz", **saved)
    figure = plot_panel(tmp_path / "field.npz")
    assert figure.texts[0].get_text() == "field"
    assert any("(−75.0 %)" in text.get_text() for axes in figure.axes for text in axes.texts)
    assert heads(figure) == heads(plot_panel(next(read_results(tmp_path / "field.npz"))))
    tensors = {key: torch.from_numpy(value)[None] for key, value in saved.items()}
    tensors |= {"uncertainty": torch.ones(1, 4, 24, 24), "nfe": (1, 1)}
    assert "uncertainty (1 std)" in heads(plot_panel(tensors, title="now"))
    with pytest.raises(InputError, match="no opt_v2"):
        plot_panel({"s1": sar, "opt_v3": content["opt_v3"]})
