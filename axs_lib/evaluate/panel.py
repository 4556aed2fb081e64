"""Draw one tile in true and false colour: what Stage 3 did to it, or what each stage of the pipeline made of its SAR.

In: the arrays or tensors of one tile (SAR in dB, optical images in DN); out: a PNG written atomically. All optical
views of one kind share one stretch, taken from the truth where there is one and from opt_v2 otherwise, so that colours
may be compared; nodata is light grey.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from axs_lib.bands import DN_PER_REFLECTANCE
from axs_lib.errors import InputError
from axs_lib.evaluate.colour import (
    FALSE_COLOUR,
    NODATA_GREY,
    TRUE_COLOUR,
    Array,
    grey,
    optical_colour,
    sar_colour,
    stretch_of,
    top_of,
)
from axs_lib.io.tiles import TRUTH_KEYS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from axs_lib.io.saved import Result

DOTS_PER_INCH = 100
CELL_INCHES = 2.75
HEADING_INCHES = 0.46
TITLE_INCHES = 0.34
BAR_INCHES = 0.55
MOST_BYTES = 600_000
MOST_PIXELS = 480  # a view is thinned to this, so that the file stays small
TRUTH = "truth · Sentinel-2"


def save_panel(
    path: str | Path,
    *,
    s1: ArrayLike,
    opt_v2: ArrayLike,
    opt_v3: ArrayLike,
    truth: ArrayLike | None = None,
    uncertainty: ArrayLike | None = None,
    title: str = "",
    metrics: Mapping[str, float] | None = None,
    overwrite: bool = True,
) -> Path:
    """Draw one tile and write it as PNG, at most 1600 px wide; busy ones get fewer shades.

    Args:
        path: the file.
        s1: (2,H,W) VV, VH in dB.
        opt_v2: (4,H,W) DN in the order B02, B03, B04, B08.
        opt_v3: (4,H,W) DN.
        truth: (4,H,W) DN, the clear image, if known.
        uncertainty: (4,H,W) or (H,W) DN, the ensemble's spread, if there is one.
        title: first line of the panel.
        metrics: of ``axs_lib.metrics.stage3_metrics``; adds MSE and SSIM to the titles.
        overwrite: whether an existing file may be replaced.

    Returns:
        The path.

    Raises:
        InputError: shapes that do not belong to one tile.
        OutputError: the file exists and ``overwrite`` is false, or it cannot be written.
    """
    figure = draw_panel(
        s1=s1,
        opt_v2=opt_v2,
        opt_v3=opt_v3,
        truth=truth,
        uncertainty=uncertainty,
        title=title,
        metrics=metrics,
    )
    return _save(figure, path, overwrite)


def save_pipeline_panel(
    path: str | Path,
    *,
    s1: ArrayLike,
    opt_v1: ArrayLike,
    opt_v2: ArrayLike,
    opt_v3: ArrayLike,
    truth: ArrayLike | None = None,
    title: str = "",
    metrics: Mapping[str, float] | None = None,
    overwrite: bool = True,
) -> Path:
    """Draw what the stages of the pipeline made of one SAR tile and write it as PNG; as ``save_panel``.

    Args:
        path: the file.
        s1: (2,H,W) VV, VH in dB.
        opt_v1: (4,H,W) DN of Stage 1, in the order B02, B03, B04, B08.
        opt_v2: (4,H,W) DN of Stage 2.
        opt_v3: (4,H,W) DN of Stage 3.
        truth: (4,H,W) DN, the clear image, if known.
        title: first line of the panel.
        metrics: of ``axs_lib.metrics.compute_metrics`` with the suffixes ``_v1``, ``_v2`` and ``_v3``; adds MSE and
            SSIM to the titles.
        overwrite: whether an existing file may be replaced.

    Returns:
        The path.

    Raises:
        InputError: shapes that do not belong to one tile.
        OutputError: the file exists and ``overwrite`` is false, or it cannot be written.
    """
    figure = draw_pipeline_panel(
        s1=s1, opt_v1=opt_v1, opt_v2=opt_v2, opt_v3=opt_v3, truth=truth, title=title, metrics=metrics
    )
    return _save(figure, path, overwrite)


def _save(figure: Figure, path: str | Path, overwrite: bool) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    from axs_lib.io.atomic import atomic_write

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = np.asarray(canvas.buffer_rgba())[..., :3]
    with atomic_write(path, overwrite) as temporary:
        for bits in (8, 6, 5, 4):  # busy pictures give up shades nobody sees, until the file is small
            shades = 2**bits - 1
            rounded = np.round(np.round(picture / 255 * shades) / shades * 255).astype(np.uint8)
            Image.fromarray(rounded).save(temporary, format="PNG", compress_level=6)
            if temporary.stat().st_size <= MOST_BYTES:
                break
    return Path(path)


def draw_panel(
    *,
    s1: ArrayLike,
    opt_v2: ArrayLike,
    opt_v3: ArrayLike,
    truth: ArrayLike | None = None,
    uncertainty: ArrayLike | None = None,
    title: str = "",
    metrics: Mapping[str, float] | None = None,
) -> Figure:
    """The panel as a matplotlib figure; arguments as of ``save_panel``."""
    sar = _image("s1", s1, 2)
    size = sar.shape[1:]
    before, after = _image("opt_v2", opt_v2, 4, size), _image("opt_v3", opt_v3, 4, size)
    real = None if truth is None else _image("truth", truth, 4, size)
    change = np.abs(after - before).mean(0) / DN_PER_REFLECTANCE
    spread = None if uncertainty is None else _spread(uncertainty, size) / DN_PER_REFLECTANCE

    optical = [("opt_v2 · estimate", before, "v2"), ("opt_v3 · grounded", after, "v3")]
    if real is not None:
        optical.append((TRUTH, real, ""))
    figure, axes = _canvas(size, 2 + len(optical), title)
    _show_views(axes, sar, optical, before if real is None else real, metrics)
    _map(figure, axes[0, -1], change, "magma", "change |v3 − v2|")
    if spread is not None:
        _map(figure, axes[1, -1], spread, "viridis", "uncertainty (1 std)")
    elif real is not None:
        removed = (np.abs(before - real) - np.abs(after - real)).mean(0) / DN_PER_REFLECTANCE
        _map(figure, axes[1, -1], removed, "RdBu", "error removed (red: added)", centred=True)
    else:
        axes[1, -1].set_axis_off()
    return figure


def draw_pipeline_panel(
    *,
    s1: ArrayLike,
    opt_v1: ArrayLike,
    opt_v2: ArrayLike,
    opt_v3: ArrayLike,
    truth: ArrayLike | None = None,
    title: str = "",
    metrics: Mapping[str, float] | None = None,
) -> Figure:
    """The panel as a matplotlib figure; arguments as of ``save_pipeline_panel``."""
    sar = _image("s1", s1, 2)
    size = sar.shape[1:]
    drawn, refined = _image("opt_v1", opt_v1, 4, size), _image("opt_v2", opt_v2, 4, size)
    grounded = _image("opt_v3", opt_v3, 4, size)
    optical = [
        ("opt_v1 · drawn", drawn, "v1"),
        ("opt_v2 · refined", refined, "v2"),
        ("opt_v3 · grounded", grounded, "v3"),
    ]
    if truth is not None:
        optical.append((TRUTH, _image("truth", truth, 4, size), ""))
    figure, axes = _canvas(size, 1 + len(optical), title)
    _show_views(axes, sar, optical, refined if truth is None else optical[-1][1], metrics)
    return figure


def plot_panel(
    result: Result | str | os.PathLike[str] | Mapping[str, Any],
    *,
    title: str | None = None,
    metrics: Mapping[str, float] | None = None,
) -> Figure:
    """The panel of a result, for notebooks: of Stage 3, or with opt_v1 of the pipeline.

    Args:
        result: a saved result (``axs_lib.io.saved``), the path of one, or images by name: ``s1`` (or ``s1_vv`` and
            ``s1_vh``), ``opt_v2``, ``opt_v3``, and as far as known ``opt_v1``, ``truth`` (or ``s2_real``) and
            ``uncertainty``, as arrays or tensors of one tile; other names are ignored.
        title: first line; by default the saved result's name.
        metrics: as of ``save_panel`` or ``save_pipeline_panel``; by default measured where the truth is known.

    Returns:
        A figure that a notebook shows.

    Raises:
        InputError: SAR, opt_v2 or opt_v3 is missing, shapes that do not belong to one tile, or an unreadable file.
    """
    from axs_lib.io.saved import Result, read_results

    if isinstance(result, str | os.PathLike):
        result = next(read_results(result))
    name = result.name if isinstance(result, Result) else ""
    images = dict(result.layers if isinstance(result, Result) else result)
    if "s1" not in images and {"s1_vv", "s1_vh"} <= set(images):
        images["s1"] = np.stack([np.squeeze(images["s1_vv"]), np.squeeze(images["s1_vh"])])
    truth = next((images[key] for key in TRUTH_KEYS if images.get(key) is not None), images.get("truth"))
    missing = [key for key in ("s1", "opt_v2", "opt_v3") if images.get(key) is None]
    if missing:
        raise InputError(
            f"the result has no {', '.join(missing)}; a panel needs s1 (2,H,W), opt_v2 and opt_v3 (4,H,W)"
        )
    stages = {key: images[key] for key in ("opt_v1", "opt_v2", "opt_v3") if images.get(key) is not None}
    if metrics is None and truth is not None:
        metrics = _measure(images["s1"], stages, truth)
    common = {
        "s1": images["s1"],
        "truth": truth,
        "title": name if title is None else title,
        "metrics": metrics,
    }
    if "opt_v1" in stages:
        return draw_pipeline_panel(**stages, **common)
    return draw_panel(**stages, **common, uncertainty=images.get("uncertainty"))


def _measure(s1: ArrayLike, stages: Mapping[str, ArrayLike], truth: ArrayLike) -> dict[str, float]:
    import torch

    from axs_lib.metrics import compute_metrics, stage3_metrics

    sar = torch.from_numpy(_image("s1", s1, 2))
    images = {name: torch.from_numpy(_image(name, image, 4)) for name, image in stages.items()}
    real = torch.from_numpy(_image("truth", truth, 4))
    measured = stage3_metrics(images["opt_v3"], images["opt_v2"], real, s1=sar)
    if "opt_v1" in images:
        measured |= {
            f"{key}_v1": value for key, value in compute_metrics(images["opt_v1"], real, s1=sar).items()
        }
    return measured


def _canvas(size: tuple[int, ...], columns: int, title: str) -> tuple[Figure, NDArray[np.object_]]:
    """A figure of two rows of views of this size, and its axes (2,columns)."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    aspect = min(max(size[0] / size[1], 0.4), 2.5)
    header = TITLE_INCHES if title else 0.0
    height = 2 * (CELL_INCHES * aspect + HEADING_INCHES) + header
    figure = Figure(
        dpi=DOTS_PER_INCH,
        figsize=(columns * CELL_INCHES + BAR_INCHES, height),
        layout=ConstrainedLayoutEngine(
            w_pad=0.05, h_pad=0.03, wspace=0.01, hspace=0.0, rect=(0, 0, 1, 1 - header / height)
        ),
    )
    if title:
        figure.text(0.5, 1 - 0.17 / height, title, fontsize=13, fontweight="bold", ha="center", va="center")
    return figure, figure.subplots(2, columns)


def _show_views(
    axes: NDArray[np.object_],
    sar: Array,
    optical: Sequence[tuple[str, Array, str]],
    reference: Array,
    metrics: Mapping[str, float] | None,
) -> None:
    """SAR, then the optical images (name, DN, suffix of its figures) in true colour, and below in false colour.

    All share the stretch of ``reference``.
    """
    _show(axes[0, 0], sar_colour(sar), "SAR", "red VV, green VH, blue VV − VH")
    _show(axes[1, 0], grey(sar[0]), "SAR", "VV (dB)")
    for row, bands, kind in (
        (0, TRUE_COLOUR, "true colour"),
        (1, FALSE_COLOUR, "false colour: NIR, red, green"),
    ):
        stretch = stretch_of(reference, bands)
        for column, (name, image, suffix) in enumerate(optical, start=1):
            subtitle = (_figures(metrics, suffix) or kind) if row == 0 else kind
            _show(axes[row, column], optical_colour(image, bands, stretch), name, subtitle)


def _image(name: str, image: ArrayLike, bands: int, size: tuple[int, ...] | None = None) -> Array:
    """One tile as (bands,H,W) float64, from an array or a tensor on any device, also a batch of one."""
    detach = getattr(image, "detach", None)
    values = np.asarray(detach().cpu() if detach is not None else image, dtype=np.float64)
    if values.ndim == 4 and values.shape[0] == 1:
        values = values[0]
    if values.ndim != 3 or values.shape[0] != bands or values.size == 0:
        raise InputError(f"{name} has shape {values.shape}; a panel needs one tile ({bands},H,W).")
    if size is not None and values.shape[1:] != size:
        raise InputError(f"{name} is {values.shape[1:]} px and s1 {size}; a panel needs one grid.")
    return values


def _spread(uncertainty: ArrayLike, size: tuple[int, ...]) -> Array:
    detach = getattr(uncertainty, "detach", None)
    values = np.asarray(detach().cpu() if detach is not None else uncertainty, dtype=np.float64)
    while values.ndim > 2:
        values = values.mean(0)
    if values.shape != size:
        raise InputError(f"uncertainty is {values.shape} px and s1 {size}; a panel needs one grid.")
    return values


def _figures(metrics: Mapping[str, float] | None, suffix: str) -> str:
    """Second line of a title: the image's own figures, and for opt_v3 what it gained."""
    if not metrics or f"mse_{suffix}" not in metrics:
        return ""
    text = f"MSE {metrics[f'mse_{suffix}'] * 1e4:.2f}·10⁻⁴"
    if suffix == "v3" and np.isfinite(metrics.get("mse_improvement_%", np.nan)):
        change = f"{-metrics['mse_improvement_%']:+.1f}".replace("-", "−")
        text += f" ({change} %)"
    if np.isfinite(metrics.get(f"ssim_{suffix}", np.nan)):
        text += f" · SSIM {metrics[f'ssim_{suffix}']:.3f}"
    return text


def _show(axes: Axes, image: Array, title: str, subtitle: str) -> None:
    step = -(-max(image.shape[:2]) // MOST_PIXELS)
    axes.imshow(image[::step, ::step], interpolation="nearest")
    _dress(axes, title, subtitle)


def _map(
    figure: Figure, axes: Axes, layer: Array, palette: str, title: str, *, centred: bool = False
) -> None:
    """A scalar map in reflectance with its colour bar."""
    from matplotlib import colormaps

    top = top_of(layer)
    colours = colormaps[palette].with_extremes(bad=(NODATA_GREY,) * 3)
    step = -(-max(layer.shape) // MOST_PIXELS)
    drawn = axes.imshow(
        np.ma.masked_invalid(layer[::step, ::step]),
        cmap=colours,
        vmin=-top if centred else 0.0,
        vmax=top,
        interpolation="nearest",
    )
    bar = figure.colorbar(drawn, ax=axes, fraction=0.046, pad=0.03)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_linewidth(0.5)
    _dress(axes, title, "mean over the bands, reflectance")


def _dress(axes: Axes, title: str, subtitle: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_linewidth(0.5)
    axes.set_title(title, fontsize=10.5, fontweight="bold", loc="left", pad=17)
    axes.text(0, 1.02, subtitle, transform=axes.transAxes, fontsize=8.5, color="0.25", ha="left", va="bottom")
