"""The picture panel: its size, what is on it, and one stretch for all."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from axs_lib.errors import InputError, OutputError
from axs_lib.evaluate.panel import (
    MOST_BYTES,
    draw_panel,
    draw_pipeline_panel,
    plot_panel,
    save_panel,
    save_pipeline_panel,
)
from axs_lib.io.saved import read_results
from axs_lib.metrics import compute_metrics, stage3_metrics


def images(side: tuple[int, int] = (120, 120)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.uniform(300, 4000, (4, *side))
    opt_v2 = truth + rng.normal(0, 200, truth.shape)
    return {
        "s1": rng.normal(-12, 3, (2, *side)),
        "opt_v2": opt_v2,
        "opt_v3": (opt_v2 + truth) / 2,
        "truth": truth,
    }


@pytest.mark.parametrize("side", [(120, 120), (64, 200), (200, 64), (8, 8), (700, 600)])
def test_size_and_file(tmp_path: Path, side: tuple[int, int]) -> None:
    path = save_panel(tmp_path / "p.png", **images(side), uncertainty=np.ones((4, *side)), title="tile")
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert 900 < picture.width <= 1600
    if side == (120, 120):
        assert path.stat().st_size < MOST_BYTES


def titles(**arguments: object) -> list[str]:
    figure = draw_panel(**arguments)  # type: ignore[arg-type]
    return [
        t
        for axes in figure.axes
        for t in (axes.get_title(loc="left"), *(text.get_text() for text in axes.texts))
        if t
    ]


def test_figures_are_on_the_panel() -> None:
    content = images()
    metrics = stage3_metrics(*(torch.from_numpy(content[k]) for k in ("opt_v3", "opt_v2", "truth")))
    words = " | ".join(titles(**content, uncertainty=np.ones((120, 120)), metrics=metrics))
    assert f"{metrics['mse_v2'] * 1e4:.2f}·10⁻⁴" in words
    assert "(−75.0 %)" in words
    assert f"SSIM {metrics['ssim_v3']:.3f}" in words
    for word in ("SAR", "opt_v2", "opt_v3", "truth", "change", "uncertainty", "NIR, red, green"):
        assert word in words, word


def test_panels_without_truth_or_uncertainty() -> None:
    content = images()
    assert "error removed (red: added)" in titles(**content)
    del content["truth"]
    words = titles(**content)
    assert not any("truth" in word or "uncertainty" in word or "error" in word for word in words)


def test_optical_views_share_one_stretch() -> None:
    """An estimate twice as bright as the truth looks brighter; stretched on its own it would look the same."""
    content = images()
    content["opt_v2"] = content["truth"] * 2
    figure = draw_panel(**content)
    views = {axes.get_title(loc="left"): axes.images[0].get_array() for axes in figure.axes[:5]}
    bright, real = (
        np.asarray(view).mean() for name, view in views.items() if name.split()[0] in ("opt_v2", "truth")
    )
    assert bright > real + 0.15


def test_nodata_is_grey_and_all_nodata_is_drawn(tmp_path: Path) -> None:
    content = images()
    content["opt_v3"][:, :10, :10] = np.nan
    figure = draw_panel(**content)
    view = next(axes for axes in figure.axes if axes.get_title(loc="left").startswith("opt_v3"))
    assert np.allclose(np.asarray(view.images[0].get_array())[:10, :10], 0.85)
    save_panel(
        tmp_path / "p.png", **{name: np.full_like(image, np.nan) for name, image in images((16, 16)).items()}
    )


def test_tensors_and_batches_of_one() -> None:
    content = {name: torch.from_numpy(image)[None] for name, image in images().items()}
    assert titles(**content) == titles(**images())


def test_no_global_state_of_matplotlib(tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    settings = dict(matplotlib.rcParams)
    save_panel(tmp_path / "p.png", **images((16, 16)))
    assert plt.get_fignums() == []
    assert dict(matplotlib.rcParams) == settings


def test_wrong_shapes_are_named(tmp_path: Path) -> None:
    content = images((16, 16))
    with pytest.raises(InputError, match=r"opt_v3 is \(8, 8\)"):
        draw_panel(**(content | {"opt_v3": np.ones((4, 8, 8))}))
    with pytest.raises(InputError, match=r"s1 has shape \(3, 16, 16\)"):
        draw_panel(**(content | {"s1": np.ones((3, 16, 16))}))
    with pytest.raises(InputError, match="uncertainty"):
        draw_panel(**content, uncertainty=np.ones((4, 8, 8)))
    path = save_panel(tmp_path / "p.png", **content)
    with pytest.raises(OutputError, match="exists"):
        save_panel(path, **content, overwrite=False)


def stages() -> dict[str, np.ndarray]:
    content = images()
    return content | {"opt_v1": np.full_like(content["truth"], 1000)}


def test_the_pipelines_panel_has_a_view_of_every_stage(tmp_path: Path) -> None:
    content = stages()
    truth = torch.from_numpy(content["truth"])
    metrics = {
        f"{key}_{suffix}": value
        for suffix in ("v1", "v2", "v3")
        for key, value in compute_metrics(torch.from_numpy(content[f"opt_{suffix}"]), truth).items()
    }
    figure = draw_pipeline_panel(**content, title="tile", metrics=metrics)
    names = [axes.get_title(loc="left").split()[0] for axes in figure.axes]
    assert names == ["SAR", "opt_v1", "opt_v2", "opt_v3", "truth"] * 2
    words = " | ".join(text.get_text() for axes in figure.axes for text in axes.texts)
    assert words.count("true colour") == 1 and words.count("false colour") == 4
    for suffix in ("v1", "v2", "v3"):
        assert f"{metrics[f'mse_{suffix}'] * 1e4:.2f}·10⁻⁴" in words
    with Image.open(save_pipeline_panel(tmp_path / "p.png", **content, title="tile")) as picture:
        assert picture.format == "PNG" and 1200 < picture.width <= 1600


def test_the_pipelines_panel_without_truth_and_with_wrong_shapes(tmp_path: Path) -> None:
    content = stages()
    del content["truth"]
    assert len(draw_pipeline_panel(**content).axes) == 8
    with pytest.raises(InputError, match=r"opt_v1 is \(8, 8\)"):
        draw_pipeline_panel(**(content | {"opt_v1": np.ones((4, 8, 8))}))
    path = save_pipeline_panel(tmp_path / "p.png", **content)
    with pytest.raises(OutputError, match="exists"):
        save_pipeline_panel(path, **content, overwrite=False)


def heads(figure: Figure) -> list[str]:
    return [title for axes in figure.axes if (title := axes.get_title(loc="left"))]


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
    pipeline = plot_panel(saved | {"opt_v1": content["opt_v2"]})
    assert heads(pipeline) == heads(draw_pipeline_panel(**stages()))
    with pytest.raises(InputError, match="no opt_v2"):
        plot_panel({"s1": sar, "opt_v3": content["opt_v3"]})
