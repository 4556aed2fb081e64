"""Draw one tile in true and false colour, of one stretch: what Stage 3 did to it, or the stages made of its SAR."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import ArrayLike, NDArray

from axs_lib.errors import InputError
from axs_lib.evaluate import colour
from axs_lib.evaluate.colour import Array
from axs_lib.evaluate.measured import measure_layers
from axs_lib.io.raster import TRUTH_KEYS
from axs_lib.io.saved import LAYERS, Result, read_results

CELL_INCHES = 2.75
HEADING_INCHES = 0.46
TITLE_INCHES = 0.34
BAR_INCHES = 0.55
MOST_PIXELS = 480  # a view is thinned to this, so that the file stays small


def plot_panel(
    result: Result | str | os.PathLike[str] | Mapping[str, Any],
    *,
    title: str | None = None,
    metrics: Mapping[str, float] | None = None,
) -> Figure:
    """The panel of a result, for notebooks: a figure of Stage 3, or with opt_v1 of the pipeline.

    ``result`` is a saved result (``axs_lib.io.saved``), the path of one, or images by name: ``s1`` (or ``s1_vv`` and
    ``s1_vh``), ``opt_v2``, ``opt_v3``, and as far as known ``opt_v1``, ``truth`` (or ``s2_real``), ``trust`` and
    ``uncertainty``, as arrays or tensors of one tile; other names are ignored. ``title`` is by default the saved
    result's name; ``metrics``, MSE and SSIM with suffixes ``_v1``, ``_v2``, ``_v3``, are measured where truth is known.

    ``InputError``: SAR, opt_v2 or opt_v3 is missing, the shapes do not belong to one tile, or the file is unreadable.
    """
    if isinstance(result, str | os.PathLike):
        result = next(read_results(result))
    name = result.name if isinstance(result, Result) else ""
    given = dict(result.layers if isinstance(result, Result) else result)
    if "s1" not in given and {"s1_vv", "s1_vh"} <= set(given):
        given["s1"] = np.stack([np.squeeze(given["s1_vv"]), np.squeeze(given["s1_vh"])])
    given["truth"] = next((given[key] for key in TRUTH_KEYS if given.get(key) is not None), given.get("truth"))
    if missing := [key for key in ("s1", "opt_v2", "opt_v3") if given.get(key) is None]:
        raise InputError(f"the result has no {', '.join(missing)}; a panel needs s1 (2,H,W), opt_v2 and opt_v3 (4,H,W)")
    size = _image("s1", given["s1"], len(LAYERS["s1"])).shape[1:]
    layers = {
        key: _image(key, given[key], len(bands), size) for key, bands in LAYERS.items() if given.get(key) is not None
    }
    measured = measure_layers(layers) if metrics is None else None
    figures = metrics if measured is None else measured.metrics
    return _draw(layers, name if title is None else title, figures)


def _draw(layers: Mapping[str, Array], title: str, metrics: Mapping[str, float] | None) -> Figure:
    """SAR, then the optical images in true colour and below in false colour, then maps of what Stage 3 did."""
    named = colour.labels_of(layers).items()
    optical = [(label, layers[key], key.removeprefix("opt_")) for key, label in named if key in layers]
    reference = layers.get("truth", np.concatenate([layers["opt_v2"], layers["opt_v3"]], axis=1))
    from_sar = "opt_v1" in layers
    figure, axes = _canvas(layers["opt_v3"].shape[1:], len(optical) + (1 if from_sar else 2), title)
    _show(axes[0, 0], colour.sar_colour(layers["s1"]), "SAR", "red VV, green VH, blue VV − VH")
    _show(axes[1, 0], colour.grey(layers["s1"][0]), "SAR", "VV (dB)")
    kinds = {"true colour": colour.TRUE_COLOUR, "false colour: NIR, red, green": colour.FALSE_COLOUR}
    for row, (kind, bands) in enumerate(kinds.items()):
        stretch = colour.stretch_of(reference, bands)
        for column, (name, image, suffix) in enumerate(optical, start=1):
            subtitle = (_figures(metrics, suffix) or kind) if row == 0 else kind
            _show(axes[row, column], colour.optical_colour(image, bands, stretch), name, subtitle)
    if from_sar:
        return figure
    maps = colour.difference_maps(layers)
    _map(figure, axes[0, -1], maps["change"], "magma", "change |v3 − v2|")
    if "uncertainty" in maps:
        _map(figure, axes[1, -1], maps["uncertainty"], "viridis", "uncertainty (1 std)")
    elif "removed" in maps:
        _map(figure, axes[1, -1], maps["removed"], "RdBu", "error removed (red: added)", centred=True)
    else:
        axes[1, -1].set_axis_off()
    return figure


def _canvas(size: tuple[int, ...], columns: int, title: str) -> tuple[Figure, NDArray[np.object_]]:
    """A figure of two rows of views of this size, and its axes (2,columns)."""
    aspect = min(max(size[0] / size[1], 0.4), 2.5)
    header = TITLE_INCHES if title else 0.0
    height = 2 * (CELL_INCHES * aspect + HEADING_INCHES) + header
    layout = ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.03, wspace=0.01, hspace=0, rect=(0, 0, 1, 1 - header / height))
    figure = Figure(dpi=100, figsize=(columns * CELL_INCHES + BAR_INCHES, height), layout=layout)
    if title:
        figure.text(0.5, 1 - 0.17 / height, title, fontsize=13, fontweight="bold", ha="center", va="center")
    return figure, figure.subplots(2, columns)


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


def _show(axes: Axes, image: Array, title: str, subtitle: str, **colours: Any) -> Any:
    step = -(-max(image.shape[:2]) // MOST_PIXELS)
    drawn = axes.imshow(image[::step, ::step], interpolation="nearest", **colours)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_linewidth(0.5)
    axes.set_title(title, fontsize=10.5, fontweight="bold", loc="left", pad=17)
    axes.text(0, 1.02, subtitle, transform=axes.transAxes, fontsize=8.5, color="0.25", ha="left", va="bottom")
    return drawn


def _map(figure: Figure, axes: Axes, layer: Array, palette: str, title: str, *, centred: bool = False) -> None:
    """A scalar map in reflectance with its colour bar."""
    top = colour.top_of(layer)
    colours = colormaps[palette].with_extremes(bad=(colour.NODATA_GREY,) * 3)
    scale = {"cmap": colours, "vmin": -top if centred else 0.0, "vmax": top}
    drawn = _show(axes, np.ma.masked_invalid(layer), title, "mean over the bands, reflectance", **scale)
    bar = figure.colorbar(drawn, ax=axes, fraction=0.046, pad=0.03)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_linewidth(0.5)
